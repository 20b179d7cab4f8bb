"""Where a run came from: hashes of recipe and model, the chain of parents, and what has changed since."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructkit.errors import InputError
from instructkit.runs.files import plain
from instructkit.runs.pointer import beside, is_chain
from instructkit.runs.read import is_run, read_record, read_run

# What makes up a model; records, logs, optimizer states and pickled arguments do not.
MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".gguf", ".py"}
WEIGHT_SUFFIXES = {".safetensors", ".gguf"}
# The last two say what became of an update's events, and what its chain is told of it.
NOT_THE_MODEL = {"run.json", "trainer_state.json", "preprocess.json", "entry.json"}
CHUNK_BYTES = 1 << 20
WITHOUT_EFFECT = ("output", "max_minutes")  # keys of a recipe's `run:` section that do not affect the result


def recipe_hash(recipe: dict[str, Any]) -> str:
    """Return the SHA-256 of a resolved recipe in canonical JSON, without keys that do not affect the result."""
    text = json.dumps(plain(_effective(recipe)), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def recipe_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the dotted keys that differ between two resolved recipes and affect the result."""
    before, after = _flat(plain(_effective(old))), _flat(plain(_effective(new)))
    missing = object()
    return sorted(key for key in {*before, *after} if before.get(key, missing) != after.get(key, missing))


def run_hash(path: str | Path) -> str:
    """
    SHA-256 over what a child inherits: the model files, the hash of the recipe, the fingerprints of the data.

    Raises:
        InputError: when the folder is no run.
    """
    record = read_record(path)
    digest = hashlib.sha256()
    fingerprints = {role: data.get("fingerprint") for role, data in record["data"].items()}
    digest.update(json.dumps([record["recipe_hash"], fingerprints], sort_keys=True).encode("utf-8"))
    for file in model_files(path):
        digest.update(f"\0{file.relative_to(path).as_posix()}\0{file_hash(file)}".encode())
    return digest.hexdigest()


def folder_hash(path: Path) -> str:
    """Return a SHA-256 over the names and contents of the files that make up the model of a folder."""
    digest = hashlib.sha256()
    for file in model_files(path):
        digest.update(f"\0{file.relative_to(path).as_posix()}\0{file_hash(file)}".encode())
    return digest.hexdigest()


def model_files(path: str | Path) -> list[Path]:
    """The files that make up the model of a run folder, in a fixed order; no checkpoints, no hidden files."""
    root = Path(path)
    found = (
        file for file in root.rglob("*") if file.suffix in MODEL_SUFFIXES and file.name not in NOT_THE_MODEL
    )
    return sorted(file for file in found if file.is_file() and not _set_aside(file.relative_to(root)))


def chain(path: str | Path) -> list[dict[str, Any]]:
    """
    The record of a run and of all runs it descends from, parents before children, each once.

    Each record also has `path`, and `stale`: sentences on parents that are gone or are not what they were.

    Raises:
        InputError: when `path` is no run.
    """
    ordered: dict[Path, dict[str, Any]] = {}
    _visit(Path(path), ordered, {})
    return list(ordered.values())


def list_runs(root: str | Path) -> list[dict[str, Any]]:
    """All runs at or below a folder, oldest first; left out are hidden folders, what is inside a run, and copies in chains."""
    found: list[dict[str, Any]] = []
    waiting = [Path(root)]
    while waiting:
        folder = waiting.pop()
        if is_run(folder):
            found.append(_read_or_explain(folder))
        elif folder.is_dir() and not is_chain(folder):
            waiting += [item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")]
    return sorted(found, key=lambda run: (run.get("started") or "", run["path"]))


@dataclass(frozen=True)
class RunIdentity:
    """
    Everything that affects the result of a run; computed once, stored in its record, and compared with it later.

    Attributes:
        recipe: the resolved recipe.
        data: fingerprint of the rows, by role.
        parents: hash of each parent, by role.
        sources: SHA-256 of each other input, such as the source of a reward function, by its name.
    """

    recipe: dict[str, Any]
    data: dict[str, str]
    parents: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)

    def as_record(self, data: dict[str, Any], parents: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a run record, given its other figures about data and parents."""
        return {
            "data": data,
            "parents": {role: {**parents[role], "hash": value} for role, value in self.parents.items()},
            "sources": self.sources,
        }

    def changes(self, record: dict[str, Any]) -> list[str]:
        """Return what has changed since a run record was written, one line for each kind of input that it has."""
        differences: list[tuple[str, list[str]]] = []
        if record["data"]:
            data = {role: item.get("fingerprint") for role, item in record["data"].items()}
            parents = {role: item.get("hash") for role, item in record["parents"].items()}
            differences += [
                ("data", _differing(data, self.data)),
                ("parent", self._other_parents(parents, record)),
            ]
            if (sources := record.get("sources")) is not None:  # earlier versions kept none
                differences.append(("source", _differing(sources, self.sources)))
        differences.append(("recipe", recipe_changes(record["recipe"], self.recipe)))
        return [f"the {what} has changed: {_few(names)}" for what, names in differences if names]

    def _other_parents(self, before: dict[str, Any], record: dict[str, Any]) -> list[str]:
        """Return the roles of parents that differ; the hash of its files identifies a plain folder that only moved."""
        known = {*self.sources} & {*(record.get("sources") or {})}
        return [
            role
            for role in _differing(before, self.parents)
            if base_key(role) not in known or not _are_plain(before.get(role), self.parents.get(role))
        ]


def unchanged(path: str | Path, identity: RunIdentity) -> str | None:
    """
    Say why a run must be made again.

    Args:
        path: the run folder.
        identity: of the requested run.

    Returns:
        The reason in words; None when the run is finished and its files and everything that affects it are unchanged.
    """
    if not is_run(path):
        return "no run there yet"
    try:
        run = read_run(path)
    except InputError as error:
        return str(error)
    if run["status"] != "done":
        return f"the last run is not finished ({run['status']})"
    return "; ".join(identity.changes(run)) or _damage(Path(path), run)


def refuse_other_inputs(path: str | Path, identity: RunIdentity) -> None:
    """
    Refuse to resume a run when anything that affects its result has changed since it started.

    Args:
        path: the run folder; a missing or finished run is not refused.
        identity: of the requested run.

    Raises:
        InputError: naming everything that has changed.
    """
    record = read_record(path) if is_run(path) else {}
    if not record or record["status"] == "done":
        return
    if changes := identity.changes(record):
        raise InputError(
            f"{path} cannot be resumed: since it started, {'; '.join(changes)}",
            hint="undo these changes, or start again with --overwrite",
        )


def base_key(role: str) -> str:
    """Return the name, among `RunIdentity.sources`, of the files of a parent's base model."""
    return f"{role}: base model files"


def _are_plain(*hashes: str | None) -> bool:
    return all((value or "").startswith("model:") for value in hashes)


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _damage(path: Path, run: dict[str, Any]) -> str | None:
    if not any(file.suffix in WEIGHT_SUFFIXES for file in model_files(path)):
        return "its model files are gone"
    if run.get("hash") != run_hash(path):
        return "its model files are not those that the run wrote"
    return None


def _visit(path: Path, ordered: dict[Path, dict[str, Any]], hashes: dict[Path, str]) -> None:
    if path.resolve() in ordered:
        return
    run = read_run(path)
    stale = []
    # Its place is kept while its parents are visited, so that a damaged record that names itself ends.
    ordered[path.resolve()] = run
    for role, parent in run["parents"].items():
        if str(parent.get("hash") or "").startswith("model:"):
            continue
        folder = find_parent(path, parent, hashes)
        if folder is None:
            stale.append(f"its {role} {parent['path']} is not there any more")
            continue
        _visit(folder, ordered, hashes)
        if _cached_hash(folder, hashes) != parent.get("hash"):
            stale.append(f"its {role} {parent['path']} has been trained again since")
    del ordered[path.resolve()]
    ordered[path.resolve()] = {**run, "stale": stale}


def place_of(name: str, child: Path) -> dict[str, str]:
    """Return the place of a parent: as named in the recipe and, for a path, also relative to its child."""
    if not Path(name).exists():
        return {"path": name}
    return {"path": name, "relative": os.path.relpath(Path(name).resolve(), child.resolve())}


def find_parent(child: Path, parent: dict[str, Any], hashes: dict[Path, str] | None = None) -> Path | None:
    """
    Return the folder of a parent run, also after both were moved or copied; None when it is missing.

    Prefer a run with the recorded hash, at the recorded place or among the same runs. Else return the run at that place.

    Args:
        parent: the parent, from the record of its child.
        hashes: known hashes of runs.
    """
    hashes = {} if hashes is None else hashes
    moved = beside(child, parent["path"])
    places = [child / parent["relative"]] if "relative" in parent else []
    places += [moved, Path(parent["path"])]  # the named one last: of a copy it is the original
    runs = [place for place in places if is_run(place)]
    for place in runs:
        if _cached_hash(place, hashes) == parent.get("hash"):
            return place
    return _renamed(moved.parent, Path(parent["path"]).name, parent.get("hash")) or (
        runs[0] if runs else None
    )


def _renamed(root: Path, name: str, wanted: str | None) -> Path | None:
    """Return the run in a folder that was written under a name and with a hash; None where there is none."""
    for place in sorted(root.iterdir()) if wanted and root.is_dir() else []:
        record = _read_or_explain(place) if is_run(place) and not place.name.startswith(".") else {}
        if (record.get("name"), record.get("hash")) == (name, wanted):
            return place
    return None


def base_in_lineage(run: Path) -> Path | None:
    """Return the folder of the base weights of a run's adapter, by way of its parents; None when it is missing."""
    while is_run(run) and (parent := read_record(run)["parents"].get("model")):
        if str(parent.get("hash") or "").startswith("model:"):
            places = [Path(parent["path"]), run / parent.get("relative", parent["path"])]
            return next((place for place in places if (place / "config.json").is_file()), None)
        folder = find_parent(run, parent)
        if folder is None or (folder / "config.json").is_file():
            return folder
        run = folder
    return None


def _cached_hash(folder: Path, hashes: dict[Path, str]) -> str:
    key = folder.resolve()
    if key not in hashes:
        hashes[key] = run_hash(folder)
    return hashes[key]


def _read_or_explain(folder: Path) -> dict[str, Any]:
    """One unreadable record must not hide all other runs."""
    try:
        return read_run(folder)
    except InputError as error:
        return {"name": folder.name, "path": str(folder), "status": "unreadable", "error": str(error)}


def _effective(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe without the keys that do not affect the result."""
    run = {key: value for key, value in (recipe.get("run") or {}).items() if key not in WITHOUT_EFFECT}
    return {**recipe, "run": run}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    items = (_flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
    return {key: item for part in items for key, item in part.items()}


def _few(names: list[str], limit: int = 5) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _set_aside(relative: Path) -> bool:
    hidden = any(part.startswith((".", "checkpoint-")) for part in relative.parts)
    return hidden or relative.name in NOT_THE_MODEL


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()

"""Where a run came from: hashes of recipe and model, the chain of parents, and what has changed since."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from instructkit.errors import InputError
from instructkit.runs.chains import beside, is_chain
from instructkit.runs.files import plain
from instructkit.runs.reading import is_run, read_record, read_run

# What makes up a model; records, logs, optimizer states and pickled arguments do not.
MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".gguf", ".py"}
WEIGHT_SUFFIXES = {".safetensors", ".gguf"}
# The last two say what became of an update's events, and what its chain is told of it.
NOT_THE_MODEL = {"run.json", "trainer_state.json", "preprocess.json", "entry.json"}
CHUNK_BYTES = 1 << 20


def recipe_hash(recipe: dict[str, Any]) -> str:
    """SHA-256 of a resolved recipe in canonical JSON, without `run.output`: a copy elsewhere is the same."""
    text = json.dumps(
        plain(_without_output(recipe)), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def recipe_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted names of the keys that differ between two resolved recipes, `run.output` left out."""
    before, after = _flat(plain(_without_output(old))), _flat(plain(_without_output(new)))
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
        digest.update(f"\0{file.relative_to(path).as_posix()}\0{_file_hash(file)}".encode())
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


def unchanged(
    path: str | Path, recipe: dict[str, Any], data: dict[str, str], parents: dict[str, str]
) -> str | None:
    """
    Say why a run must be made again.

    Args:
        path: the run folder.
        recipe: the resolved recipe now.
        data: fingerprint of the data now, by role.
        parents: hash of each parent now, by role.

    Returns:
        The reason in words; None when it is finished and recipe, data, parents and files are as they were.
    """
    if not is_run(path):
        return "no run there yet"
    try:
        run = read_run(path)
    except InputError as error:
        return str(error)
    if run["status"] != "done":
        return f"the last run is not finished ({run['status']})"
    changes = recipe_changes(run["recipe"], recipe)
    if changes:
        return f"the recipe has changed: {_few(changes)}"
    return _other_inputs(run, data, parents) or _damage(Path(path), run)


def refuse_other_inputs(path: str | Path, data: dict[str, str], parents: dict[str, str]) -> None:
    """
    Refuse to go on with a run on other rows, or above another parent, than it was begun with.

    Args:
        path: the run folder; where there is no run, or one that ended before it had read anything, nothing is said.
        data: fingerprint of the data now, by role.
        parents: hash of each parent now, by role.

    Raises:
        InputError: naming what has changed.
    """
    record = read_record(path) if is_run(path) else {}
    if not record.get("data") or record["status"] == "done":
        return
    if reason := _other_inputs(record, data, parents):
        raise InputError(
            f"{path} cannot be resumed: since it was begun, {reason}",
            hint="put it back as it was, or start anew with --overwrite",
        )


def _other_inputs(run: dict[str, Any], data: dict[str, str], parents: dict[str, str]) -> str | None:
    fingerprints = {role: item.get("fingerprint") for role, item in run["data"].items()}
    hashes = {role: item.get("hash") for role, item in run["parents"].items()}
    for what, before, now in (("data", fingerprints, data), ("parent", hashes, parents)):
        roles = sorted(role for role in {*before, *now} if before.get(role) != now.get(role))
        if roles:
            return f"the {what} has changed: {_few(roles)}"
    return None


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
        folder = _find_parent(path, parent["path"])
        if folder is None:
            stale.append(f"its {role} {parent['path']} is not there any more")
            continue
        _visit(folder, ordered, hashes)
        if _cached_hash(folder, hashes) != parent.get("hash"):
            stale.append(f"its {role} {parent['path']} has been trained again since")
    del ordered[path.resolve()]
    ordered[path.resolve()] = {**run, "stale": stale}


def _find_parent(child: Path, name: str) -> Path | None:
    """A parent by the name the recipe gave it; else where a copied `runs` folder has it."""
    for candidate in (Path(name), beside(child, name)):
        if is_run(candidate):
            return candidate
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


def _without_output(recipe: dict[str, Any]) -> dict[str, Any]:
    run = {key: value for key, value in (recipe.get("run") or {}).items() if key != "output"}
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


def _file_hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()

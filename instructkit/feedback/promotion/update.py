"""One update as a registry keeps it: its decision, the events it was made of, and a copy of its adapter."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instructkit.errors import GateRefused, InputError
from instructkit.evaluate.gates import PROMOTED, REFUSED, stands_against
from instructkit.runs import lineage
from instructkit.runs.files import plain, sync_folder
from instructkit.runs.read import RECORD, is_run, read_run

ROLES = ("trained", "test", "standing")


@dataclass(frozen=True)
class Update:
    """
    A finished update.

    Attributes:
        run, run_hash: its run folder, and the hash of what lies there.
        parent, parent_hash: the model that it stands on.
        verdict: PROMOTED or REFUSED, as the gates said.
        gates: each as the run record keeps it.
        recipe_hash: of the resolved recipe.
        fingerprint: of the events.
        outcomes: events by what became of them; they add up to all that came in.
        trained: ids of every event that the adapter learned from, those too for which another event stands.
        test: ids of the events that the decision was made on.
        standing: of `trained`, the ids of the events that stand for what was learned; those merged into them are not among these.
        newest: id of the last event that was read, which had consent and was not withdrawn; None where events are of no store.
        scale: of the adapter, 1 where it was not rescued.
        continues: number of the update whose adapter this one went on from; None: the one whose hash is the parent's, if any.
        look: which look at its test events the level of its decision was that of; None where it is not known.
        in_force: number of the adapter that it was measured against, 0 for the parent itself; None where it is not known.
        id: names this update for ever, so that it is entered once; empty: it is entered whenever it is asked for.
    """

    run: str
    run_hash: str
    parent: str
    parent_hash: str
    verdict: str
    gates: list[dict[str, Any]]
    recipe_hash: str
    fingerprint: str
    outcomes: dict[str, int]
    trained: Collection[str]
    test: Collection[str]
    newest: str | None = None
    scale: float = 1.0
    continues: int | None = None
    id: str = ""
    standing: Collection[str] = ()
    look: int | None = None
    in_force: int | None = None

    @classmethod
    def of(cls, run: str | Path, *, fingerprint: str, outcomes: dict[str, int], **said: Any) -> Update:
        """
        The update that a finished run made; everything that its record holds is taken from there.

        Args:
            run: the run folder, completed.
            fingerprint, outcomes, said: the attributes that no run record has.

        Raises:
            InputError: when the run is not finished, or has decided nothing.
        """
        record = read_run(run)
        if record["status"] != "done" or record["verdict"] not in (PROMOTED, REFUSED):
            raise InputError(
                f"{run} is no finished update: its status is {record['status']}, its verdict {record['verdict']}",
                hint="`instructkit lora-update` makes updates",
            )
        parent = record["parents"]["model"]
        return cls(
            *(str(run), record["hash"], parent["path"], parent["hash"], record["verdict"], record["gates"]),
            *(record["recipe_hash"], fingerprint, outcomes),
            **{"look": (record.get("look") or {}).get("number"), **said},
        )

    def as_entry(self) -> dict[str, Any]:
        """What a history keeps of it; the ids of events lie in files of their own."""
        return {name: value for name, value in asdict(self).items() if name not in ROLES}


def failed_gates(update: dict[str, Any]) -> list[dict[str, Any]]:
    """The gates of an update's entry that stand against it."""
    return [gate for gate in update["gates"] if stands_against(gate, update)]


def folder_name(number: int) -> str:
    """`001`: the name of an adapter's folder, and what names of its files begin with."""
    return f"{number:03d}"


def write_ids(path: Path, ids: Iterable[str]) -> dict[str, Any]:
    """Write ids, sorted and each once, as compressed lines of JSON; say how many, and the SHA-256 of the file."""
    fresh, count = path.parent / f".{path.name}.new", 0
    with fresh.open("wb") as file:
        # No name and no time inside: the same ids are the same bytes.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            for id_ in sorted(set(ids)):
                packed.write(json.dumps(id_).encode("ascii") + b"\n")
                count += 1
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)
    return {"count": count, "sha256": _hash_of_file(path)}


def read_ids(path: Path, about: dict[str, Any]) -> Iterator[str]:
    """
    The ids of a file, one in memory at a time.

    Args:
        about: what `write_ids` said of the file.

    Raises:
        InputError: when the file is gone, or not the one that was written.
    """
    if not path.is_file() or _hash_of_file(path) != about["sha256"]:
        raise InputError(
            f"{path} is {'not what was written' if path.is_file() else 'not there any more'}",
            hint="restore the file from a copy: it says which events an update was made of",
        )
    with gzip.open(path, "rb") as packed:
        for line in packed:
            yield json.loads(line)


def copy_model(run: str, run_hash: str, *, root: Path, target: Path) -> None:
    """
    Copy a run's model files and its record to `target`, whole or not at all; a copy that is there already stays.

    Args:
        run, run_hash: the run folder as it was named, and the hash that the copy must have.
        root: where runs lie, should the folder not be found by its name.

    Raises:
        InputError: when the run is gone or was made anew, or the copy that is there is not whole.
    """
    if target.exists():
        refuse_changed(target, run_hash, again=f"promote the update again from its run {run}")
        return
    source, fresh = _source(run, run_hash, root), target.parent / f".{target.name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    for file in [*lineage.model_files(source), source / RECORD]:
        _copy(file, fresh / file.relative_to(source))
    if lineage.run_hash(fresh) != run_hash:
        raise InputError(f"{source} was changed while it was copied", hint="try again when nothing writes it")
    fresh.rename(target)
    sync_folder(target.parent)


def refuse_changed(folder: Path, run_hash: str, *, again: str) -> None:
    """
    Refuse the copy of a promoted adapter that is gone, or is not what was copied.

    Args:
        again: how to go on without it, in words.

    Raises:
        InputError: when it is gone, or its files were changed or damaged.
    """
    if not folder.exists():
        raise InputError(f"{folder} is not there any more; it was promoted", hint=again)
    try:
        sound = is_run(folder) and lineage.run_hash(folder) == run_hash
    except InputError:  # its record is damaged
        sound = False
    if not sound:
        raise InputError(
            f"{folder} is not what was promoted: its files were changed or damaged",
            hint=f"delete {folder}, and {again}",
        )


def forced_past(
    update: dict[str, Any], overtaken: str | None, why: str | None, forced_by: str | None
) -> bool:
    """
    Whether a promotion goes against the gates, or against what has happened since they decided.

    Args:
        update: its entry in a history.
        overtaken: what has happened since, in words.
        why, forced_by: the reason, and who promotes it all the same; None where nobody does.

    Raises:
        GateRefused: when something stands against the update and nobody forces it.
        InputError: when it is forced without a reason.
    """
    against = []
    if update["verdict"] != PROMOTED:
        failed = "; ".join(gate.get("text") or gate["name"] for gate in failed_gates(update))
        against.append(f"update {update['number']} is REFUSED{': ' + failed if failed else ''}")
    if overtaken:
        against.append(overtaken)
    if not against:
        return False
    if forced_by is None:
        raise GateRefused(
            "; ".join(against),
            hint="`--force --why TEXT` promotes it all the same; who did and why is kept for ever",
        )
    if not (why or "").strip():
        raise InputError(
            f"{'; '.join(against)}, and forcing it needs a reason", hint="give it with --why TEXT"
        )
    return True


def _source(run: str, run_hash: str, root: Path) -> Path:
    found = [folder for folder in (Path(run), root / Path(run).name) if is_run(folder)]
    for folder in found:
        if lineage.run_hash(folder) == run_hash:
            return folder
    said = "has been made anew since, or changed" if found else "is not there any more"
    raise InputError(
        f"the run {run} {said}, so its adapter cannot be promoted",
        hint="give every update a folder of its own with run.output=FOLDER, and run this one again",
    )


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
    with target.open("rb") as copy:
        os.fsync(copy.fileno())
    sync_folder(target.parent)


def _hash_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FORMAT = 1
FIRST = "0" * 64  # what the first line has for the line before it
_BOUND = ("before", "own")


@dataclass(frozen=True)
class History:
    """
    A history as it was read.

    Attributes:
        entries: without the fields that bind them.
        last: SHA-256 of the last line.
        whole_bytes: length of the lines that are whole.
        torn: whether an unfinished line comes after them, of a writer that was killed or is writing now.
    """

    entries: list[dict[str, Any]]
    last: str = FIRST
    whole_bytes: int = 0
    torn: bool = False


def read(path: Path) -> History:
    """
    Read a history and check it, line by line; one that is not there is empty, and a torn last line is left out.

    Raises:
        InputError: naming the first line that is not as it was written.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return History([])
    *lines, rest = text.split(b"\n")
    entries, last = [], FIRST
    for number, line in enumerate(lines, start=1):
        entries.append(_checked(line, last, f"{path}:{number}"))
        last = _hash_of_line(line)
    return History(entries, last, len(text) - len(rest), bool(rest))


def append(path: Path, entry: dict[str, Any]) -> None:
    """
    Add a line and force it to disk; what is torn at the end goes.

    The caller holds the lock of the chain.

    Raises:
        InputError: when the history is not as it was written.
    """
    found = read(path)
    content = {"format": FORMAT, **plain(entry), "before": found.last}
    line = _dumped({**content, "own": _hash_of_line(_dumped(content))}) + b"\n"
    new = not path.exists()
    with path.open("ab") as file:
        file.truncate(found.whole_bytes)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def _checked(line: bytes, before: str, where: str) -> dict[str, Any]:
    """The entry of a line, when it is the one that was written after the line before."""
    try:
        entry = json.loads(line)
        sound = isinstance(entry, dict) and entry.pop("own") == _hash_of_line(_dumped(entry))
    except (ValueError, KeyError):
        sound = False
    if not sound:
        raise _damaged(f"{where} was damaged or changed after it was written")
    if entry["format"] != FORMAT:
        raise InputError(
            f"{where} has format {entry['format']}; this version reads {FORMAT}", hint="update instructkit"
        )
    if entry["before"] != before:
        raise _damaged(
            f"{where} does not belong to the line before it: a line was changed, taken out or put in"
        )
    return {name: value for name, value in entry.items() if name not in ("format", *_BOUND)}


def _damaged(message: str) -> InputError:
    return InputError(
        message,
        hint="restore the file from a copy; the adapters beside it are model folders and load as they are",
    )


def _dumped(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")


def _hash_of_line(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()

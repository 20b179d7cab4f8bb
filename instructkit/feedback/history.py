"""
A history that is only ever added to: JSON lines, each forced to disk, each bound to the line before it.

Every line holds the SHA-256 of the line before (`before`) and of its own content (`own`), so that a line that was changed, taken
out or put in is noticed. It is no signature: who computes all later hashes again is not found out by it, nor are whole lines that
are missing at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructkit.errors import InputError
from instructkit.runs.files import plain, sync_folder

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
        last = _hash(line)
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
    line = _dumped({**content, "own": _hash(_dumped(content))}) + b"\n"
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
        sound = isinstance(entry, dict) and entry.pop("own") == _hash(_dumped(entry))
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


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()

"""Reading `run.json`: what is a run, and how it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instructkit.errors import InputError
from instructkit.runs.lock import is_held

RECORD = "run.json"
FORMAT = 1


def is_run(path: str | Path) -> bool:
    """True when the folder has a run record."""
    return (Path(path) / RECORD).is_file()


def read_record(path: str | Path) -> dict[str, Any]:
    """
    The record as it is on disk.

    Raises:
        InputError: when there is none, when it is damaged, or when a newer version wrote it.
    """
    file = Path(path) / RECORD
    if not file.is_file():
        raise InputError(
            f"{path} is not a run folder: it has no {RECORD}", hint="`instructkit runs` lists the runs"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} is damaged: {error}",
            hint=f"restore the file, or delete the folder {path} and train the run again",
        ) from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{file} has record format {found}; this version reads format {FORMAT}", hint="update instructkit"
        )
    return record


def read_run(path: str | Path) -> dict[str, Any]:
    """
    The record of a run, with its folder under `path`.

    A record that says `running` while no process holds the folder belongs to a process that was killed: its
    status is given as `interrupted`.

    Raises:
        InputError: when there is no readable record.
    """
    record = {**read_record(path), "path": str(path)}
    if record["status"] == "running" and not is_held(Path(path)):
        record["status"] = "interrupted"
        record["error"] = "its process ended without closing the record (killed, or the machine stopped)"
    return record

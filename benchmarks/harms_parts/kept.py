"""The file of measured updates: a line each, with what it was made of, from which a run that was cut off goes on."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

NAME = "updates.jsonl"
SHORT = 7  # characters of a commit

Update = dict[str, Any]

_writing = threading.Lock()


def done(work: Path) -> list[Update]:
    """
    Every line that is whole; what was cut off, wherever it stands, is left out.

    Lines of before said neither overrides, parent nor commit: they are read as made without overrides, of what is not known.
    """
    kept = work / NAME
    lines = kept.read_text(encoding="utf-8").split("\n") if kept.exists() else []
    read = [_whole(line) for line in lines]
    return [{"more": [], "parent": None, "commit": None, **update} for update in read if update]


def _whole(line: str) -> Update | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def append(work: Path, update: Update) -> None:
    """Add a line; behind one that was cut off it begins a new one."""
    line = json.dumps(update).encode("ascii") + b"\n"
    with _writing, (work / NAME).open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def agreeing(updates: list[Update], more: list[str], parent: str) -> list[Update]:
    """
    The last of each set and seed that was made with these overrides above this parent, in their order.

    One whose parent is not known counts where there is no other.

    Args:
        more: overrides of the recipe.
        parent: the hash of its run.
    """
    last: dict[tuple[str, int], Update] = {}
    for update in sorted(updates, key=lambda each: each["parent"] is not None):
        if update["more"] == more and update["parent"] in (None, parent):
            last[update["name"], update["seed"]] = update
    return [update for update in updates if last.get((update["name"], update["seed"])) is update]


def commits(updates: list[Update]) -> str:
    """Which commits updates were made with, in words; one that was not all of its checkout has a +."""
    made = [_short(update["commit"]) for update in updates if update["commit"]]
    unknown, told = len(updates) - len(made), []
    if made:
        others = sum(commit != made[-1] for commit in made)
        told += [f"commit {', '.join(dict.fromkeys(made))}"]
        told += [f"{others} of them of another commit than the last"] if others else []
        if any(commit.endswith("+") for commit in made):
            told.append("+ is a commit with changes that are not in it")
    if unknown:
        told.append(f"{unknown} of them: commit unknown" if made else "commit unknown")
    return f"{len(updates)} updates: {'; '.join(told)}."


def _short(commit: str) -> str:
    return commit[:SHORT] + ("+" if commit.endswith("+") else "")

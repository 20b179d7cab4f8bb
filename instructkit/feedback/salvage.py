"""What a damaged store still tells: row by row, those that cannot be read by their numbers."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from instructkit.feedback.events import Event
from instructkit.feedback.filters import COLUMNS, event_from

ROWS = 1000  # read at once


@dataclass(frozen=True)
class Withdrawals:
    """
    What can still be read of the withdrawals.

    Attributes:
        events, raters: what was withdrawn.
        lost: numbers of the withdrawals that cannot be read; None when it is not even known how many there were.
    """

    events: frozenset[str]
    raters: frozenset[str]
    lost: tuple[int, ...] | None

    def cover(self, event: Event) -> bool:
        """Whether an event was withdrawn, by itself or with everything that its rater said."""
        return event.id in self.events or (event.rater != "" and event.rater in self.raters)


def events(db: sqlite3.Connection) -> Iterator[Event | int]:
    """
    Every event that can still be read, withdrawn or not; of one that cannot, its number.

    Raises:
        sqlite3.DatabaseError: when not even their number can be read.
    """
    last = _last(db, "event")
    if last is None:
        raise sqlite3.DatabaseError("not even the number of its events can be read")
    yield from _every(db, "event", COLUMNS, last, event_from)


def withdrawals(db: sqlite3.Connection) -> Withdrawals:
    """What can still be read of the withdrawals."""
    last = _last(db, "withdrawal")
    found = _every(db, "withdrawal", "seq, event, rater", last or 0, tuple)
    read = [each for each in found if not isinstance(each, int)]
    there = {
        number for number, *_ in read
    }  # numbers have no gaps: nothing is removed, and none is given in vain
    lost = None if last is None else tuple(n for n in range(1, last + 1) if n not in there)
    return Withdrawals(frozenset(e for _, e, _ in read if e), frozenset(r for *_, r in read if r), lost)


def damage(db: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the file, in its words, and what is lost by it; nothing for a sound one."""
    found: list[str] = []
    try:
        for (text,) in db.execute("PRAGMA integrity_check(20)"):
            found += text.splitlines()
    except sqlite3.DatabaseError as error:
        found.append(str(error))
    if found == ["ok"]:
        return []
    try:
        found += [f"event {each} cannot be read" for each in events(db) if isinstance(each, int)]
    except sqlite3.DatabaseError as error:
        found.append(str(error))
    lost = withdrawals(db).lost
    told = ["withdrawals"] if lost is None else [f"withdrawal {number}" for number in lost]
    return found + [f"{each} cannot be read" for each in told]


def _last(db: sqlite3.Connection, table: str) -> int | None:
    """The highest number that a row was given; None when it cannot be read."""
    with contextlib.suppress(sqlite3.DatabaseError):
        if found := db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone():
            return found[0] or 0
    with contextlib.suppress(sqlite3.DatabaseError):
        return db.execute(f"SELECT max(seq) FROM {table}").fetchone()[0] or 0
    return None


def _every(
    db: sqlite3.Connection, table: str, columns: str, last: int, made: Callable[[tuple[Any, ...]], Any]
) -> Iterator[Any]:
    question = f"SELECT {columns} FROM {table} WHERE seq"

    def read(first: int, last: int) -> list[Any]:
        """A range of rows; where that fails, each half of it. A range's end is found on the page behind it, one row is not."""
        try:
            if first == last:
                return [made(found) for found in db.execute(f"{question} = ?", (first,))]
            asked = db.execute(f"{question} BETWEEN ? AND ? ORDER BY seq", (first, last))
            return [made(found) for found in asked]
        except sqlite3.DatabaseError:
            if first == last:
                return [first]
            middle = (first + last) // 2
            return [*read(first, middle), *read(middle + 1, last)]

    for first in range(1, last + 1, ROWS):
        yield from read(first, min(first + ROWS - 1, last))

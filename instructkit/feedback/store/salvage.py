"""What a damaged store still tells: row by row, and those that cannot be read by their numbers."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from instructkit.feedback.store import database
from instructkit.feedback.store.database import in_words
from instructkit.feedback.store.events import Event
from instructkit.feedback.store.store import COLUMNS, Filter, Store, event_from

TABLE = (
    *(
        "seq",
        "id",
        "content_key",
        "time",
        "source",
        "rater",
        "run",
        "run_hash",
        "sampling",
        "prompt",
        "response",
    ),
    *("kind", "judgement", "tags", "segment", "consent"),
)
_LEAF = 0x0D
_HEADER_BYTES = 100  # of the file, before the first page's own
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_ODD = (ValueError, IndexError, struct.error, OverflowError)


def rows(path: Path, wanted: Collection[int], columns: str) -> dict[int, tuple[Any, ...]]:
    """
    Rows of the table of events, by their number, as far as a page has them whole.

    Args:
        path: of the store's file; what is still in the log beside it is not seen.
        wanted: their numbers.
        columns: names of columns, parted by commas.
    """
    places, found = [TABLE.index(name.strip()) for name in columns.split(",")], {}
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
        if len(head) < _HEADER_BYTES:
            return {}
        size = struct.unpack(">H", head[16:18])[0]
        pages = _Pages(file, 65_536 if size == 1 else size, head[20])
        for number, record in pages.records():
            if number in wanted and len(record) == len(TABLE) and isinstance(record[1], str):
                found[number] = tuple(record[place] for place in places)
    return found


class _Pages:
    """The pages of a file, as many as are there whole."""

    def __init__(self, file: BinaryIO, size: int, reserved: int) -> None:
        self.file, self.size, self.usable = file, size, size - reserved

    def records(self) -> Iterator[tuple[int, list[Any]]]:
        """Every row of every page of rows, whatever its table, with its number; what cannot be read is passed by."""
        number = 1
        while len(page := self.page(number)) == self.size:
            start = _HEADER_BYTES if number == 1 else 0
            if page[start] == _LEAF:
                for i in range(struct.unpack_from(">H", page, start + 3)[0]):
                    with contextlib.suppress(*_ODD):
                        yield self._cell(page, struct.unpack_from(">H", page, start + 8 + 2 * i)[0])
            number += 1

    def page(self, number: int) -> bytes:
        """A page, counted from 1; shorter at the end of the file."""
        self.file.seek((number - 1) * self.size)
        return self.file.read(self.size)

    def _cell(self, page: bytes, place: int) -> tuple[int, list[Any]]:
        length, place = _varint(page, place)
        number, place = _varint(page, place)
        local = self._local(length)
        payload = page[place : place + local]
        if local < length:
            (following,) = struct.unpack_from(">I", page, place + local)
            payload += self._overflow(following, length - local)
        if len(payload) < length:
            raise ValueError("it is not there whole")
        return number, _record(payload)

    def _local(self, length: int) -> int:
        """How many bytes of a row stand on its own page."""
        most = self.usable - 35
        if length <= most:
            return length
        least = (self.usable - 12) * 32 // 255 - 23
        fitting = least + (length - least) % (self.usable - 4)
        return fitting if fitting <= most else least

    def _overflow(self, number: int, length: int) -> bytes:
        parts = b""
        while number and len(parts) < length:
            page = self.page(number)
            if len(page) < self.size:
                break
            number = struct.unpack_from(">I", page)[0]
            parts += page[4 : self.usable][: length - len(parts)]
        return parts


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where it ends."""
    value = 0
    for i in range(9):
        byte = data[place + i]
        if i == 8:
            return value << 8 | byte, place + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + i + 1
    raise AssertionError


def _record(payload: bytes) -> list[Any]:
    """The values of a row."""
    end, place = _varint(payload, 0)
    kinds, values = [], []
    while place < end:
        kind, place = _varint(payload, place)
        kinds.append(kind)
    for kind in kinds:
        value, place = _value(payload, place, kind)
        values.append(value)
    return values


def _value(payload: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind == 0:
        return None, place
    if kind in (8, 9):
        return kind - 8, place
    if kind == 7:
        return struct.unpack_from(">d", payload, place)[0], place + 8
    length = _INTEGER_BYTES.get(kind) or (kind - 12 - kind % 2) // 2
    part = payload[place : place + length]
    if kind < 12:
        return int.from_bytes(part, "big", signed=True), place + length
    return part.decode("utf-8") if kind % 2 else part, place + length


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


class Rest(Store):
    """What is left of a store that may be damaged; a context manager."""

    @classmethod
    def of(cls, path: str | Path) -> Rest:
        """
        Open a store to see what is damaged, and to read what is left of it.

        Raises:
            InputError: as a store's `open` does; of a damaged one when not even its version can be read.
        """
        path = Path(path)
        database.prepare(path, create=False)
        with in_words(path, database.PAST_READING):
            return cls(path, *database.connect_to_the_rest(path))

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file, in its words, and what is lost by it; nothing for a sound one."""
        return _damage(self._db)

    def is_legible(self) -> bool:
        """Whether `salvage` can find anything out: it can read how many events there are."""
        return _last(self._db, "event") is not None

    def salvage(self, wanted: Filter | None = None) -> Iterator[Event | int]:
        """
        Every wanted event that can still be read; of one that cannot, its number.

        Those whose withdrawal can be read are left out, unless they are wanted too.

        Raises:
            InputError: when not even the number of events can be read.
        """
        wanted = wanted or Filter()
        taken_back = self.withdrawals_left()
        with in_words(self.path, database.PAST_READING):
            for event in self._found():
                if isinstance(event, int) or (
                    wanted.takes(event, self._hashed) and (wanted.withdrawn or not taken_back.cover(event))
                ):
                    yield event

    def _found(self) -> Iterator[Event | int]:
        """Every event, by the tree of the table or else by the pages of the file; of one that is in neither, its number."""
        by_page: dict[int, Any] | None = None  # a sound store is read once
        for each in _events(self._db):
            if isinstance(each, int):
                if by_page is None:
                    by_page = rows(self.path, self._lost(), COLUMNS)
                with contextlib.suppress(KeyError, sqlite3.DatabaseError):
                    yield event_from(by_page[each])
                    continue
            yield each

    def _lost(self) -> set[int]:
        """The numbers of the events that the tree of the table does not lead to."""
        return {each for each in _events(self._db) if isinstance(each, int)}

    def withdrawals_left(self) -> Withdrawals:
        """What of the withdrawals can still be read, and what cannot."""
        return _withdrawals(self._db)


def _events(db: sqlite3.Connection) -> Iterator[Event | int]:
    """
    Every event that can still be read, withdrawn or not; of one that cannot, its number.

    Raises:
        sqlite3.DatabaseError: when not even their number can be read.
    """
    last = _last(db, "event")
    if last is None:
        raise sqlite3.DatabaseError("not even the number of its events can be read")
    yield from _every(db, "event", COLUMNS, last, event_from)


def _withdrawals(db: sqlite3.Connection) -> Withdrawals:
    """What can still be read of the withdrawals."""
    last = _last(db, "withdrawal")
    found = list(_every(db, "withdrawal", "event, rater", last or 0, tuple))
    read = [each for each in found if not isinstance(each, int)]
    lost = None if last is None else tuple(each for each in found if isinstance(each, int))
    return Withdrawals(frozenset(e for e, _ in read if e), frozenset(r for _, r in read if r), lost)


def _damage(db: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the file, in its words, and what is lost by it; nothing for a sound one."""
    found: list[str] = []
    try:
        for (text,) in db.execute("PRAGMA integrity_check(20)"):
            found += text.splitlines()
    except sqlite3.DatabaseError as error:
        found.append(str(error))
    found = [] if found == ["ok"] else found
    try:  # what is sound to SQLite may still hold bytes that are no text
        found += [f"event {each} cannot be read" for each in _events(db) if isinstance(each, int)]
    except sqlite3.DatabaseError as error:
        found.append(str(error))
    lost = _withdrawals(db).lost
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
    """
    What is made of each row, in order; of one that cannot be read, or is not found, its number.

    Numbers have no gaps: nothing is removed, and none is given in vain. On a page that is there in part, a search can end
    at nothing without an error.
    """
    question = f"SELECT seq, {columns} FROM {table} WHERE seq"

    def read(first: int, last: int) -> dict[int, Any]:
        """A range of rows; where that fails, each half of it. A range's end is found on the page behind it, one row is not."""
        try:
            if first == last:
                asked = db.execute(f"{question} = ?", (first,))
            else:
                asked = db.execute(f"{question} BETWEEN ? AND ? ORDER BY seq", (first, last))
            return {seq: made(tuple(found)) for seq, *found in asked}
        except sqlite3.DatabaseError:
            if first == last:
                return {}
            middle = (first + last) // 2
            return read(first, middle) | read(middle + 1, last)

    for first in range(1, last + 1, ROWS):
        end = min(first + ROWS - 1, last)
        found = read(first, end)
        yield from (found.get(number, number) for number in range(first, end + 1))

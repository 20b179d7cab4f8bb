"""
Events in the pages of a store's file, found one by one where the tree that leads to them is broken.

A page of rows says by itself what it is and which rows it holds, so what lies behind a damaged inner page is still there.

Source: "Database File Format" of SQLite, sections 1.5 and 1.6 (b-tree pages, cells and their overflow) and 2.1 (records).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

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

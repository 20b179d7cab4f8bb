"""Rows of CSV files, whose cells are text."""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructkit.data.lines import (
    LONGEST_LINE_BYTES,
    NOT_UTF_8,
    Read,
    Unread,
    is_broken,
    text_lines,
    writable,
)
from instructkit.data.records import Row
from instructkit.errors import DataError, Fault

NUMBERS = ("rating", "margin", "chosen_rating", "rejected_rating")


def read_csv(path: Path) -> Iterator[Read]:
    """
    The rows of a table under the names of its header; one that cannot be read stands as a fault.

    Raises:
        DataError: when its header cannot be read.
    """
    csv.field_size_limit(LONGEST_LINE_BYTES)
    lines = _Lines(text_lines(path))
    reader, header = csv.reader(lines, strict=True), None
    while True:
        place = f"{path}:{lines.begin_row()}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            fault = _broken(place, error, lines.first())
            if header is None:
                raise DataError([Fault(place, f"the header: {fault.message}", fault.hint)], 1) from error
            yield fault, place
            lines.put_back()
            reader = csv.reader(lines, strict=True)
            continue
        if cells is None:
            return
        if header is None:
            header = _header(place, cells) if cells else None
        elif cells:
            yield _table_row(header, cells, place), place


class _Lines:
    """The lines of a table, of which those of the row that is being read can be read again: a stray quote takes no other row."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source, self._waiting, self._taken, self._before = source, deque[str](), [], 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._source)
        self._taken.append(line)
        return line

    def begin_row(self) -> int:
        """The number of the line that comes next, with which a row begins; its quoted cells may run over lines."""
        self._before += len(self._taken)
        self._taken = []
        return self._before + 1

    def first(self) -> str:
        """The line with which the row began."""
        return "".join(self._taken[:1])

    def put_back(self) -> None:
        """Read all lines of the row but its first once more."""
        self._waiting.extendleft(reversed(self._taken[1:]))
        del self._taken[1:]


def _broken(place: str, error: csv.Error, found: str) -> Unread:
    told, way = (
        f"not CSV: {error}",
        'put quotes around cells that hold line ends, and write `""` within them',
    )
    if "end of data" in str(error):
        told = "a quote is not closed"
    elif "new-line character" in str(error):
        told = "a carriage return within a line, as old Macs end theirs"
        way = "save the file with line feeds at the ends of its lines, and put quotes around cells that hold line ends"
    return Unread(place, told, way, writable(found))


def _header(place: str, names: list[str]) -> list[str]:
    """
    The names of a table's columns; one without a name is called by its number.

    Raises:
        DataError: when they are no UTF-8, parted by anything but commas, have spaces around them, or are not all different.
    """
    told = hint = None
    names = [name or f"column {i}" for i, name in enumerate(names, start=1)]
    parted = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    spaced = next((name for name in names if name != name.strip()), None)
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if any(map(is_broken, names)):
        told, hint = NOT_UTF_8
    elif parted:
        told, hint = f"its columns are parted by {parted!r}", "save it with commas between its columns"
    elif spaced is not None:
        told, hint = f"the header has {spaced!r}", "remove the spaces around its names"
    elif twice is not None:
        told, hint = f"the header names `{twice}` twice", "give each column a name of its own"
    if told:
        raise DataError([Fault(place, told, hint)], 1)
    return names


def _table_row(header: list[str], cells: list[str], place: str) -> Row | Fault:
    """A row of a table; an empty cell is no value."""
    if any(map(is_broken, cells)):
        return Unread(place, *NOT_UTF_8, writable(",".join(cells)))
    if len(cells) > len(header):
        told = f"found {len(cells)} cells; the header names {len(header)}"
        return Unread(place, told, "put quotes around cells that hold commas", ",".join(cells))
    return {name: cell or None for name, cell in itertools.zip_longest(header, cells)}


def numbered(row: Row, place: str) -> Row:
    """A CSV cell is text; only where a number is wanted is it read as one, so that an answer may be `7`."""
    if not place.rpartition(":")[0].lower().removesuffix(".gz").endswith(".csv"):
        return row
    return {key: _number(value) if key in NUMBERS else value for key, value in row.items()}


def _number(cell: str | None) -> Any:
    try:
        return cell if cell is None else float(cell)
    except ValueError:
        return cell

"""Rows in memory while they are few, and in a temporary file when they are many. Pure but for that file: no library."""

from __future__ import annotations

import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

# (j) Of rows as they are kept; as objects the same rows take several times as much.
IN_MEMORY_BYTES = 64 * 2**20


class Table:
    """
    Things in the order in which they were appended; a growing file takes them up once they are more than memory should hold.

    The file has no name, and is gone with the table.
    """

    def __init__(self) -> None:
        self._file: Any = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 - it lives as long as the table
        self._starts = array("Q")
        self._end = 0

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, i: int) -> Any:
        self._file.seek(self._starts[i])
        return pickle.load(self._file)

    def append(self, thing: Any) -> None:
        """Add one at the end."""
        packed = pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
        self._file.seek(self._end)
        self._file.write(packed)
        self._starts.append(self._end)
        self._end += len(packed)

    @property
    def is_large(self) -> bool:
        """Whether it is on disk."""
        return self._end > IN_MEMORY_BYTES

    def column(self, order: Sequence[int], field: Callable[[Any], Any]) -> Sequence[Any]:
        """One field of the things at these places: a list of it when they are few, else a view that reads when it is asked."""
        view = View(self, order, field)
        return view if self.is_large else list(view)


class View(Sequence[Any]):
    """A sequence whose items are read from a table's file each time that they are asked for."""

    def __init__(self, table: Table, order: Sequence[int], field: Callable[[Any], Any]) -> None:
        self._table, self._order, self._field = table, order, field

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, i: int) -> Any: ...
    @overload
    def __getitem__(self, i: slice) -> View: ...
    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return View(self._table, self._order[i], self._field)
        return self._field(self._table[self._order[i]])

    def __iter__(self) -> Iterator[Any]:
        return (self._field(self._table[i]) for i in self._order)

    def pick(self, indices: Sequence[int]) -> View:
        """Some of the items, in the order given."""
        return View(self._table, array("Q", (self._order[i] for i in indices)), self._field)


def pick(items: Sequence[Any], indices: Sequence[int]) -> Sequence[Any]:
    """Some of the items, in the order given: a list of a list, a view of a view."""
    return items.pick(indices) if isinstance(items, View) else [items[i] for i in indices]


def mapped(items: Sequence[Any], function: Callable[[Any], Any]) -> Sequence[Any]:
    """What a function makes of each item, kept as the items are: in a list, or on disk."""
    if not isinstance(items, View):
        return [function(item) for item in items]
    table = Table()
    for item in items:
        table.append(function(item))
    return View(table, range(len(table)), lambda item: item)

"""Rows as the tables that TRL's trainers read: in memory, or on disk where the rows are there too."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instructkit.data.sources import Rows
from instructkit.data.table import View
from instructkit.errors import DataError, Fault
from instructkit.runs.files import TemporaryFolder

ROWS_AT_ONCE = 1000
_KINDS = (
    (bool, "true or false"),
    (int | float, "a number"),
    (str, "text"),
    (list | tuple, "a list"),
    (dict, "an object"),
)
_TOO_LARGE = "a whole number of more than 64 bits, which no table holds"
_KEPT: list[TemporaryFolder] = []  # until the process ends: trainers reopen files in them


def as_dataset(rows: Rows, fields: tuple[str, ...]) -> Any:
    """
    Rows as a `datasets.Dataset`, with the fields that a trainer reads.

    Raises:
        DataError: when a field is of two kinds, which no table holds, naming the first row of the other kind.
    """
    import pyarrow as pa

    try:
        return dataset_of(rows.rows, fields)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError([of_two_kinds(rows, fields, error)], 1) from error


def of_two_kinds(rows: Rows, fields: tuple[str, ...], error: Exception) -> Fault:
    """Why rows fit no table: the first value that is of another kind than those before it under the same name."""
    first: dict[str, tuple[str, str]] = {}
    for row, place in zip(rows.rows, rows.places, strict=True):
        for field in fields:
            for name, kind in _kinds(field, row.get(field)):
                if kind == _TOO_LARGE:
                    return Fault(place, f"`{name}` is {kind}", "write it as text, or leave it out")
                before, there = first.setdefault(name, (kind, place))
                if before != kind:
                    told = f"`{name}` is {kind}, and {before} at {there}; wanted one kind in all rows"
                    return Fault(place, told, "write it in one way, or leave it out")
    return Fault(rows.source, f"its rows fit no table: {error}", "write each field in one way in all rows")


def _kinds(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """The name of each value within a value, and what it is; of whole numbers and others a table makes one kind."""
    if value is None:
        return
    large = isinstance(value, int) and not -(2**63) <= value < 2**63
    told = next((told for kind, told in _KINDS if isinstance(value, kind)), type(value).__name__)
    yield name, _TOO_LARGE if large else told
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _kinds(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _kinds(f"{name}[]", inner)


def dataset_of(rows: Sequence[dict[str, Any]], fields: tuple[str, ...] | None = None) -> Any:
    """A `datasets.Dataset` of rows, or of some of their fields; what trainers make of one on disk comes to lie beside it."""
    from datasets import Dataset

    if not isinstance(rows, View):
        return Dataset.from_list([row for part in _parts(rows, fields) for row in part])
    folder = TemporaryFolder()
    _KEPT.append(folder)
    path = Path(folder.name) / "rows.arrow"
    _write(path, rows, fields)
    return Dataset.from_file(str(path))


def _write(path: Path, rows: Sequence[dict[str, Any]], fields: tuple[str, ...] | None) -> None:
    """Rows as an Arrow stream whose schema fits all of them, which no part of them tells."""
    import pyarrow as pa

    schema = None
    for part in _parts(rows, fields):
        found = pa.Table.from_pylist(part).schema
        schema = found if schema is None else pa.unify_schemas([schema, found], promote_options="permissive")
    with pa.ipc.new_stream(str(path), schema) as stream:
        for part in _parts(rows, fields):
            stream.write_table(pa.Table.from_pylist(part, schema=schema))


def _parts(rows: Iterable[dict[str, Any]], fields: tuple[str, ...] | None) -> Iterator[list[dict[str, Any]]]:
    found = iter(rows)
    while part := list(itertools.islice(found, ROWS_AT_ONCE)):
        yield [row if fields is None else {field: row[field] for field in fields} for row in part]


def common_columns(rows: Rows) -> tuple[str, ...]:
    """Every column that all rows have: reward functions are given them by name."""
    common: set[str] | None = None
    for row in rows.rows:
        common = set(row) if common is None else common & set(row)
    return tuple(sorted(common or ()))

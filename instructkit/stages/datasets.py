"""Rows as the tables that TRL's trainers read: in memory, or on disk where the rows are there too."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instructkit.data.sources import Rows
from instructkit.data.table import View

ROWS_AT_ONCE = 1000
_KEPT: list[tempfile.TemporaryDirectory] = []  # until the process ends: trainers reopen files in them


def as_dataset(rows: Rows, fields: tuple[str, ...]) -> Any:
    """Rows as a `datasets.Dataset`, with the fields that a trainer reads."""
    return dataset_of(rows.rows, fields)


def dataset_of(rows: Sequence[dict[str, Any]], fields: tuple[str, ...] | None = None) -> Any:
    """A `datasets.Dataset` of rows, or of some of their fields; what trainers make of one on disk comes to lie beside it."""
    from datasets import Dataset

    if not isinstance(rows, View):
        return Dataset.from_list([row for part in _parts(rows, fields) for row in part])
    folder = tempfile.TemporaryDirectory(prefix="instructkit-")
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

"""Rows of Parquet files, a batch of them in memory at once."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from instructkit.data.lines import NOT_UTF_8, Read, Unread, is_packed
from instructkit.data.records import Row
from instructkit.errors import DataError, Fault, InputError

ROWS_OF_A_BATCH = 1024


def read_parquet(path: Path) -> Iterator[Read]:
    """
    The rows of a file; one with a value that Python cannot hold stands as a fault.

    Raises:
        InputError: when it is no Parquet file.
        DataError: when two of its columns have one name.
    """
    import pyarrow.parquet

    try:
        with _seekable(path) as stream:
            file = pyarrow.parquet.ParquetFile(stream)
            _refuse_twice(path, file.schema_arrow.names)
            batches = file.iter_batches(ROWS_OF_A_BATCH)
            places = (f"{path} row {i}" for i in range(1, 2**63))
            for batch in batches:
                yield from _rows(batch, places)
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is no Parquet file: {error}", hint="write it again") from error


def _refuse_twice(path: Path, names: list[str]) -> None:
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        told = f"two of its columns are called `{twice}`"
        raise DataError([Fault(str(path), told, "give each column a name of its own")], 1)


def _rows(batch: Any, places: Iterator[str]) -> Iterator[Read]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # one of its values; UnicodeDecodeError is a ValueError
        rows = [None] * batch.num_rows
    for i, row in enumerate(rows):
        place = next(places)
        yield (_row(batch, i, place) if row is None else row), place


def _row(batch: Any, i: int, place: str) -> Row | Fault:
    """One row by its columns, so that the one that cannot be read is named."""
    found, told = {}, None
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            found[name] = column[i].as_py()
        except UnicodeDecodeError:
            told = told or (f"`{name}` is {NOT_UTF_8[0]}", NOT_UTF_8[1])
        except (ValueError, OverflowError) as error:
            told = told or (f"`{name}` cannot be read: {error}", "write it as text, or leave the column out")
    return Unread(place, *told, json.dumps(found, default=str, ensure_ascii=False)) if told else found


def _seekable(path: Path) -> IO[bytes]:
    """A file that can be read from its end, as Parquet is; a gzipped one is unpacked beside memory."""
    if not is_packed(path):
        return path.open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - whoever reads it closes it
    with gzip.open(path, "rb") as packed:
        shutil.copyfileobj(packed, unpacked)
    unpacked.seek(0)
    return unpacked

"""Rows from one file: JSONL, JSON, CSV or Parquet, plain or gzipped, each with its place."""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from instructkit.data.records import Row
from instructkit.errors import DataError, Fault, InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
NUMBERS = ("rating", "margin", "chosen_rating", "rejected_rating")
ROWS_OF_A_BATCH = 1024  # of a Parquet file, read at once
_NOT_UTF_8 = ("not UTF-8", "save the file as UTF-8")


@dataclass(frozen=True)
class Unread(Fault):
    """Why a row cannot be read, and what stands in its place."""

    found: str = ""


Read = tuple[Row | Fault, str]  # a row, or why there is none, and its place


def read_file(path: Path) -> Iterator[Read]:
    """
    Read one file; a row that cannot be read stands as the fault that says why.

    Raises:
        InputError: when the file is of no known kind, or cannot be read at all.
        DataError: when it is not UTF-8, or not JSON as a whole.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    if suffix not in readers:
        raise InputError(f"{path} is of an unknown kind", hint=f"give one of {', '.join(SUFFIXES)}")
    yield from readers[suffix](path)


def _lines(path: Path) -> Iterator[bytes]:
    """
    The lines of a file as they stand, without a byte order mark, as many in memory as one.

    Not splitlines(): JSON lets U+2028 and its kind stand in a text, and only a line feed ends a row.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for i, line in enumerate(stream):
                if i == 0 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise DataError([Fault(f"{path}:1", "UTF-16", "save the file as UTF-8")], 1)
                yield line if i else line.removeprefix(codecs.BOM_UTF8)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz that was cut off
        raise InputError(
            f"{path} cannot be read: {error}", hint="check the file and its permissions"
        ) from error


def _text_lines(path: Path) -> Iterator[str]:
    for i, line in enumerate(_lines(path), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError([Fault(f"{path}:{i}", *_NOT_UTF_8)], 1) from error


def _read_jsonl(path: Path) -> Iterator[Read]:
    for i, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield _parsed(line.removesuffix(b"\n"), f"{path}:{i}"), f"{path}:{i}"


def _parsed(line: bytes, place: str) -> Row | Fault:
    found = line.decode("utf-8", "replace")
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Unread(place, *_NOT_UTF_8, found)
    except (ValueError, RecursionError) as error:
        return Unread(place, f"not JSON: {_why(error)}", "one JSON object a line", found)
    if not isinstance(row, dict):
        told = f"found {type(row).__name__}; wanted a JSON object"
        return Unread(place, told, "one JSON object a line", found)
    return row


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _read_json(path: Path) -> Iterator[Read]:
    try:
        rows = json.loads("".join(_text_lines(path)))
    except (ValueError, RecursionError) as error:
        fault = Fault(f"{path}:{getattr(error, 'lineno', 1)}", f"not JSON: {_why(error)}")
        raise DataError([fault], 1) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} holds no list of objects", hint="a .json file is one list of rows")
    for i, row in enumerate(rows, start=1):
        yield row, f"{path} row {i}"


def _read_csv(path: Path) -> Iterator[Read]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_text_lines(path))
    header: list[str] | None = None
    while True:
        place = f"{path}:{reader.line_num + 1}"  # where the row begins; a quoted cell may run over lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Fault(place, f"not CSV: {error}", "put quotes around cells that hold line ends"), place
            continue
        if cells is None:
            return
        if header is None:
            header = cells or None
        elif cells:
            yield _table_row(header, cells, place), place


def _table_row(header: list[str], cells: list[str], place: str) -> Row | Fault:
    """A row of a table; an empty cell is no value."""
    if len(cells) > len(header):
        told = f"found {len(cells)} cells; the header names {len(header)}"
        return Unread(place, told, "put quotes around cells that hold commas", ",".join(cells))
    return {name: cell or None for name, cell in itertools.zip_longest(header, cells)}


def numbered(row: Row, place: str) -> Row:
    """A CSV cell is text; only where a number is wanted is it read as one, so that an answer may be `7`."""
    if not place.rpartition(":")[0].removesuffix(".gz").endswith(".csv"):
        return row
    return {key: _number(value) if key in NUMBERS else value for key, value in row.items()}


def _number(cell: str | None) -> Any:
    try:
        return cell if cell is None else float(cell)
    except ValueError:
        return cell


def _read_parquet(path: Path) -> Iterator[Read]:
    import pyarrow.parquet

    try:
        with _seekable(path) as stream:
            batches = pyarrow.parquet.ParquetFile(stream).iter_batches(ROWS_OF_A_BATCH)
            rows = (row for batch in batches for row in batch.to_pylist())
            for i, row in enumerate(rows, start=1):
                yield row, f"{path} row {i}"
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is no Parquet file: {error}", hint="write it again") from error


def _seekable(path: Path) -> IO[bytes]:
    """A file that can be read from its end, as Parquet is; a gzipped one is unpacked beside memory."""
    if path.suffix != ".gz":
        return path.open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - whoever reads it closes it
    with gzip.open(path, "rb") as packed:
        shutil.copyfileobj(packed, unpacked)
    unpacked.seek(0)
    return unpacked

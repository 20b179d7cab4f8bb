"""Rows from one file: JSONL, JSON, CSV or Parquet, plain or gzipped, each with its place."""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from instructkit.data.records import Row
from instructkit.errors import DataError, Fault, InputError
from instructkit.recipe.paths import encoding_of

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
NUMBERS = ("rating", "margin", "chosen_rating", "rejected_rating")
LONGEST_LINE_BYTES = 64 * 2**20
LONGEST_JSON_BYTES = 2**30  # of a .json file, which is read whole
LOOKED_AT_CHARACTERS = 2**20  # of a .jsonl file that seems to be something else
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
    suffix = suffix_of(path)
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    if suffix not in readers:
        raise InputError(f"{path} is of an unknown kind", hint=f"give one of {', '.join(SUFFIXES)}")
    yield from readers[suffix](path)


def suffix_of(path: Path) -> str:
    """The kind that a name ends in, in small letters and without `.gz`."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _lines(path: Path, longest: int = LONGEST_LINE_BYTES) -> Iterator[bytes]:
    """
    The lines of a file as they stand, without a byte order mark, as many in memory as one.

    Not splitlines(): JSON lets U+2028 and its kind stand in a text, and only a line feed ends a row.
    """
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for i, line in enumerate(iter(lambda: stream.readline(longest + 1), b"")):
                if i == 0 and (encoding := encoding_of(line[:4])):
                    raise DataError([Fault(f"{path}:1", encoding, "save the file as UTF-8")], 1)
                if len(line) > longest:
                    told = f"a line of more than {longest // 2**20} MiB, which no row is"
                    raise DataError([Fault(f"{path}:{i + 1}", told, "end each row with a line feed")], 1)
                yield line if i else line.removeprefix(codecs.BOM_UTF8)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz that was cut off
        raise InputError(
            f"{path} cannot be read: {error}", hint="check the file and its permissions"
        ) from error


def _text_lines(path: Path, longest: int = LONGEST_LINE_BYTES) -> Iterator[str]:
    for i, line in enumerate(_lines(path, longest), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError([Fault(f"{path}:{i}", *_NOT_UTF_8)], 1) from error


def _read_jsonl(path: Path) -> Iterator[Read]:
    for i, line in enumerate(_lines(path), start=1):
        if i == 1 and line.lstrip()[:1] == b"[":
            _refuse_list(path, line)
        if i == 1 and line.rstrip().endswith((b"{", b"[", b",")):
            _refuse_document(path, line)
        if line.strip():
            yield _parsed(line.removesuffix(b"\n"), f"{path}:{i}"), f"{path}:{i}"


def _refuse_list(path: Path, line: bytes) -> None:
    """One JSON list in the place of one object a line would be a fault in each of its lines."""
    try:
        whole = json.loads(line)
        is_list = bool(whole) and all(isinstance(row, dict) for row in whole)
    except (ValueError, RecursionError):
        is_list = line.strip() == b"[" or line.lstrip()[1:].lstrip()[:1] == b"{"
    if is_list:
        name = f"{path.name.lower().removesuffix('.gz').removesuffix('.jsonl')}.json"
        told = "a JSON list of rows; wanted one JSON object a line"
        raise DataError([Fault(f"{path}:1", told, f"rename the file to {name}")], 1)


def _refuse_document(path: Path, line: bytes) -> None:
    """A JSON document over many lines, or a comma behind each row, would be a fault in each of them."""
    if _is_row(line.rstrip().removesuffix(b",")):
        told = "a comma behind the JSON object; wanted one JSON object a line"
        raise DataError([Fault(f"{path}:1", told, "remove the comma at the end of each line")], 1)
    try:
        whole = json.loads(_beginning(path))
        several = False
    except (ValueError, RecursionError) as error:
        several = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        if not several and line.strip() not in (b"{", b"["):
            return
        whole = None
    name = f"{path.name.lower().removesuffix('.gz').removesuffix('.jsonl')}.json"
    told, way = "one JSON document over many lines", f"name it {name}, a list of rows"
    if several:
        told, way = "JSON objects of many lines each", "write each of them on one line"
    elif isinstance(whole, dict) and not any(isinstance(value, list) for value in whole.values()):
        way = "write it on one line"
    raise DataError([Fault(f"{path}:1", f"{told}; wanted one JSON object a line", way)], 1)


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _beginning(path: Path) -> str:
    """The first lines of a file: of a whole document as much as is needed to see what it is, never all of a large file."""
    lines, left = [], LOOKED_AT_CHARACTERS
    for line in _text_lines(path, LONGEST_JSON_BYTES):
        lines.append(line)
        left -= len(line)
        if left < 0:
            break
    return "".join(lines)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"`{twice[:60]}` is given twice")
    return found


def _parsed(line: bytes, place: str) -> Row | Fault:
    found = line.decode("utf-8", "replace")
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
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
        if error.doc[error.pos : error.pos + 1] == "\x00":
            return f"a NUL byte at column {error.colno}"
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    if "integer string conversion" in str(
        error
    ):  # Python's own words name a setting that nobody here can reach
        return f"a whole number of more than {sys.get_int_max_str_digits()} digits"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _read_json(path: Path) -> Iterator[Read]:
    text = "".join(_text_lines(path, LONGEST_JSON_BYTES))
    if not text.strip():
        raise InputError(f"{path} is empty", hint="a .json file is one list of rows")
    try:
        rows = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        told = f"not JSON: {_why(error)}"
        hint = "one object a line is JSONL; rename the file to .jsonl" if _is_lines(error) else None
        raise DataError([Fault(f"{path}:{getattr(error, 'lineno', 1)}", told, hint)], 1) from error
    if not isinstance(rows, list):
        raise InputError(f"{path} holds {_holding(rows)}", hint="a .json file is one list of rows")
    for i, row in enumerate(rows, start=1):
        place = f"{path} row {i}"
        told = f"found {type(row).__name__}; wanted a JSON object"
        yield row if isinstance(row, dict) else Unread(place, told, None, str(row)), place


def _is_lines(error: Exception) -> bool:
    """Whether something follows where the first line is whole."""
    return isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and error.doc[:1] == "{"


def _holding(value: Any) -> str:
    """What a .json file holds in the place of a list, and where in it the rows may be."""
    if not isinstance(value, dict):
        return f"one {type(value).__name__}, and no list"
    lists = [key for key, inner in value.items() if isinstance(inner, list)]
    names = ", ".join(f"`{key[:60]}`" for key in list(value)[:5]) or "nothing"
    return f"one object with {names}, and no list" + (
        f"; its rows may be those of `{lists[0]}`" if lists else ""
    )


def _read_csv(path: Path) -> Iterator[Read]:
    csv.field_size_limit(LONGEST_LINE_BYTES)
    reader = csv.reader(_text_lines(path), strict=True)
    header: list[str] | None = None
    while True:
        place = f"{path}:{reader.line_num + 1}"  # where the row begins; a quoted cell may run over lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            told = "a quote is not closed" if "end of data" in str(error) else f"not CSV: {error}"
            yield (
                Fault(place, told, 'put quotes around cells that hold line ends, and write `""` within them'),
                place,
            )
            continue
        if cells is None:
            return
        if header is None:
            header = _header(place, cells) if cells else None
        elif cells:
            yield _table_row(header, cells, place), place


def _header(place: str, names: list[str]) -> list[str]:
    """
    The names of a table's columns.

    Raises:
        DataError: when they are parted by something else than commas, have spaces around them, or are not all different.
    """
    told = hint = None
    parted = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    spaced = next((name for name in names if name != name.strip()), None)
    twice = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
    if parted:
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
    if len(cells) > len(header):
        told = f"found {len(cells)} cells; the header names {len(header)}"
        return Unread(place, told, "put quotes around cells that hold commas", ",".join(cells))
    return {name: cell or None for name, cell in itertools.zip_longest(header, cells)}


def numbered(row: Row, place: str) -> Row:
    """A CSV cell is text; only where a number is wanted is it read as one, so that an answer may be `7`."""
    if not place.rpartition(":")[0].lower().removesuffix(".gz").endswith(".csv"):
        return row
    return {
        key: _number(value) if key in NUMBERS else _truth(value) if key == "label" else value
        for key, value in row.items()
    }


def _truth(cell: str | None) -> Any:
    """TRL's label of an answer; any other word is left."""
    return {"true": True, "false": False}.get(cell.lower(), cell) if isinstance(cell, str) else cell


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
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - whoever reads it closes it
    with gzip.open(path, "rb") as packed:
        shutil.copyfileobj(packed, unpacked)
    unpacked.seek(0)
    return unpacked

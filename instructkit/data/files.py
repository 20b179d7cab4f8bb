"""Rows from one file: JSONL, JSON, CSV, Parquet or lines of text, plain or gzipped, each with its place."""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from instructkit.data.rows import Row, kind_of
from instructkit.errors import DataError, Fault, InputError
from instructkit.paths import encoding_of

LONGEST_LINE_BYTES = 64 * 2**20
NOT_UTF_8 = ("not UTF-8", "save the file as UTF-8")
_GZIPPED = b"\x1f\x8b"  # with which such a file begins
_NO_CHARACTER = re.compile("[\udc80-\udcff]")  # what a byte that is no UTF-8 is decoded to


@dataclass(frozen=True)
class Unread(Fault):
    """Why a row cannot be read, and what stands in its place."""

    found: str = ""


Read = tuple[Row | Fault, str]  # a row, or why there is none, and its place


def is_packed(path: Path) -> bool:
    """Whether a file is gzipped, by its name."""
    return path.suffix.lower() == ".gz"


def lines(
    path: Path, longest: int = LONGEST_LINE_BYTES, way: str = "end each row with a line feed"
) -> Iterator[bytes]:
    """
    The lines of a file as they stand, without a byte order mark, as many in memory as one.

    Not splitlines(): JSON lets U+2028 and its kind stand in a text, and only a line feed ends a row.

    Args:
        longest: bytes of a line.
        way: how to go on where one is longer.

    Raises:
        InputError: when the file cannot be read.
        DataError: when it is of another encoding by its first bytes, or a line is longer than any row.
    """
    opener = gzip.open if is_packed(path) else open
    try:
        with opener(path, "rb") as stream:
            for i, line in enumerate(iter(lambda: stream.readline(longest + 1), b"")):
                if i == 0 and opener is open and line[:2] == _GZIPPED:
                    way = f"rename the file to {path.name}.gz"
                    raise DataError([Fault(f"{path}:1", "gzipped, which its name does not say", way)], 1)
                if i == 0 and (encoding := encoding_of(line[:4])):
                    raise DataError([Fault(f"{path}:1", encoding, "save the file as UTF-8")], 1)
                if len(line) > longest:
                    told = f"a line of more than {longest // 2**20} MiB, which no row is"
                    raise DataError([Fault(f"{path}:{i + 1}", told, way)], 1)
                yield line if i else line.removeprefix(codecs.BOM_UTF8)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz that was cut off
        raise InputError(
            f"{path} cannot be read: {error}", hint="check the file and its permissions"
        ) from error


def text_lines(path: Path, *options: Any) -> Iterator[str]:
    """The lines as text; a byte that is no UTF-8 becomes a lone surrogate, which `is_broken` finds in its row."""
    return (line.decode("utf-8", "surrogateescape") for line in lines(path, *options))


def is_broken(text: str) -> bool:
    """Whether a text holds what was no UTF-8 in its file."""
    return not text.isascii() and _NO_CHARACTER.search(text) is not None


def writable(text: str) -> str:
    """A text as it can be written again: what was no UTF-8 is a replacement character."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


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


LONGEST_JSON_BYTES = 2**30  # of a .json file, which is read whole
LOOKED_AT_CHARACTERS = 2**20  # of a .jsonl file that seems to be something else


def read_jsonl(path: Path) -> Iterator[Read]:
    """
    One row a line; a line that is none stands as the fault that says why.

    Raises:
        DataError: when the file is a JSON document, which would be a fault in each of its lines.
    """
    for i, line in enumerate(lines(path), start=1):
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
    for line in text_lines(path, LONGEST_JSON_BYTES):
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
        return Unread(place, *NOT_UTF_8, found)
    except (ValueError, RecursionError) as error:
        return Unread(place, f"not JSON: {_why(error)}", "one JSON object a line", found)
    if not isinstance(row, dict):
        told = f"found {kind_of(row)}; wanted a JSON object"
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


def read_json(path: Path) -> Iterator[Read]:
    """
    The rows of a list; an item that is no row, or has a key twice, stands as a fault.

    Raises:
        InputError: when the file holds no list.
        DataError: when it is not JSON as a whole.
    """
    text = _whole(path)
    if not text.strip():
        raise InputError(f"{path} is empty", hint="a .json file is one list of rows")
    try:
        rows = json.loads(text, object_pairs_hook=_told_twice)
    except (ValueError, RecursionError) as error:
        raise DataError([_no_document(path, text, error)], 1) from error
    if not isinstance(rows, list):
        raise InputError(f"{path} holds {_holding(rows)}", hint="a .json file is one list of rows")
    broken = is_broken(text)
    for i, row in enumerate(rows, start=1):
        place = f"{path} row {i}"
        yield _sound(row, place, broken), place


def _whole(path: Path) -> str:
    """
    A file's text.

    Raises:
        InputError: when it is more than is read at once.
    """
    way, parts, left = "write it as .jsonl, one row a line", [], LONGEST_JSON_BYTES
    for line in text_lines(path, LONGEST_JSON_BYTES, way):
        parts.append(line)
        left -= len(line)
        if left < 0:
            told = f"{path} holds more than {LONGEST_JSON_BYTES // 2**20} MiB, and a .json file is read whole"
            raise InputError(told, hint=way)
    return "".join(parts)


class _Twice(dict):
    """A JSON object with a key that is given twice, whose later value stands."""

    key: str


def _told_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return _once(pairs)
    except ValueError as error:
        found = _Twice(pairs)
        found.key = str(error)
        return found


def _sound(row: Any, place: str, broken: bool) -> Row | Fault:
    """An item of a list as a row, or why it is none."""
    if not isinstance(row, dict):
        return Unread(place, f"found {kind_of(row)}; wanted a JSON object", None, writable(str(row)))
    if broken and is_broken(written := json.dumps(row, ensure_ascii=False)):
        return Unread(place, *NOT_UTF_8, writable(written))
    if (twice := _twice_within(row)) is not None:
        return Unread(place, twice, "give it once", json.dumps(row, ensure_ascii=False))
    return row


def _twice_within(value: Any) -> str | None:
    if isinstance(value, _Twice):
        return value.key
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(_twice_within, inner)), None)


def _no_document(path: Path, text: str, error: Exception) -> Fault:
    """Why a file is not JSON as a whole, and where."""
    if is_broken(text):
        before = next(i for i, line in enumerate(text.split("\n"), start=1) if is_broken(line))
        return Fault(f"{path}:{before}", *NOT_UTF_8)
    hint = "one object a line is JSONL; rename the file to .jsonl" if _is_lines(error) else None
    return Fault(f"{path}:{getattr(error, 'lineno', 1)}", f"not JSON: {_why(error)}", hint)


def _is_lines(error: Exception) -> bool:
    """Whether something follows where the first line is whole."""
    return isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and error.doc[:1] == "{"


def _holding(value: Any) -> str:
    """What a .json file holds in the place of a list, and where in it the rows may be."""
    if not isinstance(value, dict):
        return f"{kind_of(value)}, and no list"
    lists = [key for key, inner in value.items() if isinstance(inner, list)]
    names = ", ".join(f"`{key[:60]}`" for key in list(value)[:5]) or "nothing"
    return f"one object with {names}, and no list" + (
        f"; its rows may be those of `{lists[0]}`" if lists else ""
    )


def read_prompts(path: Path) -> Iterator[Read]:
    """Read a text file, of which every line that is not blank is a prompt."""
    for i, line in enumerate(text_lines(path), start=1):
        place = f"{path}:{i}"
        if is_broken(line):
            yield Unread(place, *NOT_UTF_8, writable(line)), place
        elif line.strip():
            yield {"prompt": line.strip()}, place


_READERS = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_prompts,
}
SUFFIXES = tuple(_READERS)
OF_FOLDERS = tuple(
    suffix for suffix in SUFFIXES if suffix != ".txt"
)  # text files in a folder may hold anything
_OTHER_NAMES = {
    ".ndjson": "one object a line is JSONL; rename the file to .jsonl",
    ".jl": "one object a line is JSONL; rename the file to .jsonl",
    ".tsv": "save it with commas between its columns, as .csv",
    ".tab": "save it with commas between its columns, as .csv",
    ".xlsx": "save the sheet as .csv",
    ".xls": "save the sheet as .csv",
    ".bz2": "unpack it, or pack it with gzip as .gz",
    ".xz": "unpack it, or pack it with gzip as .gz",
    ".zst": "unpack it, or pack it with gzip as .gz",
    ".zip": "unpack it, or pack it with gzip as .gz",
}


def read_file(path: Path) -> Iterator[Read]:
    """
    Read one file; a row that cannot be read stands as the fault that says why.

    Raises:
        InputError: when the file is of no known kind, or cannot be read at all.
        DataError: when it is not JSON as a whole, or has no header that could be read.
    """
    suffix = suffix_of(path)
    if suffix not in _READERS:
        way = _OTHER_NAMES.get(suffix, f"give one of {', '.join(SUFFIXES)}")
        raise InputError(f"{path} is of an unknown kind", hint=way)
    yield from _READERS[suffix](path)


def suffix_of(path: Path) -> str:
    """The kind that a name ends in, in small letters and without `.gz`."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix

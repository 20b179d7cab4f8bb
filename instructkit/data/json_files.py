"""Rows of JSONL and JSON files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructkit.data.lines import NOT_UTF_8, Read, Unread, is_broken, lines, text_lines, writable
from instructkit.data.records import Row, kind_of
from instructkit.errors import DataError, Fault, InputError

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

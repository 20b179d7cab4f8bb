"""A row as it was found, under the names and in the shape that we use. Pure but for what it imports: no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from instructkit.data.csv_files import numbered
from instructkit.data.lines import Read
from instructkit.data.records import DEEPEST, SHAPES, Row, detect_shape, is_nested
from instructkit.data.shapes import in_our_shape
from instructkit.errors import Fault


def ours(row: Row | Fault, place: str, columns: dict[str, str], kind: str, shapes: Counter[str]) -> Read:
    """A row under the names and in the shape that we use, its numbers as numbers; the shape that it had is counted."""
    if isinstance(row, Fault):
        return row, place
    row = renamed(row, place, columns)
    if isinstance(row, Fault):
        return row, place
    if is_nested(row, DEEPEST):
        return Fault(place, f"nested more than {DEEPEST} levels deep", "write it flat"), place
    try:
        found, shape = in_our_shape(numbered(row, place), kind)
    except ValueError as error:
        return Fault(place, str(error)), place
    if shape is not None:
        shapes[shape] += 1
    return _with_values(found, kind), place


def renamed(row: Row, place: str, columns: Mapping[str, str]) -> Row | Fault:
    """Return a row with its columns renamed by `{column: field}`; a fault where one would hide another."""
    if overlaid := [name for name, wanted in columns.items() if _hides(row, name, wanted, columns)]:
        message = f"`columns` makes `{overlaid[0]}` to `{columns[overlaid[0]]}`, and the row has a `{columns[overlaid[0]]}`"
        way = f"rename that one too, such as `{columns[overlaid[0]]}: unused`, or leave one of them out"
        return Fault(place, message, way)
    kept = {key: value for key, value in row.items() if key not in columns}
    return kept | {columns[key]: value for key, value in row.items() if key in columns}


def _hides(row: Row, name: str, wanted: str, columns: Mapping[str, str]) -> bool:
    """Whether a renamed field would take the place of another one that holds something."""
    there = row.get(wanted) is not None and row.get(name) is not None
    return there and name != wanted and wanted not in columns


def as_learned(row: Row) -> Row:
    """A demonstration without the fields of other shapes than its own, which nothing reads: it is told apart by its fields."""
    own = detect_shape(row, "sft")
    others = {name for shape in SHAPES["sft"] for name in shape if name in row} - set(own or ())
    return {key: value for key, value in row.items() if key not in others} if others else row


def _with_values(row: Row, kind: str) -> Row:
    """A row without those fields of other shapes than its own that hold nothing: tables give each row the columns of all."""
    if detect_shape(row, kind) is None:
        return row
    names = {name for shape in SHAPES[kind] for name in shape} | (
        {"prompt"} if kind == "preference" else set()
    )
    empty = {name for name in names if name in row and row[name] is None}
    return {key: value for key, value in row.items() if key not in empty} if empty else row

"""What a file of rows can be used for: looked at whole, with the columns that would have to be renamed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from instructkit.data.readers import read_source
from instructkit.data.reading import ours
from instructkit.data.records import SHAPES, SYNONYMS, WANTED, Row, check_rows
from instructkit.errors import Fault, InputError

KINDS = (
    "preference",
    "feedback",
    "sft",
    "prompt",
)  # from the kind that asks most of a row to the one that asks least


@dataclass(frozen=True)
class Found:
    """
    What the rows of a source are.

    Attributes:
        kind: `preference`, `feedback`, `sft` or `prompt`.
        columns: renaming that makes them so, as `{found: wanted}`.
        rows, faults: all rows, and what is wrong with some of them.
        asks: whether the same rows, so renamed, are prompts as well.
    """

    source: str
    kind: str
    columns: dict[str, str]
    rows: int
    faults: tuple[Fault, ...]
    asks: bool


def detect(source: str) -> Found:
    """
    Look at every row of a source and tell what they are.

    Raises:
        InputError: when there are no rows, or they are of no known kind under any of the usual names.
    """
    read = list(read_source(source))
    rows = [(row, place) for row, place in read if not isinstance(row, Fault)]
    unread = [row for row, _ in read if isinstance(row, Fault)]
    if not rows:
        raise InputError(f"{source} holds no rows", hint="give a file with rows in it")
    best = next(filter(None, (_best(rows, kind) for kind in KINDS)), None)
    if best is None:
        fields = ", ".join(sorted({f"`{key}`" for row, _ in rows for key in row})) or "nothing"
        wanted = "; ".join(f"{kind}: {WANTED[kind]}" for kind in KINDS)
        raise InputError(f"{source}: the rows have {fields}, of no kind that is known", hint=wanted)
    kind, columns, faults = best
    asks = kind == "prompt" or not _faults(rows, "prompt", columns)
    return Found(source, kind, columns, len(read), (*unread, *faults), asks)


def _best(rows: list[tuple[Row, str]], kind: str) -> tuple[str, dict[str, str], list[Fault]] | None:
    """The renaming that makes most rows ones of a kind; None when fewer than half of them are."""
    tried = [(columns, _faults(rows, kind, columns)) for columns in ({}, *_renamings(rows, kind))]
    columns, faults = min(tried, key=lambda each: len(each[1]))
    return (kind, columns, faults) if 2 * len(faults) < len(rows) else None


def _renamings(rows: list[tuple[Row, str]], kind: str) -> list[dict[str, str]]:
    """For each shape of a kind, the names that most rows have in place of ours."""
    counts = Counter(key for row, _ in rows for key, value in row.items() if value is not None)
    usual = {key for key, count in counts.items() if 2 * count > len(rows)}
    found = []
    for shape in SHAPES[kind]:
        wanted = ("prompt", *shape) if kind == "preference" else shape
        names = {field: _name_for(field, usual) for field in wanted}
        needed = {names[field] for field in shape}
        renamed = {name: field for field, name in names.items() if name not in (None, field)}
        if None not in needed and len(needed) == len(shape) and renamed:
            found.append(renamed)
    return found


def _name_for(field: str, usual: set[str]) -> str | None:
    return next((name for name in (field, *SYNONYMS.get(field, ())) if name in usual), None)


def _faults(rows: list[tuple[Row, str]], kind: str, columns: dict[str, str]) -> list[Fault]:
    """One fault for each row that is not of the kind."""
    shaped = [ours(row, place, columns, kind, Counter()) for row, place in rows]
    found = {place: row for row, place in shaped if isinstance(row, Fault)}
    good = [(row, place) for row, place in shaped if not isinstance(row, Fault)]
    for fault in check_rows([row for row, _ in good], kind, [place for _, place in good]):
        found.setdefault(fault.where, fault)
    return list(found.values())

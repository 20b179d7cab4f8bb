"""What a file of rows can be used for: looked at whole, with the columns that would have to be renamed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from instructkit.data.columns import Unclear, propose, refuse_twice, text_columns
from instructkit.data.files import Read
from instructkit.data.formats import ours
from instructkit.data.rows import (
    CONTEXT,
    SHAPES,
    SYNONYMS,
    WANTED,
    Row,
    Scale,
    check_rows,
    into_alpaca,
    truth,
    unread,
)
from instructkit.data.sources import paths_of, read_source
from instructkit.errors import DataError, Fault, InputError

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
        unread: columns that nothing reads, the most frequent first.
    """

    source: str
    kind: str
    columns: dict[str, str]
    rows: int
    faults: tuple[Fault, ...]
    asks: bool
    unread: tuple[str, ...] = ()

    @property
    def lost(self) -> list[str]:
        """Those of the unread columns that an answer may rest on."""
        return [name for name in self.unread if name in CONTEXT]


def detect(source: str, given: dict[str, str] | None = None) -> Found:
    """
    Look at every row of a source and tell what they are.

    Args:
        given: the user's meaning of columns, as `{column: field}`; other columns are still matched by name.

    Raises:
        InputError: when there are no rows, or they are of no known kind under any of the usual names.
    """
    read = list(read_source(source))
    rows = [(row, place) for row, place in read if not isinstance(row, Fault)]
    broken = [row for row, _ in read if isinstance(row, Fault)]
    if not rows and broken:
        many = f"; of its {len(broken)} rows none is sound" if broken[1:] else ""
        raise InputError(f"{broken[0].where}: {broken[0].message}{many}", hint=broken[0].hint)
    if not rows:
        raise InputError(f"{source} holds no rows", hint="give a file with rows in it")
    given = {name: field for name, field in (given or {}).items() if any(name in row for row, _ in rows)}
    best = next(filter(None, (_best(rows, kind, given) for kind in KINDS)), None)
    if best is None:
        fields = ", ".join(sorted({f"`{key}`" for row, _ in rows for key in row})) or "nothing"
        wanted = "; ".join(f"{kind}: {WANTED[kind]}" for kind in KINDS)
        raise InputError(f"{source}: the rows have {fields}, of no kind that is known", hint=wanted)
    kind, columns, faults = best
    asks = kind == "prompt" or not faults_of(rows, "prompt", columns)
    at_fault = {fault.where for fault in faults}
    left = unread_columns([(row, place) for row, place in rows if place not in at_fault], kind, columns)
    return Found(source, kind, columns, len(read), tuple(_in_order(read, [*broken, *faults])), asks, left)


def _in_order(read: list[Read], faults: list[Fault]) -> list[Fault]:
    """Faults as their rows stand in the source."""
    order = {place: i for i, (_, place) in enumerate(read)}
    return sorted(faults, key=lambda fault: order.get(fault.where, 0))


def fits(found: Found, columns: dict[str, str]) -> bool:
    """Whether another renaming makes as many rows of a source what they are."""
    rows = [(row, place) for row, place in read_source(found.source) if not isinstance(row, Fault)]
    return len(faults_of(rows, found.kind, columns)) <= len(faults_of(rows, found.kind, found.columns))


def _best(
    rows: list[tuple[Row, str]], kind: str, given: dict[str, str]
) -> tuple[str, dict[str, str], list[Fault]] | None:
    """The renaming that makes most rows ones of a kind, and reads most of them; None when fewer than half of them are."""
    tried = [(columns, faults_of(rows, kind, columns)) for columns in (given, *_renamings(rows, kind, given))]
    fewest = min(len(faults) for _, faults in tried)
    best = [each for each in tried if len(each[1]) == fewest]
    columns, faults = min(best, key=lambda each: _lost(rows, kind, each[0])) if len(best) > 1 else best[0]
    return (kind, columns, faults) if 2 * len(faults) < len(rows) else None


def unread_columns(rows: list[tuple[Row, str]], kind: str, columns: dict[str, str]) -> tuple[str, ...]:
    """Columns of the rows of a kind that nothing reads, the most frequent first."""
    found: Counter[str] = Counter()
    for row, place in rows:
        shaped, _ = ours(row, place, columns, kind, Counter())
        found.update(() if isinstance(shaped, Fault) else sorted(unread(shaped, kind)))
    return tuple(name for name, _ in found.most_common())


def _lost(rows: list[tuple[Row, str]], kind: str, columns: dict[str, str]) -> int:
    return sum(name in CONTEXT for name in unread_columns(rows, kind, columns))


def _renamings(rows: list[tuple[Row, str]], kind: str, given: dict[str, str]) -> list[dict[str, str]]:
    """Return for each shape of a kind the names that most rows have for its fields; given names stay."""
    if given:
        renamed = [({given.get(key, key): value for key, value in row.items()}, place) for row, place in rows]
        taken = set(given.values())
        return [
            given | {name: field for name, field in found.items() if name not in taken}
            for found in _renamings(renamed, kind, {})
        ]
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
    # A context may be missing from most rows, as in Dolly.
    if kind != "feedback" and (alpaca := into_alpaca(usual | (set(counts) & set(CONTEXT)), kind)):
        found.append(alpaca)
    return found


def _name_for(field: str, usual: set[str]) -> str | None:
    return next((name for name in (field, *SYNONYMS.get(field, ())) if name in usual), None)


def faults_of(rows: list[tuple[Row, str]], kind: str, columns: dict[str, str]) -> list[Fault]:
    """One fault for each row that is not of the kind."""
    shaped = [ours(row, place, columns, kind, Counter()) for row, place in rows]
    found = {place: row for row, place in shaped if isinstance(row, Fault)}
    good = [(row, place) for row, place in shaped if not isinstance(row, Fault)]
    for fault in check_rows([row for row, _ in good], kind, [place for _, place in good]):
        found.setdefault(fault.where, fault)
    return [found[place] for _, place in rows if place in found]


MOST_FILES = 100  # of a folder or glob, that are looked at one by one
MOST_FAULTS = 0.2  # of the rows, above which the shapes of a file are told too
_MEANT = {  # fields that belong to one kind alone
    "preference": ({"chosen", "rejected"},),
    "feedback": (
        {"response", "rating"},
        {"response", "better"},
        {"response", "preferred"},
        {"completion", "label"},
    ),
    "sft": ({"messages"}, {"conversations"}, {"prompt", "completion"}),
}


def look_at(name: str, columns: dict[str, str] | None = None) -> list[Found]:
    """
    Look at what a name stands for; at the files of a folder or glob one by one, where they are not all of one kind.

    Args:
        columns: the user's meaning of columns, as `{column: field}`.

    Raises:
        InputError: as `look`; what cannot be read too.
    """
    whole = refused = None
    try:
        whole = look(name, columns)
        if whole.kind != "prompt" and not whole.faults:
            return [whole]
    except DataError as error:
        raise DataError(error.faults, error.total, hint="mend the file; nothing was written") from error
    except InputError as error:
        refused = error
    apart = _apart(name, columns)
    if len({each.kind for each in apart}) > 1:
        return apart
    if whole is None:
        raise refused
    return [whole]


def _apart(name: str, columns: dict[str, str] | None) -> list[Found]:
    """The files of a folder or glob that hold rows, each for itself; none where one of them is nothing by itself."""
    files = paths_of(name)
    if not 1 < len(files) <= MOST_FILES:
        return []
    found = []
    for file in files:
        try:
            found.append(look(str(file), columns))
        except InputError as error:
            if "holds no rows" not in error.message:
                return []
    return found


def look(name: str, columns: dict[str, str] | None = None) -> Found:
    """
    Look at a file as `detect` does, and believe its fields where most rows that have them are at fault.

    Args:
        columns: the user's meaning of columns; the file may lack some of them.

    Raises:
        Unclear: when columns have to be named: none has a known name, or a text would be lost.
        InputError: when there are no rows, they are of no known kind or of several, or they are rated on another scale.
    """
    rows = [(row, place) for row, place in read_source(name) if not isinstance(row, Fault)]
    _refuse_scale(name, [row for row, _ in rows])
    columns = {
        known: field for known, field in (columns or {}).items() if any(known in row for row, _ in rows)
    }
    refuse_twice(name, columns)
    meant = None if columns else _meant([row for row, _ in rows])
    try:
        found = detect(name, columns)
    except InputError as error:
        if meant is None:
            _ask_what_is_what(name, [row for row, _ in rows], columns)
            raise _with_shapes(name, [row for row, _ in rows], error) from error
        found = None
    if meant is not None and (found is None or found.kind != meant):
        found = _as_meant(name, meant, rows, found)
    _ask_about_lost_texts(found, [row for row, _ in rows], columns)
    if len(found.faults) >= found.rows:
        raise InputError(
            f"{name}: all {found.rows} rows of {WORDS[found.kind]} have faults, the first {found.faults[0]}",
            hint="mend them; nothing was written",
        )
    shapes = _shapes([row for row, _ in rows])
    if meant is None and len(shapes) > 1 and len(found.faults) > MOST_FAULTS * found.rows:
        told = "; ".join(f"{count} rows with {fields}" for fields, count in shapes[:4])
        raise InputError(
            f"{name}: the rows are of {len(shapes)} shapes: {told}; the first fault {found.faults[0]}",
            hint="give each shape a file of its own; nothing was written",
        )
    return found


def _ask_what_is_what(name: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Raise `Unclear` when names or contents suggest a meaning for columns of unknown names."""
    if len(_shapes(rows)) == 1 and not columns and (proposal := propose(rows)):
        names = ", ".join(f"`{key}`" for key in rows[0])
        raise Unclear(name, f"no column has a known name; the rows have {names}", proposal)


def _ask_about_lost_texts(found: Found, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Raise `Unclear` when a column of text next to pairs or prompts would be ignored."""
    if found.kind == "prompt" and found.columns and not columns:
        proposal = propose(rows)
        if len(proposal) > 1:
            names = " and ".join(f"`{name}`" for name in found.columns)
            raise Unclear(
                found.source,
                f"{names} would be read as prompts, and other columns of text would be ignored",
                proposal,
            )
    if found.kind != "preference":
        return
    asked = "prompt" in found.columns.values() or any(row.get("prompt") is not None for row in rows)
    lost = [
        name for name in text_columns(rows) if name in found.unread and (not asked or _is_prose(name, rows))
    ]
    if lost:
        names = " and ".join(f"`{name}`" for name in lost)
        why = f"{names} would be ignored, next to the pairs"
        raise Unclear(found.source, why, _with_lost(found, rows, lost, asked=asked))


def _with_lost(found: Found, rows: list[dict[str, Any]], lost: list[str], *, asked: bool) -> dict[str, str]:
    """Return a mapping of all columns next to pairs: the prompt is the column whose name says so, at most one."""
    by_name = next((name for name, field in propose(rows).items() if field == "prompt"), None)
    if by_name in lost:
        fields = {name: "unused" if field == "prompt" else field for name, field in found.columns.items()}
        return fields | dict.fromkeys(lost, "unused") | {by_name: "prompt"}
    whole = asked or any(isinstance(row.get("chosen"), list) for row in rows)
    fields = ["unused" if whole or i else "prompt" for i in range(len(lost))]
    return found.columns | dict(zip(lost, fields, strict=True))


def _is_prose(name: str, rows: list[dict[str, Any]]) -> bool:
    """Return whether most values of a column have several words."""
    values = [row[name] for row in rows if isinstance(row.get(name), str)]
    return 2 * sum(len(value.split()) > 3 for value in values) > len(values)


WORDS = {
    "sft": "demonstrations",
    "preference": "comparisons",
    "prompt": "prompts",
    "feedback": "users' feedback",
}


def _meant(rows: list[dict[str, Any]]) -> str | None:
    """The kind whose own fields most rows have; None where no kind has most."""
    for kind, wanted in _MEANT.items():
        having = sum(any(_has(row, fields) for fields in wanted) for row in rows)
        if 2 * having > len(rows):
            return kind
    return None


def _has(row: dict[str, Any], fields: set[str]) -> bool:
    """Whether a row has these fields; a label that is a class of something is none of an answer."""
    return fields <= set(row) and ("label" not in fields or truth(row.get("label")) is not None)


def _as_meant(name: str, kind: str, rows: list[tuple[dict[str, Any], str]], found: Found | None) -> Found:

    faults, left = tuple(faults_of(rows, kind, {})), unread_columns(rows, kind, {})
    if found is not None:
        return replace(found, kind=kind, columns={}, faults=faults, unread=left)
    return Found(name, kind, {}, len(rows), faults, not faults_of(rows, "prompt", {}), left)


def _refuse_scale(name: str, rows: list[dict[str, Any]]) -> None:
    """Ratings from 1 to 5 are no rows to train on as they are; the store reads them with their scale."""
    rated = [row for row in rows if "rating" in row and ({"response", "completion", "answer"} & set(row))]
    scale = Scale()
    for row in rated:
        scale.add(row["rating"])
    if 2 * len(rated) > len(rows) and scale.is_another:
        raise scale.error(name)


def _shapes(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """The sets of fields that rows have, and how many have each, the most frequent first."""
    counts = Counter(tuple(sorted(row)) for row in rows)
    return [
        (", ".join(f"`{field}`" for field in fields) or "nothing", n) for fields, n in counts.most_common()
    ]


def _with_shapes(name: str, rows: list[dict[str, Any]], error: Any) -> Any:

    shapes = _shapes(rows)
    if len(shapes) < 2:
        return error
    told = "; ".join(f"{count} rows with {fields}" for fields, count in shapes[:4])
    return InputError(
        f"{name}: no kind has most of the rows, which are of {len(shapes)} shapes: {told}",
        hint=f"give each shape a file of its own; {error.hint}",
    )

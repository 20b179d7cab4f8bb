"""What a person's files are meant to be, where their rows are at fault: told by the fields that they have."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from instructkit.data.columns import Unclear, propose, refuse_twice, text_columns
from instructkit.data.detect import Found, detect, faults_of, unread_columns
from instructkit.data.readers import paths_of, read_source
from instructkit.data.records import truth
from instructkit.data.scales import Scale
from instructkit.errors import DataError, Fault, InputError

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

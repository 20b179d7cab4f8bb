"""Map columns of a table to fields: propose a mapping by names and contents, and read the user's own. Pure: no file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from instructkit.data.rows import SHAPES, Row
from instructkit.data.thumbs import number_of
from instructkit.errors import InputError

FIELDS = tuple(
    dict.fromkeys(
        [field for shapes in SHAPES.values() for shape in shapes for field in shape]
        + ["prompt", "instruction", "input", "output", "system", "rating", "better", "preferred", "other"]
        + ["margin", "chosen_rating", "rejected_rating", "rater", "time", "group", "tags", "id", "unused"]
    )
)
_NAMES = {  # words of a column's name
    "prompt": "prompt question query instruction input user customer client request ask asked message q",
    "completion": "answer reply response completion output assistant agent bot support target a",
    "chosen": "chosen preferred better best winner winning accepted good",
    "rejected": "rejected dispreferred worse worst loser losing refused bad",
    "rating": "rating score thumb thumbs feedback vote liked helpful",
}
_WORDS = {field: set(words.split()) for field, words in _NAMES.items()}
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b")
LEAST_DISTINCT = 0.2  # least share of different values in a column of written text


class Unclear(InputError):
    """
    Raised for a file whose columns a user must name.

    Attributes:
        source: the file.
        proposal: a likely meaning of its columns, as `{column: field}`.
    """

    def __init__(self, source: str, why: str, proposal: Mapping[str, str]) -> None:
        self.source, self.proposal = source, dict(proposal)
        mapping = ",".join(f"{name}={field}" for name, field in self.proposal.items())
        super().__init__(
            f"{source}: {why}",
            hint=f'name the columns, e.g. --columns "{mapping}"; `unused` ignores one. Nothing was written',
        )


def parse_all(texts: Iterable[str] | None) -> dict[str, str]:
    """Return `{column: field}` of all values of a `--columns` option, which may be about several files."""
    return {name: field for text in texts or () for name, field in parse(text).items()}


def refuse_twice(source: str, columns: Mapping[str, str]) -> None:
    """Raise an `InputError` when two columns of one file are mapped to the same field."""
    fields = [field for field in columns.values() if field != "unused"]
    if twice := next((field for field in fields if fields.count(field) > 1), None):
        names = " and ".join(f"`{name}`" for name, field in columns.items() if field == twice)
        raise InputError(
            f"{source}: --columns maps {names} to `{twice}`; only one column can be that field",
            hint="write `unused` for the others; to use all of them, join them in the file",
        )


def parse(text: str) -> dict[str, str]:
    """
    Return `{column: field}` of `NAME=FIELD,NAME=FIELD`; a name may hold spaces, commas and `=`.

    Raises:
        InputError: when a field is unknown, or the text is of another form.
    """
    mapping: dict[str, str] = {}
    for name, field in re.findall(r"(.+?)\s*=\s*(\w+)\s*(?:,\s*|$)", text):
        if field not in FIELDS:
            raise InputError(
                f"--columns: `{field}` in `{name}={field}` is not a field",
                hint=f"use one of {', '.join(FIELDS)}",
            )
        mapping[name.strip()] = field
    if not mapping or not re.search(r"=\s*\w+\s*,?\s*$", text):
        raise InputError(
            f"--columns {text!r} is not of the form NAME=FIELD,NAME=FIELD",
            hint='write e.g. --columns "Customer Message=prompt,Agent Reply=completion"',
        )
    return mapping


def text_columns(rows: Iterable[Row]) -> list[str]:
    """Return the columns of written text, in order: not those of numbers, dates, or a few repeated words."""
    values: dict[str, list[object]] = {}
    count = 0
    for row in rows:
        count += 1
        for name, value in row.items():
            if value not in (None, ""):
                values.setdefault(name, []).append(value)
    return [name for name, cells in values.items() if 2 * len(cells) > count and _is_text(cells)]


def _is_text(values: list[object]) -> bool:
    written = [value for value in values if isinstance(value, str) and re.search(r"[^\W\d_]", value)]
    dates = sum(bool(_DATE.match(value)) for value in written)
    prose = 2 * sum(len(value.split()) >= 3 for value in written) > len(
        values
    )  # many rows may share one stock answer
    many = len(set(written)) >= (2 if prose else max(min(2, len(values)), LEAST_DISTINCT * len(values)))
    return 2 * (len(written) - dates) > len(values) and many


def propose(rows: list[Row]) -> dict[str, str]:
    """Return a likely meaning of the columns, as `{column: field}`; empty where none is likely."""
    texts = text_columns(rows)
    chosen, rejected = (_named(texts, field) for field in ("chosen", "rejected"))
    left = [name for name in texts if name not in (chosen, rejected)]
    asked = _named(left, "prompt")
    if chosen and rejected:
        asked = asked or (left[0] if len(left) == 1 else None)
        return {chosen: "chosen", rejected: "rejected"} | ({asked: "prompt"} if asked else {})
    answer = _named([name for name in texts if name != asked], "completion")
    asked = asked if asked != answer else None
    if len(texts) == 2:  # by position: the question comes before the answer
        asked = asked or next(name for name in texts if name != answer)
        answer = answer or next(name for name in texts if name != asked)
    if not (asked and answer):
        return {asked: "prompt"} if asked and len(texts) == 1 else {}
    if rating := _rating(rows):
        return {asked: "prompt", answer: "response", rating: "rating"}
    return {asked: "prompt", answer: "completion"}


def _named(names: list[str], field: str) -> str | None:
    """Return the column whose name shares most words with a field, the first of equals."""
    scores = {name: len(_words(name) & _WORDS[field]) for name in names}
    best = max(scores, key=scores.__getitem__, default=None)
    return best if best is not None and scores[best] else None


def _rating(rows: list[Row]) -> str | None:
    """Return the column of thumbs or ratings, by its name and its values."""
    for name in {name: None for row in rows for name in row}:
        values = [row[name] for row in rows if row.get(name) not in (None, "")]
        if _words(name) & _WORDS["rating"] and values and all(number_of(name, v) is not None for v in values):
            return name
    return None


def _words(name: str) -> set[str]:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return {word for word in re.split(r"[\W\d_]+", parted.lower()) if word}

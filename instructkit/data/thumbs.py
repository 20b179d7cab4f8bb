"""Convert names and values in exports of other tools to ours: rater, time and thumb. Pure: no file."""

from __future__ import annotations

import re
from typing import Any

from instructkit.data.rows import Row

# Words only: "-1" and "+1" are numbers, and the scale gives their meaning.
GOOD = ("up", "thumbs_up", "thumbs up", "thumbsup", "👍", "good", "positive", "like", "liked", "yes", "true")
BAD = (
    *("down", "thumbs_down", "thumbs down", "thumbsdown", "👎"),
    *("bad", "negative", "dislike", "disliked", "no", "false"),
)
THUMBS = (
    "thumbs_up",
    "thumbs",
    "thumb",
    "label",
)  # names of a rating that is up or down even as a number
RATINGS = ("rating", "score", *THUMBS, "feedback")
JUDGEMENTS = ("rating", "better", "preferred")
_ALIASES = {"rater": ("user_id", "user"), "time": ("created_at", "timestamp")}
_SECONDS = re.compile(r"\d{9,13}(\.\d+)?")
_ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


def is_ulid(value: Any) -> bool:
    """Return whether a store gave this id; other files number their rows in their own ways."""
    return isinstance(value, str) and _ULID.fullmatch(value) is not None


def in_our_names(row: Row) -> Row:
    """
    Return a feedback row with its rater and time under our names, and without judgements that are blank.

    Names of columns match without regard to capitals, spaces and hyphens. `user` is no rater in a row without a prompt.
    """
    spelled = {plain_name(name): name for name in row}
    renamed = {
        name: None if name in (*JUDGEMENTS, "other") and _is_blank(value) else value
        for name, value in row.items()
    }
    for field, names in _ALIASES.items():
        if renamed.get(field) is not None:
            continue
        usable = [name for name in names if name != "user" or row.get("prompt") or row.get("messages")]
        if alias := next((spelled[name] for name in (field, *usable) if name in spelled), None):
            renamed[field] = renamed.pop(alias)
    if isinstance(renamed.get("time"), str):
        renamed["time"] = _moment(renamed["time"].strip())
    return renamed


def rated(row: Row) -> Row:
    """
    Return a feedback row with its rating as a number under our name, where it has no other judgement.

    A value that is neither a thumb nor a number stays in its column, which may hold comments.
    """
    if any(row.get(name) is not None for name in JUDGEMENTS[1:]):
        return row
    spelled = {plain_name(name): name for name in row}
    for field in RATINGS:
        name = spelled.get(field)
        value = number_of(field, row.get(name)) if name is not None else None
        if value is not None:
            return {**{key: given for key, given in row.items() if key != name}, "rating": value}
    return row


def number_of(name: str, value: Any) -> float | None:
    """Return a truth value, a word for a thumb or a number as a rating; None for anything else."""
    if isinstance(value, bool):
        return 1.0 if value else -1.0
    if isinstance(value, str):
        word = value.strip().lower()
        if word in GOOD or word in BAD:
            return 1.0 if word in GOOD else -1.0
        try:
            value = float(word)
        except ValueError:
            return None
    if not isinstance(value, int | float):
        return None
    return -1.0 if name in THUMBS and value == 0 else value


def plain_name(name: str) -> str:
    """Return the name of a column in small letters, its words joined by `_`."""
    return re.sub(r"[\s-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())).lower()


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _moment(text: str) -> str | float:
    """Return a time from a table or database as ISO 8601 or seconds since 1970."""
    if _SECONDS.fullmatch(text):
        return float(text)
    return text.removesuffix(" UTC") if text.endswith(" UTC") else text

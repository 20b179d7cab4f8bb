"""The shapes that rows may have, by the names of their fields. Pure: no file, no library."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

Row = dict[str, Any]

SHAPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "completion"), ("text",)),
    "preference": (("chosen", "rejected"),),
    "prompt": (("prompt",),),
    "feedback": (("response",),),
}
WANTED = {
    "sft": "`messages`, or `prompt` and `completion`, or `text`",
    "preference": "`chosen` and `rejected`, with or without `prompt`",
    "prompt": "`prompt`",
    "feedback": "`prompt` or `messages`, `response`, and one of `rating`, `better`, `preferred`",
}
# Names that other data have for our fields, told as a remedy and never applied unasked.
SYNONYMS = {
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "prompt": ("question", "query", "instruction", "input", "user", "context"),
    "completion": ("answer", "response", "output", "assistant", "target"),
    "response": ("answer", "completion", "output"),
    "text": ("content", "document", "body"),
    "chosen": ("preferred", "better", "winner", "accepted"),
    "rejected": ("dispreferred", "worse", "loser"),
}
CONTEXT = ("context", "input", "system", "history", "tools")  # names of what an answer may rest on
_READ = {  # fields that mean something to a kind, beside those of its shapes
    "sft": (),
    "preference": ("prompt", "margin"),
    "prompt": (),
    "feedback": (
        *("prompt", "messages", "rating", "better", "preferred", "other", "shown_first", "id", "time"),
        *("source", "rater", "run", "run_hash", "sampling", "tags", "group", "consent"),
    ),
}
DEEPEST = 100  # levels of a row
_BRIEF_CHARACTERS = 60  # of a value in a message
_KINDS = {str: "text", list: "a list", tuple: "a list", dict: "an object", type(None): "null"}
_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def detect_shape(row: Row, kind: str) -> tuple[str, ...] | None:
    """The fields that make a row usable for a kind of training; None when there are none."""
    return next((shape for shape in SHAPES[kind] if all(row.get(field) is not None for field in shape)), None)


def unread(row: Row, kind: str) -> set[str]:
    """
    Fields of a row in our shape that hold something and that nothing reads.

    Of a prompt only what an answer may rest on: a reward function is given every other column by its name. `columns` can say
    that one is `unused`.
    """
    held = {key for key, value in row.items() if value is not None and value not in ("", [], {})}
    if kind == "prompt":
        return held & set(CONTEXT)
    read = {*(detect_shape(row, kind) or ()), *_READ[kind], "unused"}
    return {key for key in held - read if not (key == "label" and truth(row[key]) is not None)}


def into_alpaca(names: Collection[str], kind: str) -> dict[str, str] | None:
    """The renaming into Alpaca's fields, which alone have a place for a question's context; None where there is none."""

    def first(*wanted: str) -> str | None:
        return next((name for name in wanted if name in names), None)

    asked, more = first("instruction", "prompt", "question", "query"), first("input", "context")
    answer = first("output", "response", "completion", "answer") if kind == "sft" else None
    if asked is None or (kind == "sft" and answer is None) or not (more or "system" in names):
        return None
    wanted = {asked: "instruction", more: "input", answer: "output"}
    return {name: field for name, field in wanted.items() if name is not None and name != field}


def briefly(value: Any) -> str:
    """A value for a message: as Python writes it, cut where no one would read on."""
    told = repr(value[:_BRIEF_CHARACTERS] if isinstance(value, str) else value)
    return told if len(told) <= _BRIEF_CHARACTERS + 2 else f"{told[:_BRIEF_CHARACTERS]}..."


def kind_of(value: Any) -> str:
    """What a value is, in the words of a JSON file; a number as it stands."""
    if isinstance(value, bool):
        return str(value).lower()
    return _KINDS.get(type(value)) or briefly(value)


def spoken(talk: list[Row]) -> list[tuple[str, str]]:
    """Who said what, in a list of checked messages."""
    return [(turn["role"], turn["content"]) for turn in talk]


def truth(label: Any) -> bool | None:
    """TRL's label of an answer, which some write as 1 and 0, or in words, as every table does; None for what is none."""
    if isinstance(label, str):
        return _TRUTHS.get(label.strip().lower())
    return bool(label) if isinstance(label, bool | int | float) and label in (0, 1) else None


def is_nested(value: Any, levels: int) -> bool:
    """Whether a value holds others more than so many levels deep: whatever writes it goes down by recursion."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return levels < 0 or any(
        is_nested(each, levels - 1) for each in inner if isinstance(each, dict | list | tuple)
    )

"""One judgement as somebody wrote it: what nothing would read there is a slip, not a further column. Pure."""

from __future__ import annotations

import difflib
import json
from typing import Any

from instructkit.data.records import Row
from instructkit.feedback import exports
from instructkit.feedback.events import JUDGEMENTS, ROW_FIELDS
from instructkit.feedback.ratings import RATINGS

_NAMES = (
    *("prompt", "messages", "conversations", "system", "response", "metadata", "withdrawn"),
    *dict.fromkeys((*JUDGEMENTS, *ROW_FIELDS, *RATINGS)),
)
_OTHER_TOOLS = (exports.is_arena, exports.is_argilla, exports.is_langfuse)
_SHOWN = 60  # characters of a name


def parsed(text: str) -> Row:
    """
    The JSON object that a text holds.

    Raises:
        ValueError: in words, when it holds none, or one with a name that is given twice or that nothing reads.
    """
    if not text.strip():
        raise ValueError("nothing was given; wanted a JSON object")
    try:
        row = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"found {type(row).__name__}; wanted a JSON object")
    if not any(belongs(row) for belongs in _OTHER_TOOLS):  # whose rows have names of their own
        _refuse_unknown(row)
    return row


def _once(pairs: list[tuple[str, Any]]) -> Row:
    found: Row = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"`{name[:_SHOWN]}` is given twice")
        found[name] = value
    return found


def _refuse_unknown(row: Row) -> None:
    told = [f"unknown `{name[:_SHOWN]}`; {_meant(name)}" for name in row if name not in _NAMES]
    if told:
        raise ValueError("; ".join(told))


def _meant(name: str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), _NAMES, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"wanted of {', '.join(f'`{known}`' for known in _NAMES)}"

"""
Rows in the shapes of other tools, read as ours. Pure: no file, no library.

ShareGPT's `conversations`, Alpaca's `instruction, input, output`, OpenAI's preference pairs, pairs with a rating each, and
answers with a label (TRL's unpaired feedback). A row that is in one of our own shapes already is left as it is, but for what
OpenAI's messages have besides: a `developer`, and texts in parts.
"""

from __future__ import annotations

import math
from typing import Any

from instructkit.data.records import Row, briefly, detect_shape

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_TALKS = {  # fields that may hold messages
    "sft": ("messages", "conversations", "prompt", "completion"),
    "preference": (
        "prompt",
        "conversations",
        "chosen",
        "rejected",
        "preferred_output",
        "non_preferred_output",
        "input",
    ),
    "prompt": ("messages", "conversations", "prompt"),
    "feedback": ("messages", "prompt", "completion"),
}


def in_our_shape(row: Row, kind: str) -> tuple[Row, str | None]:
    """
    A row in our own shape.

    Args:
        row: fields as they were found, after `columns`.
        kind: `sft`, `preference`, `prompt` or `feedback`.

    Returns:
        The row, and the name of the shape that it had; None where that is ours.

    Raises:
        ValueError: in words, when a row begins such a shape and does not hold it.
    """
    plain = _with_plain_messages(row, kind)
    found, shape = _converted(plain, kind)
    return found, shape if shape is not None or plain is row else "OpenAI messages"


def _converted(row: Row, kind: str) -> tuple[Row, str | None]:
    if kind == "preference":
        return _preference(row)
    if detect_shape(row, kind) is not None:
        return row, None
    readers = {"sft": (_sharegpt, _alpaca), "prompt": (_asked_messages, _asked_sharegpt, _asked_alpaca)}
    for reader in readers.get(kind, (_labelled,)):
        found = reader(row)
        if found is not None:
            return found
    return row, None


def _with_plain_messages(row: Row, kind: str) -> Row:
    """The row with texts as its messages' contents; the same row where nothing has to change."""
    changed = {}
    for field in _TALKS[kind]:
        talk, within = row.get(field), field
        if field == "input" and isinstance(talk, dict):
            talk, within = talk.get("messages"), "input.messages"
        if isinstance(talk, list):
            learned = kind == "sft" and field != "prompt"
            plain = [_message(f"{within}[{i}]", turn, learned) for i, turn in enumerate(talk)]
            if any(new is not old for new, old in zip(plain, talk, strict=True)):
                changed[field] = plain if within == field else {**row[field], "messages": plain}
    return {**row, **changed} if changed else row


def _message(place: str, message: Any, learned: bool) -> Any:
    """One of OpenAI's messages as ours; whatever else it is, is checked later."""
    if not isinstance(message, dict):
        return message
    if message.get("tool_calls") or message.get("function_call"):
        raise ValueError(f"`{place}` holds tool calls, which are not supported; wanted text")
    role, weight = message.get("role", message.get("from")), message.get("weight")
    spoken = isinstance(role, str) and _ROLES.get(role) == "assistant"
    if learned and spoken and weight is not None and weight != 1:
        raise ValueError(
            f"`{place}.weight` is {briefly(weight)}, and every answer of a conversation is learned alike; leave the row out, "
            "or give it as `prompt` and `completion`, of which the completion alone is learned"
        )
    found = {**message, "role": "system"} if role == "developer" and "role" in message else message
    if isinstance(parts := message.get("content"), list) and parts:
        found = {**found, "content": _joined(f"{place}.content", parts)}
    return found


def _joined(place: str, parts: list[Any]) -> str:
    """The texts of a message that is given in parts."""
    for i, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            told = part.get("type") if isinstance(part, dict) and "type" in part else part
            raise ValueError(f"`{place}[{i}]` is {briefly(told)}; of a message's parts only texts are read")
    return "".join(part["text"] for part in parts)


def as_messages(row: Row, kind: str, *, whole: bool) -> Row | None:
    """
    A checked row with its texts as messages, so that sources of several shapes can be trained on together.

    Args:
        whole: a demonstration as one conversation, and not as `prompt` and `completion`.

    Returns:
        None where a row has no question that could be told from its answer; the row itself where nothing changes.
    """
    if kind == "sft" and row.get("messages") is not None:
        return row
    sides = ("completion",) if kind == "sft" else ("chosen", "rejected") if kind == "preference" else ()
    if any(row.get(side) is None for side in sides):
        return None
    found = dict(row)
    if row.get("prompt") is None:
        if not isinstance(row.get("chosen"), list):
            return None
        found |= {"prompt": row["chosen"][:-1]} | {side: row[side][-1:] for side in sides}
    elif isinstance(row["prompt"], str):
        found["prompt"] = [{"role": "user", "content": row["prompt"]}]
    for side in sides:
        if isinstance(found[side], str):
            found[side] = [{"role": "assistant", "content": found[side]}]
    if whole:
        found = {
            **_without(found, "prompt", "completion"),
            "messages": [*found["prompt"], *found["completion"]],
        }
    return row if found == row else found


def _without(row: Row, *names: str) -> Row:
    return {key: value for key, value in row.items() if key not in names}


def _sharegpt(row: Row) -> tuple[Row, str] | None:
    if row.get("conversations") is None:
        return None
    messages = _turns("conversations", row["conversations"])
    if isinstance(row.get("system"), str) and row["system"].strip() and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": row["system"]}, *messages]
    return {**_without(row, "conversations", "system"), "messages": messages}, "ShareGPT conversations"


def _turns(field: str, turns: Any) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"`{field}` is {type(turns).__name__ if turns else 'empty'}; wanted a list of turns")
    return [_turn(f"{field}[{i}]", turn) for i, turn in enumerate(turns)]


def _turn(field: str, turn: Any) -> dict[str, Any]:
    """One turn as a message; some files mix `from, value` with `role, content`."""
    if not isinstance(turn, dict):
        raise ValueError(f"`{field}` is {type(turn).__name__}; wanted `from` and `value`")
    names = ("from", "value") if "from" in turn else ("role", "content")
    if not set(names) <= set(turn):
        raise ValueError(
            f"`{field}` has {', '.join(f'`{key}`' for key in turn) or 'nothing'}; wanted `from` and `value`"
        )
    speaker = turn[names[0]]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise ValueError(f"`{field}.{names[0]}` is {briefly(speaker)}; wanted one of {', '.join(_ROLES)}")
    return {"role": _ROLES[speaker], "content": turn[names[1]]}


def _alpaca(row: Row) -> tuple[Row, str] | None:
    if row.get("instruction") is None or row.get("output") is None:
        return None
    answer = [{"role": "assistant", "content": row["output"]}]
    kept = _without(row, "instruction", "input", "output", "system", "history")
    return {**kept, "prompt": _question(row), "completion": answer}, "Alpaca instructions"


def _question(row: Row) -> list[dict[str, Any]]:
    """The messages of an Alpaca row before its answer."""
    asked, more = row["instruction"], row.get("input")
    if isinstance(asked, str) and isinstance(more, str) and more.strip():
        asked = f"{asked}\n\n{more}"
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    history = row.get("history") or []
    if not isinstance(history, list | tuple):
        raise ValueError(f"`history` is {briefly(history)}; wanted pairs of question and answer")
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"`history` has {briefly(pair)}; wanted pairs of question and answer")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*messages, {"role": "user", "content": asked}]


def _asked_messages(row: Row) -> tuple[Row, str] | None:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    return {**_without(row, "messages"), "prompt": messages}, "messages"


def _asked_sharegpt(row: Row) -> tuple[Row, str] | None:
    found = _sharegpt(row)
    return found and ({**_without(found[0], "messages"), "prompt": found[0]["messages"]}, found[1])


def _asked_alpaca(row: Row) -> tuple[Row, str] | None:
    if row.get("instruction") is None:
        return None
    kept = _without(row, "instruction", "input", "output", "system", "history")
    return {**kept, "prompt": _question(row)}, "Alpaca instructions"


def _labelled(row: Row) -> tuple[Row, str] | None:
    """TRL's unpaired feedback: `prompt, completion, label`."""
    if row.get("completion") is None or not isinstance(row.get("label"), bool):
        return None
    answer = row["completion"]
    if isinstance(answer, list):
        if len(answer) != 1 or not isinstance(answer[0], dict) or "content" not in answer[0]:
            raise ValueError("`completion` is no single message; wanted one answer")
        answer = answer[0]["content"]
    kept = _without(row, "completion", "label")
    return {**kept, "response": answer, "rating": 1.0 if row["label"] else -1.0}, "labelled answers"


def _preference(row: Row) -> tuple[Row, str | None]:
    found, shape = row, None
    if row.get("preferred_output") is not None and isinstance(row.get("input"), dict):
        found, shape = _openai(row), "OpenAI preference pairs"
    elif row.get("chosen") is not None and row.get("prompt") is None:
        if row.get("conversations") is not None:
            asked, told = _sharegpt(row) or (row, "")
            sides = {
                side: [_turn(side, row[side])]
                for side in ("chosen", "rejected")
                if isinstance(row.get(side), dict)
            }
            found, shape = {**_without(asked, "messages"), "prompt": asked["messages"], **sides}, told
        elif row.get("instruction") is not None:
            sides = {
                side: [{"role": "assistant", "content": row[side]}]
                for side in ("chosen", "rejected")
                if side in row
            }
            kept = _without(row, "instruction", "input", "system", "history")
            found, shape = {**kept, "prompt": _question(row), **sides}, "Alpaca instructions"
    elif isinstance(row.get("prompt"), str) and _whole(row.get("chosen")) and _whole(row.get("rejected")):
        found, shape = _without(row, "prompt"), "whole conversations beside their prompt"
    return _with_margin(found), shape


def _openai(row: Row) -> Row:
    sides = {"chosen": row["preferred_output"], "rejected": row.get("non_preferred_output")}
    kept = _without(row, "input", "preferred_output", "non_preferred_output")
    return {**kept, "prompt": row["input"].get("messages"), **sides}


def _whole(answer: Any) -> bool:
    """A conversation with its question, and not one answer."""
    return isinstance(answer, list) and len(answer) > 1


def _with_margin(row: Row) -> Row:
    """Two ratings say how much better the chosen answer is."""
    pair = row.get("chosen_rating"), row.get("rejected_rating")
    if row.get("margin") is not None or not all(map(_is_number, pair)):
        return row
    try:
        margin = float(pair[0] - pair[1])
    except OverflowError:  # whole numbers have no end in JSON
        margin = math.inf if pair[0] > pair[1] else -math.inf
    if not math.isfinite(margin):
        told = f"`chosen_rating` is {briefly(pair[0])} and `rejected_rating` {briefly(pair[1])}"
        raise ValueError(f"{told}; wanted numbers of a scale")
    if margin < 0:
        told = f"`chosen_rating` {briefly(pair[0])} is below `rejected_rating` {briefly(pair[1])}"
        raise ValueError(f"{told}; wanted the better answer as `chosen`")
    return {**_without(row, "chosen_rating", "rejected_rating"), "margin": margin}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

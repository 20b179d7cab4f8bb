"""
Rows in the shapes of other tools, read as ours. Pure: no file, no library.

ShareGPT's `conversations`, Alpaca's `instruction, input, output`, OpenAI's preference pairs, pairs with a rating each, and
answers with a label (TRL's unpaired feedback). A row that is in one of our own shapes already is left as it is, but for what
OpenAI's messages have besides: a `developer`, and texts in parts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from instructkit.data.files import Read, numbered
from instructkit.data.rows import (
    DEEPEST,
    SHAPES,
    Row,
    briefly,
    detect_shape,
    is_nested,
    kind_of,
    text_faults,
    truth,
)
from instructkit.data.thumbs import in_our_names, rated
from instructkit.errors import Fault

_OUR_TALKS = ("messages", "prompt", "completion", "chosen", "rejected")
_MEANT = ("role", "content", "weight")  # fields of a message that mean something to us
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
_ANSWERED = {"sft": ("completion",), "preference": ("chosen", "rejected")}


def has_messages(row: Row, kind: str) -> bool:
    """Return whether the prompt or the answer of a row is a list of messages."""
    fields = _OUR_TALKS if kind == "sft" else ("prompt", "messages", *_ANSWERED.get(kind, ()))
    return any(isinstance(row.get(field), list) for field in fields)


def as_conversation(row: Row, kind: str) -> Row:
    """
    Return a checked row with its prompt as a user's message and its answers as the assistant's.

    The same row is returned where there is no text to convert: messages, whole texts, comparisons without a prompt. Of feedback
    the prompt alone is converted, because its answers are texts under every prompt.
    """
    shape = detect_shape(row, kind)
    if not isinstance(row.get("prompt"), str) or (kind == "sft" and shape != ("prompt", "completion")):
        return row
    answers = {field: [{"role": "assistant", "content": row[field]}] for field in _ANSWERED.get(kind, ())}
    return {**row, "prompt": [{"role": "user", "content": row["prompt"]}], **answers}


def with_plain_messages(row: Row, kind: str) -> Row:
    """
    The row with texts as its messages' contents; the same row where nothing has to change.

    Raises:
        ValueError: in words, for tool calls, for parts that are no text, and for answers that are not to be learned.
    """
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


def said(role: str, field: str, text: Any) -> dict[str, Any]:
    """
    One message, of a text that stands in a field of its own.

    Raises:
        ValueError: in words, with the field's own name, when it is no text or an empty one.
    """
    if faults := text_faults(field, text):
        raise ValueError(faults[0])
    return {"role": role, "content": text}


def under_system(messages: list[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    """
    A conversation below the text of a `system` column.

    Raises:
        ValueError: when that is no text, or the conversation has another one of its own.
    """
    if system is None or system == "":
        return messages
    own = messages[0]["content"] if messages[0]["role"] == "system" else None
    if own is None:
        return [said("system", "system", system), *messages]
    if own != system:
        raise ValueError(
            f"`system` is {briefly(system)}, and the conversation begins with a system message of its own, {briefly(own)}; "
            "leave one of them out, or say `columns: {system: unused}`"
        )
    return messages


def fields_beside(row: Row) -> set[str]:
    """Of a row's messages, the fields that hold something and are neither role nor content."""
    talks = [row[field] for field in _OUR_TALKS if isinstance(row.get(field), list)]
    return {
        key
        for talk in talks
        for turn in talk
        if isinstance(turn, dict)
        for key, value in turn.items()
        if key not in _MEANT and value is not None and value not in ("", [], {})
    }


def turns_of(field: str, turns: Any) -> list[dict[str, Any]]:
    """
    ShareGPT's turns as messages.

    Raises:
        ValueError: in words, when they are no list of turns.
    """
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"`{field}` is {'empty' if turns == [] else kind_of(turns)}; wanted a list of turns")
    return [turn_of(f"{field}[{i}]", turn) for i, turn in enumerate(turns)]


def turn_of(field: str, turn: Any) -> dict[str, Any]:
    """
    One turn as a message; some files mix `from, value` with `role, content`.

    Raises:
        ValueError: in words, when it has no known speaker, or no text.
    """
    if not isinstance(turn, dict):
        raise ValueError(f"`{field}` is {kind_of(turn)}; wanted `from` and `value`")
    names = ("from", "value") if "from" in turn else ("role", "content")
    if not set(names) <= set(turn):
        raise ValueError(
            f"`{field}` has {', '.join(f'`{key}`' for key in turn) or 'nothing'}; wanted `from` and `value`"
        )
    speaker = turn[names[0]]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise ValueError(f"`{field}.{names[0]}` is {briefly(speaker)}; wanted one of {', '.join(_ROLES)}")
    beside = {key: value for key, value in turn.items() if key not in names}
    return {**beside, **said(_ROLES[speaker], f"{field}.{names[1]}", turn[names[1]])}


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
    if kind == "feedback":
        row = in_our_names(row)
        row = rated(row) if row.get("response") is not None else row
    plain = with_plain_messages(row, kind)
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
    messages = under_system(turns_of("conversations", row["conversations"]), row.get("system"))
    return {**_without(row, "conversations", "system"), "messages": messages}, "ShareGPT conversations"


def _alpaca(row: Row) -> tuple[Row, str] | None:
    if row.get("instruction") is None or row.get("output") is None:
        return None
    answer = [said("assistant", "output", row["output"])]
    kept = _without(row, "instruction", "input", "output", "system", "history")
    return {**kept, "prompt": _question(row), "completion": answer}, "Alpaca instructions"


def _question(row: Row) -> list[dict[str, Any]]:
    """The messages of an Alpaca row before its answer."""
    question, more = said("user", "instruction", row["instruction"]), row.get("input")
    if more is not None and more != "" and not (isinstance(more, str) and not more.strip()):
        question["content"] += f"\n\n{said('user', 'input', more)['content']}"
    messages = [said("system", "system", row["system"])] if row.get("system") not in (None, "") else []
    history = row.get("history") or []
    if not isinstance(history, list | tuple):
        raise ValueError(f"`history` is {briefly(history)}; wanted pairs of question and answer")
    for i, pair in enumerate(history):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"`history` has {briefly(pair)}; wanted pairs of question and answer")
        turns = zip(("user", "assistant"), pair, strict=True)
        messages += [said(role, f"history[{i}][{j}]", text) for j, (role, text) in enumerate(turns)]
    return [*messages, question]


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
    if row.get("completion") is None or row.get("label") is None:
        return None
    if (good := truth(row["label"])) is None:
        raise ValueError(f"`label` is {briefly(row['label'])}; wanted true or false (or 1 or 0)")
    answer = row["completion"]
    if isinstance(answer, list):
        if len(answer) != 1 or not isinstance(answer[0], dict) or "content" not in answer[0]:
            raise ValueError("`completion` is no single message; wanted one answer")
        answer = answer[0]["content"]
    kept = _without(row, "completion", "label")
    return {**kept, "response": answer, "rating": 1.0 if good else -1.0}, "labelled answers"


def _preference(row: Row) -> tuple[Row, str | None]:
    found, shape = row, None
    turns = {
        side: turns_of(side, row[side])
        for side in ("chosen", "rejected")
        if isinstance(row.get(side), list)
        and any(isinstance(turn, dict) and "from" in turn for turn in row[side])
    }
    if turns:
        row, told = {**row, **turns}, "ShareGPT conversations"
        found, shape = _preference(row)
        return found, shape or told
    if row.get("preferred_output") is not None and isinstance(row.get("input"), dict):
        found, shape = _openai(row), "OpenAI preference pairs"
    elif row.get("chosen") is not None and row.get("prompt") is None:
        if row.get("conversations") is not None:
            asked, told = _sharegpt(row) or (row, "")
            sides = {
                side: [turn_of(side, row[side])]
                for side in ("chosen", "rejected")
                if isinstance(row.get(side), dict)
            }
            found, shape = {**_without(asked, "messages"), "prompt": asked["messages"], **sides}, told
        elif row.get("instruction") is not None:
            sides = {
                side: [said("assistant", side, row[side])]
                for side in ("chosen", "rejected")
                if row.get(side) is not None
            }
            kept = _without(row, "instruction", "input", "system", "history")
            found, shape = {**kept, "prompt": _question(row), **sides}, "Alpaca instructions"
    elif isinstance(row.get("prompt"), str) and _whole(row.get("chosen")) and _whole(row.get("rejected")):
        found, shape = _within_their_prompt(row), "whole conversations beside their prompt"
    return _with_margin(found), shape


def _within_their_prompt(row: Row) -> Row:
    """Whole conversations, of whose questions the prompt beside them is one."""
    asked = row["prompt"].strip()
    for side in ("chosen", "rejected"):
        talk = [
            turn.get("content") for turn in row[side] if isinstance(turn, dict) and turn.get("role") == "user"
        ]
        if asked not in [text.strip() for text in talk if isinstance(text, str)]:
            raise ValueError(
                f"`prompt` is {briefly(row['prompt'])}, which no user says in `{side}`; mend one of them, or say "
                "`columns: {prompt: unused}` where the conversations alone are meant"
            )
    return _without(row, "prompt")


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
    if row.get("margin") is not None or pair == (None, None):
        return row
    for name, rating in zip(("chosen_rating", "rejected_rating"), pair, strict=True):
        if not _is_number(rating):
            told = "has no value" if rating is None else f"is {briefly(rating)}"
            raise ValueError(f"`{name}` {told}; wanted both ratings as numbers, or neither")
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

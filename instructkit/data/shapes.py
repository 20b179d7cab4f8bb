"""
Rows in the shapes of other tools, read as ours. Pure: no file, no library.

ShareGPT's `conversations`, Alpaca's `instruction, input, output`, OpenAI's preference pairs, pairs with a rating each, and
answers with a label (TRL's unpaired feedback). A row that is in one of our own shapes already is left as it is, but for what
OpenAI's messages have besides: a `developer`, and texts in parts.
"""

from __future__ import annotations

import math
from typing import Any

from instructkit.data.records import Row, briefly, detect_shape, truth
from instructkit.data.thumbs import in_our_names, rated
from instructkit.data.turns import said, turn_of, turns_of, under_system, with_plain_messages


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

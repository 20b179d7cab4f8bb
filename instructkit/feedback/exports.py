"""Exports of other tools as judgements in our own form: arena pairs, Argilla (1 and 2) and Langfuse. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from instructkit.data.records import Row
from instructkit.feedback.beside import beside
from instructkit.feedback.ratings import RATINGS, Reading, rating_of

_TIES = ("tie", "tie (bothbad)", "both_bad", "bothbad")
_ASKED = ("prompt", "instruction", "question", "input", "messages", "chat", "context")
_ANSWERED = ("response", "answer", "completion", "generation", "output")
_EDITED = ("better", "correction", "edit", "corrected", "rewrite")


def is_arena(row: Row) -> bool:
    """Whether it is a pair of an arena."""
    return "winner" in row and "conversation_a" in row and "conversation_b" in row


def arena(row: Row, how: Reading) -> list[Row]:
    """
    Two conversations that differ in their last answers alone, of which one won; a tie stays one.

    Raises:
        ValueError: in words, also where the answers follow different conversations: neither was judged as an answer to what
            stands before the other.
    """
    one, other = (_conversation(name, row[name]) for name in ("conversation_a", "conversation_b"))
    winner = row["winner"]
    preferred = {"model_a": "response", "model_b": "other"}.get(winner, "tie" if winner in _TIES else None)
    if preferred is None:
        raise ValueError(f"`winner` is {winner!r}; wanted `model_a`, `model_b` or `tie`")
    _refuse_different(one[:-1], other[:-1])
    return [
        {
            "messages": one[:-1],
            "response": one[-1]["content"],
            "other": other[-1]["content"],
            "preferred": preferred,
            "shown_first": "response",
            "rater": row.get("judge"),
            "time": row.get("tstamp"),
            "run": row.get("model_a"),
            "tags": [row["language"]] if row.get("language") else [],
        }
    ]


def _conversation(name: str, said: Any) -> list[Row]:
    """Its messages without what counts tokens, ending with the answer that was judged."""
    if not isinstance(said, list) or not said or not all(isinstance(message, dict) for message in said):
        found = "empty" if said == [] else type(said).__name__
        raise ValueError(f"`{name}` is {found}; wanted a list of messages")
    if said[-1].get("role") != "assistant":
        raise ValueError(
            f"`{name}` ends with the role {said[-1].get('role')!r}; wanted the assistant's answer that was judged"
        )
    return [{"role": message.get("role"), "content": message.get("content")} for message in said]


def _refuse_different(one: list[Row], other: list[Row]) -> None:
    """A pair is two answers to the same: earlier answers are part of what was asked."""
    if one == other:
        return
    parted = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    where = (
        f"they have {len(one)} and {len(other)} messages before them" if parted is None
        else f"message {parted + 1} is not the same"
    )  # fmt: skip
    raise ValueError(
        f"the answers of `conversation_a` and `conversation_b` follow different conversations: {where}"
    )


def is_argilla(row: Row) -> bool:
    """Whether it is a record of Argilla."""
    return isinstance(row.get("fields"), dict) and "responses" in row


def argilla(row: Row, how: Reading) -> list[Row]:
    """One judgement for each answer to a question that rates or corrects the response."""
    fields = row["fields"]
    asked = next((fields[name] for name in _ASKED if fields.get(name) is not None), None)
    answered = next((fields[name] for name in _ANSWERED if fields.get(name) is not None), None)
    if asked is None or answered is None:
        raise ValueError(
            f"`fields` has {', '.join(f'`{key}`' for key in fields)}; wanted a prompt and a response"
        )
    base = {"prompt" if isinstance(asked, str) else "messages": asked, "response": answered, "id": None}
    found = []
    for question, value, user in _argilla_answers(row["responses"]):
        if how.field not in (None, question) or value is None:
            continue
        if question in _EDITED and isinstance(value, str):
            found.append({**base, "better": value, "rater": user})
        elif how.field == question or question in RATINGS or isinstance(value, int | float):
            found.append({**base, "rating": rating_of(question, value, how), "rater": user})
    if not found:
        raise ValueError(
            "none of the `responses` rates or corrects the answer; name the question with --field"
        )
    return found


def _argilla_answers(responses: Any) -> Iterator[tuple[str, Any, Any]]:
    """Question, value and user of every submitted answer, of version 2 (by question) and 1 (by user)."""
    if isinstance(responses, dict):
        for question, answers in responses.items():
            for each in answers if isinstance(answers, list) else []:
                if each.get("status", "submitted") == "submitted":
                    yield question, each.get("value"), each.get("user_id") or each.get("user")
    for each in responses if isinstance(responses, list) else []:
        if each.get("status", "submitted") == "submitted":
            for question, answer in (each.get("values") or {}).items():
                value = answer.get("value") if isinstance(answer, dict) else answer
                yield question, value, each.get("user_id")


def is_langfuse(row: Row) -> bool:
    """Whether it is a trace of Langfuse."""
    return "output" in row and "input" in row and isinstance(row.get("scores"), list)


def langfuse(row: Row, how: Reading) -> list[Row]:
    """A trace with its scores: one judgement for each score that is a number, a truth value or a word for one."""
    base = {**_langfuse_prompt(row["input"]), "response": _langfuse_answer(row["output"])}
    base["run"] = row.get("release") or ""
    found = []
    for score in row["scores"]:
        name, kind = score.get("name"), str(score.get("dataType") or "NUMERIC").upper()
        if how.field not in (None, name):
            continue
        value = score.get("stringValue") if kind in ("CATEGORICAL", "TEXT") else score.get("value")
        value = bool(value) if kind == "BOOLEAN" else value
        who = score.get("authorUserId") or row.get("userId")
        about = {"time": score.get("timestamp"), **beside(score)}
        found.append({**base, "rating": rating_of(name, value, how), "rater": who, **about})
    if not found:
        raise ValueError("the trace has no score" + (f" called {how.field!r}" if how.field else ""))
    return found


def _langfuse_prompt(told: Any) -> Row:
    told = _unpacked(told)
    if isinstance(told, dict):
        told = next((told[name] for name in ("messages", *_ASKED) if told.get(name) is not None), None)
    if told is None:
        raise ValueError("`input` holds no prompt and no messages")
    return {"prompt" if isinstance(told, str) else "messages": told}


def _unpacked(told: Any) -> Any:
    """Messages, or what holds a prompt or an answer, where an export has them as a text of JSON; any other text as it is."""
    if not isinstance(told, str) or told.lstrip()[:1] not in ("[", "{"):
        return told
    try:
        found = json.loads(told)
    except (ValueError, RecursionError):
        return told
    messages = found if isinstance(found, list) else [found]
    known = {"role", "messages", "content", *_ASKED, *_ANSWERED}
    said = messages and all(isinstance(each, dict) and known & set(each) for each in messages)
    return found if said else told


def _langfuse_answer(told: Any) -> Any:
    told = _unpacked(told)
    if isinstance(told, list) and told:
        told = told[-1]
    if isinstance(told, dict):
        return next((told[name] for name in ("content", *_ANSWERED) if told.get(name) is not None), None)
    return told

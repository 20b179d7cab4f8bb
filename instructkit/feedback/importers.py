"""
Judgements in the files of others, read as ours: chat logs with a rating, ShareGPT with a score, arena pairs, and exports of
Argilla (1 and 2) and Langfuse. Every row gives one judgement or several, or a fault that says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructkit.data.files import numbered
from instructkit.data.readers import read_source
from instructkit.data.records import Row
from instructkit.data.shapes import in_our_shape
from instructkit.errors import Fault
from instructkit.feedback.events import Event, event_of

# Words alone: "-1" and "+1" are numbers, whose meaning the scale tells.
GOOD = ("up", "thumbs_up", "thumbs up", "thumbsup", "👍", "good", "positive", "like", "liked", "yes")
BAD = (
    "down",
    "thumbs_down",
    "thumbs down",
    "thumbsdown",
    "👎",
    "bad",
    "negative",
    "dislike",
    "disliked",
    "no",
)
RATINGS = ("rating", "score", "thumbs", "thumb", "feedback", "label")
_TIES = ("tie", "tie (bothbad)", "both_bad", "bothbad")
_ASKED = ("prompt", "instruction", "question", "input", "messages", "chat", "context")
_ANSWERED = ("response", "answer", "completion", "generation", "output")
_EDITED = ("better", "correction", "edit", "corrected", "rewrite")


@dataclass(frozen=True)
class Reading:
    """
    How rows are read.

    Attributes:
        scale: the lowest and the highest rating of a file, where they are not -1 and 1.
        field: the one field, question or score that counts as the rating; all that look like one where it is None.
        consent: of rows that do not say.
    """

    scale: tuple[float, float] | None = None
    field: str | None = None
    consent: bool = True


def read(source: str, how: Reading) -> Iterator[tuple[Event, Row] | Fault]:
    """
    The events of a file, each with the row that it was made of; of a row at fault, why.

    Raises:
        InputError: when there is no such file, or it cannot be read.
    """
    name = f"import:{Path(source).name}"
    for raw, place in read_source(source):
        if isinstance(raw, Fault):
            yield raw
            continue
        try:
            made = [
                (event_of(row, source=name, consent=how.consent), row)
                for row in rows_of(numbered(raw, place), how)
            ]
        except ValueError as error:
            yield Fault(place, str(error))
            continue
        yield from made


def rows_of(row: Row, how: Reading) -> list[Row]:
    """
    The judgements that one row tells, in our own form.

    Raises:
        ValueError: in words, when it tells none.
    """
    for belongs, reader in _FORMATS:
        if belongs(row):
            return [_plain(found) for found in reader(row, how)]
    raise ValueError(
        f"found {', '.join(f'`{key}`' for key in row) or 'nothing'}; wanted a prompt or messages, a `response`, and a judgement"
    )


def _plain(row: Row) -> Row:
    """Tags and consent as a table's cells tell them."""
    tags, consent = row.get("tags"), row.get("consent")
    if isinstance(tags, str):
        row = {**row, "tags": [tag.strip() for tag in tags.split(",") if tag.strip()]}
    if isinstance(consent, str) and consent.strip().lower() in ("true", "false", "yes", "no"):
        row = {**row, "consent": consent.strip().lower() in ("true", "yes")}
    return row


def rating_of(name: str, value: Any, how: Reading) -> float:
    """
    A rating from -1 to 1: of thumbs, of words for them, or of a number on its scale.

    Raises:
        ValueError: when it is none of these.
    """
    if isinstance(value, bool):
        return 1.0 if value else -1.0
    if isinstance(value, str) and value.strip().lower() in (*GOOD, *BAD):
        return 1.0 if value.strip().lower() in GOOD else -1.0
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` is {value!r}; wanted a number, true or false, or up or down") from None
    low, high = how.scale or (-1.0, 1.0)
    if not low <= number <= high:
        hint = "" if how.scale else "; say the scale of the file, as --scale 1:5"
        raise ValueError(f"`{name}` is {value!r}; wanted a number from {low:g} to {high:g}{hint}")
    return 2 * (number - low) / (high - low) - 1


def _is_ours(row: Row) -> bool:
    return row.get("response") is not None


def _ours(row: Row, how: Reading) -> list[Row]:
    if any(row.get(name) is not None for name in ("better", "preferred")):
        return [row]
    return [_rated(row, how)]


def _rated(row: Row, how: Reading) -> Row:
    """The row with its rating on our scale, whatever it was called."""
    names = [name for name in ((how.field,) if how.field else RATINGS) if row.get(name) is not None]
    if not names:
        wanted = f"`{how.field}`" if how.field else "a rating, a better answer or a preference"
        raise ValueError(f"found {', '.join(f'`{key}`' for key in row)}; wanted {wanted}")
    kept = {key: value for key, value in row.items() if key not in RATINGS and key != how.field}
    return {**kept, "rating": rating_of(names[0], row[names[0]], how)}


def _is_log(row: Row) -> bool:
    return isinstance(row.get("messages") or row.get("conversations"), list)


def _log(row: Row, how: Reading) -> list[Row]:
    """A whole conversation and one rating, which is about its last answer."""
    told, _ = in_our_shape(row, "sft")
    messages = told["messages"]
    if not messages or not isinstance(messages[-1], dict) or messages[-1].get("role") != "assistant":
        raise ValueError("the conversation does not end with an assistant's answer, so nothing was judged")
    return [_rated({**told, "messages": messages[:-1], "response": messages[-1].get("content")}, how)]


def _is_arena(row: Row) -> bool:
    return "winner" in row and "conversation_a" in row and "conversation_b" in row


def _arena(row: Row, how: Reading) -> list[Row]:
    """Two conversations with the same questions, of which one won; a tie stays one."""
    one, other = row["conversation_a"], row["conversation_b"]
    for name, said in (("conversation_a", one), ("conversation_b", other)):
        if not isinstance(said, list) or not said or not all(isinstance(message, dict) for message in said):
            raise ValueError(f"`{name}` is {type(said).__name__}; wanted a list of messages")
    winner = row["winner"]
    preferred = {"model_a": "response", "model_b": "other"}.get(winner, "tie" if winner in _TIES else None)
    if preferred is None:
        raise ValueError(f"`winner` is {winner!r}; wanted `model_a`, `model_b` or `tie`")
    plain = [[{"role": m.get("role"), "content": m.get("content")} for m in said] for said in (one, other)]
    return [
        {
            "messages": plain[0][:-1],
            "response": plain[0][-1]["content"],
            "other": plain[1][-1]["content"],
            "preferred": preferred,
            "shown_first": "response",
            "rater": row.get("judge"),
            "time": row.get("tstamp"),
            "run": row.get("model_a"),
            "tags": [row["language"]] if row.get("language") else [],
        }
    ]


def _is_argilla(row: Row) -> bool:
    return isinstance(row.get("fields"), dict) and "responses" in row


def _argilla(row: Row, how: Reading) -> list[Row]:
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


def _is_langfuse(row: Row) -> bool:
    return "output" in row and "input" in row and isinstance(row.get("scores"), list)


def _langfuse(row: Row, how: Reading) -> list[Row]:
    """A trace with its scores: one judgement for each score that is a number, a truth value or a word for one."""
    base = {**_langfuse_prompt(row["input"]), "response": _langfuse_answer(row["output"])}
    base |= {"tags": row.get("tags") or [], "run": row.get("release") or ""}
    found = []
    for score in row["scores"]:
        name, kind = score.get("name"), str(score.get("dataType") or "NUMERIC").upper()
        if how.field not in (None, name):
            continue
        value = score.get("stringValue") if kind in ("CATEGORICAL", "TEXT") else score.get("value")
        value = bool(value) if kind == "BOOLEAN" else value
        who = score.get("authorUserId") or row.get("userId")
        found.append(
            {**base, "rating": rating_of(name, value, how), "rater": who, "time": score.get("timestamp")}
        )
    if not found:
        raise ValueError("the trace has no score" + (f" called {how.field!r}" if how.field else ""))
    return found


def _langfuse_prompt(told: Any) -> Row:
    if isinstance(told, dict):
        told = next((told[name] for name in ("messages", *_ASKED) if told.get(name) is not None), None)
    if told is None:
        raise ValueError("`input` holds no prompt and no messages")
    return {"prompt" if isinstance(told, str) else "messages": told}


def _langfuse_answer(told: Any) -> Any:
    if isinstance(told, list) and told:
        told = told[-1]
    if isinstance(told, dict):
        return next((told[name] for name in ("content", *_ANSWERED) if told.get(name) is not None), None)
    return told


_FORMATS: tuple[tuple[Callable[[Row], bool], Callable[[Row, Reading], list[Row]]], ...] = (
    (_is_arena, _arena),
    (_is_argilla, _argilla),
    (_is_langfuse, _langfuse),
    (_is_ours, _ours),
    (_is_log, _log),
)

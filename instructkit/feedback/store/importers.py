"""
Judgements in the files of others, read as ours: chat logs with a rating, ShareGPT with a score, arena pairs, and exports of
Argilla (1 and 2) and Langfuse. Every row gives one judgement or several, or a fault that says what is wrong with it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructkit.data.files import numbered
from instructkit.data.formats import in_our_shape, renamed
from instructkit.data.rows import Row, Scale
from instructkit.data.sources import read_source
from instructkit.data.thumbs import (
    BAD,
    GOOD,
    RATINGS,
    THUMBS,
    in_our_names,
    is_ulid,
    number_of,
    plain_name,
    rated,
)
from instructkit.errors import Fault, InputError
from instructkit.feedback.store.events import JUDGEMENTS, ROW_FIELDS, Event, event_of

_JUDGEMENTS = (*RATINGS, "better", "preferred")
_READ = {  # by `event_of`, and by `beside`
    *("prompt", "messages", "conversations", "response", "metadata", "withdrawn", "system", "unused"),
    *(*JUDGEMENTS, *ROW_FIELDS),
}


def read(source: str, how: Reading) -> Iterator[tuple[Event, Row] | Fault]:
    """
    The events of a file, each with the row that it was made of; of a row at fault, why.

    Raises:
        InputError: when there is no such file, it cannot be read, or it holds no rows.
    """
    name = named(source)
    empty = True
    for raw, place in _rows(source, how):
        empty = False
        if isinstance(raw, Fault):
            yield raw
            continue
        try:
            made = [(event_of(row, source=name, consent=how.consent), row) for row in rows_of(raw, how)]
        except ValueError as error:
            yield Fault(place, str(error))
            continue
        except (TypeError, AttributeError, KeyError) as error:
            yield Fault(place, f"a field is not of the kind that the format of its row has there: {error}")
            continue
        yield from made
    if empty:
        hint = "check the file; each line of a .jsonl is one row; nothing was imported"
        raise InputError(f"{source} holds no rows", hint=hint)


def _rows(source: str, how: Reading) -> Iterator[tuple[Row | Fault, str]]:
    """Yield each row of a file and its place, its columns renamed and the numbers of a table read as numbers."""
    for raw, place in read_source(source):
        row = raw if isinstance(raw, Fault) else renamed(raw, place, how.columns or {})
        yield row if isinstance(row, Fault) else numbered(row, place), place


def absent(sources: Iterable[str], how: Reading) -> list[str]:
    """Return the names in `how.columns` that no row of the files has."""
    left = dict.fromkeys(how.columns or ())
    for source in sources if left else ():
        for raw, _ in read_source(source):
            for name in [name for name in left if not isinstance(raw, Fault) and name in raw]:
                del left[name]
            if not left:
                return []
    return list(left)


def as_thumbs(source: str, how: Reading) -> bool:
    """
    Return whether a file without a given scale has thumbs as 1 and 0, by the rule of `data.scales`.

    Raises:
        InputError: when the file is missing or cannot be read.
    """
    scale = Scale()
    if how.scale is not None:
        return False
    for raw, _ in _rows(source, how):
        for row in [] if isinstance(raw, Fault) else _with_ratings(raw, how):
            scale.add(row.get("rating"), kept=is_ulid(row.get("id")))
        if not scale.may_be_thumbs:
            return False
    return scale.is_thumbs


def _with_ratings(row: Row, how: Reading) -> list[Row]:
    """Return the judgements of a row; for a row with an error, only the row, its rating on any scale."""
    try:
        return rows_of(row, how)
    except (ValueError, TypeError, AttributeError, KeyError):
        if how.field is None:
            return [rated(row)]
        return [{**row, "rating": number_of(plain_name(how.field), row.get(how.field))}]


def named(source: str) -> str:
    """What events of a file have as their source."""
    return f"import:{Path(source).name}"


def rows_of(row: Row, how: Reading) -> list[Row]:
    """
    The judgements that one row tells, in our own form.

    Raises:
        ValueError: in words, when it tells none.
    """
    for belongs, reader in _FORMATS:
        if belongs(row):
            return [{**found, **beside(found, row)} for found in reader(row, how)]
    if "response" in row:
        raise ValueError("`response` is empty; wanted the answer that was judged")
    raise ValueError(
        f"found {', '.join(f'`{key}`' for key in row) or 'nothing'}; wanted a prompt or messages, a `response`, and a judgement"
    )


def _is_ours(row: Row) -> bool:
    return row.get("response") is not None


def unread(row: Row) -> list[str]:
    """Return the columns of an imported row that hold something and that nothing reads."""
    return [name for name, value in row.items() if name not in _READ and value not in (None, "", [], {})]


def _ours(row: Row, how: Reading) -> list[Row]:
    row = in_our_names(row)
    if any(row.get(name) is not None for name in ("better", "preferred")):
        return [row]
    return [_rated(row, how)]


def _rated(row: Row, how: Reading) -> Row:
    """Return the row with its rating as `rating` on our scale; a column of such a name that is no rating stays."""
    named = [how.field] if how.field else [key for name in RATINGS for key in row if plain_name(key) == name]
    given = [key for key in named if row.get(key) not in (None, "")]
    if not given:
        raise ValueError(_not_judged(row, how))
    name = next((key for key in given if number_of(plain_name(key), row[key]) is not None), given[0])
    kept = {key: value for key, value in row.items() if key not in (name, "rating")}
    return {**kept, "rating": rating_of(name, row[name], how)}


def _not_judged(row: Row, how: Reading) -> str:
    """What a row without a judgement has instead: fields for one that are empty, or others alone."""
    empty = [name for name in ((how.field,) if how.field else _JUDGEMENTS) if name in row]
    named = f"`{how.field}`" if how.field else "a rating, a better answer or a preference"
    if empty:
        verb, wanted = "are" if len(empty) > 1 else "is", "a rating" if how.field else named
        return f"{' and '.join(f'`{name}`' for name in empty)} {verb} empty; wanted {wanted}"
    return f"found {', '.join(f'`{key}`' for key in row)}; wanted {named}"


def _is_log(row: Row) -> bool:
    return isinstance(row.get("messages") or row.get("conversations"), list)


def _log(row: Row, how: Reading) -> list[Row]:
    """A whole conversation and one rating, which is about its last answer."""
    talk, _ = in_our_shape(in_our_names(row), "sft")
    messages = talk["messages"]
    if not messages or not isinstance(messages[-1], dict) or messages[-1].get("role") != "assistant":
        raise ValueError("the conversation does not end with an assistant's answer, so nothing was judged")
    return [_rated({**talk, "messages": messages[:-1], "response": messages[-1].get("content")}, how)]


@dataclass(frozen=True)
class Reading:
    """
    How rows are read.

    Attributes:
        scale: the lowest and the highest rating of a file, where they are not -1 and 1.
        field: the one field, question or score that counts as the rating; all that look like one where it is None.
        consent: of rows that do not say.
        columns: other names of columns, as `{column: field}`.
    """

    scale: tuple[float, float] | None = None
    field: str | None = None
    consent: bool = True
    columns: Mapping[str, str] | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The scale, ours where none was said."""
        return self.scale or (-1.0, 1.0)


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
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"`{name}` is {str(value)[:60]!r}; wanted a number, true or false, or up or down"
        ) from None
    if how.scale is None and plain_name(name) in THUMBS and number == 0:
        return -1.0
    low, high = how.ends
    if not low <= number <= high:
        hint = "" if how.scale else "; say the scale of the file, as --scale 1:5"
        raise ValueError(f"`{name}` is {value!r}; wanted a number from {low:g} to {high:g}{hint}")
    return 2 * (number - low) / (high - low) - 1


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


BESIDE = ("consent", "group", "tags", "time")


def beside(*rows: Row) -> Row:
    """
    Consent, group, tags and time, each as the first row says it, in itself or else, but for the time, in its `metadata`.

    `metadata` is anybody's: a time in it may be how long something took, and what is no group and no list of tags is another
    thing of that name. A consent there that cannot be read makes the row a fault all the same. Tags are those of all rows. Of
    consent a refusal holds wherever it stands: who said no in one place was not asked again in the other.

    Args:
        rows: the nearest to the judgement first: a score, then the trace that it is about.
    """
    places = [place for row in rows for place in (row, _metadata(row))]
    said = {
        name: [_plain(name, place[name]) for place in places if place.get(name) not in (None, "")]
        for name in BESIDE
    }
    told = {name: values[0] for name, values in said.items() if values}
    if said["consent"]:
        told["consent"] = next((value for value in said["consent"] if value is not True), True)
    if said["tags"]:
        told["tags"] = _all_tags(said["tags"])
    return told


def _metadata(row: Row) -> Row:
    """What the `metadata` of an export says that we know of; some write it as a text of JSON."""
    told = row.get("metadata")
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except ValueError:
            return {}
    told = told if isinstance(told, dict) else {}
    kinds = {"consent": object, "group": str, "tags": str | list}
    known = [name for name, kind in kinds.items() if name in told and isinstance(told[name], kind)]
    return {name: told[name] for name in known if _named(told[name])}


def _named(value: Any) -> bool:
    return not isinstance(value, list) or all(isinstance(part, str) for part in value)


def _plain(name: str, value: Any) -> Any:
    """Tags and consent as a table's cells tell them."""
    if name == "tags" and isinstance(value, str):
        return [tag.strip() for tag in value.split(",") if tag.strip()]
    if (
        name == "consent"
        and isinstance(value, str)
        and value.strip().lower() in ("true", "false", "yes", "no")
    ):
        return value.strip().lower() in ("true", "yes")
    return value


def _all_tags(told: list[Any]) -> Any:
    """Every tag once; of places one of which holds no list that one, so that the row is refused for it."""
    wrong = [tags for tags in told if not isinstance(tags, list)]
    if wrong:
        return wrong[0]
    tags = [tag for place in told for tag in place]
    return [tag for i, tag in enumerate(tags) if tag not in tags[:i]]


_FORMATS: tuple[tuple[Callable[[Row], bool], Callable[[Row, Reading], list[Row]]], ...] = (
    (is_arena, arena),
    (is_argilla, argilla),
    (is_langfuse, langfuse),
    (_is_ours, _ours),
    (_is_log, _log),
)


_NAMES = (
    *("prompt", "messages", "conversations", "system", "response", "metadata", "withdrawn"),
    *dict.fromkeys((*JUDGEMENTS, *ROW_FIELDS, *RATINGS)),
)
_OTHER_TOOLS = (is_arena, is_argilla, is_langfuse)
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

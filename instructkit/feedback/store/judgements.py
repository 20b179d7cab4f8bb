"""What a feedback row says, in the form that preprocessing counts with. Pure: one row in, one judgement out."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from instructkit.data.rows import Row
from instructkit.feedback.store.events import moment

_ANSWERS = ("response", "better", "other")
_BETWEEN = (
    "\x1f"  # never inside a text that was split at white space, so that no two lists of parts look alike
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """
    One event, read.

    A preference and an edit speak of a pair of answers, a rating of one answer. An edit says that `better` is better than the
    response, and not that the response is bad: pairs are weighed against pairs and ratings against ratings.

    Attributes:
        prompt, wanted, unwanted, rating, edit: as in `Item`; where it asks for nothing, `wanted` is the response.
        rater, group, tags: as in `Item`.
        sign: 1 or -1, by which judgements of one item are alike or opposite; 0 where it asks for nothing: a tie, a rating of 0.
        item: hash of what is judged: prompt and answer of a rating, prompt and unordered pair of answers of the rest.
        answer: hash of what one rater judges once: the pair of a preference, else the prompt and the response.
        said: hash of the answer and of everything that was said about it.
        first: 1 when of two answers the one shown first was chosen, -1 when the other was, 0 when it is not known.
        time: seconds since 1970; NaN when it is not known.
    """

    prompt: Any
    wanted: str
    unwanted: str | None
    rating: float
    edit: bool
    rater: str
    group: str
    tags: tuple[str, ...]
    sign: int
    item: int
    answer: int
    said: int
    first: int
    time: float


def judgement_of(row: Row) -> Judgement:
    """
    Read a row that `unreadable` and `data.records` find no fault with.

    Texts count as the same when they are so after Unicode's NFC with white space made single spaces.
    """
    prompt = asked_of(row)
    asked, response = prompt_form(prompt), normal(row["response"])
    about = {
        "rater": "" if row.get("rater") is None else str(row["rater"]),
        "group": row.get("group") or "",
        "tags": tuple(dict.fromkeys(row.get("tags") or ())),
        "time": _seconds(row.get("time")),
    }
    if row.get("better") is not None:
        return _edit(row, prompt, asked, response, about)
    if row.get("preferred") is not None:
        return _preference(row, prompt, asked, response, about)
    rating = float(row["rating"])
    item = _hash("rating", asked, response)
    answer = _hash("answer", asked, response)
    said = _hash("rated", str(answer), repr(rating))
    sign = (rating > 0) - (rating < 0)
    return Judgement(
        prompt,
        row["response"],
        None,
        rating,
        False,
        **about,
        sign=sign,
        item=item,
        answer=answer,
        said=said,
        first=0,
    )


def _edit(row: Row, prompt: Any, asked: str, response: str, about: dict[str, Any]) -> Judgement:
    better = normal(row["better"])
    item, sign = _pair(asked, better, response)
    answer = _hash("answer", asked, response)
    said = _hash("edited", str(answer), better)
    return Judgement(
        prompt,
        *(row["better"], row["response"], 1.0, True),
        **about,
        sign=sign,
        item=item,
        answer=answer,
        said=said,
        first=0,
    )


def _preference(row: Row, prompt: Any, asked: str, response: str, about: dict[str, Any]) -> Judgement:
    other, preferred, shown = normal(row["other"]), row["preferred"], row.get("shown_first")
    texts, forms = (row["response"], row["other"]), (response, other)
    if preferred == "other":
        texts, forms = texts[::-1], forms[::-1]
    item, sign = _pair(asked, *forms)
    tie = preferred == "tie"
    return Judgement(
        prompt,
        *(*texts, 1.0, False),
        **about,
        sign=0 if tie else sign,
        item=item,
        answer=item,
        said=_hash("chosen", str(item), "tie" if tie else str(sign)),
        first=0 if tie or shown is None else (1 if shown == preferred else -1),
    )


def _pair(asked: str, wanted: str, unwanted: str) -> tuple[int, int]:
    """The hash of an unordered pair, and which of the two is wanted."""
    low, high = sorted((wanted, unwanted))
    return _hash("pair", asked, low, high), 1 if wanted == low else -1


def same_answers(row: Row) -> bool:
    """Whether the two answers of a row are one and the same but for white space and Unicode's form."""
    other = row["better"] if row.get("better") is not None else row.get("other")
    return other is not None and normal(other) == normal(row["response"])


def unreadable(row: Row) -> bool:
    """Whether a field that says who, when and for whom is of no use; `data.records` looks at the judgement alone."""
    rater, tags = row.get("rater"), row.get("tags")
    known = (
        isinstance(row.get("consent"), bool | None)
        and isinstance(row.get("group"), str | None)
        and (rater is None or (isinstance(rater, str | int) and not isinstance(rater, bool)))
        and (tags is None or (isinstance(tags, list | tuple) and all(isinstance(tag, str) for tag in tags)))
        and row.get("shown_first") in (None, "response", "other")
    )
    if not known:
        return True
    try:
        _seconds(row.get("time"))
    except ValueError:
        return True
    return False


def characters(row: Row) -> int:
    """How many characters an event has: of its prompt or messages, and of its answers."""
    return sum(len(text) for text in texts(row))


def texts(row: Row) -> list[str]:
    """All texts of an event: of the prompt or of each message, then the answers."""
    prompt = asked_of(row)
    asked = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return asked + [row[field] for field in _ANSWERS if row.get(field) is not None]


def asked_of(row: Row) -> Any:
    """What an event's answers were given to: its prompt, or the messages before them."""
    return row["prompt"] if row.get("prompt") is not None else row["messages"]


def normal(text: str) -> str:
    """A text in Unicode's NFC with single spaces."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def prompt_form(prompt: Any) -> str:
    """A prompt as a key: a text and a message that says the same are two, for a model is asked them in two ways."""
    if isinstance(prompt, str):
        return normal(prompt)
    parts = []
    for message in prompt:
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        told = json.dumps(rest, sort_keys=True, default=str) if rest else ""
        parts += [message["role"], normal(message["content"]), told]
    return "\x1e" + "\x1e".join(parts)


def _hash(*parts: str) -> int:
    """64 bits: among a million items two are the same by chance once in 3e7 runs."""
    text = _BETWEEN.join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _seconds(value: Any) -> float:
    told = moment(value)
    return math.nan if told is None else datetime.fromisoformat(told).timestamp()

"""One event: what one person said about one answer, once. Pure: from rows of a file to what the store keeps, and back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from instructkit.data.rows import Row, check_rows
from instructkit.data.thumbs import is_ulid

KINDS = ("rating", "edit", "preference")
HASHED = re.compile(r"^h:[0-9a-f]{16}$")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
JUDGEMENTS = ("rating", "better", "other", "preferred", "shown_first")
ROW_FIELDS = ("id", "time", "source", "rater", "run", "run_hash", "sampling", "tags", "group", "consent")


@dataclass(frozen=True)
class Event:
    """
    One judgement of one answer.

    Attributes:
        id: a ULID; it begins with the millisecond in which it was made.
        time: when it was said, UTC, ISO 8601.
        source: `chat`, `web`, `api` or `import:FILE`.
        rater: who said it, as a salted hash; empty where nobody is named.
        run, run_hash, sampling: what produced the answer.
        prompt: a text, or the messages before the answer.
        response: the answer that was judged.
        judgement: `rating` from -1 to 1; or `better`; or `other`, `preferred` (`response`, `other` or `tie`) and, where it is
            known, `shown_first` (`response` or `other`).
        tags, group: topics, and a segment of users, for checks of parity.
        consent: whether it may be trained on.
    """

    id: str
    time: str
    source: str
    rater: str
    prompt: str | list[dict[str, Any]]
    response: str
    judgement: dict[str, Any]
    run: str = ""
    run_hash: str = ""
    sampling: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    group: str = ""
    consent: bool = True

    @property
    def kind(self) -> str:
        """`rating`, `edit` or `preference`."""
        if "better" in self.judgement:
            return "edit"
        return "preference" if "preferred" in self.judgement else "rating"

    def as_row(self) -> Row:
        """The event as a line of a file that can be imported again, and that a recipe can name."""
        kept = {name: value for name in ROW_FIELDS if (value := getattr(self, name))}
        field = "prompt" if isinstance(self.prompt, str) else "messages"
        judged = {field: self.prompt, "response": self.response, **self.judgement}
        return {**kept, "consent": self.consent, **judged} | ({"tags": list(self.tags)} if self.tags else {})


def event_of(row: Row, *, source: str, consent: bool) -> Event:
    """
    The event that a row tells; its rater is still as it was given.

    Args:
        row: a prompt or messages, a response and a judgement; everything else may be missing.
        source: where it comes from, where the row does not say.
        consent: whether it may be trained on, where the row does not say.

    Raises:
        ValueError: saying in words what is wrong with the row.
    """
    faults = check_rows([row], "feedback", [""]) if row.get("response") is not None else []
    told = [fault.message for fault in faults] or _about_fields(row)
    if row.get("response") is None:
        told = ["`response` has no value; wanted the answer that was judged"]
    if told:
        raise ValueError("; ".join(told))
    return Event(
        id=row["id"] if is_ulid(row.get("id")) else ulid(),
        time=moment(row.get("time")) or now(),
        source=row.get("source") or source,
        rater="" if row.get("rater") is None else str(row["rater"]),
        prompt=row["prompt"] if row.get("prompt") is not None else row["messages"],
        response=row["response"],
        judgement={name: row[name] for name in JUDGEMENTS if row.get(name) is not None},
        run=row.get("run") or "",
        run_hash=row.get("run_hash") or "",
        sampling=row.get("sampling"),
        tags=tuple(dict.fromkeys(row.get("tags") or ())),
        group=row.get("group") or "",
        consent=row["consent"] if row.get("consent") is not None else consent,
    )


def _about_fields(row: Row) -> list[str]:
    """What is wrong with the fields that say where a judgement comes from."""
    wanted: dict[str, tuple[type | tuple[type, ...], str]] = {
        "source": (str, "a text"),
        "rater": ((str, int), "a name or a number"),
        "run": (str, "a text"),
        "run_hash": (str, "a text"),
        "sampling": (dict, "a mapping"),
        "group": (str, "a text"),
        "consent": (bool, "true or false"),
    }
    told = [
        f"`{name}` is {row[name]!r}; wanted {words}"
        for name, (kind, words) in wanted.items()
        if row.get(name) is not None and not isinstance(row[name], kind)
    ]
    tags = row.get("tags")
    if tags is not None and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        told.append(f"`tags` is {tags!r}; wanted a list of texts")
    try:
        moment(row.get("time"))
    except ValueError:
        told.append(f"`time` is {row['time']!r}; wanted ISO 8601, or seconds since 1970")
    return told


def content_key(event: Event, row: Row) -> bytes:
    """
    What makes two rows the same judgement, whatever file they come from: 16 bytes.

    A row that was exported from a store is known by its id. Of others a time or a number counts where the row gives one, and
    the rater as the store keeps it.
    """
    said: list[Any] = [event.id]
    if not is_ulid(row.get("id")):
        given = row.get("time") and event.time, row.get("id")
        said = [event.rater, event.prompt, event.response, event.judgement, *given]
    return _digest(said)


def content_id(row: Row) -> str:
    """
    What a checked row without an id is known by, whatever its file is called and wherever it stands there.

    The same prompt, answers, judgement and rater give the same id.

    Returns:
        `c:` and 32 hexadecimal digits.
    """
    said = {name: row[name] for name in JUDGEMENTS if row.get(name) is not None}
    if "rating" in said:
        said["rating"] = float(said["rating"])
    asked = row["prompt"] if row.get("prompt") is not None else row["messages"]
    return "c:" + _digest([str(row.get("rater") or ""), asked, row["response"], said]).hex()


def _digest(said: list[Any]) -> bytes:
    text = json.dumps(said, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def hashed(event: Event, salt: bytes) -> Event:
    """The event without the rater's name; what is hashed already stays as it is."""
    if not event.rater or HASHED.match(event.rater):
        return event
    return replace(event, rater=rater_hash(event.rater, salt))


def rater_hash(name: str, salt: bytes) -> str:
    """The hash of a name with the salt of a store: the same person is known again there, and nowhere else."""
    if HASHED.match(name):
        return name
    return "h:" + hashlib.sha256(salt + name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def now() -> str:
    """This moment, UTC, ISO 8601 with milliseconds."""
    return _told(datetime.now(UTC))


def moment(value: Any) -> str | None:
    """
    A time as the store keeps it, from ISO 8601 or seconds (or milliseconds) since 1970; None for none.

    Raises:
        ValueError: when it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, int | float):
        seconds = value / 1000 if abs(value) > 1e11 else value
        try:
            return _told(datetime.fromtimestamp(seconds, UTC))
        except (OverflowError, OSError) as error:
            raise ValueError(value) from error
    found = datetime.fromisoformat(str(value))
    try:
        return _told(found if found.tzinfo else found.replace(tzinfo=UTC))
    except OverflowError as error:  # in UTC it would lie before the year 1, or after 9999
        raise ValueError(value) from error


def _told(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ulid() -> str:
    """A ULID: 48 bits of milliseconds and 80 random bits, in Crockford's base 32; later ones sort behind earlier ones."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return "".join(_CROCKFORD[number >> 5 * i & 31] for i in reversed(range(26)))

"""Adding to the tables of a store: events, each once however often it comes, and withdrawals."""

from __future__ import annotations

import json
import sqlite3

from instructkit.data.records import Row
from instructkit.feedback.events import Event, content_key, hashed, now, ulid
from instructkit.feedback.filters import NOT_WITHDRAWN

Given = tuple[Event, Row, *tuple[Event, ...]]  # with its row, and the same in other words


def forget_met(db: sqlite3.Connection) -> None:
    """Begin to tell apart rows that say the same by how many of them came before."""
    db.execute("CREATE TEMP TABLE IF NOT EXISTS met(content_key BLOB PRIMARY KEY, times INTEGER)")
    db.execute("DELETE FROM met")


def add(db: sqlite3.Connection, batch: list[Given], salt: bytes) -> tuple[list[Event], list[str], list[str]]:
    """
    Add events, in a transaction that the caller has begun.

    Args:
        batch: as `Store.add` takes them.
        salt: what raters' names are hashed with.

    Returns:
        The events that were new, the ids of known ones that are withdrawn by it, for they came without consent, and the ids that
        other events have, so that theirs were left out.
    """
    new, taken_back, clashes = [], [], []
    for given, row, *others in batch:
        event = hashed(given, salt)
        same = [event, *(hashed(each, salt) for each in others)]
        keys = [_numbered(db, content_key(each, row)) for each in same]
        # Asked first: an insertion in vain would use up a number, and a gap looks like a lost event in a damaged store.
        named = has(db, "id", event.id)
        if named and not _says(db, same):
            clashes.append(event.id)
        elif not named and not any(has(db, "content_key", key) for key in keys):
            _insert(db, event, keys[0])
            new.append(given)
        elif not event.consent:
            taken_back += _take_back(db, event, keys)
    return new, taken_back, clashes


def withdraw(db: sqlite3.Connection, event: str | None, rater: str | None, why: str) -> None:
    """Record the withdrawal of an event, by its id, or of a rater, by the hash."""
    values = (ulid(), now(), event, rater, why)
    db.execute("INSERT INTO withdrawal(id, time, event, rater, why) VALUES (?, ?, ?, ?, ?)", values)


def has(db: sqlite3.Connection, column: str, value: str | bytes) -> bool:
    """Whether an event has this value in a column."""
    return db.execute(f"SELECT 1 FROM event WHERE {column} = ? LIMIT 1", (value,)).fetchone() is not None


def other_scales(db: sqlite3.Connection, source: str, scale: str) -> list[str]:
    """The scales that ratings of a source were read on before, none where this is one of them; it is kept as one from now on."""
    name = f"scale of {source}: "
    after = f"scale of {source}:!"  # the next character behind the space: all names between begin alike
    found = db.execute("SELECT value FROM about WHERE name > ? AND name < ?", (name, after)).fetchall()
    before = [value for (value,) in found]
    db.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", (name + scale, scale))
    return [] if scale in before else before


def _take_back(db: sqlite3.Connection, event: Event, keys: list[bytes]) -> list[str]:
    """Withdraw what may still be trained on of the event with one of these keys, or the id of this one."""
    marks = ", ".join("?" * len(keys))
    question = (
        f"SELECT id FROM event WHERE (content_key IN ({marks}) OR id = ?) AND consent = 1 AND {NOT_WITHDRAWN}"
    )
    found = [id_ for (id_,) in db.execute(question, (*keys, event.id)).fetchall()]
    for id_ in found:
        withdraw(db, id_, None, f"came again without consent ({event.source})")
    return found


def _says(db: sqlite3.Connection, same: list[Event]) -> bool:
    """Whether the event with this id says what one of these does, of whomever and whenever."""
    question = "SELECT prompt, response, judgement FROM event WHERE id = ?"
    prompt, response, judgement = db.execute(question, (same[0].id,)).fetchone()
    kept = (json.loads(prompt), response, json.loads(judgement))
    return any(kept == (event.prompt, event.response, event.judgement) for event in same)


def _insert(db: sqlite3.Connection, event: Event, key: bytes) -> None:
    values = (
        event.id,
        key,
        *(event.time, event.source, event.rater, event.run, event.run_hash),
        None if event.sampling is None else json.dumps(event.sampling, sort_keys=True),
        *(json.dumps(event.prompt, ensure_ascii=False), event.response, event.kind),
        json.dumps(event.judgement, sort_keys=True, ensure_ascii=False),
        json.dumps(event.tags, ensure_ascii=False),
        *(event.group, int(event.consent)),
    )
    columns = (
        "id, content_key, time, source, rater, run, run_hash, sampling, prompt, response, kind, judgement, "
        "tags, segment, consent"
    )
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO event({columns}) VALUES ({marks})", values)


def _numbered(db: sqlite3.Connection, key: bytes) -> bytes:
    """The key of a row with how many like it came before."""
    counted = "INSERT INTO met VALUES (?, 0) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
    return key + db.execute(counted, (key,)).fetchone()[0].to_bytes(4)

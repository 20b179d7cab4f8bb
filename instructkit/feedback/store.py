"""
The feedback store: one SQLite file to which events are only ever added.

What was acknowledged is on disk (write-ahead log, synchronous commits), two writers and a reader at once are normal, nobody
but its owner can read the file, and a withdrawal is an event too.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructkit.data.records import Row
from instructkit.errors import InputError, InstructKitError
from instructkit.feedback import migrations
from instructkit.feedback.events import Event, content_key, hashed, now, rater_hash, ulid

if TYPE_CHECKING:
    from instructkit.feedback.clusters import ClusterIndex

BATCH = 1000  # events in one transaction
WAIT_SECONDS = 30  # for another writer
_COLUMNS = (
    "id, time, source, rater, run, run_hash, sampling, prompt, response, judgement, tags, segment, consent"
)
_NOT_WITHDRAWN = (
    "NOT EXISTS (SELECT 1 FROM withdrawal WHERE withdrawal.event = event.id) AND "
    "(event.rater = '' OR NOT EXISTS (SELECT 1 FROM withdrawal WHERE withdrawal.rater = event.rater))"
)


@dataclass(frozen=True)
class Filter:
    """
    Which events: said since a time (ISO 8601), about a run, by a rater, with a tag, of a kind; with or without consent to
    training where that is given; that came after an event, by its id; withdrawn ones too or not.
    """

    since: str | None = None
    run: str | None = None
    rater: str | None = None
    tag: str | None = None
    kind: str | None = None
    consent: bool | None = None
    after: str | None = None
    withdrawn: bool = False


class Store:
    """An open feedback store; a context manager."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._db = path, connection
        self._index: ClusterIndex | None = None

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """
        Open a store, bringing one of an older version up to date.

        Args:
            create: make one where there is none.

        Raises:
            InputError: when there is none, or the file is no store, or one of a newer version.
        """
        path = Path(path)
        if not path.exists():
            if not create:
                raise InputError(
                    f"no feedback store at {path}",
                    hint="`instructkit feedback import FILE --store PATH` makes one",
                )
            _make_private(path)
        try:
            connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            store = cls(path, connection)
            store._migrate()
        except sqlite3.Error as error:
            raise _told(path, error) from error
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        if self._index is not None:
            self._index.close()
        self._db.close()

    def _migrate(self) -> None:
        with self._writing():
            have = self._db.execute("PRAGMA user_version").fetchone()[0]
            if have > migrations.NEWEST:
                raise InputError(
                    f"{self.path} is a feedback store of version {have}, and this instructkit knows {migrations.NEWEST}",
                    hint="install a newer instructkit",
                )
            if have == 0 and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise InputError(
                    f"{self.path} is a database, but no feedback store", hint="give another path"
                )
            for step in migrations.STEPS[have:]:
                for statement in _statements(step):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {migrations.NEWEST}")
            self._db.execute("INSERT OR IGNORE INTO about VALUES ('salt', ?)", (os.urandom(16),))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it on disk when the block is left, or none of it."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @property
    def salt(self) -> bytes:
        """What raters' names are hashed with; it never leaves the store."""
        return self._db.execute("SELECT value FROM about WHERE name = 'salt'").fetchone()[0]

    def add(
        self,
        events: Iterable[tuple[Event, Row, *tuple[Event, ...]]],
        on_new: Callable[[Event], None] | None = None,
    ) -> Iterator[tuple[int, int]]:
        """
        Add events, a batch at a time.

        What is there already is not added again, however often a file is read: rows that say the same are told apart by
        how many of them came before in this call.

        Args:
            events: each with the row that it was made of, and, where there is one, the same event in other words, by which
                it is known too: as it was before personal data was taken out of it, or without it.
            on_new: told of each event that is added.

        Yields:
            After each batch, which is then on disk: how many of its events were new, and how many were known.

        Raises:
            InstructKitError: when the disk is full or the store damaged; batches that were yielded are kept.
        """
        salt, waiting = self.salt, iter(events)
        try:
            self._db.execute(
                "CREATE TEMP TABLE IF NOT EXISTS met(content_key BLOB PRIMARY KEY, times INTEGER)"
            )
            self._db.execute("DELETE FROM met")
            while batch := list(itertools.islice(waiting, BATCH)):
                with self._writing():
                    new = [
                        event
                        for event, row, *others in batch
                        if self._add(*(hashed(each, salt) for each in (event, *others)), row=row)
                    ]
                for event in new if on_new else ():
                    on_new(event)
                yield len(new), len(batch) - len(new)
        except sqlite3.Error as error:
            raise _told(self.path, error) from error

    def _add(self, event: Event, *others: Event, row: Row) -> bool:
        key, *aliases = (self._numbered(content_key(each, row)) for each in (event, *others))
        if any(self._has("content_key", alias) for alias in aliases):
            return False
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
        done = self._db.execute(
            f"INSERT INTO event({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING", values
        )
        return done.rowcount == 1

    def _numbered(self, key: bytes) -> bytes:
        """The key of a row with how many like it came before in this call."""
        counted = "INSERT INTO met VALUES (?, 0) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
        return key + self._db.execute(counted, (key,)).fetchone()[0].to_bytes(4)

    def events(self, wanted: Filter | None = None) -> Iterator[Event]:
        """
        Events in the order in which they came, one in memory at a time.

        Raises:
            InstructKitError: when the store is damaged; `salvage` gets at the rest.
        """
        where, values = self._conditions(wanted or Filter())
        try:
            for found in self._db.execute(f"SELECT {_COLUMNS} FROM event WHERE {where} ORDER BY seq", values):
                yield _event(found)
        except sqlite3.Error as error:
            raise _told(self.path, error) from error

    def count(self, wanted: Filter | None = None) -> int:
        """How many events."""
        where, values = self._conditions(wanted or Filter())
        try:
            return self._db.execute(f"SELECT count(*) FROM event WHERE {where}", values).fetchone()[0]
        except sqlite3.Error as error:
            raise _told(self.path, error) from error

    def left_out(self, after: str | None = None) -> dict[str, int]:
        """How many events, of those that came after one, no update may learn from, by reason."""
        there = self.count(Filter(withdrawn=True, after=after))
        without = self.count(Filter(consent=False, after=after))
        return {"withdrawn": there - self.count(Filter(after=after)), "without consent": without}

    def those(self, ids: Iterable[str]) -> Iterator[Event]:
        """The events with these ids that may be trained on, in the order of the ids."""
        question = f"SELECT {_COLUMNS} FROM event WHERE id = ? AND consent = 1 AND {_NOT_WITHDRAWN}"
        for wanted in ids:
            if found := self._db.execute(question, (wanted,)).fetchone():
                yield _event(found)

    def _conditions(self, wanted: Filter) -> tuple[str, list[Any]]:
        found: list[tuple[str, list[Any]]] = [] if wanted.withdrawn else [(_NOT_WITHDRAWN, [])]
        if wanted.since:
            found.append(("time >= ?", [wanted.since]))
        if wanted.run:
            found.append(("(run = ? OR run_hash = ?)", [wanted.run, wanted.run]))
        if wanted.rater:
            found.append(("rater = ?", [rater_hash(wanted.rater, self.salt)]))
        if wanted.tag:
            found.append(("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)", [wanted.tag]))
        if wanted.kind:
            found.append(("kind = ?", [wanted.kind]))
        if wanted.consent is not None:
            found.append(("consent = ?", [int(wanted.consent)]))
        if wanted.after is not None:
            found.append(("seq > coalesce((SELECT seq FROM event WHERE id = ?), 0)", [wanted.after]))
        return " AND ".join(condition for condition, _ in found) or "1", [
            v for _, values in found for v in values
        ]

    def withdraw(self, *, event: str | None = None, rater: str | None = None, why: str = "") -> int:
        """
        Take back one event, or all that a rater has said and will say; nothing is removed, later updates leave them out.

        Returns:
            How many events are withdrawn by it that were not before.

        Raises:
            InputError: when there is no such event, or no such rater.
        """
        wanted = Filter(rater=rater) if rater else Filter()
        with self._writing():
            if event is not None and not self._has("id", event):
                raise InputError(
                    f"{self.path} has no event {event}", hint="`instructkit feedback list` shows ids"
                )
            whose = rater_hash(rater, self.salt) if rater else None
            if whose is not None and not self._has("rater", whose):
                raise InputError(
                    f"{self.path} has nothing said by {rater}",
                    hint="give the name as it was imported, or its h: hash",
                )
            before = self.count(wanted)
            values = (ulid(), now(), event, whose, why)
            self._db.execute(
                "INSERT INTO withdrawal(id, time, event, rater, why) VALUES (?, ?, ?, ?, ?)", values
            )
            return before - self.count(wanted)

    def _has(self, column: str, value: str | bytes) -> bool:
        return (
            self._db.execute(f"SELECT 1 FROM event WHERE {column} = ? LIMIT 1", (value,)).fetchone()
            is not None
        )

    def clusters(self, threshold: float = 0.8) -> ClusterIndex:
        """
        The clusters of nearly the same prompts, which are kept in the store; open as long as it is.

        Raises:
            InputError: when they were made with another threshold, or by another version of the library of hashes.
        """
        from instructkit.feedback.clusters import ClusterIndex, algorithm

        wanted = json.dumps({"threshold": threshold, "algorithm": algorithm()})
        question = "SELECT value FROM about WHERE name = 'clusters'"
        with self._writing():
            self._db.execute("INSERT OR IGNORE INTO about VALUES ('clusters', ?)", (wanted,))
            have = self._db.execute(question).fetchone()[0]
        if have != wanted:
            raise InputError(
                f"{self.path} keeps clusters of prompts made with {have}; wanted {wanted}",
                hint="a prompt's side of the split must never change: give `feedback.near_duplicates` as it was, or export "
                "the events and import them into a new store",
            )
        if (
            self._index is None
        ):  # a connection of its own, so that events can be read from the other while it writes
            connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
            connection.execute("PRAGMA synchronous = FULL")
            self._index = ClusterIndex(connection, threshold=threshold)
        return self._index

    def withdrawals(self) -> list[dict[str, Any]]:
        """Every withdrawal: when, of which event or rater, and why."""
        names = ("id", "time", "event", "rater", "why")
        found = self._db.execute(f"SELECT {', '.join(names)} FROM withdrawal ORDER BY seq")
        return [dict(zip(names, values, strict=True)) for values in found]

    def withdrawn_ids(self) -> Iterator[str]:
        """The ids of all events that are withdrawn, by themselves or with everything that their rater said."""
        for (found,) in self._db.execute(f"SELECT id FROM event WHERE NOT ({_NOT_WITHDRAWN}) ORDER BY seq"):
            yield found

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file, in its words, and which events are lost by it; nothing for a sound one."""
        found: list[str] = []
        try:
            for (text,) in self._db.execute("PRAGMA integrity_check(20)"):
                found += text.splitlines()
        except sqlite3.DatabaseError as error:
            found.append(str(error))
        if found == ["ok"]:
            return []
        lost = [number for number in self.salvage() if isinstance(number, int)]
        return [*found, *(f"event {number} cannot be read" for number in lost)]

    def salvage(self) -> Iterator[Event | int]:
        """Every event that can still be read; of one that cannot, its number."""
        last = self._last()
        for first in range(1, last + 1, BATCH):
            yield from self._read(first, min(first + BATCH - 1, last))

    def _last(self) -> int:
        for question in (
            "SELECT seq FROM sqlite_sequence WHERE name = 'event'",
            "SELECT max(seq) FROM event",
        ):
            with contextlib.suppress(sqlite3.DatabaseError):
                if found := self._db.execute(question).fetchone():
                    return found[0] or 0
        return 0

    def _read(self, first: int, last: int) -> list[Event | int]:
        """A range of events; where that fails, each half of it."""
        question = f"SELECT {_COLUMNS} FROM event WHERE seq BETWEEN ? AND ? ORDER BY seq"
        try:
            return [_event(found) for found in self._db.execute(question, (first, last))]
        except (sqlite3.DatabaseError, ValueError):
            if first == last:
                return [first]
            middle = (first + last) // 2
            return [*self._read(first, middle), *self._read(middle + 1, last)]


def _make_private(path: Path) -> None:
    """An empty file that nobody else may read; SQLite gives its companions the same rights."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise InputError(f"{path} cannot be made: {error}", hint="give another path with --store") from error


def _statements(step: str) -> Iterator[str]:
    """The statements of a step; a trigger has semicolons inside."""
    text = ""
    for line in step.splitlines():
        text += line + "\n"
        if sqlite3.complete_statement(text):
            yield text
            text = ""


def _event(found: tuple[Any, ...]) -> Event:
    (id_, time, source, rater, run, run_hash, sampling, prompt, response, judgement, tags, group, consent) = (
        found
    )
    return Event(
        *(id_, time, source, rater, json.loads(prompt), response, json.loads(judgement), run, run_hash),
        None if sampling is None else json.loads(sampling),
        tuple(json.loads(tags)),
        group,
        bool(consent),
    )


def _told(path: Path, error: sqlite3.Error) -> InstructKitError:
    """What went wrong with the file, and what to do about it."""
    text = str(error)
    if "full" in text:
        told, hint = (
            "the disk is full",
            "free some space and give the same files again: nothing is added twice",
        )
    elif "locked" in text:
        told, hint = f"another process has been writing for {WAIT_SECONDS} s", "try again"
    elif "readonly" in text or "unable to open" in text:
        told, hint = f"it cannot be written ({text})", "check the permissions of the file and its folder"
    elif "not a database" in text:
        return InputError(f"{path} is no feedback store", hint="give another path with --store")
    else:
        told = f"it is damaged ({text})"
        hint = "`instructkit feedback check` tells what is, and `feedback export --salvage` writes what can still be read"
    return InstructKitError(f"{path}: {told}", hint=hint)

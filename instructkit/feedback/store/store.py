"""
The feedback store: one SQLite file to which events are only ever added.

What was acknowledged is on disk (write-ahead log, synchronous commits), two writers and a reader at once are normal, nobody
but its owner can read the file, and a withdrawal is an event too.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructkit.data.rows import Row
from instructkit.errors import InputError
from instructkit.feedback.store import database
from instructkit.feedback.store.database import in_words, transaction
from instructkit.feedback.store.events import Event, content_key, hashed, now, rater_hash, ulid

if TYPE_CHECKING:
    from instructkit.feedback.store.clusters import ClusterIndex
from collections import Counter
from dataclasses import field, replace
from operator import itemgetter

from instructkit.data.sources import Rows, fingerprint
from instructkit.data.table import Table
from instructkit.errors import NothingNew
from instructkit.feedback.store.personal_data import Redactor

COLUMNS = (
    "id, time, source, rater, run, run_hash, sampling, prompt, response, judgement, tags, segment, consent"
)
NOT_WITHDRAWN = (
    "NOT EXISTS (SELECT 1 FROM withdrawal WHERE withdrawal.event = event.id) AND "
    "(event.rater = '' OR NOT EXISTS (SELECT 1 FROM withdrawal WHERE withdrawal.rater = event.rater))"
)


@dataclass(frozen=True)
class Filter:
    """
    Which events: said since a time (ISO 8601), about a run, by a rater, with a tag, of a kind; with or without consent to
    training where that is given; that came after an event, and up to one, by their ids; withdrawn ones too or not.
    """

    since: str | None = None
    run: str | None = None
    rater: str | None = None
    tag: str | None = None
    kind: str | None = None
    consent: bool | None = None
    after: str | None = None
    withdrawn: bool = False
    until: str | None = None

    def question(
        self, hashed: Callable[[str], str], number: Callable[[str], int]
    ) -> tuple[str, list[str | int]]:
        """
        The condition of an SQL query on the table of events, and its values.

        Args:
            hashed: a rater's name as the store keeps it.
            number: the place of the event with an id.
        """
        found: list[tuple[str, list[str | int]]] = [] if self.withdrawn else [(NOT_WITHDRAWN, [])]
        if self.since:
            found.append(("time >= ?", [self.since]))
        if self.run:
            found.append(("(run = ? OR run_hash = ?)", [self.run, self.run]))
        if self.rater:
            found.append(("rater = ?", [hashed(self.rater)]))
        if self.tag:
            found.append(("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)", [self.tag]))
        if self.kind:
            found.append(("kind = ?", [self.kind]))
        if self.consent is not None:
            found.append(("consent = ?", [int(self.consent)]))
        if self.after is not None:
            found.append(("seq > ?", [number(self.after)]))
        if self.until is not None:
            found.append(("seq <= ?", [number(self.until)]))
        conditions = " AND ".join(condition for condition, _ in found) or "1"
        return conditions, [value for _, values in found for value in values]

    def takes(self, event: Event, hashed: Callable[[str], str]) -> bool:
        """Whether an event is wanted, by what it says itself: not by its place, and not by whether it was withdrawn."""
        return (
            (not self.since or event.time >= self.since)
            and (not self.run or self.run in (event.run, event.run_hash))
            and (not self.rater or event.rater == hashed(self.rater))
            and (not self.tag or self.tag in event.tags)
            and (not self.kind or event.kind == self.kind)
            and (self.consent is None or event.consent == self.consent)
        )


def event_from(found: tuple[Any, ...]) -> Event:
    """
    The event that a row of the table keeps, its columns being `COLUMNS`.

    Raises:
        sqlite3.DatabaseError: when it cannot be read, which is damage like any other.
    """
    (id_, time, source, rater, run, run_hash, sampling, prompt, response, judgement, tags, group, consent) = (
        found
    )
    try:
        if "\0" in prompt + response:  # no event has them; a page has, of which a part is lost
            raise ValueError("it holds NUL bytes")
        return Event(
            *(id_, time, source, rater, json.loads(prompt), response, json.loads(judgement), run, run_hash),
            None if sampling is None else json.loads(sampling),
            tuple(json.loads(tags)),
            group,
            bool(consent),
        )
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"the event {id_} cannot be read: {error}") from error


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


__all__ = ["Filter", "Store"]

BATCH = 1000  # events in one transaction


class Store:
    """An open feedback store; a context manager."""

    def __init__(self, path: Path, connection: sqlite3.Connection, address: str) -> None:
        self.path, self._db, self._address = path, connection, address
        self._indexes: dict[tuple[float, bool], ClusterIndex] = {}

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """
        Open a store, bringing one of an older version up to date; of one that is, nothing is written.

        Args:
            create: make one where there is none.

        Raises:
            InputError: when there is none, or the file is no store, or one of a newer version.
        """
        path = Path(path)
        database.prepare(path, create=create)
        with in_words(path):
            return cls(path, *database.connect(path))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        for index in self._indexes.values():
            index.close()
        self._db.close()

    @property
    def salt(self) -> bytes:
        """What raters' names are hashed with; it never leaves the store."""
        with in_words(self.path):
            return self._salt()

    def _salt(self) -> bytes:
        return self._db.execute("SELECT value FROM about WHERE name = 'salt'").fetchone()[0]

    def add(
        self,
        events: Iterable[Given],
        on_new: Callable[[Event], None] | None = None,
        on_taken_back: Callable[[str], None] | None = None,
        on_clash: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[int, int]]:
        """
        Add events, a batch at a time.

        What is there already is not added again, however often a file is read: rows that say the same are told apart by
        how many of them came before in this call. Where one comes again without consent, it is withdrawn.

        Args:
            events: each with the row that it was made of, and, where there is one, the same event in other words, by which
                it is known too: as it was before personal data was taken out of it, or without it.
            on_new: told of each event that is added.
            on_taken_back: told the id of each event that is withdrawn.
            on_clash: told the id of each event that is left out because another one, which says something else, has it.

        Yields:
            After each batch, which is then on disk: how many of its events were new, and how many were known.

        Raises:
            InstructKitError: when the disk is full or the store damaged; batches that were yielded are kept.
        """
        salt, waiting = self.salt, iter(events)
        with in_words(self.path):
            forget_met(self._db)
            while batch := list(itertools.islice(waiting, BATCH)):
                with transaction(self._db):
                    new, taken_back, clashes = add(self._db, batch, salt)
                for found, tell in ((new, on_new), (taken_back, on_taken_back), (clashes, on_clash)):
                    for each in found if tell else ():
                        tell(each)
                yield len(new), len(batch) - len(new) - len(clashes)

    def events(self, wanted: Filter | None = None) -> Iterator[Event]:
        """
        Events in the order in which they came, one in memory at a time.

        Raises:
            InputError: when the event that they are to come after, or go up to, is not there.
            InstructKitError: when the store is damaged; `salvage.Rest` gets at what is left.
        """
        where, values = self._question(wanted)
        with in_words(self.path):
            for found in self._db.execute(f"SELECT {COLUMNS} FROM event WHERE {where} ORDER BY seq", values):
                yield event_from(found)

    def count(self, wanted: Filter | None = None) -> int:
        """
        How many events.

        Raises:
            InputError: as `events` does.
        """
        where, values = self._question(wanted)
        with in_words(self.path):
            return self._db.execute(f"SELECT count(*) FROM event WHERE {where}", values).fetchone()[0]

    def left_out(self, after: str | None = None, until: str | None = None) -> dict[str, int]:
        """How many events, of those that came after one and up to one, no update may learn from, by reason."""
        there = self.count(Filter(withdrawn=True, after=after, until=until))
        without = self.count(Filter(consent=False, after=after, until=until))
        kept = self.count(Filter(after=after, until=until))
        return {"withdrawn": there - kept, "without consent": without}

    def those(self, ids: Iterable[str]) -> Iterator[Event]:
        """The events with these ids that may be trained on, in the order of the ids."""
        question = f"SELECT {COLUMNS} FROM event WHERE id = ? AND consent = 1 AND {NOT_WITHDRAWN}"
        with in_words(self.path):
            for wanted in ids:
                if found := self._db.execute(question, (wanted,)).fetchone():
                    yield event_from(found)

    def has(self, event: str) -> bool:
        """Whether there is an event with this id, withdrawn or not."""
        with in_words(self.path):
            return has(self._db, "id", event)

    def _question(self, wanted: Filter | None) -> tuple[str, list[str | int]]:
        with in_words(self.path):
            return (wanted or Filter()).question(self._hashed, self._number)

    def _hashed(self, name: str) -> str:
        return rater_hash(name, self._salt())

    def _number(self, event: str) -> int:
        found = self._db.execute("SELECT seq FROM event WHERE id = ?", (event,)).fetchone()
        if found is None:
            raise InputError(
                f"{self.path} has no event {event}",
                hint="give the store that it is in; an update learns from all events of this one with feedback.since=all",
            )
        return found[0]

    def withdraw(self, *, event: str | None = None, rater: str | None = None, why: str = "") -> int:
        """
        Take back one event, or all that a rater has said and will say; nothing is removed, later updates leave them out.

        Returns:
            How many events are withdrawn by it that were not before.

        Raises:
            InputError: when there is no such event, or no such rater.
        """
        wanted = Filter(rater=rater) if rater else Filter()
        with in_words(self.path), transaction(self._db):
            if event is not None and not has(self._db, "id", event):
                raise InputError(
                    f"{self.path} has no event {event}", hint="`instructkit feedback list` shows ids"
                )
            whose = rater_hash(rater, self.salt) if rater else None
            if whose is not None and not has(self._db, "rater", whose):
                raise InputError(
                    f"{self.path} has nothing said by {rater}",
                    hint="give the name as it was imported, or its h: hash",
                )
            before = self.count(wanted)
            withdraw(self._db, event, whose, why)
            return before - self.count(wanted)

    def clusters(self, threshold: float = 0.8, *, keep: bool = True) -> ClusterIndex:
        """
        The clusters of nearly the same prompts, which are kept in the store; open as long as it is.

        Args:
            keep: whether prompts that were never met are kept. Without, they are answered alike, and forgotten.

        Raises:
            InputError: when they were made with another threshold, or by another version of the library of hashes.
        """
        from instructkit.data.near_duplicates import algorithm
        from instructkit.feedback.store.clusters import ClusterIndex

        wanted = json.dumps({"threshold": threshold, "algorithm": algorithm()})
        have = self._about("clusters", wanted, keep=keep)
        if have != wanted:
            raise InputError(
                f"{self.path} keeps clusters of prompts made with {have}; wanted {wanted}",
                hint="a prompt's side of the split must never change: give `feedback.near_duplicates` as it was, or export "
                "the events and import them into a new store",
            )
        if (threshold, keep) not in self._indexes:
            with in_words(self.path):
                self._indexes[threshold, keep] = ClusterIndex.of_store(
                    self._address, threshold=threshold, keep=keep
                )
        return self._indexes[threshold, keep]

    def pin(self, name: str, value: float, *, keep: bool = True) -> None:
        """
        Hold the share of a side of the split, for ever: the first that is told is the one.

        Args:
            name: `eval` or `tune`, as the recipe calls it.
            keep: whether a first one is kept; without, it is only compared.

        Raises:
            InputError: when the store was begun with another.
        """
        have = self._about(f"feedback.{name}", float(value), keep=keep)
        if have != value:
            same = f"set feedback.{name}: {have:g}"
            if name == "eval" and not have:
                same = "name a source of test events as feedback.eval"
            raise InputError(
                f"{self.path} was begun with a share of {have:g} for feedback.{name}, and the recipe gives it {value:g}",
                hint=f"an event's side of the split must never change: {same}, or export the events, import them into a "
                "new store, and begin a new feedback.chain with it",
            )

    def runs(self, root: str, *, keep: bool = True) -> str:
        """
        Where the runs lie that first learned from this store: looks at its test events are counted there.

        Args:
            root: where they lie now; a first one is kept where `keep` is.
        """
        return str(self._about("runs", root, keep=keep))

    def other_scales(self, sources: Iterable[str], scale: str) -> dict[str, list[str]]:
        """By source, the scales that its ratings were read on before they are on this one, which is kept, for the first time."""
        with in_words(self.path), transaction(self._db):
            return {source: other_scales(self._db, source, scale) for source in sources}

    def _about(self, name: str, value: str | float, *, keep: bool) -> str | float:
        """What the store keeps under a name; where that is nothing, the value, which is kept from now on."""
        question = "SELECT value FROM about WHERE name = ?"
        with in_words(self.path):
            found = self._db.execute(question, (name,)).fetchone()
            if found is None and keep:
                with transaction(self._db):
                    self._db.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", (name, value))
                    found = self._db.execute(question, (name,)).fetchone()
        return value if found is None else found[0]

    def withdrawals(self) -> list[dict[str, Any]]:
        """Every withdrawal: when, of which event or rater, and why."""
        names = ("id", "time", "event", "rater", "why")
        with in_words(self.path):
            found = self._db.execute(f"SELECT {', '.join(names)} FROM withdrawal ORDER BY seq")
            return [dict(zip(names, values, strict=True)) for values in found]

    def withdrawn_ids(self) -> Iterator[str]:
        """The ids of all events that are withdrawn, by themselves or with everything that their rater said."""
        question = f"SELECT id FROM event WHERE NOT ({NOT_WITHDRAWN}) ORDER BY seq"
        with in_words(self.path):
            yield from (found for (found,) in self._db.execute(question))

    def refuse_unwritable(self) -> None:
        """
        Refuse a store that cannot be written; nothing is.

        Raises:
            InstructKitError: in words, also when another process writes all the time.
        """
        with in_words(self.path), transaction(self._db):
            # Of a read-only file SQLite begins a transaction for writing all the same; the first write is refused.
            self._db.execute("DELETE FROM about WHERE 0")

    def refuse_damaged_withdrawals(self) -> None:
        """
        Before events are learned from: look whether every withdrawal is found, in the table and by its indices.

        An index that was damaged can say without an error that nothing is withdrawn.

        Raises:
            InputError: when the store is damaged there.
        """
        with in_words(self.path):
            for (told,) in self._db.execute("PRAGMA integrity_check(withdrawal)"):
                if told != "ok":
                    raise sqlite3.DatabaseError(f"withdrawals: {told}")


_MORE = "import more with `instructkit feedback import`"


def events_after(path: str, last: str | None, *, until: str | None = None, limit: int | None = None) -> Rows:
    """
    The events of a store that may be trained on and came after one.

    Args:
        last: id of that event; None for all of them.
        until: id of the last event that is read; None for all of them.
        limit: the first so many.

    Raises:
        NothingNew: when there are such events, and all came before.
        InputError: when there is no such store, or no such event in it, or nothing that may be trained on, or withdrawals
            cannot be relied on.
    """
    with Store.open(path) as store:
        store.refuse_damaged_withdrawals()
        rows = _rows(store.events(Filter(consent=True, after=last, until=until)), path, limit)
        before = store.count(Filter(consent=True)) if last and not rows.rows else 0
    if not rows.rows and before:
        raise NothingNew(
            f"{path} holds no new events: the chain's current adapter has seen all {before} that may be trained on",
            hint=f"{_MORE}, or learn from all of them again with feedback.since=all",
        )
    if not rows.rows:
        raise InputError(f"{path} holds no events that may be trained on", hint=_MORE)
    return rows


def events_with(path: str, ids: Iterable[str]) -> Rows:
    """Those of the events with these ids that may still be trained on: none that was withdrawn since."""
    with Store.open(path) as store:
        return _rows(store.those(ids), path, None)


def _rows(events: Iterable[Event], path: str, limit: int | None) -> Rows:
    kept = Table()
    for event in events:
        if limit is not None and len(kept) >= limit:
            break
        kept.append((event.as_row(), f"{path} event {event.id}"))
    rows, places = (kept.column(range(len(kept)), itemgetter(i)) for i in (0, 1))
    return Rows(rows, places, path, fingerprint(rows), kind="feedback")


@dataclass
class Stored:
    """
    What became of events that were put into a store.

    Attributes:
        new, known: events that were added, and that were there.
        withdrawn: known ones that came again without consent, and might have been trained on until now.
        personal: personal data found in the new ones, by kind.
        clashes: ids of events that were left out, because another event, which says something else, has them.
    """

    new: int = 0
    known: int = 0
    withdrawn: int = 0
    personal: Counter[str] = field(default_factory=Counter)
    clashes: list[str] = field(default_factory=list)

    def __add__(self, other: Stored) -> Stored:
        return Stored(
            self.new + other.new,
            self.known + other.known,
            self.withdrawn + other.withdrawn,
            self.personal + other.personal,
            self.clashes + other.clashes,
        )


def put(store: Store, events: Iterable[tuple[Event, Row]], *, keep_raw: bool) -> Stored:
    """
    Add events to a store, with personal data replaced by placeholders unless it is to be kept.

    An event is known by its words as they are stored; by those as they were and as they would be as well while it is added,
    so that a file whose personal data was kept adds nothing when it comes again without, and the other way round. No hash
    of what was replaced is kept, from which a number could be guessed.
    """
    redactor, told = Redactor(), Stored()
    waiting: dict[str, list[str]] = {}

    def worded() -> Iterator[tuple[Event, Row, *tuple[Event, ...]]]:
        for event, row in events:
            plain, found = without_personal_data(event, redactor)
            if not found:
                yield event, row
                continue
            waiting[event.id] = [kind for kind, _ in found]
            yield (event, row, plain) if keep_raw else (plain, row, event)

    def taken_back(_: str) -> None:
        told.withdrawn += 1

    def added(event: Event) -> None:
        told.personal.update(waiting.get(event.id, ()))

    for new, known in store.add(
        worded(), on_new=added, on_taken_back=taken_back, on_clash=told.clashes.append
    ):
        told.new, told.known = told.new + new, told.known + known
        waiting.clear()
    return told


def without_personal_data(event: Event, redactor: Redactor) -> tuple[Event, list[tuple[str, str]]]:
    """The event with placeholders in all its texts, and what they stand for; the same object when nothing was found."""
    texts = {"prompt": event.prompt, "response": event.response, **event.judgement}
    told, found = redactor.row(texts)
    if not found:
        return event, found
    judgement = {name: told[name] for name in event.judgement}
    return replace(event, prompt=told["prompt"], response=told["response"], judgement=judgement), found

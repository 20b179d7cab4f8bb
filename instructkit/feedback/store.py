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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructkit.errors import InputError
from instructkit.feedback import adding, opening
from instructkit.feedback.adding import Given
from instructkit.feedback.events import Event, rater_hash
from instructkit.feedback.filters import COLUMNS, NOT_WITHDRAWN, Filter, event_from
from instructkit.feedback.opening import in_words, transaction

if TYPE_CHECKING:
    from instructkit.feedback.clusters import ClusterIndex

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
        opening.prepare(path, create=create)
        with in_words(path):
            return cls(path, *opening.connect(path))

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
            adding.forget_met(self._db)
            while batch := list(itertools.islice(waiting, BATCH)):
                with transaction(self._db):
                    new, taken_back, clashes = adding.add(self._db, batch, salt)
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
            return adding.has(self._db, "id", event)

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
            if event is not None and not adding.has(self._db, "id", event):
                raise InputError(
                    f"{self.path} has no event {event}", hint="`instructkit feedback list` shows ids"
                )
            whose = rater_hash(rater, self.salt) if rater else None
            if whose is not None and not adding.has(self._db, "rater", whose):
                raise InputError(
                    f"{self.path} has nothing said by {rater}",
                    hint="give the name as it was imported, or its h: hash",
                )
            before = self.count(wanted)
            adding.withdraw(self._db, event, whose, why)
            return before - self.count(wanted)

    def clusters(self, threshold: float = 0.8, *, keep: bool = True) -> ClusterIndex:
        """
        The clusters of nearly the same prompts, which are kept in the store; open as long as it is.

        Args:
            keep: whether prompts that were never met are kept. Without, they are answered alike, and forgotten.

        Raises:
            InputError: when they were made with another threshold, or by another version of the library of hashes.
        """
        from instructkit.feedback.clusters import ClusterIndex
        from instructkit.feedback.sketches import algorithm

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
            return {source: adding.other_scales(self._db, source, scale) for source in sources}

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

"""
Near-duplicate prompts, in the order in which they come: a prompt that was given its clusters keeps them for ever.

Two prompts are near when the Jaccard similarity of their sets of 5-word shingles reaches a threshold (Lee et al.
2107.06499, section 4.2). MinHash signatures, cut into bands, name the candidates; what decides is the similarity of the
shingles' hashes (`data.near_duplicates`). Only hashes are kept, never a text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence

from instructkit.data.near_duplicates import (
    SHINGLE_WORDS,
    rows_of,
    shingles,
    signatures,
    similarity,
    words_of,
)
from instructkit.feedback.store import database
from instructkit.feedback.store.database import READ_ONLY, WAIT_SECONDS

TABLES = ("prompt_cluster", "prompt_met", "prompt_sketch", "prompt_band")
_CACHE_KIB = 128 * 1024


def temporary() -> sqlite3.Connection:
    """Tables of their own, on disk when they are large, and gone when they are closed."""
    connection = _connected("")
    connection.execute("PRAGMA synchronous = OFF")
    connection.executescript(database.STEPS[database.CLUSTERS])
    return connection


def kept(address: str) -> sqlite3.Connection:
    """The tables of a store; `address` is its `file:` URI, also one that only reads."""
    connection = _connected(address.removesuffix(READ_ONLY))
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def above(address: str) -> sqlite3.Connection:
    """
    A temporary database whose tables are read together with those of a store, which stays as it is.

    One transaction, never committed, holds the store as it was: the ids that are given here cannot be given there meanwhile.

    Args:
        address: of the store, a `file:` URI that only reads.
    """
    connection = temporary()
    connection.execute("ATTACH ? AS kept", (address,))
    connection.execute(f"PRAGMA kept.cache_size = -{_CACHE_KIB}")
    for table in TABLES:
        both = f"SELECT * FROM main.{table} UNION ALL SELECT * FROM kept.{table}"
        connection.execute(f"CREATE TEMP VIEW {table} AS {both}")
    connection.execute("BEGIN")
    return connection


def last(db: sqlite3.Connection, table: str) -> int:
    """The highest id; in order of the key, which a view of two tables can answer from their ends as well."""
    found = db.execute(f"SELECT id FROM {table} ORDER BY id DESC LIMIT 1").fetchone()
    return found[0] if found else 0


def _connected(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


BUCKET = 8  # sketches in one band: what comes later is near one of these, or met in its other bands
# One transaction holds prompts of about so many words. Keys and bands are hashes, so a transaction writes to pages all over the
# tables: many small ones write each page again and again (7.5 GiB for the first 200,000 prompts, whose tables have 0.1).
BATCH_WORDS = 800_000
SIGNED = 1000  # prompts whose signatures are made at once: each holds all its shingles meanwhile
ASKED = 1000  # keys in one question to the database

Signed = dict[bytes, tuple[frozenset[int], list[int]]]


class ClusterIndex:
    """
    Clusters of prompts, in tables that a migration of the store makes.

    Args:
        connection: to a database with these tables, in autocommit mode; without one, a temporary database on disk.
        threshold: prompts as alike as this (Jaccard) are near.
    """

    def __init__(self, connection: sqlite3.Connection | None = None, *, threshold: float = 0.8) -> None:
        self._db = connection or temporary()
        self._threshold, self._rows = threshold, rows_of(threshold)
        self._batch = ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")

    @classmethod
    def of_store(cls, address: str, *, threshold: float, keep: bool) -> ClusterIndex:
        """
        The clusters that a store keeps, on a connection of its own: events are read from another while it writes.

        Args:
            address: of the store, a `file:` URI that only reads.
            threshold: as above.
            keep: whether the store is written to; without, what is new lies in a temporary database above the store as it
                was when the first question was asked, and is gone when the index is closed.
        """
        if keep:
            return cls(kept(address), threshold=threshold)
        index = cls(above(address), threshold=threshold)
        index._batch = ("SAVEPOINT batch", "RELEASE batch", "ROLLBACK TO batch")
        return index

    def touched(self, prompts: Iterable[str]) -> Iterator[tuple[int, ...]]:
        """
        The clusters that each prompt belongs to, the earliest first.

        A prompt near no earlier one founds a cluster; one that is near several has all their clusters, and hands them on to
        later prompts near it. What was answered is on disk, and an exact repeat is answered from it.

        Args:
            prompts: as `prompt_text` gives them, in the order of events.
        """
        for batch in _batches(map(words_of, prompts)):
            yield from self._answered(batch)

    def position(self, cluster: int) -> float:
        """Where a cluster lies in [0, 1): the hash of the prompt that founded it, for ever."""
        found = self._db.execute("SELECT position FROM prompt_cluster WHERE id = ?", (cluster,)).fetchone()
        if found is None:
            raise KeyError(cluster)
        return found[0]

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _answered(self, batch: list[list[str]]) -> list[tuple[int, ...]]:
        keys = [_key(words) for words in batch]
        texts = dict(zip(keys, batch, strict=True))
        signed = self._signed(texts)  # before the lock is taken: others may write meanwhile
        begin, end, undo = self._batch
        self._db.execute(begin)
        try:
            met = self._met(keys)
            met |= self._place([key for key in texts if key not in met], signed)
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute(undo)
            raise
        self._db.execute(end)
        return [met[key] for key in keys]

    def _met(self, keys: list[bytes]) -> dict[bytes, tuple[int, ...]]:
        found: dict[bytes, tuple[int, ...]] = {}
        for wanted in _chunks(sorted(set(keys)), ASKED):
            asked = "SELECT prompt_key, clusters FROM prompt_met WHERE prompt_key IN ({})"
            told = self._db.execute(asked.format(",".join("?" * len(wanted))), wanted)
            found |= {key: tuple(json.loads(clusters)) for key, clusters in told}
        return found

    def _place(self, fresh: list[bytes], signed: Signed) -> dict[bytes, tuple[int, ...]]:
        """Give clusters to prompts that were never met, one after the other."""
        if not fresh:
            return {}
        bands = {band for key in fresh if key in signed for band in signed[key][1]}
        near = _Near(self._db, self._threshold, bands)
        founded = last(self._db, "prompt_cluster")
        given: dict[bytes, tuple[int, ...]] = {}
        founders = []
        for key in fresh:
            # A prompt too short for a shingle is one itself, so only its repeats are near it: those are met by their key.
            given[key] = near.clusters(*signed[key]) if key in signed else ()
            if not given[key]:
                founded += 1
                founders.append((founded, _position(key)))
                given[key] = (founded,)
            if key in signed:
                near.add(*signed[key], given[key])
        self._db.executemany("INSERT INTO main.prompt_cluster VALUES (?, ?)", founders)
        self._db.executemany(
            "INSERT INTO main.prompt_met VALUES (?, ?)",
            [(key, json.dumps(given[key])) for key in sorted(given)],
        )
        near.write()
        return given

    def _signed(self, texts: dict[bytes, list[str]]) -> Signed:
        """Sketch and bands of the prompts that were never met and have a shingle."""
        met = self._met(list(texts))
        long = [key for key, words in texts.items() if len(words) >= SHINGLE_WORDS and key not in met]
        signed: Signed = {}
        for keys in _chunks(long, SIGNED):
            found = signatures([shingles(texts[key]) for key in keys], self._rows)
            signed.update(zip(keys, found, strict=True))
        return signed


class _Near:
    """The sketches that a batch of prompts could be near: those on disk, and those of the batch itself."""

    def __init__(self, db: sqlite3.Connection, threshold: float, bands: set[int]) -> None:
        self._db, self._threshold = db, threshold
        self._last = last(db, "prompt_sketch")
        self._buckets: dict[int, tuple[int, ...]] = dict.fromkeys(bands, ())
        asked = json.dumps(sorted(bands))
        found = "SELECT band, sketch FROM json_each(?) JOIN prompt_band ON band = value"
        for band, sketch in db.execute(found, (asked,)):
            self._buckets[band] += (sketch,)
        there = json.dumps(sorted({sketch for bucket in self._buckets.values() for sketch in bucket}))
        found = (
            "SELECT s.id, s.clusters FROM json_each(?) AS asked JOIN prompt_sketch AS s ON s.id = asked.value"
        )
        self._clusters = {sketch: tuple(json.loads(told)) for sketch, told in db.execute(found, (there,))}
        self._sketches: dict[int, frozenset[int]] = {}
        self._new_sketches: list[tuple[int, bytes, str]] = []
        self._new_bands: list[tuple[int, int]] = []

    def clusters(self, sketch: frozenset[int], bands: Sequence[int]) -> tuple[int, ...]:
        """All clusters of the earlier prompts near this one; one that could add none is not looked at."""
        found: set[int] = set()
        for earlier in sorted({each for band in bands for each in self._buckets[band]}):
            theirs = self._clusters[earlier]
            if not found.issuperset(theirs) and similarity(sketch, self._sketch(earlier)) >= self._threshold:
                found.update(theirs)
        return tuple(sorted(found))

    def _sketch(self, number: int) -> frozenset[int]:
        if number not in self._sketches:
            found = self._db.execute("SELECT hashes FROM prompt_sketch WHERE id = ?", (number,)).fetchone()[0]
            self._sketches[number] = frozenset(struct.unpack(f"<{len(found) // 8}Q", found))
        return self._sketches[number]

    def add(self, sketch: frozenset[int], bands: Sequence[int], clusters: tuple[int, ...]) -> None:
        """Let later prompts be near this one."""
        room = [band for band in bands if len(self._buckets[band]) < BUCKET]
        if not room:
            return
        self._last += 1
        self._sketches[self._last], self._clusters[self._last] = sketch, clusters
        packed = struct.pack(f"<{len(sketch)}Q", *sketch)
        self._new_sketches.append((self._last, packed, json.dumps(clusters)))
        for band in room:
            self._buckets[band] += (self._last,)
            self._new_bands.append((band, self._last))

    def write(self) -> None:
        """Put what was added on disk; in the order of the keys, which is the order of the pages."""
        self._db.executemany("INSERT INTO main.prompt_sketch VALUES (?, ?, ?)", self._new_sketches)
        self._db.executemany("INSERT INTO main.prompt_band VALUES (?, ?)", sorted(self._new_bands))


def _batches(texts: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """The texts, given as their words, in turn: each batch until it has `BATCH_WORDS`."""
    batch: list[list[str]] = []
    total = 0
    for words in texts:
        batch.append(words)
        total += len(words) + 1  # an empty text takes room as well
        if total >= BATCH_WORDS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _chunks(keys: list[bytes], size: int) -> Iterator[list[bytes]]:
    return (keys[i : i + size] for i in range(0, len(keys), size))


def _key(words: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _position(key: bytes) -> float:
    return (int.from_bytes(key[:8], "little") >> 11) / 2**53

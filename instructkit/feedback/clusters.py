"""
Near-duplicate prompts, in the order in which they come: a prompt that was given its clusters keeps them for ever.

Two prompts are near when the Jaccard similarity of their sets of 5-word shingles reaches a threshold (Lee et al.
2107.06499, section 4.2). MinHash signatures, cut into bands, name the candidates; what decides is the similarity of the
shingles' hashes, which is exact for prompts of up to 259 words and estimated from the 256 smallest hashes beyond. Only
hashes are kept, never a text.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import sqlite3
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from instructkit.feedback import cluster_tables

SHINGLE_WORDS = 5
BANDS = 12
SKETCH = 256  # hashes kept of a prompt
BUCKET = 8  # sketches in one band: what comes later is near one of these, or met in its other bands
BATCH = 1000  # prompts in one transaction
_SEED = 2107
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
# Scripts that put no space between words: each character stands for one.
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


class ClusterIndex:
    """
    Clusters of prompts, in tables that a migration of the store makes.

    Args:
        connection: to a database with these tables, in autocommit mode; without one, a temporary database on disk.
        threshold: prompts as alike as this (Jaccard) are near.
    """

    def __init__(self, connection: sqlite3.Connection | None = None, *, threshold: float = 0.8) -> None:
        self._db = connection or cluster_tables.temporary()
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
            return cls(cluster_tables.kept(address), threshold=threshold)
        index = cls(cluster_tables.above(address), threshold=threshold)
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
        waiting = iter(prompts)
        while batch := [words_of(prompt) for prompt in itertools.islice(waiting, BATCH)]:
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
        begin, end, undo = self._batch
        self._db.execute(begin)
        try:
            met = self._met(keys)
            fresh = {key: words for key, words in zip(keys, batch, strict=True) if key not in met}
            met |= self._place(fresh)
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute(undo)
            raise
        self._db.execute(end)
        return [met[key] for key in keys]

    def _met(self, keys: list[bytes]) -> dict[bytes, tuple[int, ...]]:
        wanted = sorted(set(keys))
        marks = ",".join("?" * len(wanted))
        found = self._db.execute(
            f"SELECT prompt_key, clusters FROM prompt_met WHERE prompt_key IN ({marks})", wanted
        )
        return {key: tuple(json.loads(clusters)) for key, clusters in found}

    def _place(self, fresh: dict[bytes, list[str]]) -> dict[bytes, tuple[int, ...]]:
        """Give clusters to prompts that were never met, one after the other."""
        if not fresh:
            return {}
        long = [key for key, words in fresh.items() if len(words) >= SHINGLE_WORDS]
        signed = dict(zip(long, signatures([shingles(fresh[key]) for key in long], self._rows), strict=True))
        near = _Near(self._db, self._threshold, {band for _, bands in signed.values() for band in bands})
        founded = cluster_tables.last(self._db, "prompt_cluster")
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


class _Near:
    """The sketches that a batch of prompts could be near: those on disk, and those of the batch itself."""

    def __init__(self, db: sqlite3.Connection, threshold: float, bands: set[int]) -> None:
        self._db, self._threshold = db, threshold
        self._last = cluster_tables.last(db, "prompt_sketch")
        self._buckets: dict[int, list[int]] = {band: [] for band in bands}
        asked = json.dumps(sorted(bands))
        found = "SELECT band, sketch FROM json_each(?) JOIN prompt_band ON band = value"
        for band, sketch in db.execute(found, (asked,)):
            self._buckets[band].append(sketch)
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
            self._buckets[band].append(self._last)
            self._new_bands.append((band, self._last))

    def write(self) -> None:
        """Put what was added on disk; in the order of the keys, which is the order of the pages."""
        self._db.executemany("INSERT INTO main.prompt_sketch VALUES (?, ?, ?)", self._new_sketches)
        self._db.executemany("INSERT INTO main.prompt_band VALUES (?, ?)", sorted(self._new_bands))


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """
    The text by which prompts are compared: a text itself, or what the messages say.

    A system message says what an assistant is for, not what was asked: the same one before every question would make all of
    them near, so it counts only where nothing else is there.
    """
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") != "system"]
    return "\n".join(str(message.get("content") or "") for message in asked or prompt)


def side(position: float, tune: float, test: float) -> str:
    """`test` for positions in [0, test), `tune` in [test, test + tune), else `train`."""
    if position < test:
        return "test"
    return "tune" if position < test + tune else "train"


def words_of(text: str) -> list[str]:
    """The words of a text, without case, in Unicode's NFC."""
    if text.isascii():
        return text.lower().split()
    told = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return _UNSPACED.sub(r" \1 ", told).split()


def shingles(words: list[str]) -> list[str]:
    """Every run of 5 words; a shorter text is one shingle."""
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(count)]


def rows_of(threshold: float) -> int:
    """
    Hashes in a band, r: as many as let prompts at the threshold meet in one of b bands in 99 of 100 cases.

    1 - (1 - threshold^r)^b >= 0.99, and 2 <= r <= 10.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.2.
    """
    fit = [rows for rows in range(2, 11) if 1 - (1 - threshold**rows) ** BANDS >= 0.99]
    return max(fit, default=2)


def signatures(texts: list[list[str]], rows: int) -> list[tuple[frozenset[int], list[int]]]:
    """
    Of each text, given as its shingles, the sketch (its smallest hashes, 64 bits) and the hashes of its bands (64 bits, signed).
    """
    from rensa import RMinHash

    if not texts:
        return []
    hashed = RMinHash.hash_token_sets(texts)
    digests = RMinHash.digest_matrix_from_token_hash_sets(hashed, num_perm=BANDS * rows, seed=_SEED).to_rows()
    return list(zip(map(_smallest, hashed), _bands(digests, rows), strict=True))


def similarity(one: frozenset[int], other: frozenset[int]) -> float:
    """
    Jaccard similarity |A ∩ B| / |A ∪ B| of two sketches.

    Exact while both hold all hashes of their texts; else, among the k smallest hashes of both together, the share that is in
    both, whose standard error is at most 1 / (2 sqrt(k)), 0.031.

    Source: Bar-Yossef et al., Counting distinct elements in a data stream (2002); Beyer et al. (2007), section 5.
    """
    if max(len(one), len(other)) < SKETCH:
        shared = len(one & other)
        return shared / (len(one) + len(other) - shared)
    smallest = sorted(one | other)[:SKETCH]
    return sum(hashed in one and hashed in other for hashed in smallest) / len(smallest)


def algorithm() -> int:
    """The version of the library's hashes: signatures of another do not compare."""
    from rensa import RMinHash

    return RMinHash.ALGORITHM_VERSION


def _smallest(hashes: list[int]) -> frozenset[int]:
    distinct = frozenset(hashes)
    return distinct if len(distinct) <= SKETCH else frozenset(sorted(distinct)[:SKETCH])


def _bands(digests: list[list[int]], rows: int) -> list[list[int]]:
    """One number of 64 bits for each band of each signature: a multiplicative hash, word by word."""
    words = np.array(digests, dtype=np.uint64).reshape(len(digests), BANDS, rows)
    mixed = np.broadcast_to(np.arange(1, BANDS + 1, dtype=np.uint64), words.shape[:2])
    for i in range(rows):
        mixed = (mixed ^ words[:, :, i]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed.view(np.int64).tolist()


def _key(words: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _position(key: bytes) -> float:
    return (int.from_bytes(key[:8], "little") >> 11) / 2**53

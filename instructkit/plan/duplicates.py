"""
Rows that say the same: exactly, or nearly.

Near means that the sets of five-word sequences overlap by a Jaccard index of at least 0.8. Candidates are found by MinHash
in bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.3 to 3.4), and each is then compared whole.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

ALIKE = 0.8
WORDS = 5
BANDS, ROWS_OF_A_BAND = 16, 4
_PRIME = (1 << 31) - 1


def text_of(row: dict[str, Any]) -> str:
    """All words of a row, whatever its shape."""
    return " ".join(_texts(row))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            if key != "role":
                yield from _texts(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def shingles(text: str) -> frozenset[int]:
    """Hashes of every five words in a row; of a shorter text, one hash of all its words."""
    words = re.findall(r"\w+", text.lower())
    if len(words) <= WORDS:
        return frozenset({zlib.crc32(" ".join(words).encode())})
    spans = (" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1))
    return frozenset(zlib.crc32(span.encode()) for span in spans)


def doubles(texts: Sequence[str], earlier: Sequence[str] = ()) -> tuple[int, int]:
    """
    How many texts have an exact, and how many only a near, double before them.

    Args:
        texts: the rows to count.
        earlier: rows that stand before all of them, and are not counted.
    """
    every, start = [*earlier, *texts], len(earlier)
    first: dict[str, int] = {}
    for i, text in enumerate(every):
        first.setdefault(text, i)
    exact = {i for i in range(start, len(every)) if first[every[i]] < i}
    sets = [shingles(text) for text in every]
    near = {i for i in _with_near_double(sets) if i >= start} - exact
    return len(exact), len(near)


def pairs(texts: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """By the place of a text that has an exact or near double among others, the place of that."""
    sets = [shingles(text) for text in (*others, *texts)]
    found = _with_near_double(sets, len(others))
    return {i - len(others): j for i, j in found.items()}


def _with_near_double(sets: Sequence[frozenset[int]], before: int | None = None) -> dict[int, int]:
    """The places of sets that are alike to an earlier one, with its place; with `before` to one of so many first sets."""
    found: dict[int, int] = {}
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for i, signature in enumerate(_signatures(sets)):
        for band in range(BANDS):
            part = signature[band * ROWS_OF_A_BAND : (band + 1) * ROWS_OF_A_BAND].tobytes()
            bucket = buckets[band, part]
            if i not in found and (before is None or i >= before):
                alike = next((j for j in bucket if _alike(sets[i], sets[j])), None)
                found |= {} if alike is None else {i: alike}
            # Of many doubles the first ones stand for all.
            if len(bucket) < 8 and (before is None or i < before):
                bucket.append(i)
    return found


def _signatures(sets: Sequence[frozenset[int]]) -> Iterator[np.ndarray]:
    """The smallest of each set under random hash functions `(a x + b) mod p`."""
    random = np.random.default_rng(0)
    count = BANDS * ROWS_OF_A_BAND
    a, b = (
        random.integers(1, _PRIME, count, dtype=np.uint64),
        random.integers(0, _PRIME, count, dtype=np.uint64),
    )
    for members in sets:
        values = np.fromiter(members, dtype=np.uint64) % np.uint64(_PRIME)
        yield ((values[:, None] * a + b) % np.uint64(_PRIME)).min(axis=0)


def _alike(one: frozenset[int], other: frozenset[int]) -> bool:
    return len(one & other) >= ALIKE * len(one | other)

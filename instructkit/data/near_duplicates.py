"""
Find near-duplicate texts by the shared runs of 5 words (shingles): prompts of a store one by one, and rows of a plan all at once.

The Jaccard similarity of two sets of shingles is exact for texts of up to 259 words, and estimated from the 256 smallest
hashes beyond (Lee et al. 2107.06499, section 4.2).
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

SHINGLE_WORDS = 5
BANDS = 12
SKETCH = 256  # hashes kept of a prompt
_SEED = 2107
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
# Scripts that put no space between words: each character stands for one.
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


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


ALIKE = 0.8
ROW_BANDS, ROWS_OF_A_BAND = 16, 4
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


def hashed_shingles(text: str) -> frozenset[int]:
    """Hashes of every five words in a row; of a shorter text, one hash of all its words."""
    words = re.findall(r"\w+", text.lower())
    if len(words) <= SHINGLE_WORDS:
        return frozenset({zlib.crc32(" ".join(words).encode())})
    spans = (" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))
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
    sets = [hashed_shingles(text) for text in every]
    near = {i for i in _with_near_double(sets) if i >= start} - exact
    return len(exact), len(near)


def pairs(texts: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """By the place of a text that has an exact or near double among others, the place of that."""
    sets = [hashed_shingles(text) for text in (*others, *texts)]
    found = _with_near_double(sets, len(others))
    return {i - len(others): j for i, j in found.items()}


def _with_near_double(sets: Sequence[frozenset[int]], before: int | None = None) -> dict[int, int]:
    """The places of sets that are alike to an earlier one, with its place; with `before` to one of so many first sets."""
    found: dict[int, int] = {}
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for i, signature in enumerate(_signatures(sets)):
        for band in range(ROW_BANDS):
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
    count = ROW_BANDS * ROWS_OF_A_BAND
    a, b = (
        random.integers(1, _PRIME, count, dtype=np.uint64),
        random.integers(0, _PRIME, count, dtype=np.uint64),
    )
    for members in sets:
        values = np.fromiter(members, dtype=np.uint64) % np.uint64(_PRIME)
        yield ((values[:, None] * a + b) % np.uint64(_PRIME)).min(axis=0)


def _alike(one: frozenset[int], other: frozenset[int]) -> bool:
    return len(one & other) >= ALIKE * len(one | other)

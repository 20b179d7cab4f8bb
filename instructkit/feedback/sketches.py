"""
Texts as what can be compared: their words, shingles of 5 words, and MinHash signatures of those.

The Jaccard similarity of two sets of shingles is exact for texts of up to 259 words, and estimated from the 256 smallest
hashes beyond (Lee et al. 2107.06499, section 4.2).
"""

from __future__ import annotations

import re
import unicodedata
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

"""Which judgements stand beside others of the same answer: duplicates, last words, opposite verdicts. Maths on arrays."""

from __future__ import annotations

import numpy as np

STANDS, DUPLICATE, OVERRULED = 0, 1, 2


def last_words(who: np.ndarray, answers: np.ndarray, said: np.ndarray, times: np.ndarray) -> np.ndarray:
    """
    Of what one rater said about one answer the last stands; earlier ones are its duplicates where they say the same.

    Nobody (-1) is no rater who could overrule: of anonymous judgements only those that say the same are merged, which
    also keeps a form that is sent a hundred times from counting a hundred times.

    Args:
        who: rater, one an event; -1 is nobody.
        answers: what was judged.
        said: what was said about it.
        times: seconds, or NaN. The latest is the last where all have a time, else the one that stands last in order.

    Returns:
        `STANDS`, `DUPLICATE` or `OVERRULED`, one an event.
    """
    n = len(who)
    if not n:
        return np.zeros(0, dtype=np.int8)
    apart = np.where(who < 0, said, np.zeros_like(said))
    groups = _numbered(who, answers, apart)
    untimed = np.bincount(groups, weights=np.isnan(times)) > 0
    order = np.lexsort((np.arange(n), np.where(untimed[groups], 0.0, times), groups))
    last = np.empty(int(groups.max()) + 1, dtype=np.int64)
    ends = np.flatnonzero(np.append(groups[order][1:] != groups[order][:-1], True))
    last[groups[order][ends]] = order[ends]
    found = np.where(said == said[last[groups]], DUPLICATE, OVERRULED).astype(np.int8)
    found[last] = STANDS
    return found


def _numbered(*keys: np.ndarray) -> np.ndarray:
    """Groups of equal keys, numbered from 0."""
    order = np.lexsort(keys)
    new = np.zeros(len(order), dtype=bool)
    for key in keys:
        new[1:] |= key[order][1:] != key[order][:-1]
    groups = np.empty(len(order), dtype=np.int64)
    groups[order] = np.cumsum(new)
    return groups


def contested(items: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """
    Items that were judged both ways.

    Args:
        items: what was judged, from 0 without gaps.
        signs: 1 or -1.

    Returns:
        One truth value an item.
    """
    n = int(items.max()) + 1 if len(items) else 0
    good = np.bincount(items, weights=signs > 0, minlength=n)
    return (good > 0) & (np.bincount(items, minlength=n) > good)

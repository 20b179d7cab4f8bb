"""
How much each judgement counts: pure maths on arrays, one entry a judgement in every array.

Who, which cluster and which item are whole numbers from 0; -1 is nobody. Figures marked (j) are judgement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PRIOR_JUDGEMENTS = 5.0  # (j) how many judgements at the mean agreement each rater is given beforehand
RELIABILITY_MIN, RELIABILITY_MAX = 0.2, 1.0  # (j)
BALANCE_MOST = 5.0  # (j) by which reweighting to target shares raises or lowers a judgement at most
RATER_SHARE, RATER_SHARES = 0.05, 2.0  # (j) max(0.05, 2 / raters)
_TOLERANCE = 1e-9
_CAP_ROUNDS, _BALANCE_ROUNDS = 1000, 500
_LEAST_LEFT = 1e-3  # of the weight: two caps that leave less than this cannot hold together


def capped(weights: np.ndarray, owners: np.ndarray, share: float) -> np.ndarray | None:
    """
    Weights of which no owner holds more than a share of the total that is left.

    With the `k` heaviest owners at the cap and the rest `R` untouched, the total is `T = R + k s T`, so `T = R / (1 - k s)`;
    `k` is the smallest number for which the next owner is at or below `s T`. There water-filling ends; this is it at once.

    Args:
        weights: none below 0.
        owners: whose each is; -1 is nobody's and is not capped.
        share: `s`, above 0.

    Returns:
        New weights, none above the old; an owner's are lowered by one factor. None when no weights can satisfy it but zeros.
    """
    owned = owners >= 0
    if share >= 1 or not owned.any():
        return weights.copy()
    totals = np.bincount(owners[owned], weights=weights[owned])
    heaviest = np.sort(totals)[::-1]
    # Summed from the light end: what is left over by the heavy ones must not drown in their rounding.
    rest = np.append(np.cumsum(heaviest[::-1])[::-1], 0.0) + weights[~owned].sum()
    count = min(len(heaviest), int(np.ceil(1 / share - _TOLERANCE)) - 1)
    limits = share * rest[: count + 1] / (1 - share * np.arange(count + 1))
    held = (np.append(heaviest, 0.0)[: count + 1] <= limits * (1 + _TOLERANCE)) & (rest[: count + 1] > 0)
    if not held.any():
        return None
    limit = limits[np.argmax(held)]
    factors = limit / np.maximum(totals, limit)
    return np.where(owned, weights * factors[np.where(owned, owners, 0)], weights)


def capped_twice(
    weights: np.ndarray,
    raters: np.ndarray,
    clusters: np.ndarray,
    shares: tuple[float, float],
) -> np.ndarray | None:
    """
    Weights under which no rater and no cluster holds more than its share: one cap after the other until both hold.

    Args:
        shares: of a rater, and of a cluster.

    Returns:
        New weights; None when next to nothing would be left, as where the others of a loud rater all speak of one prompt.
    """
    left, least = weights, _LEAST_LEFT * weights.sum()
    for _ in range(_CAP_ROUNDS):
        for owners, share in ((raters, shares[0]), (clusters, shares[1])):
            found = capped(left, owners, share)
            if found is None or found.sum() < least:
                return None
            left = found
        if largest_share(left, raters) <= shares[0] * (1 + _TOLERANCE):
            return left
    return None


def largest_share(weights: np.ndarray, owners: np.ndarray) -> float:
    """Of all weight, what the owner with the most holds; nobody's weight counts in the total alone."""
    owned = owners >= 0
    total = weights.sum()
    if not owned.any() or total <= 0:
        return 0.0
    return float(np.bincount(owners[owned], weights=weights[owned]).max() / total)


def agreements(signs: np.ndarray, items: np.ndarray, raters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Of each rater, agreement with the others on shared items, leave-one-out.

    A judgement of an item that `m` others judged scores the share of those `m` who judged it alike; a rater's agreement is the
    mean score of their judgements of shared items. Nobody's judgements (-1) count for nothing here.

    Args:
        signs: 1 or -1.
        items: what was judged; each rater judges an item once.

    Returns:
        By rater: the sum of the scores, and the number of judgements that have one.
    """
    known = raters >= 0
    signs, raters = signs[known], raters[known]
    if not len(raters):
        return np.zeros(0), np.zeros(0)
    _, items = np.unique(items[known], return_inverse=True)
    alike = np.where(
        signs > 0, np.bincount(items, weights=signs > 0)[items], np.bincount(items, weights=signs < 0)[items]
    )
    others = np.bincount(items)[items] - 1
    scores = np.divide(alike - 1, others, out=np.zeros(len(others)), where=others > 0)
    return np.bincount(raters, weights=scores), np.bincount(raters, weights=others > 0)


def reliability(scores: np.ndarray, counts: np.ndarray, raters: np.ndarray) -> np.ndarray:
    """
    Weight by rater: `clip(2 a - 1, 0.2, 1)` with `a = (sum of scores + 5 m) / (judgements + 5)`.

    `m` is the mean score of all judgements, `2 a - 1` the agreement beyond chance where both verdicts are as likely. Five
    judgements at the mean (j) shrink the agreement of those who share little; who shares nothing, or is nobody, has the mean.

    Args:
        scores, counts: as `agreements` returns them, by rater.
        raters: of each judgement whose weight is wanted.

    Returns:
        One weight a judgement; all 1 when no item is shared.
    """
    if counts.sum() == 0:
        return np.ones(len(raters))
    mean = scores.sum() / counts.sum()
    shrunk = (scores + PRIOR_JUDGEMENTS * mean) / (counts + PRIOR_JUDGEMENTS)
    by_rater = np.clip(2 * np.append(shrunk, mean) - 1, RELIABILITY_MIN, RELIABILITY_MAX)
    return by_rater[np.where((raters >= 0) & (raters < len(scores)), raters, len(scores))]


def recency(times: np.ndarray, half_life_days: float) -> np.ndarray:
    """
    `2^(-age / half-life)`, the age being counted from the newest judgement; one without a time weighs as the mean of the others.

    Args:
        times: seconds since 1970, or NaN.
        half_life_days: days after which a judgement counts half.
    """
    known = np.isfinite(times)
    found = np.ones(len(times))
    if known.any():
        found[known] = np.exp2(-(times[known].max() - times[known]) / (half_life_days * 86400))
        found[~known] = found[known].mean()
    return found


def alike_positions(weights: np.ndarray, first: np.ndarray) -> np.ndarray:
    """
    Factors under which choices of the answer shown first weigh as much in all as choices of the second.

    The heavier side is lowered and nothing is raised, since a position that is seldom chosen would otherwise rest on a few loud
    choices. Without choices on both sides nothing can be told of the bias, and all factors are 1.

    Args:
        first: 1 where the answer shown first was chosen, -1 where the second was, 0 where it is not known.
    """
    one, two = weights[first > 0].sum(), weights[first < 0].sum()
    if one <= 0 or two <= 0:
        return np.ones(len(weights))
    return np.where(first > 0, min(1.0, two / one), np.where(first < 0, min(1.0, one / two), 1.0))


def balanced(weights: np.ndarray, members: Sequence[np.ndarray], targets: Sequence[float]) -> np.ndarray:
    """
    Factors that bring named shares of the weight to their targets: raking (Deming and Stephan 1940), each from 1/5 to 5 (j).

    Args:
        members: for each target, who belongs to it (truth values); they may overlap.
        targets: wanted shares of the weight, from 0 to 1. One that nobody or everybody belongs to is passed over.
    """
    factors = np.ones(len(weights))
    for _ in range(_BALANCE_ROUNDS):
        before = factors.copy()
        for inside, target in zip(members, targets, strict=True):
            now = weights * factors
            part, total = now[inside].sum(), now.sum()
            if 0 < part < total * (1 - _TOLERANCE):
                factors *= np.where(inside, target * total / part, (1 - target) * total / (total - part))
                factors = np.clip(factors, 1 / BALANCE_MOST, BALANCE_MOST)
        if np.abs(factors - before).max(initial=0.0) < _TOLERANCE:
            break
    return factors


def soft_labels(signs: np.ndarray, items: np.ndarray, trust: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    What the judges of each item say together: `agreement = max(T+, T-) / (T+ + T-)`, `T` being the trust in those of either sign.

    Args:
        signs: 1 or -1.
        items: what was judged, from 0 without gaps.
        trust: reliability of who judged it, above 0.

    Returns:
        By item: its sign (that of its first judgement where both sides weigh the same), and its agreement from 0.5 to 1.
    """
    n = int(items.max()) + 1 if len(items) else 0
    good = np.bincount(items, weights=np.where(signs > 0, trust, 0.0), minlength=n)
    bad = np.bincount(items, weights=np.where(signs < 0, trust, 0.0), minlength=n)
    first = np.zeros(n, dtype=np.int64)
    first[items[::-1]] = signs[::-1]
    level = np.isclose(good, bad, rtol=1e-12, atol=0)
    sign = np.where(level, first, np.where(good > bad, 1, -1))
    return sign, np.where(level, 0.5, np.maximum(good, bad) / (good + bad))


def rater_share(raters: int, wanted: float | None) -> float:
    """The most that one rater may hold: what the recipe says, else `max(0.05, 2 / raters)` (j)."""
    return wanted if wanted is not None else max(RATER_SHARE, RATER_SHARES / max(raters, 1))

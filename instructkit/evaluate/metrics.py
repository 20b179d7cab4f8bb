"""Figures with their uncertainty: intervals of 95 %, by a seeded bootstrap over items or in closed form. No model, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
_Z = 1.959963984540054  # the 97.5 % point of the normal distribution



def bootstrap_mean(values: Sequence[float], *, seed: int) -> Interval:
    """
    Mean of independent items with a percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: one figure per item.
        seed: of the resampling, so that the same figures give the same interval.

    Returns:
        Mean, lower and upper 95 % bound.

    Raises:
        ValueError: without any value.
    """
    x = _array(values)
    means = x[_resampled(len(x), seed)].mean(axis=1)
    return float(x.mean()), *_bounds(means)


def paired_difference(before: Sequence[float], after: Sequence[float], *, seed: int) -> Interval:
    """Mean of `after - before` on the same items, with its interval."""
    return bootstrap_mean(_array(after) - _array(before, like=after), seed=seed)


def ratio_interval(before: Sequence[float], after: Sequence[float], *, seed: int) -> Interval:
    """
    `sum(after) / sum(before)` on the same items, with its interval: how a total (say, held-out loss) has changed.

    Raises:
        ValueError: when the lengths differ, or the total before is not positive.
    """
    first, second = _array(before), _array(after, like=before)
    if first.sum() <= 0:
        raise ValueError("a ratio needs a positive total before")
    picks = _resampled(len(first), seed)
    ratios = second[picks].sum(axis=1) / first[picks].sum(axis=1)
    return float(second.sum() / first.sum()), *_bounds(ratios)


def gain_at_equal_length(
    before: Sequence[float],
    after: Sequence[float],
    lengths: tuple[Sequence[float], Sequence[float]],
    *,
    seed: int,
) -> Interval:
    """
    What of a paired gain remains where the length has not changed: `a` of `after - before = a + b (length change)`.

    Much of what RLHF gains is length (Singhal et al. 2023, 2310.03716); a gain that is all length has `a` about 0. A
    straight line per item is the simplest such control; where no length has changed, this is the gain itself.

    Args:
        before, after: one score per item.
        lengths: tokens of each answer before and after.
    """
    gain = _array(after) - _array(before, like=after)
    longer = _array(lengths[1], like=after) - _array(lengths[0], like=after)
    picks = _resampled(len(gain), seed)
    return _intercept(gain, longer), *_bounds(np.array([_intercept(gain[i], longer[i]) for i in picks]))


def _intercept(y: np.ndarray, x: np.ndarray) -> float:
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else 0.0
    return float(y.mean() - slope * x.mean())


def accuracy_interval(right: float, total: float) -> Interval:
    """
    A share with its Wilson score interval, which stays within [0, 1] (Wilson 1927).

    Raises:
        ValueError: without any trial.
    """
    if total <= 0:
        raise ValueError("a share needs at least one trial")
    p, z2 = right / total, _Z * _Z
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return p, max(0.0, centre - half), min(1.0, centre + half)


def clustered_share(right: Sequence[bool], groups: Sequence[str]) -> Interval:
    """
    A share of trials that come in groups, such as several comparisons of one prompt.

    The Wilson interval of as many independent trials as these are worth: their number over Kish's design effect (Kish
    1965, Survey Sampling, 8.2), which is never taken below 1. Where all trials agree it cannot be estimated, and each
    group counts once.

    Raises:
        ValueError: without any trial, or when the lengths differ.
    """
    x = _array(right, like=groups)
    share, n = float(x.mean()), len(x)
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    k = int(index.max()) + 1
    independent = share * (1 - share) / n
    if k == 1 or independent == 0:
        worth = float(k)
    else:
        sums = np.bincount(index, weights=x - share)
        worth = n / max(1.0, float((sums**2).sum()) / n**2 * k / (k - 1) / independent)
    return accuracy_interval(share * worth, worth)


def pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Correlation of two figures of the same items; None where one of them is constant."""
    x, y = _array(first), _array(second, like=first)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else None


def _array(values: Sequence[float], *, like: Sequence[float] | None = None) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("nothing was measured")
    if like is not None and len(like) != len(x):
        raise ValueError(f"paired figures of different lengths: {len(x)} and {len(like)}")
    return x


def _resampled(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))


def _bounds(statistics: np.ndarray) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return float(low), float(high)

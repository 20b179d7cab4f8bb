"""
One-sided bounds, tests and their levels, for decisions: clustered, paired, and honest at 30 to 100 items. No model, no torch.

Means and ratios are bounded by a studentised bootstrap over clusters, never narrower than Student's t. By simulation (30
clusters, 2.5 % wanted beyond the worse bound, 1,000 times): normal 2.4 %, t with 3 degrees 3.0 %, exponential 2.3 %, lognormal
6.3 to 8.2 %; a percentile bootstrap gives 2.7, 4.7, 5.4 and 10 to 14 %, BCa 2.9, 6.3, 4.0 and 8 to 10 %. Shares are bounded by
Tango's score, which also says something when nothing has changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float, float]
ALPHA = 0.05  # one-sided, for all looks at one test set together
_RESAMPLES = 2000  # at least; more where a level is small
_IN_TAIL = 20  # resamples beyond each bound, at least
_AT_ONCE = 500_000  # figures drawn together
_NORMAL = NormalDist()


def normal_quantile(probability: float) -> float:
    """The point below which a standard normal variable lies with this probability."""
    return _NORMAL.inv_cdf(probability)


def normal_tail(z: float) -> float:
    """The probability that a standard normal variable lies above `z`."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def student_quantile(probability: float, freedom: float) -> float:
    """Student's t below which a probability lies, to 0.5 % from 9 degrees of freedom on (Wallace 1959, eq. 2.1, inverted)."""
    z = normal_quantile(probability) * (8 * freedom + 3) / (8 * freedom + 1)
    return math.copysign(math.sqrt(freedom * math.expm1(z * z / freedom)), z)


def student_tail(t: float, freedom: float) -> float:
    """The probability that Student's t lies above `t` (Wallace 1959, The Annals of Mathematical Statistics 30, eq. 2.1)."""
    scaled = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return normal_tail(math.copysign(scaled, t))


def mean_bounds(
    values: Sequence[float], *, level: float, seed: int, clusters: Sequence[int] | None = None
) -> Interval:
    """
    Mean of items with its lower and its upper bound; see `ratio_bounds`.

    Args:
        values: one figure an item; for a paired difference, `after - before`.
    """
    return ratio_bounds(np.ones(len(values)), values, level=level, seed=seed, clusters=clusters)


def ratio_bounds(
    before: Sequence[float],
    after: Sequence[float],
    *,
    level: float,
    seed: int,
    clusters: Sequence[int] | None = None,
) -> Interval:
    """
    `R = sum(after) / sum(before)` on the same items, with a lower and an upper bound, each of its own one-sided level.

    Clusters are resampled whole. Of each resample `(R* - R) / se*` is kept, with `se` from residuals `after - R before`
    summed by cluster; its quantiles, at least as wide as Student's, times `se` are the bounds (Hall 1988, The Annals of
    Statistics 16, section 2; Cameron, Gelbach and Miller 2008). A bound is infinite where resamples have no spread, and NaN
    where a figure is no number.

    Args:
        before, after: one figure an item.
        level: of each bound, one-sided, such as 0.025.
        seed: of the resampling.
        clusters: the cluster of each item; without it each item is one.

    Raises:
        ValueError: without any item, when lengths differ, for a level outside (0, 0.5), or a total before that is not positive.
    """
    bottom, top = by_cluster(before, clusters), by_cluster(after, clusters)
    if len(before) != len(after):
        raise ValueError(f"paired figures of different lengths: {len(before)} and {len(after)}")
    if not 0 < level < 0.5:
        raise ValueError(f"a one-sided level lies between 0 and 0.5, not at {level:g}")
    total, n = float(bottom.sum()), len(bottom)
    if not total > 0:
        raise ValueError("a ratio needs a positive total before")
    ratio = float(top.sum()) / total
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        return math.nan, math.nan, math.nan
    residuals = top - ratio * bottom
    if n < 2:
        return ratio, -math.inf, math.inf
    error = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / total
    if not error > 1e-12 * max(abs(ratio), 1.0):
        return ratio, ratio, ratio
    drawn = _studentised(residuals, bottom, max(_RESAMPLES, math.ceil(_IN_TAIL / level)), seed)
    least = student_quantile(1 - level, n - 1)
    high = max(least, float(np.quantile(drawn, 1 - level, method="higher")))
    low = min(-least, float(np.quantile(drawn, level, method="lower")))
    return ratio, ratio - high * error, ratio - low * error


def _studentised(residuals: np.ndarray, bottom: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """`(R* - R) / se*` of every resample of clusters."""
    rng, n = np.random.default_rng(seed), len(residuals)
    size = max(1, _AT_ONCE // n)
    found = []
    for start in range(0, resamples, size):
        picks = rng.integers(0, n, size=(min(size, resamples - start), n))
        e, b = residuals[picks], bottom[picks]
        total = b.sum(axis=1)
        shift = e.sum(axis=1) / total
        e -= shift[:, None] * b
        error = np.sqrt(n / (n - 1) * np.einsum("ij,ij->i", e, e)) / total
        # Of equal figures the spread is what rounding leaves: nothing is known of such a resample but its side.
        flat = error <= 1e-9 * np.abs(shift)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(flat, np.copysign(np.inf, shift), shift / error)
        found.append(np.where(shift == 0, 0.0, t))
    return np.concatenate(found)


def by_cluster(values: Sequence[float], clusters: Sequence[int] | None) -> np.ndarray:
    """Sums over the items of each cluster, in the order of the clusters' numbers; without clusters, the items."""
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("nothing was measured")
    if clusters is None:
        return x
    if len(clusters) != len(x):
        raise ValueError(f"paired figures of different lengths: {len(x)} and {len(clusters)}")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=x)


def changes(
    before: Sequence[float], after: Sequence[float], clusters: Sequence[int] | None = None
) -> tuple[float, float, float]:
    """
    What was gained and lost between paired shares, and of how many: `sum(max(d, 0)), sum(max(-d, 0)), n`, `d = after - before`.

    Items in clusters count as the independent ones that they are worth: all three over Kish's design effect (Kish 1965,
    Survey Sampling, 8.2), at least 1; where no item differs from the others each cluster counts once. Shares between 0 and 1
    are taken too: their spread is at most that of the 0s and 1s with the same sums, so that bounds only widen.

    Raises:
        ValueError: without any item, or when the lengths differ.
    """
    if len(before) != len(after):
        raise ValueError(f"paired figures of different lengths: {len(before)} and {len(after)}")
    d = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    n, k = len(d), len(by_cluster(d, clusters))
    gained, lost = float(d[d > 0].sum()), float(-d[d < 0].sum())
    centred = d - d.mean()
    alone = float(centred @ centred) * n / max(n - 1, 1)
    if k == n:
        effect = 1.0
    elif k == 1 or alone == 0:
        effect = n / k
    else:
        sums = by_cluster(centred, clusters)
        effect = max(1.0, float(sums @ sums) * k / (k - 1) / alone)
    return gained / effect, lost / effect, n / effect


def share_score(gained: float, lost: float, n: float, change: float) -> float:
    """
    Tango's score of paired shares against a change: standard normal when that is the true one, positive when more was gained.

        z(c) = (gained - lost - n c) / sqrt(n (2 q + c (1 - c))),  q: the most likely share of items lost, given c

    Source: Tango 1998, Statistics in Medicine 17, 891-908, section 3.
    """
    difference, variance = gained - lost - n * change, n * _share_variance(gained / n, lost / n, change)
    if variance <= 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / math.sqrt(variance)


def _share_variance(gained: float, lost: float, change: float) -> float:
    """Of one item's change, at the most likely shares that differ by `change`."""
    b = 2 * change - gained - lost + (lost - gained) * change
    q = (math.sqrt(max(0.0, b * b + 8 * lost * change * (1 - change))) - b) / 4
    return 2 * q + change * (1 - change)


def share_bounds(gained: float, lost: float, n: float, *, level: float) -> Interval:
    """
    Change of paired shares with its lower and its upper bound, by inverting `share_score`; `changes` counts.

    Of `n` items without any change the bounds are `-+ z^2 / (n + z^2)`, not 0.

    Args:
        level: of each bound, one-sided.
    """
    z, change = normal_quantile(1 - level), (gained - lost) / n
    lower = _crossing(lambda c: share_score(gained, lost, n, c) - z, -1.0, change)
    upper = _crossing(lambda c: share_score(gained, lost, n, c) + z, change, 1.0)
    return change, lower, upper


def _crossing(falling, low: float, high: float) -> float:
    """Where a falling function crosses zero, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def holm(probabilities: Sequence[float], *, level: float) -> tuple[list[float], list[bool]]:
    """
    Holm's step-down: which of several hypotheses to reject, so that a true one is with probability `level` at most.

    Returns:
        Adjusted probabilities, `max over i <= j of (m - i + 1) p_(i)` and at most 1, and which are rejected (adjusted <= level).

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    adjusted, largest = [0.0] * len(order), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * probabilities[index]))
        adjusted[index] = largest
    return adjusted, [value <= level for value in adjusted]


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """The exact probability of this many successes or more."""
    terms = (
        math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k)
        for k in range(successes, trials + 1)
    )
    return min(1.0, math.fsum(terms))


def robust_tail(value: float, reference: Sequence[float], *, least: float = 0.0) -> tuple[float, float]:
    """
    How far a figure lies above others, in robust spreads, and the probability of that if it were one of them.

        z = (value - median) / (1.4826 MAD), as Student's t with `robust_freedom` degrees

    By simulation (200 normal figures, the largest of 20 against Holm's 1 %): 0.9 %, where a normal tail gives 1.3 %.

    Args:
        reference: figures that are ordinary, near normal.
        least: the smallest spread that is believed; with 0 and no spread, anything above the median is infinitely far.

    Source: Rousseeuw and Croux 1993, Journal of the American Statistical Association 88, 1273-1283.
    """
    x = np.asarray(reference, dtype=np.float64)
    middle = float(np.median(x))
    spread = max(1.4826 * float(np.median(np.abs(x - middle))), least)
    if spread == 0 and value != middle:
        return math.copysign(math.inf, value - middle), float(value < middle)
    z = (value - middle) / (spread or 1.0)
    return z, student_tail(z, robust_freedom(len(x)))


def robust_freedom(n: int) -> float:
    """Degrees of freedom of a spread by the MAD, whose efficiency is 37 %: `0.37 (n - 1)`."""
    return 0.37 * (n - 1)


def smallest_gain(n: int, spread: float, *, level: float, power: float = 0.8) -> float:
    """
    The smallest mean that `n` independent figures with this standard deviation show above zero with this power.

        spread (z_level + z_power) / sqrt(n - z_level^2 / 2); infinite for too few (Guenther 1981, The American Statistician 35)
    """
    z = normal_quantile(1 - level)
    worth = n - z * z / 2
    return spread * (z + normal_quantile(power)) / math.sqrt(worth) if worth > 0 else math.inf


def enough_shares(margin: float, moved: float, *, level: float) -> int:
    """
    How many pairs a test of "no share lost by more than a margin" wants by Tango's score, to pass at the mean itself.

    Args:
        margin: a share.
        moved: share of the items that changed, as many up as down.
    """
    z = normal_quantile(1 - level)
    return math.ceil(_share_variance(moved / 2, moved / 2, margin) * (z / margin) ** 2)


def level_of_look(look: int, alpha: float = ALPHA) -> float:
    """
    The one-sided level of the k-th decision on one test set: `alpha / (k (k + 1))`, which sums to alpha over all looks.

    Args:
        look: from 1; the first has half of alpha, which is the usual two-sided interval of 95 %.

    Raises:
        ValueError: for a look before the first.
    """
    if look < 1:
        raise ValueError(f"looks at a test set are counted from 1, not {look}")
    return alpha / (look * (look + 1))


def budget_warning(looks: int) -> str | None:
    """What to say after so many decisions on one test set: something once less than a tenth of alpha, `1 / (k + 1)`, is left."""
    left = 1 / (looks + 1)
    if left >= 0.1:
        return None
    return (
        f"{looks} decisions were made on these test events and {left:.1%} of their error budget is left: later updates need "
        "larger gains to pass; collect fresh test events"
    )


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

"""Bounds and tests against scipy, published examples, figures of statsmodels, and their stated error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from instructkit.evaluate import statistics

SKEWED = np.random.default_rng(3).gamma(1.0, 2.0, size=40)


@pytest.mark.parametrize("level", [0.025, 0.05 / 6, 0.05 / 110])
@pytest.mark.parametrize("freedom", [9, 29, 99])
def test_students_quantile_is_scipys(level: float, freedom: int) -> None:
    wanted = stats.t.isf(level, freedom)
    assert statistics.student_quantile(1 - level, freedom) == pytest.approx(wanted, rel=5e-3)
    assert statistics.student_quantile(level, freedom) == pytest.approx(-wanted, rel=5e-3)


@pytest.mark.parametrize("t", [-2.0, 0.0, 1.0, 3.5, 8.0])
def test_students_tail_is_scipys(t: float) -> None:
    assert statistics.student_tail(t, 73.6) == pytest.approx(stats.t.sf(t, 73.6), rel=1e-2)


@given(st.floats(1e-6, 1 - 1e-6))
def test_the_normal_tail_and_quantile_are_scipys(p: float) -> None:
    assert statistics.normal_quantile(p) == pytest.approx(stats.norm.ppf(p), rel=1e-9, abs=1e-9)
    assert statistics.normal_tail(-statistics.normal_quantile(p)) == pytest.approx(p, rel=1e-7)


def test_on_many_items_the_bounds_are_those_of_scipys_bootstrap() -> None:
    x = np.random.default_rng(0).gamma(3.0, 1.0, size=800)
    mean, low, high = statistics.mean_bounds(x, level=0.025, seed=1)
    theirs = stats.bootstrap(
        (x,), np.mean, n_resamples=5000, method="BCa", rng=np.random.default_rng(2)
    ).confidence_interval
    error = x.std() / math.sqrt(len(x))
    assert mean == pytest.approx(x.mean(), abs=1e-12)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * error)


def test_the_ratio_of_many_items_has_the_bounds_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(4)
    before = rng.gamma(4.0, 1.0, size=800)
    after = before * rng.normal(0.95, 0.2, size=800)
    ratio, low, high = statistics.ratio_bounds(before, after, level=0.025, seed=1)
    theirs = stats.bootstrap(
        (before, after),
        lambda b, a, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=5000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ratio == pytest.approx(after.sum() / before.sum(), rel=1e-12)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * (theirs.high - theirs.low))


def test_skewed_items_have_the_bounds_of_a_studentised_bootstrap_written_out() -> None:
    """Of 40,000 resamples; the upper bound is the wider, the lower that of Student's t, which is wider here."""
    rng, x = np.random.default_rng(9), SKEWED
    y = x[rng.integers(0, len(x), (40_000, len(x)))]
    drawn = (y.mean(axis=1) - x.mean()) / (y.std(axis=1, ddof=1) / math.sqrt(len(x)))
    low_t, high_t = np.quantile(drawn, [0.025, 0.975])
    student = stats.t.ppf(0.975, len(x) - 1)
    assert high_t < student < -low_t
    _, low, high = statistics.mean_bounds(x, level=0.025, seed=1)
    assert low == pytest.approx(x.mean() - student * stats.sem(x), rel=1e-3)
    assert high == pytest.approx(x.mean() - low_t * stats.sem(x), abs=0.3 * stats.sem(x))


def test_clusters_widen_as_their_residuals_say() -> None:
    """statsmodels' OLS on a constant with cluster-robust errors gives 0.742475, times sqrt(4 / 3) for 4 clusters."""
    x, clusters = [1.0, 2, 4, 3, 8, 5, 2, 6], [0, 0, 1, 1, 1, 2, 3, 3]
    residuals = [-4.75, 3.375, 1.125, 0.25]  # by cluster, mean 3.875
    error = math.sqrt(4 / 3 * sum(r * r for r in residuals)) / 8
    mean, low, high = statistics.mean_bounds(x, level=0.025, seed=0, clusters=clusters)
    assert error == pytest.approx(0.74247527 * math.sqrt(4 / 3), rel=1e-7)
    assert mean == 3.875
    least = error * stats.t.ppf(0.975, 3) * 0.98
    assert low <= mean - least and high >= mean + least


def test_copies_of_an_item_in_its_cluster_change_nothing() -> None:
    once = statistics.mean_bounds(SKEWED, level=0.025, seed=5)
    numbers = np.repeat(np.arange(40), 3)
    assert statistics.mean_bounds(
        np.repeat(SKEWED, 3), level=0.025, seed=5, clusters=numbers
    ) == pytest.approx(once)


def test_order_and_scale_do_not_matter_but_the_seed_does() -> None:
    base = statistics.ratio_bounds(SKEWED, SKEWED**2, level=0.01, seed=5)
    twice = statistics.ratio_bounds(2 * SKEWED, 2 * SKEWED**2, level=0.01, seed=5)
    other = statistics.ratio_bounds(SKEWED, SKEWED**2, level=0.01, seed=6)
    assert twice == pytest.approx(base, rel=1e-9)
    assert other[0] == base[0] and other[1:] != base[1:]


def test_a_smaller_level_widens_both_bounds_to_the_tenth_look() -> None:
    found = [statistics.mean_bounds(SKEWED, level=statistics.level_of_look(k), seed=0) for k in (1, 2, 4, 10)]
    assert all(b[1] < a[1] and b[2] > a[2] for a, b in zip(found, found[1:], strict=False))


def test_a_small_level_has_resamples_enough() -> None:
    """At the tenth look: of 2,000 resamples one would lie beyond the bound, and it would be anywhere."""
    found = [
        statistics.mean_bounds(SKEWED, level=statistics.level_of_look(10), seed=seed)[2] for seed in range(8)
    ]
    assert np.ptp(found) < 0.15 * (np.mean(found) - SKEWED.mean())


def test_equal_figures_have_no_spread_and_single_ones_no_bound() -> None:
    assert statistics.mean_bounds([0.1] * 30, level=0.025, seed=0) == pytest.approx((0.1, 0.1, 0.1))
    assert statistics.mean_bounds([1.0], level=0.025, seed=0) == (1.0, -math.inf, math.inf)
    assert statistics.mean_bounds([1.0, 2.0], level=0.025, seed=0, clusters=[7, 7])[1:] == (
        -math.inf,
        math.inf,
    )
    lonely = statistics.mean_bounds([0.0] * 29 + [1.0], level=0.025, seed=0)
    assert lonely[2] == math.inf and lonely[1] < 0
    assert math.isnan(statistics.mean_bounds([1.0, math.nan], level=0.025, seed=0)[1])


def test_what_cannot_be_bounded_is_an_error() -> None:
    for call, told in {
        lambda: statistics.mean_bounds([], level=0.025, seed=0): "nothing was measured",
        lambda: statistics.ratio_bounds([1.0], [1.0, 2.0], level=0.025, seed=0): "different lengths: 1 and 2",
        lambda: statistics.mean_bounds([1.0, 2.0], level=0.025, seed=0, clusters=[1]): "different lengths",
        lambda: statistics.mean_bounds([1.0, 2.0], level=0.5, seed=0): "not at 0.5",
        lambda: statistics.ratio_bounds([0.0, 0.0], [1.0, 1.0], level=0.1, seed=0): "positive total",
        lambda: statistics.changes([1], [1, 0]): "different lengths",
    }.items():
        with pytest.raises(ValueError, match=told):
            call()


def beyond(draw, truth: float, n: int, times: int, *, level: float = 0.025) -> tuple[float, float]:
    """How often the lower bound lies above the truth, and the upper one below it."""
    rng = np.random.default_rng(n)
    found = [statistics.mean_bounds(draw(rng, n), level=level, seed=i) for i in range(times)]
    return sum(low > truth for _, low, _ in found) / times, sum(high < truth for *_, high in found) / times


def test_bounds_of_clustered_items_miss_the_truth_as_often_as_they_say() -> None:
    """40 clusters of 1 to 4 items that share half of their variance; 400 times, 2.5 % each side: 10 +- 9 (3 deviations)."""
    rng, missed, alone = np.random.default_rng(8), [0, 0], 0
    for i in range(400):
        sizes = rng.integers(1, 5, size=40)
        clusters = np.repeat(np.arange(40), sizes)
        x = rng.normal(size=40)[clusters] + rng.normal(size=len(clusters))
        _, low, high = statistics.mean_bounds(x, level=0.025, seed=i, clusters=clusters)
        missed[0] += low > 0
        missed[1] += high < 0
        alone += statistics.mean_bounds(x, level=0.025, seed=i)[1] > 0
    assert 1 <= missed[0] <= 19 and 1 <= missed[1] <= 19
    assert alone > 19  # items taken as independent claim too much


DISTRIBUTIONS = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0, 0.030),
    "t3": (lambda rng, n: rng.standard_t(3, size=n), 0.0, 0.037),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0, 0.037),
}


@pytest.mark.proof
@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_each_bound_misses_the_truth_as_often_as_stated(name: str, n: int) -> None:
    draw, truth, most = DISTRIBUTIONS[name]
    low, high = beyond(draw, truth, n, 4000)
    print(f"{name}, n {n}: lower bound beyond {low:.4f}, upper {high:.4f}")
    assert max(low, high) < most
    assert max(low, high) > 0.015


@pytest.mark.parametrize(
    ("gained", "lost", "n", "bounds"),
    [
        (6, 16, 161, (-0.1240, -0.0054)),  # Cavo et al. 2012 in Fagerland, Lydersen and Laake 2017, table 8.6
        (1, 7, 21, (-0.517, -0.026)),  # Bentur et al. 2009, the same
    ],
)
def test_tangos_interval_is_the_published_one(gained, lost, n, bounds) -> None:
    change, *found = statistics.share_bounds(gained, lost, n, level=0.025)
    assert change == pytest.approx((gained - lost) / n)
    assert found == pytest.approx(bounds, abs=10.0 ** -len(str(bounds[1]).split(".")[1]) * 0.51)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(25, 60), st.floats(-0.3, 0.3))
def test_tangos_score_is_that_of_the_likelihoods_own_maximum(gained, lost, n, change) -> None:
    """Its share of lost items by scipy's search over the trinomial likelihood."""
    low, high = max(0.0, -change) + 1e-12, (1 - change) / 2 - 1e-12

    def minus_likelihood(q: float) -> float:
        cells = ((gained, q + change), (lost, q), (n - gained - lost, 1 - 2 * q - change))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    q = optimize.minimize_scalar(
        minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-11}
    ).x
    variance = 2 * q + change - change * change
    if variance < 1e-3:
        return
    wanted = (gained - lost - n * change) / math.sqrt(n * variance)
    assert statistics.share_score(gained, lost, n, change) == pytest.approx(wanted, rel=1e-3, abs=1e-3)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(40, 90))
def test_shares_bound_alike_in_both_directions(gained: int, lost: int, n: int) -> None:
    change, low, high = statistics.share_bounds(gained, lost, n, level=0.025)
    assert -1 <= low <= change <= high <= 1
    assert statistics.share_bounds(lost, gained, n, level=0.025) == pytest.approx(
        (-change, -high, -low), abs=1e-9
    )


def test_items_without_any_change_still_have_bounds() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    wanted = z2 / (100 + z2)
    assert statistics.share_bounds(0, 0, 100, level=0.025) == pytest.approx((0.0, -wanted, wanted), abs=1e-9)


def test_changes_are_counted_and_clusters_take_their_part() -> None:
    before, after = [1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 1]
    assert statistics.changes(before, after) == (2.0, 1.0, 6.0)
    # Copied, everything counts once; equal changes count each cluster once.
    copied = statistics.changes(before * 4, after * 4, list(range(6)) * 4)
    assert copied == pytest.approx((2.0, 1.0, 6.0), rel=0.3) and copied[2] <= 6.0 * 1.2
    assert statistics.changes([1] * 9, [1] * 9, [0, 0, 0, 1, 1, 1, 2, 2, 2]) == (0.0, 0.0, 3.0)
    assert statistics.changes([0] * 4, [1] * 4, [5, 5, 5, 5]) == (1.0, 0.0, 1.0)
    assert statistics.changes([0.0, 0.5], [0.25, 0.25]) == (0.25, 0.25, 2.0)


@pytest.mark.parametrize("n", [30, 100])
def test_a_loss_at_the_margin_is_passed_as_often_as_stated(n: int) -> None:
    """Every outcome of the trinomial, weighed by its probability: 8 % lost, 3 % gained, against a margin of 5 points."""
    total = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            weight = stats.multinomial.pmf([gained, lost, n - gained - lost], n, [0.03, 0.08, 0.89])
            if weight > 1e-9 and statistics.share_score(gained, lost, n, -0.05) > stats.norm.ppf(0.975):
                total += weight
    assert total < 0.03
    assert n == 30 or total > 0.01


def test_holm_of_a_worked_case_is_that_of_statsmodels() -> None:
    """statsmodels 0.14 multipletests(method="holm"): by hand 6 x 0.005, 5 x 0.01, 4 x 0.03, then no less, 1 x 0.6."""
    adjusted, rejected = statistics.holm([0.01, 0.04, 0.03, 0.005, 0.6, 0.03], level=0.05)
    assert adjusted == pytest.approx([0.05, 0.12, 0.12, 0.03, 0.6, 0.12])
    assert rejected == [True, False, False, True, False, False]
    assert statistics.holm([], level=0.05) == ([], [])
    assert statistics.holm([0.7, 0.8], level=0.05)[0] == [1.0, 1.0]


@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.001, 0.5))
def test_the_binomial_tail_is_scipys(successes: int, trials: int, probability: float) -> None:
    wanted = stats.binom.sf(successes - 1, trials, probability)
    assert statistics.binomial_tail(successes, trials, probability) == pytest.approx(
        wanted, rel=1e-9, abs=1e-300
    )


def test_robust_spreads_are_scipys_and_ignore_outliers() -> None:
    x = np.random.default_rng(0).normal(2.0, 3.0, size=200)
    z, tail = statistics.robust_tail(14.0, x)
    assert z == pytest.approx((14.0 - np.median(x)) / stats.median_abs_deviation(x, scale="normal"), rel=1e-4)
    assert tail == pytest.approx(stats.t.sf(z, 0.37 * 199), rel=1e-2)
    spoilt = np.where(np.arange(200) < 20, 1e6, x)
    assert statistics.robust_tail(14.0, spoilt)[0] == pytest.approx(z, rel=0.35)


def test_without_any_spread_only_equal_figures_are_ordinary() -> None:
    assert statistics.robust_tail(1.0, [1.0] * 30) == (0.0, 0.5)
    assert statistics.robust_tail(1.1, [1.0] * 30) == (math.inf, 0.0)
    assert statistics.robust_tail(0.9, [1.0] * 30) == (-math.inf, 1.0)
    assert statistics.robust_tail(1.1, [1.0] * 30, least=0.1)[0] == pytest.approx(1.0)


def test_the_largest_of_twenty_is_beyond_holms_limit_as_often_as_stated() -> None:
    """4,000 times, 1 %: 40 +- 19 (3 deviations); at their own scale lognormal figures would be there 1,700 times."""
    rng = np.random.default_rng(3)
    limit = statistics.student_quantile(1 - 0.01 / 20, statistics.robust_freedom(200))
    usual, largest = rng.normal(size=(4000, 200)), rng.normal(size=(4000, 20)).max(axis=1)
    beyond = sum(statistics.robust_tail(c, r)[0] > limit for c, r in zip(largest, usual, strict=True))
    assert 21 <= beyond <= 59


@pytest.mark.parametrize(("n", "level", "wanted"), [(60, 0.025, 0.36770476), (30, 0.025 / 3, 0.62179764)])
def test_the_smallest_gain_is_that_of_the_t_tests_power(n: int, level: float, wanted: float) -> None:
    """statsmodels 0.14 TTestPower().solve_power(nobs, alpha, power=0.8, alternative="larger")."""
    assert statistics.smallest_gain(n, 2.0, level=level) == pytest.approx(2 * wanted, rel=0.01)


def test_too_few_show_no_gain_at_all() -> None:
    assert statistics.smallest_gain(1, 1.0, level=0.025) == math.inf


@pytest.mark.parametrize(("margin", "moved", "n"), [(0.02, 0.0, 189), (0.01, 0.0, 381), (0.05, 0.0, 73)])
def test_shares_that_do_not_change_want_so_many_items(margin: float, moved: float, n: int) -> None:
    """z^2 (1 - m) / m: 3.84146 x 49 = 188.2, x 99 = 380.3, x 19 = 72.99."""
    assert statistics.enough_shares(margin, moved, level=0.025) == n


@given(st.floats(0.01, 0.2), st.floats(0.0, 0.4))
def test_enough_shares_pass_and_one_less_does_not(margin: float, moved: float) -> None:
    n = statistics.enough_shares(margin, moved, level=0.025)
    highs = [statistics.share_bounds(moved * k / 2, moved * k / 2, k, level=0.025)[2] for k in (n - 1, n)]
    assert highs[1] <= margin + 1e-9 and highs[0] > margin - 1e-9


def test_the_levels_of_all_looks_sum_to_alpha() -> None:
    """1 / (k (k + 1)) = 1 / k - 1 / (k + 1)."""
    assert [statistics.level_of_look(k) for k in (1, 2, 3)] == pytest.approx([0.025, 0.05 / 6, 0.05 / 12])
    assert sum(statistics.level_of_look(k) for k in range(1, 1000)) == pytest.approx(0.05 * (1 - 1 / 1000))
    with pytest.raises(ValueError, match="from 1, not 0"):
        statistics.level_of_look(0)


def test_a_worn_test_set_is_told() -> None:
    assert statistics.budget_warning(0) is statistics.budget_warning(9) is None
    assert "10 decisions" in statistics.budget_warning(10) and "9.1%" in statistics.budget_warning(10)


@pytest.mark.parametrize(
    ("chains", "most", "least"), [(40, 7, 3), pytest.param(400, 32, 60, marks=pytest.mark.proof)]
)
def test_ten_looks_at_one_test_set_promote_nothing_in_most_chains(chains: int, most: int, least: int) -> None:
    """
    Chains of ten updates without any gain, measured on 40 items each.

    At spent levels 5 % of chains promote one at most, at 2.5 % each 1 - 0.975^10 = 22 %; both limits are 3 deviations away.
    """
    rng, promoted, careless = np.random.default_rng(2), 0, 0
    for chain in range(chains):
        looks = list(enumerate(rng.normal(size=(10, 40)), start=1))
        careless += any(statistics.mean_bounds(x, level=0.025, seed=chain)[1] > 0 for _, x in looks)
        promoted += any(
            statistics.mean_bounds(x, level=statistics.level_of_look(k), seed=chain)[1] > 0 for k, x in looks
        )
    print(f"of {chains} chains {promoted} promoted something, {careless} at 2.5 % each")
    assert promoted <= most
    assert careless >= least

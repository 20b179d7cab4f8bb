"""The maths of weights and draws, against worked figures, brute force and other solvers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import minimize

from instructkit.errors import InputError
from instructkit.feedback.preprocess import objectives, weights

WEIGHT = st.floats(0.01, 100)


def shares(w: np.ndarray, owners: np.ndarray) -> np.ndarray:
    return np.array([w[owners == owner].sum() for owner in np.unique(owners[owners >= 0])]) / w.sum()


def poured(totals: list[float], free: float, share: float) -> list[float]:
    """Water-filling as it is described: lower whoever is above, until nobody is."""
    totals = list(totals)
    for _ in range(200_000):
        limit = share * (sum(totals) + free)
        if all(total <= limit * (1 + 1e-13) for total in totals):
            break
        totals = [min(total, limit) for total in totals]
    return totals


def test_a_cap_by_hand() -> None:
    """One of three has 8 of 10 and may hold a half: the others keep 2, so it is left with 2 of 4."""
    w, owners = np.array([5.0, 3.0, 1.0, 1.0]), np.array([0, 0, 1, 2])
    np.testing.assert_allclose(weights.capped(w, owners, 0.5), [1.25, 0.75, 1.0, 1.0], rtol=1e-14)


def test_nobody_is_not_capped_but_counts() -> None:
    w, owners = np.array([6.0, 2.0, 2.0]), np.array([0, -1, -1])
    np.testing.assert_allclose(weights.capped(w, owners, 0.2), [1.0, 2.0, 2.0], rtol=1e-14)


def test_what_only_zeros_would_satisfy_is_none() -> None:
    assert weights.capped(np.ones(3), np.arange(3), 0.3) is None
    assert weights.capped(np.array([1.0, 1.0, 0.0]), np.array([0, 0, 1]), 0.4) is None


def test_exactly_as_many_owners_as_shares_all_come_down_to_the_least() -> None:
    w = np.arange(1.0, 21.0)
    np.testing.assert_allclose(weights.capped(w, np.arange(20), 0.05), np.ones(20), rtol=1e-9)


@given(st.lists(WEIGHT, min_size=3, max_size=12), st.floats(0, 5), st.floats(0.35, 0.99))
def test_a_cap_is_where_water_filling_ends(totals, free, share) -> None:
    w, owners = np.array([*totals, free]), np.array([*range(len(totals)), -1])
    np.testing.assert_allclose(weights.capped(w, owners, share)[:-1], poured(totals, free, share), rtol=1e-6)


@given(st.lists(st.tuples(WEIGHT, st.integers(0, 30)), min_size=1, max_size=80), st.floats(0.05, 0.9))
def test_a_cap_holds_raises_nothing_and_keeps_what_is_below(pairs, share) -> None:
    w, owners = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    found = weights.capped(w, owners, share)
    if found is None:
        assert len(set(owners.tolist())) < 1 / share
        return
    assert (found <= w * (1 + 1e-12)).all() and (found > 0).all()
    after = shares(found, owners)
    assert after.max() <= share * (1 + 1e-8)
    lowered = np.array([(found < w * (1 - 1e-9))[owners == owner].any() for owner in np.unique(owners)])
    np.testing.assert_allclose(after[lowered], share, rtol=1e-6)


@given(
    st.lists(st.tuples(WEIGHT, st.integers(-1, 12), st.integers(0, 12)), min_size=20, max_size=80),
    st.floats(0.2, 0.9),
    st.floats(0.2, 0.9),
)
def test_both_caps_hold_at_once(triples, of_rater, of_cluster) -> None:
    w, raters, clusters = (np.array(column) for column in zip(*triples, strict=True))
    found = weights.capped_twice(w, raters, clusters, (of_rater, of_cluster))
    if found is not None:
        assert weights.largest_share(found, raters) <= of_rater * (1 + 1e-8)
        assert weights.largest_share(found, clusters) <= of_cluster * (1 + 1e-8)
        assert (found <= w * (1 + 1e-12)).all()


def test_caps_that_cannot_hold_together_are_none() -> None:
    """Whoever else speaks, speaks of the one prompt that may weigh 0.3; so the loud rater has 0.7 at least."""
    raters, clusters = np.array([0] * 8 + [1, 2, 3]), np.array([*range(8), 9, 9, 9])
    assert weights.capped_twice(np.ones(11), raters, clusters, (0.4, 0.3)) is None


def test_largest_share_by_hand() -> None:
    assert weights.largest_share(np.array([1.0, 2.0, 5.0]), np.array([0, 0, -1])) == 3 / 8
    assert weights.largest_share(np.array([1.0]), np.array([-1])) == 0.0


def pairs_agreement(judged: list[tuple[int, int, int]], rater: int) -> tuple[float, int]:
    """Leave-one-out, by the definition: (item, rater, sign)."""
    score = count = 0.0
    for item, who, sign in judged:
        others = [s for i, r, s in judged if i == item and r != rater and r >= 0]
        if who == rater and others:
            score, count = score + sum(s == sign for s in others) / len(others), count + 1
    return score, int(count)


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 6), st.integers(-1, 5)), st.sampled_from([1, -1]), min_size=1, max_size=30
    )
)
def test_agreement_leaves_oneself_out(judged) -> None:
    told = [(item, rater, sign) for (item, rater), sign in judged.items()]
    items, raters, signs = (np.array(column) for column in zip(*told, strict=True))
    scores, counts = weights.agreements(signs, items, raters)
    wanted = [pairs_agreement(told, rater) for rater in range(len(scores))]
    np.testing.assert_allclose(scores, [score for score, _ in wanted], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(counts, [count for _, count in wanted])


def test_reliability_by_hand() -> None:
    """The mean is 22.5 / 28.125 = 0.8, which is 4 of the 5 judgements given beforehand; the third shares nothing."""
    scores, counts = np.array([15.0, 6.5, 0.0, 1.0]), np.array([15.0, 10.0, 0.0, 3.125])
    found = weights.reliability(scores, counts, np.array([0, 1, 2, 3, -1]))
    wanted = [2 * 19 / 20 - 1, 2 * 10.5 / 15 - 1, 2 * 0.8 - 1, 2 * 5 / 8.125 - 1, 2 * 0.8 - 1]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_reliability_is_clipped_and_is_one_where_nothing_is_shared() -> None:
    found = weights.reliability(np.array([100.0, 0.0]), np.array([100.0, 100.0]), np.array([0, 1]))
    np.testing.assert_allclose(found, [2 * (100 + 2.5) / 105 - 1, 0.2], rtol=1e-12)
    np.testing.assert_array_equal(weights.reliability(np.zeros(2), np.zeros(2), np.array([0, 1, -1])), 1.0)


def test_recency_by_hand() -> None:
    day = 86400.0
    found = weights.recency(np.array([100 * day, 90 * day, 80 * day, np.nan]), 10)
    np.testing.assert_allclose(found, [1, 0.5, 0.25, (1 + 0.5 + 0.25) / 3], rtol=1e-12)
    np.testing.assert_array_equal(weights.recency(np.array([np.nan, np.nan]), 10), 1.0)


def test_positions_weigh_alike() -> None:
    w, first = np.array([1.0, 2.0, 1.0, 5.0]), np.array([1, 1, -1, 0])
    factors = weights.alike_positions(w, first)
    np.testing.assert_allclose(factors, [1 / 3, 1 / 3, 1, 1], rtol=1e-14)
    np.testing.assert_array_equal(weights.alike_positions(w, np.array([1, 1, 0, 0])), 1.0)


def test_balance_by_hand() -> None:
    w, inside = np.array([3.0, 5.0, 2.0]), np.array([True, False, False])
    np.testing.assert_allclose(weights.balanced(w, [inside], [0.5]), [5 / 3, 5 / 7, 5 / 7], rtol=1e-9)


def test_raking_is_the_nearest_table_with_these_margins() -> None:
    """Raking minimises sum(w' log(w' / w)) under the margins (Ireland and Kullback 1968); a general solver finds the same."""
    w = np.array([4.0, 3.0, 2.0, 5.0, 1.0, 2.0])
    members = [np.array([1, 1, 0, 0, 1, 0], bool), np.array([1, 0, 1, 0, 0, 1], bool)]
    targets = [0.55, 0.4]
    total = w.sum()
    held = [{"type": "eq", "fun": lambda x: x.sum() - total}] + [
        {"type": "eq", "fun": lambda x, m=m, t=t: x[m].sum() - t * total}
        for m, t in zip(members, targets, strict=True)
    ]
    wanted = minimize(
        lambda x: (x * np.log(x / w)).sum(),
        w,
        constraints=held,
        bounds=[(1e-6, None)] * 6,
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    np.testing.assert_allclose(w * weights.balanced(w, members, targets), wanted.x, rtol=1e-4)


@given(arrays.arrays(float, 30, elements=st.floats(0.1, 10)), st.floats(0, 1), st.integers(0, 2**30 - 1))
def test_balance_is_bounded(w, target, bits) -> None:
    inside = np.array([bits >> i & 1 for i in range(30)], bool)
    factors = weights.balanced(w, [inside], [target])
    assert factors.min() >= 0.2 - 1e-12 and factors.max() <= 5 + 1e-12
    if not 0 < inside.sum() < 30:
        np.testing.assert_array_equal(factors, 1.0)


def test_a_soft_label_by_hand() -> None:
    """0.9 and 0.3 for, 0.4 against: 0.75 say so. Of a tie the first judgement decides."""
    items, signs = np.array([0, 0, 0, 1, 1, 2]), np.array([-1, 1, 1, -1, 1, -1])
    sign, agreement = weights.soft_labels(signs, items, np.array([0.4, 0.9, 0.3, 0.5, 0.5, 0.2]))
    np.testing.assert_array_equal(sign, [1, -1, -1])
    np.testing.assert_allclose(agreement, [0.75, 0.5, 1.0], rtol=1e-12)


def test_the_share_of_a_rater() -> None:
    assert [weights.rater_share(n, None) for n in (2, 3, 40, 1000)] == [1.0, 2 / 3, 0.05, 0.05]
    assert weights.rater_share(3, 0.5) == 0.5


# Draws


@given(st.lists(st.floats(0, 50), min_size=1, max_size=60), st.integers(0, 300), st.integers(0, 2**32))
def test_an_item_is_drawn_as_often_as_expected_but_for_rounding(w, n, seed) -> None:
    if sum(w) < 1e-6:
        return
    found = objectives.draw(w, n, seed)
    assert len(found) == n and (np.diff(found) >= 0).all()
    expected = np.array(w) * n / sum(w)
    counts = np.bincount(found, minlength=len(w))
    assert (counts >= np.floor(expected - 1e-9)).all() and (counts <= np.ceil(expected + 1e-9)).all()


def test_equal_weights_draw_each_once_and_zero_never() -> None:
    for seed in range(50):
        np.testing.assert_array_equal(objectives.draw(np.full(7, 0.3), 7, seed), np.arange(7))
        assert 1 not in objectives.draw([1.0, 0.0, 2.0, 0.0], 11, seed)


def test_draws_are_unbiased() -> None:
    """Over many seeds the mean count is the expectation: the standard error of a share of 4000 is 0.008 at most."""
    w = np.array([0.25, 1.0, 0.6, 1.4, 0.05])
    counts = [np.bincount(objectives.draw(w, 4, seed), minlength=5) for seed in range(4000)]
    np.testing.assert_allclose(np.mean(counts, axis=0), w * 4 / w.sum(), atol=0.04)


def test_a_draw_depends_on_its_seed_alone() -> None:
    w = np.array([0.5, 0.7, 0.2, 1.1])
    drawn = {seed: tuple(objectives.draw(w, 2, seed)) for seed in range(30)}
    assert drawn == {seed: tuple(objectives.draw(w, 2, seed)) for seed in range(30)}
    assert len(set(drawn.values())) > 1


@pytest.mark.parametrize("w", [[0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0]])
def test_what_cannot_be_drawn_from_is_an_error(w) -> None:
    with pytest.raises(InputError, match="nothing can be drawn"):
        objectives.draw(w, 3, 0)


@given(
    st.lists(st.tuples(st.floats(0.5, 1), st.integers(1, 20)), min_size=1, max_size=20), st.integers(0, 999)
)
def test_swaps_are_the_rest_of_the_agreement_for_each_item_and_for_all(items, seed) -> None:
    agreements = [a for a, times in items for _ in range(times)]
    swapped = objectives.orders(agreements, seed)
    starts = np.cumsum([0, *(times for _, times in items)])
    for (a, times), start in zip(items, starts, strict=False):
        assert abs(swapped[start : start + times].sum() - (1 - a) * times) < 1 + 1e-9
    assert abs(swapped.sum() - sum(1 - a for a in agreements)) < 1 + 1e-9


def test_no_swap_where_all_agree_and_half_where_none_do() -> None:
    for seed in range(20):
        assert not objectives.orders(np.ones(50), seed).any()
        assert objectives.orders(np.full(50, 0.5), seed).sum() == 25


def test_effective_number_by_hand() -> None:
    assert objectives.effective([1, 1, 1, 1]) == pytest.approx(4, rel=1e-14)
    assert objectives.effective([3, 1]) == pytest.approx(16 / 10, rel=1e-14)
    assert objectives.effective([]) == 0.0


# Last words


def last_words(events: list[tuple[int, int, int, float]]) -> list[int]:
    """By the definition, event by event: (who, answer, said, time)."""
    found = []
    for i, (who, answer, said, _) in enumerate(events):
        mine = [(j, e) for j, e in enumerate(events) if e[:2] == (who, answer) and (who >= 0 or e[2] == said)]
        timed = not any(math.isnan(e[3]) for _, e in mine)
        last = max(mine, key=lambda pair: (pair[1][3] if timed else 0.0, pair[0]))
        alike = weights.DUPLICATE if last[1][2] == said else weights.OVERRULED
        found.append(weights.STANDS if last[0] == i else alike)
    return found


TIMES = st.one_of(st.integers(0, 4).map(float), st.just(math.nan))


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2), st.integers(0, 2), TIMES), max_size=25),
)
def test_the_last_word_stands(events) -> None:
    if not events:
        assert len(weights.last_words(*(np.zeros(0) for _ in range(4)))) == 0
        return
    who, answers, said, times = (np.array(column) for column in zip(*events, strict=True))
    found = weights.last_words(who, answers.astype(np.uint64), said.astype(np.uint64), times.astype(float))
    assert found.tolist() == last_words(events)


def test_contested_is_both_signs() -> None:
    items = [(), (1,), (-1, -1), (1, -1), (-1, 1, 1)]
    flat = [(i, sign) for i, signs in enumerate(items) for sign in signs]
    numbers, signs = (np.array(column) for column in zip(*flat, strict=True))
    assert weights.contested(numbers, signs).tolist() == [False, False, False, True, True]

"""Intervals against closed forms, scipy's figures and stated coverage."""

from __future__ import annotations

import numpy as np
import pytest

from instructkit.evaluate import statistics


def test_the_wilson_interval_of_a_textbook_case() -> None:
    """8 of 10: centre (0.8 + 1.9207 / 10) / 1.38415 = 0.71673, half width 0.22659."""
    share, low, high = statistics.accuracy_interval(8, 10)
    assert (share, round(low, 4), round(high, 4)) == (0.8, 0.4902, 0.9433)


def test_the_wilson_interval_stays_within_a_share() -> None:
    assert statistics.accuracy_interval(0, 5)[1] == 0.0
    assert statistics.accuracy_interval(5, 5)[2] == 1.0


def test_copies_of_a_trial_narrow_no_interval() -> None:
    right = np.random.default_rng(0).random(60) < 0.8
    once = statistics.clustered_share(right, [str(i) for i in range(60)])
    copied = statistics.clustered_share(np.repeat(right, 4), [str(i) for i in np.repeat(np.arange(60), 4)])
    assert copied[0] == once[0]
    assert copied[1] <= once[1] and copied[2] >= once[2]
    assert copied[2] - copied[1] == pytest.approx(once[2] - once[1], rel=0.02)


def test_trials_that_all_agree_are_worth_their_groups() -> None:
    assert statistics.clustered_share([True] * 12, list("aaabbbcccddd")) == statistics.accuracy_interval(4, 4)
    assert statistics.clustered_share([True, False], ["a", "a"]) == statistics.accuracy_interval(0.5, 1)


def test_a_share_of_grouped_trials_covers_the_truth() -> None:
    """80 groups of 3, each with a chance of its own around 0.8: independent trials would claim too much."""
    rng = np.random.default_rng(7)
    held = independent = 0
    for _ in range(400):
        chance = rng.beta(1.6, 0.4, size=80)
        right = (rng.random((80, 3)) < chance[:, None]).ravel()
        groups = [str(i) for i in np.repeat(np.arange(80), 3)]
        _, low, high = statistics.clustered_share(right, groups)
        held += low <= 0.8 <= high
        _, low, high = statistics.accuracy_interval(int(right.sum()), 240)
        independent += low <= 0.8 <= high
    assert 0.92 <= held / 400 <= 0.98
    assert independent / 400 < 0.90


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_items() -> None:
    x = np.random.default_rng(0).normal(2.0, 3.0, size=4000)
    mean, low, high = statistics.bootstrap_mean(x, seed=1)
    half = 1.96 * x.std() / np.sqrt(len(x))
    assert mean == pytest.approx(x.mean(), abs=1e-12)
    assert low == pytest.approx(mean - half, abs=0.01)
    assert high == pytest.approx(mean + half, abs=0.01)


def test_the_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for i in range(300):
        _, low, high = statistics.bootstrap_mean(rng.normal(1.0, 1.0, size=60), seed=i)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    assert statistics.bootstrap_mean([1, 2, 5], seed=3) == statistics.bootstrap_mean([1, 2, 5], seed=3)


def test_pairing_removes_what_items_share() -> None:
    items = np.random.default_rng(0).normal(0, 100, size=200)
    mean, low, high = statistics.paired_difference(items, items + 1.0, seed=0)
    assert (mean, low, high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-9)


def test_the_ratio_is_of_totals() -> None:
    ratio, low, high = statistics.ratio_interval([1.0, 3.0], [2.0, 4.0], seed=0)
    assert ratio == 1.5
    assert (low, high) == pytest.approx((4 / 3, 2.0), abs=1e-9)


def test_correlation() -> None:
    assert statistics.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0, abs=1e-12)
    assert statistics.pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0, abs=1e-12)
    assert statistics.pearson([1, 1, 1], [3, 2, 1]) is None


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        statistics.bootstrap_mean([], seed=0)
    with pytest.raises(ValueError, match="different lengths"):
        statistics.paired_difference([1.0], [1.0, 2.0], seed=0)
    with pytest.raises(ValueError, match="positive total"):
        statistics.ratio_interval([0.0], [1.0], seed=0)
    with pytest.raises(ValueError, match="at least one"):
        statistics.accuracy_interval(0, 0)


def test_a_gain_that_is_all_length_is_none_at_equal_length() -> None:
    """Each token is worth 0.5: all of the gain is length; with 2 added to each, 2 remain."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 15, 80), rng.integers(10, 40, 80)
    before, after = 0.5 * lengths[0], 0.5 * lengths[1]
    gain = statistics.gain_at_equal_length(before, after, lengths, seed=0)
    assert gain == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)
    assert statistics.gain_at_equal_length(before, after + 2, lengths, seed=0)[0] == pytest.approx(2.0)
    noisy = statistics.gain_at_equal_length(before, after + 2 + rng.normal(0, 1, 80), lengths, seed=0)
    assert noisy[1] < 2.0 < noisy[2]


def test_without_a_change_of_length_it_is_the_gain_itself() -> None:
    found = statistics.gain_at_equal_length([1.0, 2.0, 3.0], [2.0, 3.0, 7.0], ([4, 4, 4], [4, 4, 4]), seed=0)
    assert found[0] == pytest.approx(2.0)

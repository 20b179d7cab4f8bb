"""Intervals against closed forms, scipy's figures and stated coverage."""

from __future__ import annotations

import numpy as np
import pytest

from instructkit.evaluate import metrics


def test_the_wilson_interval_of_a_textbook_case() -> None:
    """8 of 10: centre (0.8 + 1.9207 / 10) / 1.38415 = 0.71673, half width 0.22659."""
    share, low, high = metrics.accuracy_interval(8, 10)
    assert (share, round(low, 4), round(high, 4)) == (0.8, 0.4902, 0.9433)


def test_the_wilson_interval_stays_within_a_share() -> None:
    assert metrics.accuracy_interval(0, 5)[1] == 0.0
    assert metrics.accuracy_interval(5, 5)[2] == 1.0


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_items() -> None:
    x = np.random.default_rng(0).normal(2.0, 3.0, size=4000)
    mean, low, high = metrics.bootstrap_mean(x, seed=1)
    half = 1.96 * x.std() / np.sqrt(len(x))
    assert mean == pytest.approx(x.mean(), abs=1e-12)
    assert low == pytest.approx(mean - half, abs=0.01)
    assert high == pytest.approx(mean + half, abs=0.01)


def test_the_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for i in range(300):
        _, low, high = metrics.bootstrap_mean(rng.normal(1.0, 1.0, size=60), seed=i)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    assert metrics.bootstrap_mean([1, 2, 5], seed=3) == metrics.bootstrap_mean([1, 2, 5], seed=3)


def test_pairing_removes_what_items_share() -> None:
    items = np.random.default_rng(0).normal(0, 100, size=200)
    mean, low, high = metrics.paired_difference(items, items + 1.0, seed=0)
    assert (mean, low, high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-9)


def test_the_ratio_is_of_totals() -> None:
    ratio, low, high = metrics.ratio_interval([1.0, 3.0], [2.0, 4.0], seed=0)
    assert ratio == 1.5
    assert (low, high) == pytest.approx((4 / 3, 2.0), abs=1e-9)


def test_correlation() -> None:
    assert metrics.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0, abs=1e-12)
    assert metrics.pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0, abs=1e-12)
    assert metrics.pearson([1, 1, 1], [3, 2, 1]) is None


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        metrics.bootstrap_mean([], seed=0)
    with pytest.raises(ValueError, match="different lengths"):
        metrics.paired_difference([1.0], [1.0, 2.0], seed=0)
    with pytest.raises(ValueError, match="positive total"):
        metrics.ratio_interval([0.0], [1.0], seed=0)
    with pytest.raises(ValueError, match="at least one"):
        metrics.accuracy_interval(0, 0)

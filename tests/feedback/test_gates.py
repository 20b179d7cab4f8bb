"""Decisions on both sides of every limit, and on what was not measured."""

from __future__ import annotations

import math

import pytest

from instructkit.feedback import gates

NAN = math.nan


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ((0.5, 0.1, 0.9), True),
        ((0.5, 0.0, 0.9), False),
        ((0.5, -0.1, 1.0), False),
        ((NAN, NAN, NAN), None),
        (None, None),
    ],
)
def test_a_gain_needs_its_lower_bound_above_the_minimum(change, passed) -> None:
    assert gates.improved("gain", change, 0.0).passed is passed


@pytest.mark.parametrize(
    ("ratio", "passed"),
    [
        ((1.0, 0.99, 1.01), True),
        ((1.0, 0.99, 1.0101), False),
        ((0.9, 0.8, 0.95), True),
        ((1.0, 0.9, NAN), None),
        (None, None),
    ],
)
def test_not_worse_compares_the_upper_bound(ratio, passed) -> None:
    assert gates.not_worse("loss", ratio, 1.01).passed is passed


@pytest.mark.parametrize(
    ("value", "passed"), [(11.9, True), (12.0, False), (NAN, None), (None, None), (math.inf, None)]
)
def test_below(value, passed) -> None:
    assert gates.below("kl", value, 12).passed in (passed, False if passed is None else passed)
    assert (gates.below("kl", value, 12).passed is True) == (passed is True)


@pytest.mark.parametrize(("value", "passed"), [(0.85, True), (0.849, False), (None, None)])
def test_at_least(value, passed) -> None:
    assert gates.at_least("accuracy", value, 0.85).passed is passed


def test_one_gate_that_did_not_pass_refuses() -> None:
    good, bad = gates.below("x", 1, 2), gates.below("x", 3, 2)
    unknown = gates.below("x", None, 2)
    assert gates.verdict([good, good]) == gates.PROMOTED
    assert gates.verdict([good, bad]) == gates.verdict([good, unknown]) == gates.verdict([]) == gates.REFUSED


def test_a_gate_says_in_words_what_it_wants() -> None:
    assert gates.below("KL", 13.5, 12).text == "KL: 13.5, it must lie below 12"
    assert "was not measured" in gates.not_worse("loss", None, 1.01).text

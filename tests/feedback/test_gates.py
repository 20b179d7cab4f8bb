"""Decisions on both sides of every limit, and on what was not measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from instructkit.evaluate import gates

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


HARM = {"what": "growth", "meaning": "it is worse"}


@pytest.mark.parametrize(
    ("figure", "found", "wanted", "verdict"),
    [
        ((0.0, -0.02, 0.02), 100, 100, "passed"),  # the bound may reach the limit
        ((0.0, -0.03, 0.03), 100, 100, "failed"),
        ((0.0, -0.03, 0.03), 99, 100, "undecided"),
        ((0.04, -0.01, 0.09), 99, 100, "undecided"),  # as large by chance
        ((0.04, 0.01, 0.07), 99, 100, "failed"),  # harm was shown
        ((0.01, 0.005, 0.03), 99, 100, "undecided"),  # a harm was shown, and it may be small
        ((-0.5, -0.9, -0.1), 3, 100, "passed"),
        ((0.0, NAN, NAN), 3, 100, "undecided"),
        ((0.0, -0.01, math.inf), 3, 0, "undecided"),
    ],
)
def test_a_harm_passes_fails_or_wants_more_figures(figure, found, wanted, verdict) -> None:
    gate = gates.at_most("harm", figure, 0.02, found=found, wanted=wanted, **HARM)
    assert gate.verdict == verdict
    assert (gate.passed, "it is worse" in gate.text) == (
        {"passed": True, "failed": False}.get(verdict),
        verdict == "failed",
    )
    if verdict == "undecided" and math.isfinite(figure[2]):
        assert "99 figures cannot show that it is at most 0.02, 100 would if nothing changed" in gate.text


def test_no_change_of_a_ratio_is_one() -> None:
    few = {"found": 9, "wanted": 100, **HARM}
    assert gates.at_most("loss", (1.04, 0.99, 1.09), 1.01, neutral=1.0, **few).verdict == "undecided"
    assert gates.at_most("loss", (1.04, 1.02, 1.06), 1.01, neutral=1.0, **few).verdict == "failed"


def test_what_does_not_apply_neither_passes_nor_refuses() -> None:
    good, none = gates.below("x", 1, 2), gates.not_applicable("groups", 0.02, "there are none")
    assert none.verdict == "not applicable" and none.passed is None
    assert gates.verdict([good, none]) == gates.PROMOTED
    assert gates.verdict([none]) == gates.verdict([none], on_undecided="pass") == gates.REFUSED


def test_a_recipe_may_let_undecided_gates_pass_but_not_failed_or_essential_ones() -> None:
    good, unknown = gates.below("x", 1, 2), gates.undecided("y", 0.1, "3 figures, 10 or more are wanted")
    assert gates.verdict([good, unknown]) == gates.REFUSED
    assert gates.verdict([good, unknown], on_undecided="pass") == gates.PROMOTED
    assert gates.verdict([unknown], on_undecided="pass") == gates.REFUSED
    assert gates.verdict([good, unknown, gates.below("z", 3, 2)], on_undecided="pass") == gates.REFUSED
    assert gates.verdict([good, replace(unknown, essential=True)], on_undecided="pass") == gates.REFUSED


def test_the_record_of_a_gate_has_its_verdict() -> None:
    assert gates.below("x", 1.0, 2).as_dict() == {
        "name": "x",
        "measured": 1.0,
        "limit": 2,
        "interval": None,
        "passed": True,
        "text": "x: 1, it must lie below 2",
        "essential": False,
        "verdict": "passed",
    }


@pytest.mark.parametrize(
    ("gate", "verdict", "against"),
    [
        (gates.below("x", 1, 2), "REFUSED", False),
        (gates.below("x", 3, 2), "PROMOTED", True),
        (gates.below("x", None, 2), "REFUSED", True),
        (gates.below("x", None, 2), None, True),
        (gates.below("x", None, 2), "PROMOTED", False),
        (gates.not_applicable("x", 2, "why"), "REFUSED", False),
    ],
)
def test_which_gates_of_a_record_stand_against_it(gate, verdict, against) -> None:
    run = {"verdict": verdict}
    assert gates.stands_against(gate.as_dict(), run) is against
    if gate.applicable:
        old = {key: value for key, value in gate.as_dict().items() if key != "verdict"}
        assert gates.stands_against(old, run) is against


@pytest.mark.parametrize(("essential", "against"), [(False, False), (True, True)])
def test_an_inconclusive_gate_that_may_pass_does_not_stand_against_a_run_that_another_refused(
    essential: bool, against: bool
) -> None:
    gate = {"name": "x", "passed": None, "verdict": "undecided", "essential": essential}
    run = {"verdict": "REFUSED", "recipe": {"gates": {"on_undecided": "pass"}}}
    assert gates.stands_against(gate, run) is against

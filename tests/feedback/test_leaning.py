"""Gains of rated answers: nothing for a shift of all alike, and a spread that is that of both signs' means."""

from __future__ import annotations

import numpy as np
import pytest

from instructkit.evaluate.results import Feedback
from instructkit.feedback.promotion.preference import FEWEST_OF_A_SIGN, gains, met, of_ratings


def rated(ratings: list[float], logprobs: list[float]) -> Feedback:
    return Feedback(
        list(of_ratings(ratings, logprobs)), clusters=list(range(len(ratings))), ratings=list(ratings)
    )


def test_the_middle_is_that_of_both_signs_however_many_there_are() -> None:
    """Good at -1, bad at -3: the middle is -2, not the mean of all, which is -2.5 here."""
    assert of_ratings([1.0] * 5 + [-1.0] * 15, [-1.0] * 5 + [-3.0] * 15) == pytest.approx([1.0] * 20)
    # Weighted: of the good, (1 x 0 + 0.5 x -3) / 1.5 = -1 a pair of them; the bad at -5: the middle is -3.
    ratings, logprobs = [1.0, 0.5] * 5 + [-1.0] * 5, [0.0, -3.0] * 5 + [-5.0] * 5
    assert of_ratings(ratings, logprobs) == pytest.approx([3.0, 0.0] * 5 + [2.0] * 5)


@pytest.mark.parametrize("bad", [5, 50, 95])
@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_a_shift_of_all_answers_alike_is_no_gain(bad: int, shift: float) -> None:
    ratings = [-1.0] * bad + [1.0] * (100 - bad)
    logprobs = np.random.default_rng(0).normal(-2, 1, 100)
    found, places = gains(rated(ratings, logprobs), rated(ratings, logprobs + shift))
    assert found == pytest.approx(np.zeros(100), abs=1e-12) and list(places) == list(range(100))


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_a_shift_of_all_answers_alike_turns_no_judgement_round(shift: float) -> None:
    ratings = [-1.0] * 70 + [1.0] * 30
    logprobs = np.random.default_rng(0).normal(-2, 1, 100)
    before, after = met(ratings, logprobs, -2.0), met(ratings, logprobs + shift, -2.0)
    assert before == after and 20 < sum(before) < 80
    assert before == (of_ratings(ratings, logprobs) > 0).tolist()


def test_good_ratings_alone_are_met_above_what_is_usual_to_the_parent() -> None:
    assert met([1.0, 0.5, -1.0], [-1.0, -3.0, -3.0], -2.0) == [True, False, True]


def test_the_gain_is_half_of_what_good_and_bad_moved_apart() -> None:
    ratings = [1.0] * 20 + [-1.0] * 80
    before = np.random.default_rng(1).normal(-2, 1, 100)
    moved = np.where(np.asarray(ratings) > 0, 0.1, -0.3) + np.random.default_rng(2).normal(0, 0.2, 100)
    found, _ = gains(rated(ratings, before), rated(ratings, before + moved))
    assert found.mean() == pytest.approx((moved[:20].mean() - moved[20:].mean()) / 2)
    # The variance of the mean is that of half the difference of two means, n - 1 in each.
    wanted = (moved[:20].var(ddof=1) / 20 + moved[20:].var(ddof=1) / 80) / 4
    assert found.var() / 100 == pytest.approx(wanted)


def test_the_mean_gain_is_that_of_the_leaning_whatever_ratings_weigh() -> None:
    rng = np.random.default_rng(5)
    ratings = [*rng.uniform(0.1, 1, 30), *-rng.uniform(0.1, 1, 70)]
    before, after = (rated(ratings, rng.normal(-2, 1, 100)) for _ in range(2))
    found, _ = gains(before, after)
    assert found.mean() == pytest.approx(np.mean(after.leaning) - np.mean(before.leaning))


def test_pairs_beside_ratings_keep_their_own_gain() -> None:
    ratings = [0.0] * 3 + [1.0] * 5 + [-1.0] * 5
    leaning = [1.0, 2.0, 3.0]
    before = Feedback([*leaning, *of_ratings(ratings[3:], [-1.0] * 10)], ratings=ratings)
    after = Feedback([1.5, 2.0, 2.0, *of_ratings(ratings[3:], [-0.5] * 5 + [-1.5] * 5)], ratings=ratings)
    found, _ = gains(before, after)
    assert found == pytest.approx([0.5, 0.0, -1.0] + [0.5] * 10)
    assert gains(Feedback(leaning), Feedback([1.5, 2.0, 2.0]))[0] == pytest.approx([0.5, 0.0, -1.0])


def test_bad_ratings_alone_tell_no_gain_and_good_ones_are_demonstrations() -> None:
    few = FEWEST_OF_A_SIGN - 1
    ratings = [-1.0] * 60 + [1.0] * few
    before, after = rated(ratings, [-2.0] * len(ratings)), rated(ratings, [-2.5] * len(ratings))
    found, places = gains(before, after)
    assert list(places) == list(range(60, 60 + few)) and found == pytest.approx([-0.5] * few)
    found, places = gains(rated([1.0] * 9, [-2.0] * 9), rated([1.0] * 9, [-1.5] * 9))
    assert found == pytest.approx([0.5] * 9) and len(places) == 9


def test_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths: 2 and 1"):
        gains(Feedback([1.0, 2.0]), Feedback([1.0]))

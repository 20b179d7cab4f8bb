"""Figures of feedback, against ones worked out by hand."""

from __future__ import annotations

import pytest

from instructkit.feedback.events import event_of
from instructkit.feedback.statistics import of_events, two_sided


def made(**row):
    return event_of({"prompt": "q", "response": "a", **row}, source="chat", consent=True)


def test_figures() -> None:
    events = [
        made(rating=1, rater="ann", tags=["x"], group="g"),
        made(rating=0.5, rater="bob"),
        made(rating=-1, rater="cat"),
        made(rating=0, rater="dan"),
        made(rating=1),
        made(better="b", rater="ann", consent=False),
        made(other="b", preferred="other", shown_first="other", rater="ann"),
        made(other="b", preferred="response", shown_first="response"),
        made(other="b", preferred="other", shown_first="response"),
        made(other="b", preferred="tie", shown_first="response"),
    ]
    found = of_events(events)
    assert found.events == 10
    assert found.kinds == {"rating": 5, "edit": 1, "preference": 4}
    assert (found.raters, found.anonymous, found.without_consent) == (4, 4, 1)
    assert found.loudest == 3 / 6
    # The last of ann's two judgements of `a` counts (an edit, so against it): bob for, cat and ann against.
    assert found.agreement == (pytest.approx(1 / 3), 3)
    assert found.first_chosen == (pytest.approx(2 / 3), 3, 1.0)
    assert (found.tags, found.groups) == ({"x": 1}, {"g": 1})


def test_nothing_at_all() -> None:
    found = of_events([])
    assert (found.events, found.loudest, found.agreement, found.first_chosen) == (0, None, None, None)


# `scipy.stats.binomtest(k, n).pvalue` of SciPy 1.17.1
P_VALUES = {
    (0, 1): 1.0,
    (7, 10): 0.34375,
    (50, 100): 1.0,
    (61, 100): 0.035200200217704855,
    (400, 1000): 2.728464156065947e-10,
}


@pytest.mark.parametrize(("k", "n"), P_VALUES)
def test_the_binomial_test_is_scipys(k: int, n: int) -> None:
    assert two_sided(k, n) == pytest.approx(P_VALUES[k, n], rel=1e-9)

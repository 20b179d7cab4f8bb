"""Figures of feedback, against ones worked out by hand."""

from __future__ import annotations

import random

import pytest

from instructkit.feedback.preprocess.items import Settings
from instructkit.feedback.preprocess.pipeline import prepare
from instructkit.feedback.store.events import event_of
from instructkit.feedback.store.summary import of_events, two_sided


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
    # Ann's edit took the place of her rating of `a`: bob for it, cat against. The pairs have one judge with a name.
    assert found.agreement == (0.0, 1)
    assert found.first_chosen == (pytest.approx(2 / 3), 3, 1.0)
    assert (found.tags, found.groups) == ({"x": 1}, {"g": 1})


def said(*told: tuple[str, dict]):
    return of_events(made(rater=rater, **row) for rater, row in told).agreement


GOOD, BAD, NEITHER, EDIT = {"rating": 1}, {"rating": -1}, {"rating": 0}, {"better": "b"}
PAIR = {"response": "b", "other": "a", "preferred": "response"}
TIE = {"other": "b", "preferred": "tie"}
TURNED = {"response": "a", "other": "b", "preferred": "other"}

AGREEMENTS = {
    "alike": ([("ann", GOOD), ("bob", GOOD), ("cat", BAD)], (pytest.approx(1 / 3), 3)),
    "an edit is no verdict on the answer alone": ([("ann", EDIT), ("bob", BAD)], None),
    "a pair is one whichever answer comes first": ([("ann", PAIR), ("bob", TURNED)], (1.0, 1)),
    "an edit prefers one of a pair": ([("ann", EDIT), ("bob", TURNED), ("cat", PAIR)], (1.0, 3)),
    "white space and Unicode's forms are no difference": (
        [("ann", GOOD | {"prompt": "caf\u00e9  x"}), ("bob", BAD | {"prompt": "cafe\u0301 x "})],
        (0.0, 1),
    ),
    "the last word stands": ([("ann", BAD), ("bob", GOOD), ("ann", GOOD)], (1.0, 1)),
    "by its time": (
        [("ann", GOOD | {"time": "2026-01-02"}), ("bob", GOOD), ("ann", BAD | {"time": "2026-01-01"})],
        (1.0, 1),
    ),
    "who takes back is no judge": ([("ann", GOOD), ("bob", GOOD), ("ann", NEITHER)], None),
    "a tie takes back a choice, and no edit": (
        [("ann", EDIT), ("ann", TIE), ("bob", TURNED), ("cat", PAIR), ("cat", TIE)],
        (1.0, 1),
    ),
    "of a pair, too, the last": (
        [("ann", TURNED), ("bob", TURNED), ("ann", {"response": "b", "better": "a"})],
        (0.0, 1),
    ),
}


@pytest.mark.parametrize("name", AGREEMENTS)
def test_agreement(name: str) -> None:
    told, wanted = AGREEMENTS[name]
    assert said(*told) == wanted


def test_agreement_is_that_of_preprocessing() -> None:
    """Where two judge, an item has one pair and two judgements of the same score: both means are one figure."""
    draw = random.Random(0)
    kinds = [GOOD, BAD, NEITHER, EDIT, PAIR, TURNED, TIE, {"response": "b", "better": "a"}]
    rows = [
        {
            "prompt": f"question {draw.randrange(60)}",
            "response": "a",
            "rater": draw.choice(("ann", "bob")),
            "time": 1_700_000_000 + draw.randrange(500),
            **draw.choice(kinds),
        }
        for _ in range(600)
    ]
    share, pairs = of_events(event_of(row, source="x", consent=True) for row in rows).agreement
    told = prepare(rows, Settings(test=0.0, tune=0.0), seed=0).report["reliability"]
    assert 20 < pairs < 120
    assert (told["judgements"], told["mean"]) == (2 * pairs, pytest.approx(share, rel=1e-12))


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

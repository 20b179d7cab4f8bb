"""What feedback rows become, and that none is lost."""

from __future__ import annotations

import pytest

from instructkit.errors import InputError
from instructkit.feedback import preprocess

ASKED = [{"role": "user", "content": "Hello"}]
EDIT = {"prompt": ASKED, "response": "bad", "better": "good"}
CHOICE = {"messages": ASKED, "response": "one", "other": "two", "preferred": "other"}
UP = {"prompt": "Hello", "response": "yes", "rating": 1.0}
DOWN = {"prompt": "Hello", "response": "no", "rating": -0.5}
NEITHER = {"prompt": "Hello", "response": "hm", "rating": 0.0}


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([EDIT], "sft"),
        ([UP], "sft"),
        ([CHOICE, EDIT], "dpo"),
        ([UP, DOWN], "kto"),
        ([UP, DOWN, CHOICE, CHOICE, EDIT], "dpo"),
    ],
)
def test_the_objective_follows_from_the_rows(rows, wanted) -> None:
    chosen, reason = preprocess.objective(rows)
    assert chosen == wanted and reason


def test_the_recipe_may_choose() -> None:
    assert preprocess.objective([EDIT], "dpo")[0] == "dpo"


@pytest.mark.parametrize("rows", [[], [DOWN], [NEITHER]])
def test_feedback_that_asks_for_nothing_is_an_error(rows) -> None:
    with pytest.raises(InputError, match="nothing to learn from"):
        preprocess.objective(rows)


def message(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def test_rows_have_the_form_of_their_trainer() -> None:
    assert preprocess.training_rows([EDIT], "sft")[0] == [{"prompt": ASKED, "completion": message("good")}]
    assert preprocess.training_rows([CHOICE], "dpo")[0] == [
        {"prompt": ASKED, "chosen": message("two"), "rejected": message("one")}
    ]
    assert preprocess.training_rows([UP, DOWN], "kto")[0] == [
        {"prompt": "Hello", "completion": "yes", "label": True},
        {"prompt": "Hello", "completion": "no", "label": False},
    ]


@pytest.mark.parametrize("chosen", preprocess.OBJECTIVES)
def test_every_event_has_one_outcome(chosen: str) -> None:
    rows = [EDIT, CHOICE, UP, DOWN, NEITHER]
    _, outcomes = preprocess.training_rows(rows, chosen)
    assert sum(outcomes.values()) == len(rows)


def test_judged_events() -> None:
    events = preprocess.judged([EDIT, CHOICE, UP, DOWN, NEITHER])
    assert [(e.wanted, e.unwanted, e.weight) for e in events] == [
        ("good", "bad", 1.0),
        ("two", "one", 1.0),
        ("yes", None, 1.0),
        ("no", None, -0.5),
    ]

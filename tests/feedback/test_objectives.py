"""What items are learned by, and the rows that each trainer reads."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from instructkit.errors import InputError
from instructkit.feedback.preprocess import objectives
from instructkit.feedback.preprocess.items import Item, Phase

ASKED = [{"role": "user", "content": "Hello"}]
EDIT = Item("e", ASKED, "good", "bad", edit=True)
CHOICE = Item("c", ASKED, "two", "one")
UP = Item("u", "Hello", "yes", rating=1.0)
DOWN = Item("d", "Hello", "no", rating=-0.5)


def signals(items: list[Item]) -> objectives.Signals:
    kinds = np.array([objectives.kind_of(item) for item in items], dtype=int)
    return objectives.Signals.of(kinds, np.array([item.weight for item in items]))


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("items", "wanted"),
    [
        ([EDIT], "sft"),
        ([UP], "sft"),
        ([CHOICE, EDIT], "dpo"),
        ([UP, DOWN], "kto"),
        ([UP, DOWN, CHOICE, CHOICE, EDIT], "mixture"),  # 2 of 5
        ([UP, DOWN, *[CHOICE] * 6], "mixture"),  # 2 of 8: just enough
        ([UP, DOWN, *[CHOICE] * 7], "dpo"),  # 2 of 9
        ([UP, DOWN, UP, DOWN, UP, DOWN, UP, EDIT], "kto"),
        ([UP, *[CHOICE] * 2], "dpo"),  # ratings of one sign are no signal of their own
        ([CHOICE, EDIT, EDIT], "dpo"),
    ],
)
def test_the_objective_follows_from_the_weight(items, wanted) -> None:
    chosen, reason = objectives.objective(signals(items))
    assert chosen == wanted and "weight" in reason


def test_weight_counts_and_not_the_number() -> None:
    heavy = Item("u", "Hello", "yes", rating=1.0, weight=20.0)
    assert objectives.objective(signals([heavy, DOWN, CHOICE, CHOICE, CHOICE]))[0] == "kto"


def test_the_recipe_may_choose() -> None:
    assert objectives.objective(signals([EDIT]), "dpo")[0] == "dpo"


@pytest.mark.parametrize("items", [[], [DOWN]])
def test_feedback_that_asks_for_nothing_is_an_error(items) -> None:
    with pytest.raises(InputError, match="nothing to learn from"):
        objectives.objective(signals(items))


def test_a_mixture_goes_from_sft_over_dpo_to_kto() -> None:
    assert objectives.OBJECTIVES == ("sft", "dpo", "kto")
    rated = {"good": "kto", "bad": "kto"}
    found = objectives.homes(signals([UP, DOWN, CHOICE, EDIT]), "mixture")
    assert found == {"preferences": "dpo", "edits": "dpo", **rated}
    found = objectives.homes(signals([DOWN, UP, EDIT]), "mixture")
    assert found == {"preferences": "dpo", "edits": "sft", **rated}
    found = objectives.homes(signals([UP, CHOICE]), "mixture")
    assert found == {"preferences": "dpo", "edits": "dpo", "good": "sft"}


def test_what_each_objective_learns_from() -> None:
    everything = signals([EDIT, CHOICE, UP, DOWN])
    assert objectives.homes(everything, "sft") == dict.fromkeys(("edits", "preferences", "good"), "sft")
    assert objectives.homes(everything, "dpo") == dict.fromkeys(("preferences", "edits"), "dpo")
    assert objectives.homes(everything, "kto") == dict.fromkeys(objectives.KINDS, "kto")


def test_an_objective_without_items_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing that dpo can learn from"):
        objectives.homes(signals([UP]), "dpo")


def test_what_stands_is_drawn_by_how_far_its_judges_speak_for_it() -> None:
    """Net weights: 100 of 1, 100 of 0.25, and 100 of 4 x 0.6, which is more than 1 and stands like any whole judgement."""
    ordinary = [Item(f"o{i}", "Hello", "x") for i in range(100)]
    loud = [Item(f"l{i}", "Hello", "x", weight=0.25) for i in range(100)]
    merged = [Item(f"m{i}", "Hello", "x", "y", weight=4.0, agreement=0.8) for i in range(100)]
    even = [Item(f"e{i}", "Hello", "x", "y", weight=4.0, agreement=0.5) for i in range(100)]
    phases = [Phase("sft", [*ordinary, *loud]), Phase("dpo", [*merged, *even])]
    found = Counter(event[0] for event in objectives.standing(phases, 3))
    assert found == {"o": 100, "l": 25, "m": 100}
    light = [Item(f"a{i}", "Hello", "x", weight=0.1 if i % 2 else 0.2) for i in range(100)]
    found = objectives.standing([Phase("sft", light)], 3)
    assert sum(int(event[1:]) % 2 for event in found) == 25 and len(found) == 75
    assert found == objectives.standing([Phase("sft", light)], 3)


def test_rows_have_the_form_of_their_trainer() -> None:
    assert objectives.rows(Phase("sft", [EDIT]), 0) == [{"prompt": ASKED, "completion": said("good")}]
    wanted = {"prompt": ASKED, "chosen": said("two"), "rejected": said("one"), "written": False}
    assert objectives.rows(Phase("dpo", [CHOICE]), 0) == [wanted]
    wanted = {"prompt": ASKED, "chosen": said("good"), "rejected": said("bad"), "written": True}
    assert objectives.rows(Phase("dpo", [EDIT]), 0) == [wanted]
    assert objectives.rows(Phase("kto", [UP, DOWN]), 0) == [
        {"prompt": "Hello", "completion": "yes", "label": True},
        {"prompt": "Hello", "completion": "no", "label": False},
    ]
    assert [row["label"] for row in objectives.rows(Phase("kto", [CHOICE]), 0)] == [True, False]


def test_weights_become_how_often_an_item_is_drawn() -> None:
    items = [Item(str(w), f"Say {w}.", "x", weight=w) for w in (0.5, 1.0, 2.5) for _ in range(100)]
    counts = Counter(row["prompt"] for row in objectives.rows(Phase("sft", items), 3))
    # 300 rows over a weight of 400: 37.5, 75 and 187.5 of them, each rounded up or down
    assert (
        counts["Say 0.5."] in (37, 38) and counts["Say 1.0."] in (75, 76) and counts["Say 2.5."] in (187, 188)
    )


def test_no_more_are_drawn_than_are_wanted() -> None:
    items = [Item(str(i), f"Say {i}.", "x", weight=1 + i % 3) for i in range(30)]
    assert len(objectives.rows(Phase("sft", items), 3, most=7)) == 7
    assert len(objectives.rows(Phase("sft", items), 3, most=99)) == 30
    assert objectives.rows(Phase("sft", []), 3, most=7) == []


def test_a_soft_label_is_both_orders_in_proportion() -> None:
    split = Item("s", "Hello", "a", "b", agreement=0.7)
    drawn = objectives.rows(Phase("dpo", [split] * 100), 5)
    assert Counter(row["chosen"] for row in drawn) == {"a": 70, "b": 30}
    assert all(row["rejected"] != row["chosen"] for row in drawn)
    edited = Item("s", "Hello", "a", "b", agreement=0.7, edit=True)
    drawn = objectives.rows(Phase("dpo", [edited] * 100), 5)
    assert Counter((row["chosen"], row["written"]) for row in drawn) == {("a", True): 70, ("b", False): 30}
    rated = Item("s", "Hello", "a", rating=-1.0, agreement=0.8)
    labels = Counter(row["label"] for row in objectives.rows(Phase("kto", [rated] * 50), 5))
    assert labels == {False: 40, True: 10}


def test_the_same_seed_draws_the_same_rows() -> None:
    items = [Item(str(i), f"Say {i}.", "x", weight=1 + i % 3) for i in range(30)]
    first, again, other = (objectives.rows(Phase("sft", items), seed) for seed in (1, 1, 2))
    assert first == again != other

"""What is said of gates that cannot be decided is what the gates themselves say, and with what is asked for they are decided."""

from __future__ import annotations

from dataclasses import replace

import pytest

from instructkit.feedback.preprocess.items import Item
from instructkit.feedback.promotion.preflight import Shortage, Sizes, shortages
from instructkit.recipe.schema import UpdateGates

PLENTY = Sizes([], [], 100, 100, 100, {}, range(24))


def items_of(count: int = 40, *, rating: float = 1.0, unwanted: str | None = "no") -> list[Item]:
    return [Item(f"e{i}", f"q{i}", "yes", unwanted, rating, cluster=i) for i in range(count)]


def sizes(items: list[Item], group: str = "", **more) -> Sizes:
    return replace(PLENTY, items=items, groups=[(group,) if group else ()] * len(items), **more)


def found(about: Sizes, **limits) -> dict[str, tuple[int, int]]:
    told = shortages(about, UpdateGates(**limits), level=0.025)
    return {name: (each.have, each.need) for each in told for name in each.gates}


def test_enough_of_everything_lacks_nothing() -> None:
    assert found(sizes(items_of())) == {}


CONDUCT = ("answers end", "repetition", "refusals")


def test_too_few_general_rows_are_told_of_every_gate_that_reads_them() -> None:
    none = found(sizes(items_of(), general=0, prompts=0), judge="demo/judge")
    every = {
        "general held-out loss",
        "general accuracy",
        "KL to the parent",
        "answer length",
        "no trigger",
        *CONDUCT,
    }
    assert set(none) == every | {"judge's score of answers to everything else"}
    assert {name: none[name] for name in CONDUCT} == dict.fromkeys(CONDUCT, (0, 35))
    assert none["general held-out loss"] == (0, 10)
    some = found(sizes(items_of(), general=34, prompts=34))
    assert some == dict.fromkeys(CONDUCT, (34, 35))
    assert found(sizes(items_of(), general=35, prompts=35)) == {}


def test_too_few_questions_about_groups_or_too_few_people_are_told() -> None:
    named = found(sizes(items_of(), contrasts=range(8)))
    assert named == dict.fromkeys(named, (8, 10)) and all(
        name.startswith("groups answered") for name in named
    )
    lacking = found(sizes(items_of(), contrasts=[0, 1] * 30))
    assert set(lacking.values()) == {(2, 4)}
    assert found(sizes(items_of(), contrasts=[0, 1, 2, 3] * 15)) == {}


@pytest.mark.parametrize(
    ("items", "have"),
    [
        (items_of(9), 9),
        (items_of(10), None),
        (items_of(20, rating=-1.0, unwanted=None), 0),  # nothing sets bad ratings apart from answers as such
        ([*items_of(9, unwanted=None), *items_of(4, rating=-1.0, unwanted=None)], 9),
        ([*items_of(9, unwanted=None), *items_of(5, rating=-1.0, unwanted=None)], 9),
    ],
)
def test_too_few_test_prompts(items: list[Item], have: int | None) -> None:
    assert found(sizes(items)) == ({} if have is None else {"held-out feedback": (have, 10)})


def test_what_is_needed_of_a_group_and_of_a_task_is_enough() -> None:
    assert found(sizes(items_of(30), "group:a")) == {}  # enough for an update that meets what they want
    alike = [replace(item, cluster=0) for item in items_of(40)]
    mixed = sizes([*alike, *items_of(40)])
    mixed = replace(mixed, groups=[("group:a",)] * 40 + [("group:b",)] * 40)
    (have, need) = found(mixed)["no group harmed"]
    assert (have, need) == (1, 5)
    assert found(mixed, group_loss_max=None) == {}
    apart = [replace(item, cluster=i % need) for i, item in enumerate(alike)]
    assert found(replace(mixed, items=[*apart, *items_of(40)])) == {}
    task = {"maths.jsonl": 50}
    need = found(sizes(items_of(), tasks=task))["general accuracy"][1]
    assert found(sizes(items_of(), tasks={"maths.jsonl": need - 1})) != {}
    assert found(sizes(items_of(), tasks={"maths.jsonl": need})) == {}
    assert found(sizes(items_of(), pairs=9)) == {"no added bias": (9, 10)}


def test_a_shortage_names_gates_figures_and_the_key_to_change() -> None:
    (told,) = shortages(sizes(items_of(), general=20, prompts=20), UpdateGates(), level=0.025)
    assert isinstance(told, Shortage) and not told.essential
    assert str(told).startswith(
        "answers end, repetition, refusals: 20 general prompts that the feedback does not ask too; at least 35 are needed; "
    )
    assert "`data.eval`" in str(told) and "`feedback.general`" in str(told)
    (told,) = shortages(sizes(items_of(3)), UpdateGates(), level=0.025)
    assert told.essential and "`feedback.eval`" in str(told)

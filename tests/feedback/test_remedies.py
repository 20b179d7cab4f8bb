"""A refusal: the verdict, each gate with its figures and meaning, one concrete change for each, and no contradiction."""

from __future__ import annotations

import itertools

import pytest

from instructkit.evaluate.results import Measured
from instructkit.feedback.promotion import decide
from instructkit.feedback.promotion.decide import CHANGES, refusal, remedies
from instructkit.recipe.schema import UpdateGates


def gate(name: str, passed: bool | None = False) -> dict:
    return {"name": name, "passed": passed, "text": f"{name}: 0.4, at most 0.1 is allowed"}


def record(*gates: dict, stage: str = "lora-update", verdict: str = "REFUSED", **recipe) -> dict:
    passed = [gate("fine", True)] * (4 - len(gates))
    return {"name": "mine", "stage": stage, "verdict": verdict, "gates": [*gates, *passed], "recipe": recipe}


def test_each_gate_is_told_once_with_its_change_and_a_value() -> None:
    against = [gate("general held-out loss"), gate("KL to the parent"), gate("no added bias", None)]
    run = record(*against, trainer={"learning_rate": 1e-4}, feedback={"anchor": 0.05})
    message, hint = refusal(run, against)
    assert message.splitlines() == [
        "mine is REFUSED: 2 of 4 gates failed, 1 inconclusive",
        "  general held-out loss: 0.4, at most 0.1 is allowed",
        "    change: train less: trainer.learning_rate=5e-05 (now 0.0001)",
        "  KL to the parent: 0.4, at most 0.1 is allowed",
        "    change: hold the parent's answers: feedback.anchor=0.1 (now 0.05)",
        "  no added bias: 0.4, at most 0.1 is allowed",
        "    change: measure on more minimal pairs (feedback.bias_pairs)",
    ]
    assert (
        "keep the refused adapter for study" in hint
        and "gates.on_undecided" in hint
        and "look 1" not in hint
        and "each look is stricter" in hint
    )
    assert "This was look 3 at the same test events" in refusal(run | {"look": {"number": 3}}, against)[1]


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "lora-update"])
def test_more_and_less_training_are_never_asked_for_together(stage: str) -> None:
    limits = UpdateGates(judge="demo/judge", reward_model="reward")
    decided = decide.decide(Measured(), Measured(), limits, level=0.025, seed=0)
    for pair in itertools.combinations({*CHANGES, *(each.name for each in decided)}, 2):
        told = " ".join(remedies([gate(name) for name in pair], record(stage=stage)))
        asks = [word in told for word in ("train longer", "train less", "hold the p")]
        assert not (asks[0] and any(asks[1:])), pair


def test_an_update_whose_other_answers_became_worse_is_not_trained_longer() -> None:
    against = [gate("judge's score of answers to everything else")]
    message, _ = refusal(record(*against, trainer={"max_steps": 110, "learning_rate": 1e-4}), against)
    assert "answers to everything else may have become worse" in message
    assert "change: train less" in message


def test_to_let_inconclusive_gates_pass_is_hinted_at_only_where_it_helps() -> None:
    open_gate = gate("no added bias", None)
    for against, recipe, helps in (
        ([open_gate], {}, True),
        ([open_gate], {"gates": {"on_undecided": "pass"}}, False),
        ([open_gate, gate("held-out feedback", None) | {"essential": True}], {}, False),
        ([gate("general held-out loss")], {}, False),
    ):
        hint = refusal(record(*against, **recipe), against)[1]
        assert ("on_undecided" in hint) == helps, (against, recipe)


def test_an_interval_that_is_too_wide_asks_for_rows_first() -> None:
    wide = gate("answers end") | {"measured": 0.05, "limit": 0.1, "interval": (-0.02, 0.13)}
    harmful = wide | {"measured": 0.15, "interval": (0.1, 0.2)}
    run = record(wide, trainer={"learning_rate": 1e-4})
    assert remedies([wide], run)[0].startswith(
        "measure on more rows (feedback.eval, feedback.general), or train less"
    )
    assert remedies([harmful], run)[0].startswith("train less")


def test_other_stages_say_what_their_gates_mean() -> None:
    against = [gate("held-out comparisons ordered right")]
    run = record(*against, stage="reward", verdict="done", trainer={"num_train_epochs": 2})
    lines = refusal(run, against)[0].splitlines()
    assert lines[0] == "mine is trained, and refused by its gates: 1 of 4 gates failed"
    assert lines[1].endswith(
        "at most 0.1 is allowed: the reward model does not order answers well enough to learn from"
    )
    assert lines[2] == "    change: train longer: trainer.num_train_epochs=4 (now 2)"

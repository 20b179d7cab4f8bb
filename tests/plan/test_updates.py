"""Plans and looks of updates: every objective is prepared without weights, and its step holds what a real one does."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan.test_plan import planned, real_step, recipe
from stages.small import CHAT, LORA, rows, run

from instructkit.plan import render
from instructkit.plan.data_look import look
from instructkit.plan.rehearsal import keep, rehearse
from instructkit.recipe.load import load_recipe
from instructkit.stages import stage_of
from instructkit.stages.base import Frame, Listener, choose_machine
from instructkit.stages.lora_update import stage

RECIPES = Path(__file__).parents[2] / "recipes"
ONE = "trainer: {max_steps: 1, per_device_train_batch_size: 4}\n"
SIGNALS = {
    "sft": [{"better": "Yes, that one."}],
    "dpo": [{"preferred": "response", "other": "No."}],
    "kto": [{"rating": 1}, {"rating": -1}],
}
SIGNALS["auto"] = [signal for signals in SIGNALS.values() for signal in signals]
OBJECTIVES = ["sft", "dpo", "kto", "auto"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a run to update."""
    folder = tmp_path_factory.mktemp("parent")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = rows("chat.jsonl", CHAT)
        body = f"model: {{name: tiny}}\ndata: {{train: {data}, eval: 0.3}}\n{LORA}{ONE}run: {{output: sft}}\n"
        run("sft", body)
    return folder


def update(objective: str, *overrides: str):
    signals = SIGNALS[objective]
    events = [
        {"prompt": f"Say {i} to me.", "response": f"{i}, as you say!", **signals[i % len(signals)]}
        for i in range(24)
    ]
    body = (
        f"model: {{name: sft}}\nfeedback: {{events: {rows(f'{objective}.jsonl', events)}, eval: 0.5, "
        f"objective: {objective}}}\n{LORA}{ONE}run: {{output: new}}\n"
    )
    return recipe("lora-update", body, *overrides)


def told_of(plan) -> str:
    return "{}: {}".format(*plan.inputs.prepared.objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_update_is_planned_and_looked_at_whatever_its_objective(
    parent: Path, monkeypatch, objective: str
) -> None:
    monkeypatch.chdir(parent)
    found = update(objective)
    plan = planned(found)
    assert set(plan.rehearsal.weights) == {"model", "new adapter", "parent's adapter"}
    assert plan.rehearsal.phases["step"] > 0
    told = render.lines(plan)
    assert [line for line in told if line.startswith("events:")] == ["events: 24, each with one outcome"]
    assert [line for line in told if line.startswith("objective ")] == [f"objective {told_of(plan)}"]
    seen = look(found, stage_of(found).collect(found, {}), choose_machine(found), 1)
    assert any(token.learned for row in seen.rows for token in row.tokens)
    assert not Path("new").exists()


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_a_rehearsed_update_holds_what_a_real_one_does(
    parent: Path, tmp_path: Path, monkeypatch, objective: str
) -> None:
    """The real step reads from its rows what the parent says of them, so nothing is counted for a second reading."""
    monkeypatch.chdir(parent)
    found = update(objective)
    inputs, machine = stage_of(found).collect(found, {}), choose_machine(found)
    rehearsed = rehearse(found, inputs, machine)
    frame = Frame(found, inputs, machine, tmp_path, Listener(), resume=False)
    trainer = stage.STAGE.prepare(frame).trainer
    batch = trainer.data_collator(keep("lora-update", trainer, inputs).heaviest)
    assert rehearsed.phases["step"] == pytest.approx(real_step(trainer, batch), rel=0.02)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_probe_has_real_references(parent: Path, monkeypatch, objective: str) -> None:
    from instructkit.plan import plan

    monkeypatch.chdir(parent)
    found = update(objective)
    assert plan.make(found, probing=True).probe.steps == 1


@pytest.mark.parametrize(
    "path", sorted(RECIPES.rglob("lora-update*.yaml")), ids=lambda path: path.stem + path.parent.name
)
def test_the_trainers_of_every_shipped_update_can_be_built(parent: Path, monkeypatch, path: Path) -> None:
    """TRL refuses some settings in its trainer's constructor alone, so `check` cannot see them."""
    monkeypatch.chdir(parent)
    told = {
        "model": "{name: sft, quantization: none}",
        "feedback": f"{{events: {update('auto').feedback.events}, eval: 0.5, replay: chat.jsonl}}",
        "gates": "{}",
        "run.output": "new",
    }
    found = load_recipe(str(path), "lora-update", [f"{name}={value}" for name, value in told.items()])
    assert planned(found).rehearsal.phases["step"] > 0

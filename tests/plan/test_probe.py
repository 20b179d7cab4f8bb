"""A probe takes real steps of the run and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from stages.small import CHAT, LORA, PAIRS, rows, run

from instructkit.cli.main import main
from instructkit.plan import memory, render
from instructkit.plan import plan as make
from instructkit.plan.probe import probe
from instructkit.ppo.trainer import PPOTrainer
from instructkit.recipe.load import load_recipe
from instructkit.stages import stage_of
from instructkit.stages.base import choose_machine

ONE = "trainer: {max_steps: 1, per_device_train_batch_size: 4}\n"


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_folder) -> Path:
    monkeypatch.chdir(tmp_path)
    rows("chat.jsonl", CHAT)
    return tmp_path


def recipe(steps: int):
    Path("sft.yaml").write_text(
        "stage: sft\nmodel: {name: tiny}\ndata: {train: chat.jsonl, eval: 0.3}\n"
        f"trainer: {{max_steps: {steps}, per_device_train_batch_size: 2, eval_strategy: steps, eval_steps: 1}}\n"
        "run: {output: out}\n",
        encoding="utf-8",
    )
    return load_recipe("sft.yaml", "sft")


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(("steps", "timed"), [(100, 4), (3, 2), (1, 1)])
def test_steps_are_timed_and_forgotten(workplace, steps: int, timed: int) -> None:
    found = recipe(steps)
    before = everything(workplace)
    plan = make.make(found, probing=True)
    assert everything(workplace) == before
    assert plan.probe.steps == timed
    assert plan.probe.seconds_a_step > 0 and plan.probe.seconds_before > 0
    assert plan.seconds == plan.probe.seconds_a_step * steps
    assert plan.as_dict()["probe"]["steps"] == timed
    assert any(f"measured on {timed} of them" in line for line in render.lines(plan))


def test_ppo_is_timed_by_whole_rollouts(workplace, monkeypatch) -> None:
    rows("pairs.jsonl", PAIRS)
    run(
        "sft",
        f"model: {{name: tiny}}\ndata: {{train: chat.jsonl, eval: 0.3}}\n{LORA}{ONE}run: {{output: sft}}\n",
    )
    run(
        "reward",
        f"model: {{name: sft}}\ndata: {{train: pairs.jsonl, eval: 0.3}}\n{LORA}{ONE}run: {{output: reward}}\n",
    )
    rows("asked.jsonl", [{"prompt": row["messages"][:1]} for row in CHAT])
    Path("ppo.yaml").write_text(
        "stage: ppo\nmodel: {name: sft}\nreward: [{model: reward}]\ndata: {train: asked.jsonl, eval: null}\n"
        "trainer: {max_steps: 60, per_device_train_batch_size: 2, steps_per_generation: 2, num_iterations: 3, "
        "max_completion_length: 8}\nrun: {output: ppo}\n",
        encoding="utf-8",
    )
    generated = []
    original = PPOTrainer._generate_and_score_completions
    monkeypatch.setattr(
        PPOTrainer,
        "_generate_and_score_completions",
        lambda self, inputs: generated.append(self.state.global_step) or original(self, inputs),
    )
    found = load_recipe("ppo.yaml", "ppo")
    measured = probe(found, stage_of(found).collect(found, {}), choose_machine(found))
    assert generated == [0, 6]  # the second rollout and all its steps are what is timed
    assert measured.steps == 6
    assert not Path("ppo").exists()


def test_a_run_that_will_not_fit_is_not_probed(workplace, monkeypatch) -> None:
    found = recipe(4)
    monkeypatch.setattr(memory, "available", lambda machine: 2**20)
    assert make.make(found, probing=True).probe is None


def test_a_probe_belongs_to_a_plan(workplace, capsys) -> None:
    recipe(4)
    with pytest.raises(SystemExit) as ended:
        main(["sft", "sft.yaml", "--probe"])
    assert ended.value.code == 2
    assert "--probe goes with --plan" in capsys.readouterr().err
    assert not Path("out").exists()

"""A run that stopped goes on as if it had not (O-16), and looking at held-out prompts changes nothing."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ppo.small import PROMPTS, build, logged, weights

from instructkit.ppo.evaluation import own_randomness

FRESH = Path(__file__).with_name("fresh_process.py")
STATEFUL = {
    "target_kl_per_sequence": 0.5,
    "kl_horizon": 100,
    "score_scaling": True,
    "score_norm": True,
    "ptx_coef": 0.5,
    "lr_scheduler_type": "linear",
}
TEXT = [{"input_ids": [5, 6, 7, i], "labels": [-100, -100, 7, i]} for i in range(20, 31)]
SAME = (
    "objective/kl",
    "objective/scores",
    "objective/kl_coef",
    "val/explained_variance",
    "loss/ptx",
    "episode",
)


def run(folder, place, *, steps: int, resume: str | None = None, **more):
    trainer = build(folder, place, max_steps=steps, more={"text_rows": TEXT}, **STATEFUL, **more)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    ("lora", "critic"), [(False, "head"), (True, "head"), (True, "adapter"), (False, "separate")]
)
def test_two_and_two_is_four(tiny_folder, tmp_path, lora: bool, critic: str) -> None:
    """Four rollouts at once, and two, a stop, and two more by a new trainer: bit-equal weights, state and figures."""
    kind = {"lora": lora, "critic": critic}
    straight = run(tiny_folder, tmp_path / "a", steps=16, save_strategy="steps", save_steps=8, **kind)
    torch.manual_seed(99)  # whatever the process did meanwhile
    checkpoint = str(tmp_path / "a" / "out" / "checkpoint-8")
    resumed = run(tiny_folder, tmp_path / "b", steps=16, resume=checkpoint, **kind)
    first, second = weights(straight), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert straight.state_of_ppo == resumed.state_of_ppo
    assert straight.state_of_ppo.beta != 0.05
    for name in SAME:
        assert logged(straight, name) == logged(resumed, name), name


@pytest.mark.proof
def test_two_and_two_is_four_in_processes_of_their_own(tiny_folder, tmp_path) -> None:
    """O-16 as a user meets it: the second half runs in a process that knows nothing but the checkpoint."""
    for place, checkpoint in (("a", ""), ("b", str(tmp_path / "a" / "out" / "checkpoint-8"))):
        command = [sys.executable, str(FRESH), str(tiny_folder), str(tmp_path / place), checkpoint]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / place / "kept.pt", weights_only=True) for place in ("a", "b"))
    assert first["state"] == second["state"]
    assert all(torch.equal(first["weights"][name], tensor) for name, tensor in second["weights"].items())


def test_moments_of_the_optimizer_come_back(tiny_folder, tmp_path) -> None:
    first = run(tiny_folder, tmp_path / "a", steps=8, save_strategy="steps", save_steps=8, lora=True)
    second = run(
        tiny_folder, tmp_path / "b", steps=12, resume=str(tmp_path / "a/out/checkpoint-8"), lora=True
    )
    counts = {float(state["step"]) for state in second.optimizer.state.values()}
    assert counts == {12.0}
    assert first.state_of_ppo.rollouts == 2


def test_evaluation_leaves_training_as_it_was(tiny_folder, tmp_path) -> None:
    """The same weights, bit for bit, with held-out prompts answered at every border and without."""
    rows = [{"prompt": prompt} for prompt in PROMPTS[:3]]
    kept = {}
    for name, settings in {"without": {}, "with": {"eval_strategy": "steps", "eval_steps": 4}}.items():
        trainer = build(
            tiny_folder,
            tmp_path / name,
            lora=True,
            critic="adapter",
            max_steps=12,
            more={"eval_dataset": rows},
            **settings,
        )
        trainer.train()
        kept[name] = weights(trainer)
    assert all(torch.equal(kept["without"][name], tensor) for name, tensor in kept["with"].items())
    assert len(logged(trainer, "eval_objective/kl")) == 3
    assert logged(trainer, "eval_objective/scores_raw")[0] >= 0


def test_the_same_held_out_answers_each_time_it_is_asked(tiny_folder, tmp_path) -> None:
    rows = [{"prompt": prompt} for prompt in PROMPTS[:3]]
    judged: list[list[str]] = []

    def judge(prompts, completions):
        judged.append(list(completions))
        return [float(len(text)) for text in completions]

    trainer = build(tiny_folder, tmp_path, more={"eval_dataset": rows, "judges": {"judge": judge}})
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first == pytest.approx(second, nan_ok=True, abs=0)
    assert first["eval_judge"] == pytest.approx(sum(map(len, judged[0])) / 3, rel=1e-6)
    assert judged[0] == judged[1]


def test_held_out_sets_by_name_and_none_at_all(tiny_folder, tmp_path) -> None:
    rows = [{"prompt": prompt} for prompt in PROMPTS[:2]]
    trainer = build(tiny_folder, tmp_path, more={"eval_dataset": {"easy": rows[:1], "hard": rows[1:]}})
    told = trainer.evaluate()
    assert {"eval_easy_objective/scores", "eval_hard_objective/scores"} <= told.keys()
    with pytest.raises(ValueError, match="no held-out prompts to answer"):
        build(tiny_folder, tmp_path).evaluate()


def test_randomness_of_its_own_is_given_back() -> None:
    torch.manual_seed(1)
    random.seed(1)
    wanted = torch.rand(2).tolist(), random.random()
    torch.manual_seed(1)
    random.seed(1)
    with own_randomness(5):
        torch.rand(3)
        random.random()
    assert (torch.rand(2).tolist(), random.random()) == wanted


def test_the_best_checkpoint_by_a_held_out_judge_is_what_remains(tiny_folder, tmp_path) -> None:
    """The judge likes the second measurement best; policy and critic of that step come back."""
    opinions = iter([1.0, 5.0, 2.0])
    seen = {}

    def judge(prompts, completions):
        seen[trainer.state.global_step] = weights(trainer)
        return [next(opinions)] * len(prompts)

    trainer = build(
        tiny_folder,
        tmp_path,
        lora=True,
        critic="adapter",
        max_steps=12,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="judge",
        greater_is_better=True,
        more={"eval_dataset": [{"prompt": PROMPTS[0]}], "judges": {"judge": judge}},
    )
    trainer.train()
    assert sorted(seen) == [4, 8, 12]
    assert all(torch.equal(tensor, seen[8][name]) for name, tensor in weights(trainer).items())
    assert any(not torch.equal(tensor, seen[12][name]) for name, tensor in weights(trainer).items())

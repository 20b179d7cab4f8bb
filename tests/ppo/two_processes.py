"""One process of several: an optimizer step on a fixed rollout, or one rollout; run by `test_processes.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppo.small import PROMPTS, build, fixed_rollout, weights


def main(folder: str, out: str, critic: str, checkpointing: bool) -> None:
    """Train one step on this process's share of eight responses, and write all weights."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = build(
        Path(folder),
        Path(out),
        lora=critic != "separate",  # which has all weights trained, of both models
        critic=critic,
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        steps_per_generation=2,
        num_iterations=1,
        max_steps=1,
        **({"ddp_backend": "gloo"} if world > 1 else {}),
        gradient_checkpointing=checkpointing,
        tokens_per_pass=40,  # the processes' rows differ in length, and so would their passes
        ptx_coef=0.5,
        more={"text_rows": [{"input_ids": [5, 6, i], "labels": [-100, 6, i]} for i in range(20, 30)]},
    )
    whole = fixed_rollout(trainer)
    rank = trainer.accelerator.process_index
    mine = {name: tensor[rank::world] for name, tensor in whole.items()}

    def given(inputs):
        trainer.state_of_ppo.rollouts += 1
        return mine

    trainer._generate_and_score_completions = given
    trainer.train()
    torch.save(weights(trainer), Path(out) / f"weights-{rank}.pt")


TEXT = [{"input_ids": [5, 6, i], "labels": [-100, 6, i]} for i in range(20, 30)]


def whole(folder: str, out: str, critic: str, checkpoint: str) -> None:
    """A run as a user starts it, with every switch that has a state, from the start or from a checkpoint."""
    answers: list[dict] = []
    held_out = [{"prompt": prompt} for prompt in PROMPTS[:3]]
    trainer = build(
        Path(folder),
        Path(out),
        lora=critic == "adapter",
        critic=critic,
        per_device_train_batch_size=2,
        max_steps=12,
        value_warmup_steps=1,
        score_scaling=True,
        target_kl_per_sequence=0.1,
        kl_horizon=50,
        target_kl=0.05,
        ptx_coef=0.5,
        learning_rate=5e-3,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=8,
        ddp_backend="gloo",
        more={"text_rows": TEXT, "eval_dataset": held_out, "keep_answers": answers.extend},
    )
    rollouts, original = [], trainer._generate_and_score_completions

    def kept(inputs):
        found = original(inputs)
        rollouts.append(found["advantages"][found["response_mask"]])
        return found

    trainer._generate_and_score_completions = kept
    trainer.train(resume_from_checkpoint=checkpoint or None)
    rank = trainer.accelerator.process_index
    told = [
        {n: v for n, v in line.items() if n.split("/")[0] not in TIMES} for line in trainer.state.log_history
    ]
    seen = {
        "rollouts": rollouts,
        "state": trainer.state_of_ppo.saved(),
        "log": told,
        "answers": answers,
        "weights": weights(trainer),
    }
    torch.save(seen, Path(out) / f"seen-{rank}.pt")


# What a clock says, what is of one process, and what Trainer counts from its own start.
TIMES = (
    "time",
    "eps",
    "step_time",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "rewards",
)


def say(folder: str, out: str) -> None:
    """Write what this process answers to the prompts that all are given."""
    trainer = build(Path(folder), Path(out), per_device_train_batch_size=2, ddp_backend="gloo")
    sampled = trainer.sample([{"prompt": prompt} for prompt in PROMPTS])
    torch.save(sampled.texts(), Path(out) / f"said-{trainer.accelerator.process_index}.pt")
    os._exit(0)  # this process has met the other one in nothing that would have to be taken down together


if __name__ == "__main__":
    if sys.argv[3] == "sample":
        say(sys.argv[1], sys.argv[2])
    elif sys.argv[3].startswith("whole"):
        whole(sys.argv[1], sys.argv[2], sys.argv[3].removeprefix("whole "), sys.argv[4])
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "yes")

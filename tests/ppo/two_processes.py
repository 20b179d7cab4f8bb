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
        lora=True,
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


def say(folder: str, out: str) -> None:
    """Write what this process answers to the prompts that all are given."""
    trainer = build(Path(folder), Path(out), per_device_train_batch_size=2, ddp_backend="gloo")
    sampled = trainer.sample([{"prompt": prompt} for prompt in PROMPTS])
    torch.save(sampled.texts(), Path(out) / f"said-{trainer.accelerator.process_index}.pt")
    os._exit(0)  # this process has met the other one in nothing that would have to be taken down together


if __name__ == "__main__":
    if sys.argv[3] == "sample":
        say(sys.argv[1], sys.argv[2])
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "yes")

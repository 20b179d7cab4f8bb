"""Held-out prompts answered while training goes on, by randomness of their own, so that looking changes nothing."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from instructkit.ppo import figures, rollout

Judge = Callable[..., list[float]]


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Within this context all random numbers come from `seed`; afterwards all generators are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def measure(trainer: Any, rows: list[dict[str, Any]], judges: dict[str, Judge]) -> dict[str, float]:
    """
    Score, KL, length and the judges' opinion of one sampled answer to each prompt, the prompts shared out over processes.

    Args:
        trainer: a `PPOTrainer` in evaluation mode; its policy answers at the temperature of training.
        rows: the dataset's rows, `prompt` and whatever columns its reward functions read.
        judges: functions of prompts and answers that no reward reads.

    Returns:
        Means over all processes, under the names of training.
    """
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    mine = [rows[i % len(rows)] for i in range(rank, -(-len(rows) // world) * world, world)]
    found: dict[str, list[torch.Tensor]] = {}
    size = trainer.args.reading_batch_size
    for start in range(0, len(mine), size):
        sampled = trainer.sample(mine[start : start + size])
        for name, values in _of_batch(trainer, sampled, judges).items():
            found.setdefault(name, []).append(values.float())
    whole = {name: torch.cat(values) for name, values in found.items()}

    def gather(values: torch.Tensor) -> torch.Tensor:
        """Every row's value once, in the order of the rows; those that only filled up the last process are left out."""
        return trainer.accelerator.gather(values).view(world, -1).T.flatten()[: len(rows)]

    scores = figures.of_scores(whole["raw"], whole["used"], whole["lengths"], whole["ended"], gather)
    told = {name: gather(values).mean() for name, values in whole.items() if name in judges}
    rlhf = scores["objective/scores"]
    if "kl" in whole:
        told["objective/kl"] = gather(whole["kl"]).mean()
        rlhf = rlhf - trainer.state_of_ppo.beta * told["objective/kl"]
    return {name: float(value) for name, value in {**scores, **told, "objective/rlhf_reward": rlhf}.items()}


def _of_batch(trainer: Any, sampled: Any, judges: dict[str, Judge]) -> dict[str, torch.Tensor]:
    mask, penalty = sampled.batch["response_mask"], {}
    if trainer.has_reference():
        reading = rollout.read(trainer.model, sampled.batch, temperature=trainer.temperature)
        reference = trainer.reference_logprobs(sampled.batch)
        penalty["kl"] = torch.where(mask, reading.logprobs - reference, 0.0).sum(1)
    opinions = {
        name: torch.tensor(judge(sampled.prompts, sampled.texts()), device=mask.device)
        for name, judge in judges.items()
    }
    return {
        "raw": sampled.raw,
        "used": sampled.used,
        "lengths": mask.sum(1),
        "ended": sampled.ended,
        **penalty,
        **opinions,
    }

"""Held-out prompts answered while training goes on, by randomness of their own, so that looking changes nothing."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from instructkit.ppo import metrics, rollout
from instructkit.ppo.masks import alone

Judge = Callable[..., list[float]]


class Measured(NamedTuple):
    """
    What one evaluation found.

    Attributes:
        figures: means over all held-out prompts, under the names of training.
        answers: a row a prompt, in the order of the prompts: `prompt`, `answer`, `score` (used), `score_raw`, `kl_nats` where
            there is a reference, `length_tokens`, `ended`, and each judge's opinion under its name.
    """

    figures: dict[str, float]
    answers: list[dict[str, Any]]


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


def measure(trainer: Any, rows: list[dict[str, Any]], judges: dict[str, Judge]) -> Measured:
    """
    Score, KL, length and the judges' opinion of one sampled answer to each prompt, the prompts shared out over processes.

    Args:
        trainer: a `PPOTrainer` in evaluation mode; its policy answers at the temperature of training.
        rows: the dataset's rows, `prompt` and whatever columns its reward functions read.
        judges: functions of prompts and answers that no reward reads.

    Returns:
        The same on all processes.
    """
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    mine = [rows[i % len(rows)] for i in range(rank, -(-len(rows) // world) * world, world)]
    found: dict[str, list[torch.Tensor]] = {}
    said: list[dict[str, Any]] = []
    size = trainer.args.reading_batch_size
    for start in range(0, len(mine), size):
        sampled = trainer.sample(mine[start : start + size])
        pairs = zip(sampled.prompts, sampled.texts(), strict=True)
        said += [{"prompt": prompt, "answer": text} for prompt, text in pairs]
        for name, values in _of_batch(trainer, sampled, judges).items():
            found.setdefault(name, []).append(values.float())

    def in_order(values: torch.Tensor) -> torch.Tensor:
        """Every row's value once, in the order of the rows; those that only filled up the last process are left out."""
        return trainer.accelerator.gather(values).view(world, -1).T.flatten()[: len(rows)]

    every = {name: in_order(torch.cat(values)) for name, values in found.items()}
    all_said = trainer.gather_rows(said)
    # Row i was answered by process i % world, as its own number i // world.
    said = [all_said[(i % world) * len(mine) + i // world] for i in range(len(rows))]
    return Measured(_means(trainer, every, judges), _answers(said, every))


def _means(trainer: Any, every: dict[str, torch.Tensor], judges: dict[str, Judge]) -> dict[str, float]:
    told = metrics.of_scores(every["raw"], every["used"], every["lengths"], every["ended"], alone)
    told |= {name: values.mean() for name, values in every.items() if name in judges}
    rlhf = told["objective/scores"]
    if "kl" in every:
        told["objective/kl"] = every["kl"].mean()
        rlhf = rlhf - trainer.state_of_ppo.beta * told["objective/kl"]
    return {name: float(value) for name, value in {**told, "objective/rlhf_reward": rlhf}.items()}


def _answers(said: list[dict[str, Any]], every: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Prompts and answers, each with what was measured of it."""
    names = {"used": "score", "raw": "score_raw", "kl": "kl_nats", "lengths": "length_tokens"}
    exact = {"lengths": int, "ended": bool}  # numbers in between, to be gathered
    columns = {
        names.get(name, name): list(map(exact.get(name, float), values.tolist()))
        for name, values in every.items()
    }
    return [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(said)]


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

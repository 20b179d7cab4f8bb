"""PPO's phases without weights: a full-length rollout is generated, read and learned from, each at its longest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from instructkit.models.tokens import encode_prompt
from instructkit.plan.ledger import CACHE, Held, Ledger
from instructkit.ppo import metrics, rollout


def phases(trainer: Any, ledger: Ledger, trained: list[Any]) -> dict[str, Held]:
    """What each phase of PPO holds beside the weights."""
    trainer.model.train()
    trainer.state_of_ppo.rollouts = trainer.args.value_warmup_steps + 1  # the critic's warm-up holds less
    batch = longest_rollout(trainer, trainer.args.generation_batch_size // trainer.accelerator.num_processes)
    micro = {
        name: x[: trainer.args.per_device_train_batch_size] if x.dim() else x for name, x in batch.items()
    }
    return {
        "generation": _peak(ledger, trained, lambda: _generate(trainer, batch, ledger)),
        "reading": _peak(ledger, trained, lambda: _read(trainer, batch)),
        "update": _peak(ledger, trained, lambda: _update(trainer, micro)),
    }


def shape(trainer: Any) -> tuple[int, int]:
    """Rows of a micro-batch, and the tokens of its longest."""
    return trainer.args.per_device_train_batch_size, _longest_prompt(
        trainer
    ) + trainer.args.max_completion_length


def work(trainer: Any, prompt: int, scorers: int) -> tuple[float, float]:
    """
    Tokens that one optimizer step reads without gradients, and that it learns.

    A rollout is generated and read by the policy, by the reference, by a critic that reads for itself, and by the scorers.
    """
    args, own = trainer.args, trainer._unwrapped_critic().reads != "policy"
    tokens = (args.generation_batch_size // args.world_size) * (prompt + args.max_completion_length)
    readings = 2 + bool(trainer.beta) + own + scorers
    steps = args.num_iterations * args.mini_batches
    return readings * tokens / steps, (1 + own) * args.num_iterations * tokens / steps


def _longest_prompt(trainer: Any) -> int:
    return max(len(encode_prompt(trainer._tokenizer, prompt)) for prompt in trainer.train_dataset["prompt"])


def longest_rollout(trainer: Any, rows: int) -> dict[str, Tensor]:
    """Responses of full length to the longest prompt, as tensors of a rollout without numbers."""
    longest, length = _longest_prompt(trainer), trainer.args.max_completion_length

    def made(width: int, kind: torch.dtype) -> Tensor:
        return torch.empty(rows, width, dtype=kind, device="meta")

    numbers = ("old_logprobs", "old_values", "advantages", "returns")
    counts = ("tokens_in_step", "responses_in_step", "policy_tokens_in_step", "policy_responses_in_step")
    return {
        "prompt_ids": made(longest, torch.long),
        "prompt_mask": made(longest, torch.long),
        "completion_ids": made(length, torch.long),
        "response_mask": made(length, torch.bool),
        **{name: made(length, torch.float32) for name in numbers},
        **{name: torch.empty((), dtype=torch.long, device="meta") for name in counts},
    }


def _peak(ledger: Ledger, trained: list[Any], work: Any) -> Held:
    before = ledger.begin()
    work()
    for parameter in trained:
        parameter.grad = None
    return Held(ledger.held(before), ledger.most(before))


@contextlib.contextmanager
def _marked_caches(ledger: Ledger) -> Iterator[None]:
    """Within this context what a cache keeps of a layer is counted as cache, from the moment that it is there."""
    from transformers.cache_utils import Cache

    original = Cache.update

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept = original(self, *args, **kwargs)
        for tensor in kept:
            if isinstance(tensor, Tensor):
                ledger.mark(tensor, CACHE)
        return kept

    Cache.update = update
    try:
        yield
    finally:
        Cache.update = original


@torch.no_grad()
def _generate(trainer: Any, batch: dict[str, Tensor], ledger: Ledger) -> None:
    """The prompts read into a cache, and a cache of full length beside a layer of it that is made anew."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with trainer._for_sampling(model), _marked_caches(ledger):
        ids, mask, positions = rollout.joined(batch)
        width = batch["prompt_ids"].size(1)
        out = model(
            input_ids=ids[:, :width],
            attention_mask=mask[:, :width],
            position_ids=positions[:, :width],
            use_cache=True,
            logits_to_keep=1,
        )
        grown = []
        for x in (x for layer in out.past_key_values.layers for x in (layer.keys, layer.values)):
            if x is not None:
                grown.append(
                    torch.empty(*x.shape[:-2], ids.size(1), x.size(-1), dtype=x.dtype, device="meta")
                )
                ledger.mark(grown[-1], CACHE)
        del out, grown


def _read(trainer: Any, batch: dict[str, Tensor]) -> None:
    """Old log-probabilities and values, then the reference's; with its graph where that is the update's first pass."""
    once = trainer.args.steps_per_generation == 1 and trainer._passes_needed(batch) == 1
    keeps = once and trainer._unwrapped_critic().reads == "policy"
    part = {
        name: x[: len(batch["prompt_ids"]) if keeps else trainer.args.reading_batch_size] if x.dim() else x
        for name, x in batch.items()
    }
    with torch.enable_grad() if keeps else torch.no_grad():
        reading = trainer._read(trainer.model, part, entropy=True)
        values = trainer._values(trainer.model, part, reading)
    if trainer.beta:
        model = trainer.ref_model if trainer.ref_model is not None else trainer.model
        with torch.no_grad(), trainer._as_reference():
            trainer._read(model, part)
    del reading, values


def _update(trainer: Any, batch: dict[str, Tensor]) -> None:
    """The passes of an optimizer step; of more than two alike the second tells as much as the last."""
    passes = trainer._passes_needed(batch)
    rows = -(-len(batch["prompt_ids"]) // passes)
    part = {name: x[:rows] if x.dim() else x for name, x in batch.items()}
    trainer._of_step = metrics.OfStep()
    for _ in range(min(2, passes * trainer.args.gradient_accumulation_steps)):
        loss = trainer._learn(trainer.model, part)
        loss.backward()
        del loss

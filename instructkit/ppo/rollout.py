"""One rollout as tensors: prompts padded left, responses right, masks from lengths, and what a model says of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig
from trl.trainer.utils import pad, selective_log_softmax

from instructkit.ppo.masks import position_ids, response_mask_from_lengths


class Reading(NamedTuple):
    """What a policy says of the responses: log-probabilities and entropies `(B, T)` in nats, hidden states `(B, T, H)`."""

    logprobs: Tensor
    entropies: Tensor
    hidden: Tensor | None


def collate(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, pad_id: int
) -> dict[str, Tensor]:
    """
    Pad token lists into the tensors of a rollout.

    Masks come from lengths, never from token identity, so a padding token that equals EOS changes nothing (R-2).

    Args:
        prompts: token ids of each prompt.
        responses: token ids that the policy chose, the end token included.
        pad_id: token that fills the gaps.

    Returns:
        `prompt_ids`, `prompt_mask` of `(B, P)` padded left, `completion_ids`, `response_mask` of `(B, T)` padded right.
    """
    lengths = torch.tensor([len(ids) for ids in responses])
    completion_ids = pad([torch.tensor(ids) for ids in responses], padding_value=pad_id, padding_side="right")
    return {
        "prompt_ids": pad([torch.tensor(ids) for ids in prompts], padding_value=pad_id, padding_side="left"),
        "prompt_mask": pad(
            [torch.ones(len(ids)).long() for ids in prompts], padding_value=0, padding_side="left"
        ),
        "completion_ids": completion_ids,
        "response_mask": response_mask_from_lengths(lengths, completion_ids.size(1)),
    }


def joined(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, attention mask and explicit positions of prompt and response together, each `(B, P + T)` (R-1)."""
    input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention_mask = torch.cat([batch["prompt_mask"], batch["response_mask"].long()], dim=1)
    return input_ids, attention_mask, position_ids(attention_mask)


def read(model: Any, batch: dict[str, Tensor], *, temperature: float, hidden: bool = False) -> Reading:
    """
    Score responses under a policy at the temperature they were sampled with (R-3).

    Args:
        model: causal language model, wrapped or not.
        batch: tensors of `collate`.
        temperature: divides the logits, as in sampling.
        hidden: also return the last hidden states of the positions before each action.
    """
    input_ids, attention_mask, positions = joined(batch)
    length = batch["completion_ids"].size(1)
    out = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions,
        logits_to_keep=length + 1,
        output_hidden_states=hidden,
        use_cache=False,
    )
    logits = out.logits[:, :-1].float() / temperature
    log_softmax = torch.log_softmax(logits.detach(), dim=-1)
    entropies = -(log_softmax.exp() * log_softmax).sum(-1)
    states = out.hidden_states[-1][:, -length - 1 : -1] if hidden else None
    return Reading(selective_log_softmax(logits, batch["completion_ids"]), entropies, states)


@contextlib.contextmanager
def own_law(model: Any, stops: list[int]) -> Iterator[None]:
    """
    Put aside the generation settings that the checkpoint ships (top-k, penalties, suppressed tokens) (R-4).

    `generate` fills whatever its config leaves unset from the model's own, so passing a config is not enough.
    """
    shipped = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=stops)
    try:
        yield
    finally:
        model.generation_config = shipped


def in_micro_batches(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Split a rollout into pieces of at most `size` sequences."""
    total = batch["prompt_ids"].size(0)
    return [{name: t[i : i + size] for name, t in batch.items()} for i in range(0, total, size)]


def finished(responses: Sequence[Sequence[int]], end_ids: Sequence[int]) -> Tensor:
    """True `(B,)` where a response ended with one of the end tokens instead of being cut off."""
    return torch.tensor([bool(ids) and ids[-1] in set(end_ids) for ids in responses])

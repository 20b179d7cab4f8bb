"""Next-token laws at the positions of answers, of a model and of its parent, in batches that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from instructkit import adapters
from instructkit.encode import Prompt, is_chat
from instructkit.evaluate.batches import law_batches
from instructkit.evaluate.generate import evaluating
from instructkit.ppo.rollout import collate, joined
from instructkit.progress import counted

Parent = Callable[
    [], AbstractContextManager[Any]
]  # within the context that it gives, the model is its parent


def asked(tokenizer: Any, prompt: Prompt) -> Prompt:
    """A text as a user's message where the tokenizer knows conversations, otherwise followed by a space; messages as they are."""
    if is_chat(prompt):
        return prompt
    if tokenizer.chat_template:
        return [{"role": "user", "content": prompt}]
    return prompt if prompt[-1:].isspace() else f"{prompt} "


def laws(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """
    Log-probabilities of the whole vocabulary before each token of the answers, nats, `(B, T, V)` in float32.

    Args:
        batch: tensors of `ppo.rollout.collate`; positions behind an answer hold numbers that mean nothing.
    """
    ids, attended, positions = joined(batch)
    wide = batch["completion_ids"].size(1) + 1
    with torch.no_grad(), evaluating(model), adapters.folded(model):
        logits = model(
            input_ids=ids,
            attention_mask=attended,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=wide,
        ).logits
    return torch.log_softmax(logits[:, -wide:-1].float(), dim=-1)


def divergence(law: Tensor, other: Tensor) -> Tensor:
    """
    `KL(p || q) = sum_v p_v (log p_v - log q_v)` at each position, nats.

    Args:
        law, other: log-probabilities `(..., V)`.

    Returns:
        `(...)`, never negative; words that `p` never says count nothing.
    """
    gap = (law - other).masked_fill(law == -torch.inf, 0.0)
    return (law.exp() * gap).sum(-1).clamp(min=0)


def batches(
    model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], pad_id: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Rows of like length together, as many as fit: where each came from, and the tensors of `collate`."""
    lengths = [(len(answer), len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]
    parts = law_batches(lengths, model.config.get_text_config().vocab_size)
    for rows in counted(parts, len(lengths)):
        batch = collate([prompts[i] for i in rows], [answers[i] for i in rows], pad_id=pad_id)
        yield rows, {name: tensor.to(model.device) for name, tensor in batch.items()}

"""
What a language model says of responses, without ever making the logits of a prompt, or all those of a batch.

A forward pass of a causal language model multiplies every hidden state by the vocabulary. PPO needs one number of each
product, and none of a prompt's. `add_reader` teaches a model's forward to stop before the head when it is given a
`response_mask`, and to put only the actions through TRL's tiled kernel. Being a forward, it passes through the wrappers
of PEFT, DDP and FSDP.
"""

from __future__ import annotations

import functools
import types
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

from instructkit.ppo import prefix

# Words whose logits stand in memory at once. A CPU is fastest where a tile stays in its caches: log-probabilities and gradients
# of 1536 tokens over 49,152 words took 2.25 s with the GPU's tile and 1.20 s with this one (float32, two cores).
TILE_ON_GPU, TILE_ON_CPU = 32_768, 2_048


class HeadLaw(NamedTuple):
    """What a model does with what its head gives: `scale` (Granite, Cohere), then a soft cap (Gemma)."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, found: Tensor) -> Tensor:
        """The model's logits, from its head's."""
        scaled = self.scale * found
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


class Asked(NamedTuple):
    """Which words a model is asked about, and what: tokens and True for actions, `(B, T)`, and the law that drew them."""

    ids: Tensor
    mask: Tensor
    temperature: float
    with_entropy: bool


class Reading(NamedTuple):
    """Log-probabilities and entropies `(B, T)` in nats, zero outside the mask, and the hidden states `(B, T, H)` behind them."""

    logprobs: Tensor | None
    entropies: Tensor | None
    hidden: Tensor | None


def add_reader(model: Any) -> None:
    """
    Let `model(..., response_mask=, response_ids=, temperature=, with_entropy=)` return a `Reading` in place of logits.

    Args:
        model: causal language model, not yet wrapped; its forward without `response_mask` stays as it was.
    """
    original = model.forward
    law = head_law(model)

    @functools.wraps(original)
    def forward(
        self: Any,
        *args: Any,
        response_mask: Tensor | None = None,
        response_ids: Tensor | None = None,
        temperature: float = 1.0,
        with_entropy: bool = False,
        **kwargs: Any,
    ) -> Any:
        if response_mask is None:
            return original(*args, **kwargs)
        length = response_mask.size(1)
        states = _states(self.base_model, length, kwargs)
        if response_ids is None:
            return Reading(None, None, states)
        asked = Asked(response_ids, response_mask, temperature, with_entropy)
        if law is None:  # the head does something else: ask the model itself
            logits = original(*args, use_cache=False, logits_to_keep=length + 1, **kwargs).logits[:, :-1]
            found = _of_logits(logits, asked)
        else:
            found = _of_states(self.get_output_embeddings(), law, states, asked)
        return Reading(*(_spread(x, response_mask) for x in found), states)

    model.forward = types.MethodType(forward, model)
    model.reads_responses = True


def reads_responses(model: Any) -> bool:
    """Whether `add_reader` was called on this model, or on the one inside its wrappers."""
    while not getattr(model, "reads_responses", False):
        inner = getattr(model, "module", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None:
            return False
        model = inner
    return True


@torch.no_grad()
def head_law(model: Any) -> HeadLaw | None:
    """
    What a model does to its head's logits; None where that is neither a constant nor its config's soft cap.

    Asked of the model on a few tokens, so that no list of architectures has to be kept.
    """
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if model.device.type == "meta":  # a model without numbers can be asked nothing
        return HeadLaw(1.0, cap)
    was_training = model.training
    model.eval()
    try:
        embeddings = model.get_input_embeddings()  # the first token may be padding, whose embedding is zero
        ids = torch.arange(min(8, embeddings.num_embeddings), device=embeddings.weight.device).unsqueeze(0)
        wanted = model(input_ids=ids, use_cache=False).logits.float()
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        found = model.get_output_embeddings()(states).float()
    finally:
        model.train(was_training)
    size = (found * found).sum()
    law = HeadLaw(1.0, cap) if cap else HeadLaw(float((wanted * found).sum() / size) if size > 0 else 1.0)
    close = (wanted - law(found)).abs().max() <= 1e-2 * wanted.abs().max().clamp(min=1e-6)
    return law if bool(close) else None


def _states(body: Any, length: int, inputs: dict[str, Any]) -> Tensor:
    """Hidden states of the positions before each of the last `length` tokens, `(B, T, H)`."""
    batch = [inputs[name] for name in ("input_ids", "attention_mask", "position_ids")]
    found, _ = prefix.states(body, *batch, needed=batch[0].size(1) - length - 1)
    return found[:, -length - 1 : -1]


def _of_states(head: Any, law: HeadLaw, states: Tensor, asked: Asked) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of the actions, `(N,)` each, by TRL's kernel: the head and its softmax tile by tile."""
    ids, mask = asked.ids, asked.mask
    outputs = ("log_probs", "entropy") if asked.with_entropy else ("log_probs",)
    logprobs, entropies, *_ = ChunkedLogProbFunction.apply(
        states[mask].to(head.weight.device),
        head.weight,
        head.bias,
        ids[mask],
        asked.temperature,
        TILE_ON_CPU if head.weight.device.type == "cpu" else TILE_ON_GPU,
        law.softcap,
        law.scale,
        outputs,
    )
    return logprobs, entropies


def _of_logits(logits: Tensor, asked: Asked) -> tuple[Tensor, Tensor | None]:
    """The same from logits `(B, T, V)`."""
    rows = torch.log_softmax(logits[asked.mask].float() / asked.temperature, dim=-1)
    logprobs = rows.gather(-1, asked.ids[asked.mask].unsqueeze(-1)).squeeze(-1)
    return logprobs, -(rows.exp() * rows).sum(-1) if asked.with_entropy else None


def _spread(found: Tensor | None, mask: Tensor) -> Tensor | None:
    """Figures of the actions, `(N,)`, where they stand: `(B, T)` float32, zero elsewhere."""
    if found is None:
        return None
    empty = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return empty.masked_scatter(mask, found.float())

"""One rollout as tensors: prompts padded left, responses right, masks from lengths, and what a model says of them."""

from __future__ import annotations

import contextlib
import functools
import math
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import pad

from instructkit.ppo import prefix
from instructkit.ppo.masks import position_ids, response_mask_from_lengths

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


class Sampled(NamedTuple):
    """
    Responses and what reward functions say of them.

    Attributes:
        batch: tensors of `collate`.
        prompts, completions: as the reward functions read them, text or messages.
        raw, used: weighted score `(B,)` before and after scaling, clipping and penalties.
        per_token: weighted rewards of single tokens `(B, T)`, part of `raw`; None when there are none.
        ended: True where a response ended by itself, `(B,)`.
    """

    batch: dict[str, Tensor]
    prompts: list[Any]
    completions: list[Any]
    raw: Tensor
    used: Tensor
    per_token: Tensor | None
    ended: Tensor

    def texts(self) -> list[str]:
        """The words of the responses."""
        return [c if isinstance(c, str) else c[-1]["content"] for c in self.completions]


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
    attention_mask = torch.cat([batch["prompt_mask"], _attended(batch).long()], dim=1)
    return input_ids, attention_mask, position_ids(attention_mask)


def _attended(batch: dict[str, Tensor]) -> Tensor:
    """The tokens behind the prompt that are read, `(B, T)`; text can be read without being learned (PPO-ptx)."""
    return batch.get("attended", batch["response_mask"])


def read(model: Any, batch: dict[str, Tensor], *, temperature: float, entropy: bool = False) -> Reading:
    """
    Score responses under a policy at the temperature they were sampled with (R-3).

    Args:
        model: causal language model, wrapped or not; it is taught to read (`add_reader`) when it was not yet.
        batch: tensors of `collate`.
        temperature: divides the logits, as in sampling.
        entropy: also work out the entropy of the whole vocabulary at each action.
    """
    if not reads_responses(model):
        add_reader(model.get_base_model() if hasattr(model, "get_base_model") else model)
    wanted = {"response_ids": batch["completion_ids"], "temperature": temperature, "with_entropy": entropy}
    return _forward(model, batch, **wanted)


def read_states(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Hidden states `(B, T, H)` of the positions before each action; the vocabulary plays no part."""
    return _forward(model, batch).hidden


def _forward(model: Any, batch: dict[str, Tensor], **wanted: Any) -> Reading:
    input_ids, attention_mask, positions = joined(batch)
    return model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions,
        response_mask=batch["response_mask"],
        **wanted,
    )


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


def silence_dropout(model: Any) -> None:
    """
    No dropout anywhere, in rollout and update alike (R-6).

    TRL's `disable_dropout` reaches dropout layers; many attention layers (Llama's among them) keep a rate as a plain number
    and drop by a function, which would go on in training mode.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Cut the padding that all rows of a micro-batch share: left of the prompts, right of the responses.

    Every `(B, T)` tensor beside the prompts' is cut like the responses; tensors of other shapes stay.
    """
    start = int(batch["prompt_mask"].size(1) - batch["prompt_mask"].sum(1).max())
    total = batch["response_mask"].size(1)
    end = max(1, int(_attended(batch).sum(1).max()))

    def cut(name: str, tensor: Tensor) -> Tensor:
        if name.startswith("prompt_"):
            return tensor[:, start:]
        return tensor[:, :end] if tensor.dim() == 2 and tensor.size(1) == total else tensor

    return {name: cut(name, tensor) for name, tensor in batch.items()}


def lengths(batch: dict[str, Tensor]) -> Tensor:
    """Tokens of each row, prompt and response together, `(B,)`."""
    return batch["prompt_mask"].sum(1) + _attended(batch).sum(1)


def rows_of(batch: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """The rows of a batch that `index` names; tensors without a row each (counts) stay."""
    size = batch["prompt_ids"].size(0)
    return {
        name: tensor[index] if tensor.dim() and tensor.size(0) == size else tensor
        for name, tensor in batch.items()
    }


def by_length(batch: dict[str, Tensor], size: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Rows of like length together, at most `size` at once and trimmed: where each row came from, and the rows."""
    order = lengths(batch).argsort(stable=True)
    return [(index, trimmed(rows_of(batch, index))) for index in order.split(size)]


def passes_needed(batch: dict[str, Tensor], most_tokens: int | None) -> int:
    """How many passes of at most `most_tokens` tokens a batch takes, padding included; a row is never divided."""
    rows, width = len(batch["prompt_ids"]), batch["prompt_ids"].size(1) + batch["completion_ids"].size(1)
    if most_tokens is None:
        return 1
    return math.ceil(rows / max(1, most_tokens // width))


def in_passes(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """A batch in `count` parts of even size, rows of like length together; a batch of fewer rows makes fewer."""
    if count == 1:
        return [batch]
    return [part for _, part in by_length(batch, math.ceil(len(batch["prompt_ids"]) / count))]


def put_back(parts: list[tuple[Tensor, Tensor]], shape: torch.Size) -> Tensor:
    """Undo `by_length` for what was worked out of its parts: `(B, T)` float32, zero where nothing was said."""
    whole = parts[0][1].new_zeros(shape, dtype=torch.float32)
    for index, values in parts:
        whole[index, : values.size(1)] = values.float()
    return whole


def padded(rows: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Numbers of each response's tokens as `(B, T)` float32, zero behind them; `like` gives shape and device."""
    whole = torch.zeros(like.shape)
    for i, row in enumerate(rows):
        whole[i, : len(row)] = torch.tensor(list(row))
    return whole.to(like.device)


def mini_batches(batch: dict[str, Tensor], *, pieces: int, accumulation: int) -> list[dict[str, Tensor]]:
    """
    A rollout in fresh random order as micro-batches, those of one optimizer step sorted by length.

    Which rows make an optimizer step is chance; in which of its micro-batches a row stands changes nothing but padding.

    Args:
        batch: tensors of a rollout, `(B, …)`.
        pieces: micro-batches in all.
        accumulation: of these, how many make one optimizer step.
    """
    size = batch["prompt_ids"].size(0) // pieces
    found = []
    for step in torch.randperm(batch["prompt_ids"].size(0)).split(size * accumulation):
        rows = rows_of(batch, step.to(batch["prompt_ids"].device))
        found += [part for _, part in by_length(rows, size)]
    return found


def finished(responses: Sequence[Sequence[int]], end_ids: Sequence[int]) -> Tensor:
    """True `(B,)` where a response ended with one of the end tokens instead of being cut off."""
    return torch.tensor([bool(ids) and ids[-1] in set(end_ids) for ids in responses])

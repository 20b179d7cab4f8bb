"""
Prompts that begin alike are read once.

A chat template opens every prompt with the same system message, and PPO reads every prompt four times or more. Keys and
values of a token depend on what stands before it and on nothing after, so a beginning that all rows of a batch share is read
for one row, and the others go on from its keys and values. Hidden states and gradients are those of reading it in every row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from instructkit.ppo import masks

WORTH = 1 / 8  # of the tokens of a batch must be saved, for a second pass through the layers costs time too
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}  # angles that change with the longest position of a call


def states(
    body: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, *, needed: int
) -> tuple[Tensor, int]:
    """
    The last hidden states of a batch, without those of a shared beginning.

    Args:
        body: transformers model without a head.
        input_ids, attention_mask: `(B, L)`, padded on either side.
        position_ids: `(B, L)`; None where padding is on the right.
        needed: the first column whose state the caller wants; beginnings end before it.

    Returns:
        `(B, L - k, H)`, and k, the columns left out, 0 where nothing is shared.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    count = shared_tokens(input_ids, attention_mask, needed) if shares_beginnings(body) else 0
    if count * (len(input_ids) - 1) < max(1.0, WORTH * input_ids.numel()):
        return body(**inputs, use_cache=False).last_hidden_state, 0
    return _from_beginning(body, inputs, count), count


def _from_beginning(body: Any, inputs: dict[str, Tensor], count: int) -> Tensor:
    """The states behind `count` shared tokens; a row that began further right has a gap between its beginning and its rest."""
    input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
    starts = first_tokens(attention_mask)
    cache = _read_once(body, input_ids[:1, starts[0] : starts[0] + count], len(input_ids))
    columns = torch.arange(count, input_ids.size(1), device=input_ids.device)
    unread = attention_mask[:, count:] * (columns >= (starts + count).unsqueeze(1))
    rest = {name: tensor[:, count:] for name, tensor in inputs.items()}
    rest["attention_mask"] = torch.cat([unread.new_ones(len(input_ids), count), unread], dim=1)
    return body(**rest, past_key_values=cache, use_cache=True).last_hidden_state


def _read_once(body: Any, beginning: Tensor, rows: int) -> DynamicCache:
    """Keys and values of a beginning `(1, k)` for every row of a batch; gradients of all rows meet in it."""
    cache = DynamicCache(config=body.config)
    body(input_ids=beginning, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    return cache


def first_tokens(attention_mask: Tensor) -> Tensor:
    """The column of each row's first real token, `(B,)`."""
    return attention_mask.ne(0).int().argmax(dim=1)


def shared_tokens(input_ids: Tensor, attention_mask: Tensor, needed: int) -> int:
    """
    How many tokens all rows have in common at their beginning.

    Args:
        input_ids, attention_mask: `(B, L)`.
        needed: no row's shared tokens reach this column.
    """
    starts = first_tokens(attention_mask)
    longest = needed - int(starts.max())
    if longest < 1:
        return 0
    columns = starts.unsqueeze(1) + torch.arange(longest, device=input_ids.device)
    tokens, real = input_ids.gather(1, columns), attention_mask.gather(1, columns).ne(0)
    alike = ((tokens == tokens[:1]) & real).all(dim=0)
    return int(alike.int().cumprod(0).sum())


def shares_beginnings(body: Any) -> bool:
    """
    Whether this model can go on from keys and values: full attention in every layer, distances by positions alone.

    A model that measures distance by column (ALiBi as in MPT, windows as in GPT-Neo) would see the gap as words.
    Gradient checkpointing drops the cache of a pass in training mode, so it excludes sharing.
    """
    if getattr(body, "gradient_checkpointing", False) and body.training:
        return False
    found = getattr(body, "_shares_beginnings", None)
    if found is None:
        found = body._shares_beginnings = _full_attention(body) and _same_states(body)
    return found


def _full_attention(body: Any) -> bool:
    config = body.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if any(kind.get("rope_type") in _LENGTH_DEPENDENT_ROPE for kind in kinds):
        return False
    if "local" in (getattr(config, "attention_layers", None) or ()):  # a window of GPT-Neo counts columns
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@torch.no_grad()
def _same_states(body: Any) -> bool:
    """Asked of the model on a few tokens, so that no list of architectures has to be kept."""
    was_training = body.training
    body.eval()
    try:
        ids = torch.arange(16, device=body.get_input_embeddings().weight.device).remainder(7).view(2, 8)
        ids[1, 2:5] = ids[0, :3]
        mask = torch.ones_like(ids)
        mask[1, :2] = 0  # the shorter row, whose beginning stands apart from its rest once it is shared
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": masks.position_ids(mask)}
        whole = body(**inputs, use_cache=False).last_hidden_state
        rest = _from_beginning(body, inputs, 3)
        looks_ahead = (whole[0, :3] - whole[1, 2:5]).abs().max()
        gap = max((rest[0] - whole[0, 3:]).abs().max(), (rest[1, 2:] - whole[1, 5:]).abs().max())
    except Exception:  # a model that takes no cache, or another kind of it, reads every row whole
        return False
    finally:
        body.train(was_training)
    rounding = 1e-4 if whole.dtype == torch.float32 else 2e-2
    size = whole[mask.bool()].abs().max()
    return bool(looks_ahead <= 1e-4 * size) and bool(gap <= rounding * size)

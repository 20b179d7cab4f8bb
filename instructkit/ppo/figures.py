"""The figures of a rollout and of an update, under TRL 1.12's names with corrected definitions: masked, in nats, once each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructkit.ppo import kl
from instructkit.ppo.advantages import explained_variance
from instructkit.ppo.masks import Reduce, alone, moments

Gather = Callable[[Tensor], Tensor]


LARGEST = ("_max", "_error")  # names so ending tell the largest of their parts, all others a mean


def of_scores(raw: Tensor, used: Tensor, lengths: Tensor, ended: Tensor, gather: Gather) -> dict[str, Any]:
    """
    Scores and lengths of a rollout; all `(B,)` of this process, gathered over all.

    Args:
        raw, used: weighted score before and after scaling, clipping and penalties.
        lengths: tokens of each response.
        ended: True where a response ended by itself.
    """
    raw, used, lengths, ended = (gather(x.float()) for x in (raw, used, lengths, ended))
    return {
        "objective/scores": used.mean(),
        "objective/scores_raw": raw.mean(),
        "objective/scores_std": used.std(correction=0),
        "completions/mean_length": lengths.mean(),
        "completions/eos_fraction": ended.mean(),
        "completions/truncated_fraction": 1 - ended.mean(),
        "completions/score_length_corr": correlation(raw, lengths),
        "val/num_eos_tokens": ended.sum(),
    }


def of_entropy(logprobs: Tensor, mask: Tensor, gather: Gather) -> dict[str, Any]:
    """Entropy of a response as its sampled tokens tell it, `-log pi` summed over them, in nats."""
    return {"objective/entropy": gather(torch.where(mask, -logprobs, 0.0).sum(1)).mean()}


def of_penalty(
    logprobs: Tensor, reference: Tensor, mask: Tensor, beta: float, gather: Gather
) -> dict[str, Any]:
    """KL to the reference, and how likely that finds the responses; log-probabilities `(B, T)` in nats."""
    sequence_kl = gather(torch.where(mask, kl.k1(logprobs, reference), 0.0).sum(1))
    return {
        "objective/kl": sequence_kl.mean(),
        "objective/kl_k3": _per_token(kl.k3(logprobs, reference), mask, gather),
        "objective/non_score_reward": -beta * sequence_kl.mean(),
        "objective/kl_coef": beta,
        "objective/ref_perplexity": torch.exp(-_per_token(reference, mask, gather)),
    }


def _per_token(x: Tensor, mask: Tensor, gather: Gather) -> Tensor:
    return gather(torch.where(mask, x, 0.0).sum(1)).sum() / gather(mask.sum(1)).sum().clamp(min=1)


def distinct_pairs(completion_ids: Tensor, mask: Tensor) -> Tensor:
    """
    Share of different pairs of neighbouring tokens in each response, `(B,)`: 1 says nothing twice, 0 repeats itself.

    Falls when a policy collapses, while its reward may still rise (Zheng et al. 2023, 2307.04964). A response of one token has 1.
    """
    found = []
    for row, length in zip(completion_ids.tolist(), mask.sum(1).tolist(), strict=True):
        pairs = list(zip(row[: length - 1], row[1:length], strict=True))
        found.append(len(set(pairs)) / len(pairs) if pairs else 1.0)
    return torch.tensor(found, device=completion_ids.device)


def of_estimates(
    values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    entropies: Tensor,
    mask: Tensor,
    lam: float | Tensor,
    reduce: Reduce = alone,
) -> dict[str, Any]:
    """What the critic and GAE made of a rollout of all processes, before whitening; all `(B, T)`, in units of the score."""
    columns = {"value": values, "return": returns, "advantage": advantages, "entropy": entropies}
    found = {name: moments(x, mask, reduce) for name, x in columns.items()}
    lengths, rows = mask.sum(1), mask.new_ones(len(mask))
    mean_length = moments(lengths, rows, reduce)[0]
    decays = (torch.as_tensor(lam).to(mask.device) ** mean_length).expand(len(mask))
    return {
        "val/explained_variance": explained_variance(returns, values, mask, reduce),
        "val/value_mean": found["value"][0],
        "val/return_mean": found["return"][0],
        "val/return_std": found["return"][1].sqrt(),
        "policy/advantage_mean": found["advantage"][0],
        "policy/advantage_std": found["advantage"][1].sqrt(),
        "policy/entropy_avg": found["entropy"][0],
        "policy/score_decay": moments(decays, rows, reduce)[0],
    }


def of_update(policy: Any, value: Any, policy_share: Tensor, value_share: Tensor) -> dict[str, Any]:
    """One micro-batch of an update; losses are per token of the optimizer step, and the shares scale them back to this part."""
    found = {"loss/value_avg": value.loss.detach() * value_share, "val/clipfrac_avg": value.clip_fraction}
    if policy is None:
        return found
    return {
        **found,
        "loss/policy_avg": policy.loss.detach() * policy_share,
        "policy/clipfrac_avg": policy.clip_fraction,
        "policy/approxkl_avg": policy.approx_kl,
        "policy/ratio_max": policy.ratio_max,
        "val/ratio": policy.ratio_mean,
        "val/ratio_var": policy.ratio_var,
    }


def over_parts(parts: list[tuple[Tensor, dict[str, Any]]]) -> dict[str, Any]:
    """Figures of a micro-batch from tokens and figures of each of its passes: weighted means, the largest of each maximum."""
    weights = torch.stack([weight for weight, _ in parts]).float()
    weights = weights / weights.sum().clamp(min=1)
    found = {}
    for name in parts[0][1]:
        column = torch.stack([torch.as_tensor(told[name]).float() for _, told in parts])
        found[name] = (
            column.max() if name.endswith(LARGEST) else torch.where(weights > 0, weights * column, 0.0).sum()
        )
    return found


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's r of two `(B,)` figures; NaN where one of them is constant."""
    x, y = first - first.mean(), second - second.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()

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
COUNTERS = ("episode",)  # told as they stand
TOTALS = ("policy/ratios_clamped",)  # told as the sum since the last line of the log


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


class OfStep:
    """
    Figures of one optimizer step: sums over its passes, micro-batches and processes, divided once.

    A figure is a mean over the tokens that its loss learns from, so it does not depend on how the step was cut into parts.
    """

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.largest: list[Tensor] = []

    def add(
        self, policy: Any, value: Any, policy_tokens: Tensor, value_tokens: Tensor, gap: Tensor | None = None
    ) -> None:
        """
        Take in one pass.

        Args:
            policy: of `losses.policy_loss`, its loss over the tokens of the step; None while the critic learns alone.
            value: of `losses.value_loss`, likewise.
            policy_tokens, value_tokens: actions of this pass that each looks at.
            gap: largest distance of a ratio from 1, where no step has been taken on this rollout.
        """
        n, m = value_tokens.double(), policy_tokens.double()
        sums = [n, value.loss.detach(), n * value.clip_fraction]
        if policy is None:
            sums += [torch.zeros_like(m)] * 7
        else:
            mean = policy.ratio_mean - 1  # moments about 1, where ratios lie, lose no digits
            sums += [m, policy.loss.detach(), m * policy.clip_fraction, m * policy.approx_kl, m * mean]
            sums += [m * (policy.ratio_var + mean.square()), policy.clamped]
        nothing = torch.full_like(m, -1.0)
        largest = [policy.ratio_max if policy is not None else nothing, nothing if gap is None else gap]
        self.sums.append(torch.stack([x.double() for x in sums]))
        self.largest.append(torch.stack([x.double() for x in largest]))

    def told(self, gather: Gather) -> dict[str, Any]:
        """The figures over all processes; those of the policy only where it had tokens to learn from."""
        mine = torch.cat([torch.stack(self.sums).sum(0), torch.stack(self.largest).amax(0)])
        rows = gather(mine.unsqueeze(0))
        n, value, clipped_values, m, policy, clipped, kl_, first, second, clamped = rows[:, :-2].sum(0)
        ratio_max, gap = rows[:, -2:].amax(0)
        found = {"loss/value_avg": value, "val/clipfrac_avg": clipped_values / n.clamp(min=1)}
        if gap >= 0:
            found["policy/first_pass_ratio_error"] = gap
        if m == 0:
            return found
        return {
            **found,
            "loss/policy_avg": policy,
            "policy/clipfrac_avg": clipped / m,
            "policy/approxkl_avg": kl_ / m,
            "policy/ratio_max": ratio_max,
            "policy/ratios_clamped": clamped,
            "val/ratio": 1 + first / m,
            "val/ratio_var": second / m - (first / m).square(),
        }


def over_a_window(name: str, values: list[float]) -> list[float]:
    """What the mean of a line of the log should see of its notes: the largest, the last or the sum, where a mean would lie."""
    known = [value for value in values if value == value]
    if name in COUNTERS:
        return known[-1:]
    if name in TOTALS:
        return [sum(known)] if known else []
    return [max(known)] if known and name.endswith(LARGEST) else known


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's r of two `(B,)` figures; NaN where one of them is constant."""
    x, y = first - first.mean(), second - second.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()

"""Reward functions as PPO asks them: one score a response, or one reward a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import get_callable_name, is_async_callable


class TokenRewards:
    """
    What reward functions gave to single tokens in the rollout at hand, function by function.

    TRL takes one number a response. A function that returns a list for a response is asked through `wrapped`, which
    keeps the list and hands on its sum.
    """

    def __init__(self) -> None:
        self._kept: dict[int, list[list[float] | None]] = {}

    def wrapped(self, function: Callable[..., Any], index: int) -> Callable[..., Any]:
        """The function as TRL wants it: a number a response, sync or async as before, under the same name."""
        if isinstance(function, torch.nn.Module):
            return function
        if is_async_callable(function):

            async def ask(**arguments: Any) -> list[Any]:
                return self._summed(index, await function(**arguments))

        else:

            def ask(**arguments: Any) -> list[Any]:
                return self._summed(index, function(**arguments))

        ask.__name__ = get_callable_name(function)
        return ask

    def _summed(self, index: int, answers: Sequence[Any]) -> list[float | None]:
        lists = [list(map(float, answer)) if _is_list(answer) else None for answer in answers]
        self._kept[index] = lists
        return [answer if found is None else sum(found) for answer, found in zip(answers, lists, strict=True)]

    def take(
        self, lengths: Sequence[int], total: int, weights: Sequence[float], names: Sequence[str]
    ) -> Tensor | None:
        """
        The weighted rewards of single tokens, and forget them.

        Args:
            lengths: tokens of each response, its end token included.
            total: T.
            weights, names: of the reward functions.

        Returns:
            `(B, T)` float32, or None when no function gave any.

        Raises:
            ValueError: when a list is not as long as its response.
        """
        kept, self._kept = self._kept, {}
        if not any(found for lists in kept.values() for found in lists):
            return None
        rewards = torch.zeros(len(lengths), total)
        for index, lists in kept.items():
            for row, found in enumerate(lists):
                if found is None:
                    continue
                if len(found) != lengths[row]:
                    raise ValueError(
                        f"the reward function {names[index]} gave {len(found)} rewards for a response of {lengths[row]} "
                        "tokens; give one number for the whole response, or one for each of `completion_ids`"
                    )
                rewards[row, : len(found)] += weights[index] * torch.tensor(found)
        return rewards


def _is_list(answer: Any) -> bool:
    return isinstance(answer, list | tuple) or (isinstance(answer, Tensor) and answer.dim() == 1)


def weighted(per_function: Tensor, weights: Tensor) -> Tensor:
    """
    Weighted sum of the functions' scores, `(B, F)` to `(B,)`; a function that returned None for a response plays no part.

    Raises:
        ValueError: when a response got no score from any function, or one that is not finite.
    """
    missing = per_function.isnan().all(dim=1)
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} of {len(missing)} responses got no score: every reward function returned None for them"
        )
    total = (per_function * weights.to(per_function.device)).nansum(dim=1)
    if not total.isfinite().all():
        raise ValueError("a reward function returned a score that is not finite")
    return total

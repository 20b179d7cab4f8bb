"""The critic: how much score is still to come, before each action."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class HeadCritic(nn.Module):
    """
    A linear head on the policy's last hidden states, zero at the start (Ziegler et al. 2019, 1909.08593, section 2.2).

    Costs nothing beside the policy, and shares its body: Stiennon et al. 2020 (2009.01325, appendix G.1) found that
    sharing harms the policy early, so `detach` stops the value loss at the head.
    """

    reads_policy_hidden = True

    def __init__(self, hidden_size: int, *, detach: bool = False) -> None:
        super().__init__()
        self.detach = detach
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values `(B, T)` in units of the score, from hidden states `(B, T, H)` of the positions before each action."""
        hidden = hidden.detach() if self.detach else hidden
        return self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)


class SeparateCritic(nn.Module):
    """
    A body of its own with a scalar head: a sequence classifier read at every position.

    Starts as the reward model when that reads the same tokens (Stiennon et al. 2020; Ouyang et al. 2022, 2203.02155,
    appendix C.4), scaled like the scores, `V = (head - mean) / std`; else as a copy of the policy with a zero head.
    """

    reads_policy_hidden = False

    def __init__(
        self, classifier: Any, *, mean: float = 0.0, std: float = 1.0, zero_head: bool = False
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.mean, self.std = mean, std
        if zero_head:
            for parameter in self._inner().score.parameters():
                nn.init.zeros_(parameter)

    def _inner(self) -> nn.Module:
        is_peft = hasattr(self.classifier, "peft_config") and hasattr(self.classifier, "get_base_model")
        return self.classifier.get_base_model() if is_peft else self.classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, length: int) -> Tensor:
        """
        Values of the states before each of the last `length` tokens.

        Args:
            input_ids: prompt and response, `(B, P + T)`.
            attention_mask: 1 for real tokens, `(B, P + T)`.
            positions: position ids, `(B, P + T)`.
            length: T, in tokens.

        Returns:
            `(B, T)`, in units of the score.
        """
        inner = self._inner()
        body = getattr(inner, inner.base_model_prefix)
        out = body(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        )
        raw = inner.score(out.last_hidden_state[:, -length - 1 : -1]).squeeze(-1)
        return (raw.float() - self.mean) / self.std


def copy_state(critic: nn.Module) -> dict[str, Tensor]:
    """The trained tensors of a critic, for its file in the run folder or a checkpoint."""
    trained = {name for name, parameter in critic.named_parameters() if parameter.requires_grad}
    return {
        name: copy.deepcopy(t.detach().cpu()) for name, t in critic.state_dict().items() if name in trained
    }


def load_state(critic: nn.Module, state: dict[str, Tensor]) -> None:
    """
    Put saved tensors back.

    Raises:
        KeyError: when the state holds a tensor that this critic lacks, or the other way round.
    """
    wanted = set(copy_state(critic))
    if wanted != set(state):
        raise KeyError(f"this critic has other tensors: {sorted(wanted ^ set(state))[:3]}")
    with torch.no_grad():
        current = dict(critic.named_parameters())
        for name, tensor in state.items():
            current[name].copy_(tensor)

"""The critic: how much score is still to come, before each action."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class HeadCritic(nn.Module):
    """
    A linear head on the policy's last hidden states, zero at the start (Ziegler et al. 2019, 1909.08593, section 2.2).

    Costs nothing beside the policy, and shares its body: Stiennon et al. 2020 (2009.01325, appendix G.1) found that
    sharing harms the policy early, so `detach` stops the value loss at the head.
    """

    reads = "policy"

    def __init__(self, hidden_size: int, *, detach: bool = False) -> None:
        super().__init__()
        self.detach = detach
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values `(B, T)` in units of the score, from hidden states `(B, T, H)` of the positions before each action."""
        return _valued(self.head, hidden.detach() if self.detach else hidden)


class AdapterCritic(nn.Module):
    """
    An adapter of its own on the policy's backbone, and a linear head on what the backbone says in that role.

    Costs no second backbone, yet the value loss never touches the policy (Santacroce et al. 2023, 2309.00754, "Hydra").
    The adapter's weights live in the policy's model; this module holds the head and knows the way into the role.

    Args:
        hidden_size: H of the backbone.
        role: context manager factory, called with the unwrapped policy; within it the backbone is the critic.
        owns: tells by the name of a parameter of the policy's model whether it belongs to the critic's adapter.
        head: weight `(1, H)` to begin with, such as a reward model's; zero when None.
        mean, std: scale of the head it began with, `V = (head - mean) / std`.
    """

    reads = "role"

    def __init__(
        self,
        hidden_size: int,
        role: Callable[[Any], contextlib.AbstractContextManager],
        owns: Callable[[str], bool],
        *,
        head: Tensor | None = None,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.role, self.owns, self.mean, self.std = role, owns, mean, std
        self.head = nn.Linear(hidden_size, 1, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.zeros_like(self.head.weight) if head is None else head)

    def adapter_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The trained weights of the critic that live in the policy's model."""
        return [parameter for name, parameter in model.named_parameters() if self.owns(name)]

    def forward(self, hidden: Tensor) -> Tensor:
        """Values `(B, T)` in units of the score, from the role's hidden states `(B, T, H)`."""
        return (_valued(self.head, hidden) - self.mean) / self.std


class SeparateCritic(nn.Module):
    """
    A body of its own with a scalar head: a sequence classifier read at every position.

    Starts as the reward model when that reads the same tokens (Stiennon et al. 2020; Ouyang et al. 2022, 2203.02155,
    appendix C.4), scaled like the scores, `V = (head - mean) / std`; else as a copy of the policy with a zero head.
    """

    reads = "tokens"

    def __init__(
        self, classifier: Any, *, mean: float = 0.0, std: float = 1.0, zero_head: bool = False
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.mean, self.std = mean, std
        self._inner().score.float()
        if zero_head:
            self.take_head(torch.zeros(()))

    def checkpoint(self) -> None:
        """Give up activations of the body and compute them again in the backward pass, as Trainer does for the policy."""
        self.classifier.gradient_checkpointing_enable({"use_reentrant": False})
        if hasattr(self.classifier, "peft_config"):
            self.classifier.enable_input_require_grads()
        self.train()  # transformers checkpoints in training mode alone; dropout is off in any mode

    def take_head(self, weight: Tensor) -> None:
        """Set the score head, `(1, H)` or one number for all, wherever PEFT keeps copies of it."""
        with torch.no_grad():
            for parameter in self._inner().score.parameters():
                parameter.copy_(weight.expand_as(parameter))

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
        return (_valued(inner.score, out.last_hidden_state[:, -length - 1 : -1]) - self.mean) / self.std


def _valued(head: nn.Module, hidden: Tensor) -> Tensor:
    """A head's values `(B, T)` in float32 under autocast too: bfloat16 would leave three digits of them."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float()).squeeze(-1)


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

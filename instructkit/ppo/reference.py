"""The reference of full fine-tuning: the policy as it was before training, and not what TRL would load by its name."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from instructkit.ppo.config import PPOConfig


def frozen_copy(model: Any) -> Any:
    """A frozen copy of the policy; None where the policy is an adapter, or only a name that TRL will load."""
    if not isinstance(model, nn.Module) or hasattr(model, "peft_config"):
        return None
    return copy.deepcopy(model).requires_grad_(False).eval()


@contextlib.contextmanager
def without_reference(config: PPOConfig) -> Iterator[None]:
    """TRL builds no reference of its own while the coefficient is 0."""
    beta, config.beta = config.beta, 0.0
    try:
        yield
    finally:
        config.beta = beta

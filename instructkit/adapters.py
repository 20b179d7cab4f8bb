"""
LoRA adapters that stand on the original base, whatever was trained before them.

A LoRA stage loads its parent's adapter frozen under the name `parent` and trains its own under the name `default`; how they
are saved stands in `adapter_files`. TRL's trainers know a single adapter; `settle` puts ours back after they have been built.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel, TrainerCallback

NEW = "default"
PARENT = "parent"
CRITIC = "critic"
_TRL_REFERENCE = "ref"
_TRAINED = (NEW, CRITIC)


def add_lora(model: PreTrainedModel, config: LoraConfig, parent: Path | None) -> PeftModel:
    """
    Put a fresh trainable adapter on `model`, above the parent's adapter, which is loaded frozen.

    Args:
        model: the base, quantised or not.
        config: settings of the new adapter.
        parent: folder of the parent's adapter; None when the parent is the base itself.

    Returns:
        The PEFT model with `default` trainable and, where given, `parent` frozen, both active.
    """
    wrapped = get_peft_model(model, config, adapter_name=NEW)
    if parent is not None:
        add_saved(wrapped, PARENT, parent)
    settle(wrapped)
    return wrapped


def add_saved(model: PeftModel, name: str, folder: Path) -> None:
    """
    Put a saved adapter on the backbone under a name of ours, without its own head (a reward model's score).

    Raises:
        ValueError: when none of its layers is on this backbone.
    """
    config = LoraConfig.from_pretrained(str(folder))
    config.modules_to_save = None
    config.inference_mode = True
    config.task_type = model.peft_config[NEW].task_type
    _inject(model, name, config)
    weights = {key: w for key, w in load_peft_weights(str(folder), device="cpu").items() if "lora_" in key}
    loaded = set_peft_model_state_dict(model, weights, adapter_name=name)
    if not weights or loaded.unexpected_keys:
        raise ValueError(
            f"the adapter in {folder} does not fit this model: {loaded.unexpected_keys[:3] or 'no layers'}"
        )


def _inject(model: PeftModel, name: str, config: LoraConfig) -> None:
    """A further adapter on every layer, in float32 whatever the base is in; PEFT does that for the first one alone."""
    model.peft_config[name] = config
    model.base_model.inject_adapter(model.base_model.model, name)
    for parameter_name, parameter in model.named_parameters():
        if adapter_of(parameter_name) == name:
            parameter.data = parameter.data.float()


def add_critic(model: PeftModel, start: Path | None) -> Role:
    """
    Put the critic's adapter on the policy's backbone.

    Args:
        start: a saved adapter to begin as (a reward model's, or an earlier critic's); None begins as the parent, with a fresh
            adapter like the policy's.

    Returns:
        The role under which the backbone is the critic.
    """
    if start is not None:
        add_saved(model, CRITIC, start)
        names = [CRITIC]
    else:
        _inject(model, CRITIC, copy.deepcopy(model.peft_config[NEW]))
        names = [name for name in (CRITIC, PARENT) if name in model.peft_config]
    settle(model)
    return Role(names)


@dataclass(frozen=True)
class Role:
    """Adapters under which one backbone is someone else: a context manager factory, called with the model."""

    names: Sequence[str]

    @contextlib.contextmanager
    def __call__(self, model: PeftModel) -> Iterator[None]:
        """Within this context the model is in the role; afterwards it is the policy again."""
        activate(model, self.names)
        try:
            yield
        finally:
            settle(model)


def activate(model: PeftModel, names: Sequence[str]) -> None:
    """
    Let exactly these adapters take part in the forward pass; those that are trained keep their gradients.

    PEFT's own switch freezes every adapter that it puts aside, so the flags are set anew each time.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(list(names))
    for name, parameter in model.named_parameters():
        if adapter := adapter_of(name):
            parameter.requires_grad_(adapter in _TRAINED)


def adapter_of(parameter: str) -> str | None:
    """The adapter that a parameter belongs to, by PEFT's naming of it; None for a parameter of the base."""
    parts = parameter.split(".")
    for i, part in enumerate(parts[:-1]):
        if part.startswith("lora_") or part == "modules_to_save":
            return parts[i + 1]
    return None


def settle(model: PeftModel) -> None:
    """Remove the reference adapter that TRL adds and activate ours, parent and new."""
    if _TRL_REFERENCE in model.peft_config:
        model.delete_adapter(_TRL_REFERENCE)
    model.base_model.active_adapter = NEW
    activate(model, [name for name in (NEW, PARENT) if name in model.peft_config])


@contextlib.contextmanager
def as_parent(model: PeftModel) -> Iterator[None]:
    """Within this context the model is its parent: the reference of PPO, DPO and KTO."""
    if PARENT in model.peft_config:
        with Role([PARENT])(model):
            yield
    else:
        with model.disable_adapter():
            yield
        settle(model)


@contextlib.contextmanager
def folded(model: PeftModel) -> Iterator[None]:
    """
    Within this context the active adapters are part of the weights they stand on, so that sampling pays nothing for them.

    The weights come back bit for bit: they are put aside, not subtracted from. Only float32 is folded, since in fewer digits
    the sum would be another policy than the one that is scored afterwards.
    """
    kept, embedding = [], model.get_input_embeddings().weight  # a head may share it, and words are no layer
    try:
        with torch.no_grad():
            for layer in filter(_foldable, model.modules()):
                names = [name for name in layer.active_adapters if name in layer.lora_A]
                weight = layer.get_base_layer().weight
                if weight is embedding:
                    continue
                kept.append((layer, weight, weight.data))
                weight.data = sum((layer.get_delta_weight(name) for name in names), weight.data)
                layer.merged_adapters = names
        yield
    finally:
        for layer, weight, data in kept:
            weight.data, layer.merged_adapters = data, []


def _foldable(layer: torch.nn.Module) -> bool:
    """A plain float32 layer with plain adapters that take part; a sharded weight is no matrix here and stays as it is."""
    if not isinstance(layer, Linear) or layer.disable_adapters or layer.merged or layer.lora_variant:
        return False
    base = layer.get_base_layer()
    plain = type(base) is torch.nn.Linear and type(base.weight) is torch.nn.Parameter
    return (
        plain
        and base.weight.dtype == torch.float32
        and base.weight.dim() == 2
        and not any(layer.lora_bias.values())
    )


class SettleOnTrainBegin(TrainerCallback):
    """Resuming from a checkpoint activates one adapter only; this puts both back before the first step."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # noqa: D102 - transformers' signature
        if isinstance(model, PeftModel):
            settle(model)

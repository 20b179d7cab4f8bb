"""
LoRA adapters that stand on the original base, whatever was trained before them.

A LoRA stage loads its parent's adapter frozen under the name `parent`, trains its own under the name `default`, and saves both
joined by rank as one plain adapter. A base in 4 bits is therefore never merged into, and every run folder is one base
and one adapter. TRL's trainers know a single adapter; `settle` puts ours back after they have been built.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel, TrainerCallback

NEW = "default"
PARENT = "parent"
_TRL_REFERENCE = "ref"


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
        parent_config = LoraConfig.from_pretrained(str(parent))
        # The parent's own head (a reward model's score) is not wanted: the new adapter trains its own.
        parent_config.modules_to_save = None
        parent_config.inference_mode = True
        wrapped.peft_config[PARENT] = parent_config
        wrapped.base_model.inject_adapter(wrapped.base_model.model, PARENT)
        weights = {
            name: w for name, w in load_peft_weights(str(parent), device="cpu").items() if "lora_" in name
        }
        set_peft_model_state_dict(wrapped, weights, adapter_name=PARENT)
    settle(wrapped)
    return wrapped


def activate(model: PeftModel, names: Sequence[str]) -> None:
    """Let exactly these adapters take part in the forward pass; only `default` has gradients."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(list(names))
    for name, parameter in model.named_parameters():
        if f".{PARENT}." in name:
            parameter.requires_grad_(False)
        elif f".{NEW}" in name:
            parameter.requires_grad_(True)


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
        activate(model, [PARENT])
        try:
            yield
        finally:
            settle(model)
    else:
        with model.disable_adapter():
            yield
        settle(model)


class SettleOnTrainBegin(TrainerCallback):
    """Resuming from a checkpoint activates one adapter only; this puts both back before the first step."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # noqa: D102 - transformers' signature
        if isinstance(model, PeftModel):
            settle(model)


def joined_state(model: PeftModel) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """
    Join parent and new adapter by rank: `A = [A_new; A_parent]`, `B = [s_new B_new, s_parent B_parent]`, scale 1.

    The product `B A` is the sum of both updates exactly (up to the rounding of one multiplication in float32), as in PEFT's
    `add_weighted_adapter(combination_type="cat")`, which cannot carry a reward model's head.

    Returns:
        PEFT's state dictionary of the joined adapter and its configuration, whose `lora_alpha` equals its `r`.
    """
    config = copy.deepcopy(model.peft_config[NEW])
    new = get_peft_model_state_dict(model, adapter_name=NEW)
    if PARENT not in model.peft_config:
        return new, config
    parent_config = model.peft_config[PARENT]
    parts = [
        (new, config.r, _scale(config)),
        (get_peft_model_state_dict(model, adapter_name=PARENT), parent_config.r, _scale(parent_config)),
    ]
    joined = {key: tensor for key, tensor in new.items() if "lora_" not in key}
    for key in sorted({key for state, _, _ in parts for key in state if "lora_" in key}):
        down = "lora_A" in key
        blocks = [
            _block(state.get(key), parts, key, rank, 1.0 if down else scale) for state, rank, scale in parts
        ]
        joined[key] = torch.cat(blocks, dim=0 if down else 1)
    config.r = config.lora_alpha = config.r + parent_config.r
    config.use_rslora = False
    config.target_modules = _targets(joined, config, parent_config)
    return joined, config


def _targets(joined: dict[str, torch.Tensor], *configs: LoraConfig) -> set[str]:
    """The layers of both adapters: their names, or whole paths where a recipe chose layers by a pattern."""
    if any(isinstance(config.target_modules, str) for config in configs):
        return {key.removeprefix("base_model.model.").split(".lora_")[0] for key in joined if ".lora_" in key}
    return set().union(*(config.target_modules for config in configs))


def _block(tensor: torch.Tensor | None, parts: list, key: str, rank: int, scale: float) -> torch.Tensor:
    """One adapter's share of a joined matrix: scaled, or zeros where that adapter has nothing on this layer."""
    if tensor is not None:
        return tensor.float() * scale
    other = next(state[key] for state, _, _ in parts if key in state)
    return other.new_zeros((rank, other.size(1)) if "lora_A" in key else (other.size(0), rank)).float()


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write the joined adapter as a plain PEFT folder that names `base` as what it stands on."""
    state, config = joined_state(model)
    config.base_model_name_or_path = base
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _scale(config: LoraConfig) -> float:
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)

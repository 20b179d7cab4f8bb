"""
Adapters as folders: what a run saves, and what a later one begins from.

Parent and new adapter are joined by rank into one plain PEFT adapter. A base in 4 bits is therefore never merged into, and every
run folder is one base and one adapter.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file

from instructkit.adapters import CRITIC, NEW, PARENT, Role, settle


def joined_state(
    model: PeftModel, name: str = NEW, *, above_parent: bool = True
) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """
    Join parent and new adapter by rank: `A = [A_new; A_parent]`, `B = [s_new B_new, s_parent B_parent]`, scale 1.

    The product `B A` is the sum of both updates exactly (up to the rounding of one multiplication in float32), as in PEFT's
    `add_weighted_adapter(combination_type="cat")`, which cannot carry a reward model's head.

    Args:
        name: the adapter to save.
        above_parent: False where it stands on the base itself.

    Returns:
        PEFT's state dictionary of the joined adapter and its configuration, whose `lora_alpha` equals its `r`.
    """
    config = copy.deepcopy(model.peft_config[name])
    new = get_peft_model_state_dict(model, adapter_name=name)
    if PARENT not in model.peft_config or not above_parent:
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
    _write(*joined_state(model), folder, base)


def save_update(model: PeftModel, folder: Path, base: str) -> None:
    """Write the new adapter alone, without its parent's: what a later update goes on from."""
    _write(
        get_peft_model_state_dict(model, adapter_name=NEW),
        copy.deepcopy(model.peft_config[NEW]),
        folder,
        base,
    )


def load_update(model: PeftModel, folder: Path) -> None:
    """
    Let the new adapter begin as one that `save_update` wrote.

    Raises:
        ValueError: when it is of another rank, scale or on other layers than the one to be trained.
    """
    saved, own = LoraConfig.from_pretrained(str(folder)), model.peft_config[NEW]
    kept = get_peft_model_state_dict(model, adapter_name=NEW)
    weights = load_peft_weights(str(folder), device="cpu")
    if (saved.r, saved.use_rslora, saved.use_dora) != (own.r, own.use_rslora, own.use_dora):
        raise ValueError(f"it has rank {saved.r}, and the recipe's `lora:` says {own.r}")
    if kept.keys() != weights.keys():
        raise ValueError("it is on other layers than the recipe's `lora.target_modules`")
    # A rescued adapter was saved at a smaller scale; the weights take it up, so that the recipe's scale is trained at.
    factor = _scale(saved) / _scale(own)
    scaled = {key: w * factor if "lora_B" in key else w for key, w in weights.items()}
    set_peft_model_state_dict(model, scaled, adapter_name=NEW)
    settle(model)


def rescale(model: PeftModel, scale: float) -> None:
    """
    Let the new adapter act at `scale` times what it was trained at; what is saved afterwards acts so too.

    Between parent (0) and update (1) lies a line of models (WiSE-FT, Wortsman et al. 2109.01903).
    """
    config = model.peft_config[NEW]
    config.lora_alpha = config.lora_alpha * scale
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and NEW in getattr(module, "scaling", {}):
            module.scaling[NEW] *= scale


def save_critic(model: PeftModel, head: torch.nn.Linear, role: Role, folder: Path, base: str) -> None:
    """Write the critic's adapter and head as PEFT writes a sequence classifier, which is what loads it."""
    state, config = joined_state(model, CRITIC, above_parent=PARENT in role.names)
    state["base_model.model.score.weight"] = head.weight
    config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    _write(state, config, folder, base)


def _write(state: dict[str, torch.Tensor], config: LoraConfig, folder: Path, base: str) -> None:
    config.base_model_name_or_path = base
    config.inference_mode = True
    for name, value in vars(config).items():
        if isinstance(value, set):  # its order differs from process to process, and the file's hash with it
            setattr(config, name, sorted(value))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _scale(config: LoraConfig) -> float:
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)

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
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
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

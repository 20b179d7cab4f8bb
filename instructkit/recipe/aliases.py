"""Where a key belongs that stands in the wrong part of a recipe, by its own name or by the one that other tools have for it."""

from __future__ import annotations

import difflib

from instructkit.recipe.schema import RECIPES, Weighted, sections

# Names of TRL's scripts (its flat `ModelConfig` and `ScriptArguments`) and of other tools, with the key that does the same here.
_ELSEWHERE = {
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "base_model": "model.name",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "load_in_4bit": "model.quantization: 4bit",
    "load_in_8bit": "model.quantization: 8bit",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "dataset": "data.train",
    "datasets": "data.train",
    "dataset_name": "data.train",
    "train_dataset": "data.train",
    "train_file": "data.train",
    "eval_dataset": "data.eval",
    "validation_file": "data.eval",
    "val_size": "data.eval",
    "test_size": "data.eval",
    "max_samples": "data.limit",
    "max_train_samples": "data.limit",
    "max_eval_samples": "data.eval_limit",
}
_FROM_FEEDBACK = {
    "data.train": "feedback.events",
    "data.eval": "feedback.eval",
    "data.limit": "feedback.limit",
}
_TOLD = {
    "use_peft": "a `lora:` section does the same here, `lora: {}` with the defaults",
    "dataset_train_split": "an entry of `data.train` has its own `split`",
    "dataset_config": "an entry of `data.train` has its own `config`",
    "dataset_test_split": "name the held-out rows under `data.eval`",
    "dataset_streaming": "rows are not streamed here; leave it out",
    "bnb_4bit_quant_type": "`model.quantization: 4bit` is always nf4; leave it out",
    "use_bnb_nested_quant": "`model.quantization: 4bit` is always nested; leave it out",
    "bnb_4bit_quant_storage": "nothing here does the same; leave it out",
    "lora_task_type": "the stage knows it; leave it out",
    "lora_modules_to_save": "nothing here does the same; leave it out",
    "lora_target_parameters": "nothing here does the same; leave it out",
    "ignore_bias_buffers": "nothing here does the same; leave it out",
}
# The same within one section, whose own names are short.
_WITHIN = {
    "lora": {"rank": "r", "modules": "target_modules", "targets": "target_modules", "scale": "alpha"},
    "model": {"path": "name", "id": "name", "base": "name", "precision": "dtype", "bits": "quantization"},
    "data": {
        "path": "train",
        "file": "train",
        "files": "train",
        "source": "train",
        "test": "eval",
        "validation": "eval",
    },
    "run": {
        "dir": "output",
        "path": "output",
        "output_dir": "output",
        "folder": "output",
        "random_seed": "seed",
    },
    "feedback": {"data": "events", "path": "events", "file": "events", "train": "events", "source": "events"},
}
_REWARD_MODELS = ("reward_model", "reward_model_path", "reward_model_name_or_path")


def home(key: str, stage: str, *, within: str = "") -> str | None:
    """
    Where a key belongs in recipes of a stage, as the way on; None when it is known nowhere else.

    Args:
        within: the section in which it was found; empty at the top.
    """
    parts = sections(RECIPES[stage])
    if within and (key in parts or key in ("trainer", "stage", "extends")):
        return "it belongs at the top of the recipe, in no section"
    if homes := [name for name, part in parts.items() if key in part.model_fields and name != within]:
        return f"it belongs under `{homes[0]}:`"
    return by_another_name(key, stage) or _of_a_mixture(key, stage)


def same_within(section: str, key: str) -> str | None:
    """The key of a section that does the same as a name of another tool."""
    return _WITHIN.get(section, {}).get(key)


def near_home(key: str, stage: str, allowed: list[str]) -> str | None:
    """Where a misspelt key belongs: when a key of another section is almost it, and nearer than any that is allowed."""
    names = {
        name: f"{section}.{name}"
        for section, part in sections(RECIPES[stage]).items()
        for name in part.model_fields
        if len(name) > 3
    }
    near = difflib.get_close_matches(key.replace("-", "_"), [*allowed, *names], n=1, cutoff=0.8)
    return f"did you mean `{names[near[0]]}`?" if near and near[0] not in allowed else None


def by_another_name(key: str, stage: str) -> str | None:
    """The key that does the same as a name of another tool."""
    if key in _REWARD_MODELS and stage == "ppo":
        return "`reward: [{model: ...}]` does the same here"
    same = _ELSEWHERE.get(key)
    if stage == "lora-update":
        same = _FROM_FEEDBACK.get(same or "", same)
    if same and (same.split(".")[0] in sections(RECIPES[stage])):
        return f"`{same}` does the same here"
    told = _TOLD.get(key)
    return told if told and not (stage == "lora-update" and "data." in told) else None


def _of_a_mixture(key: str, stage: str) -> str | None:
    has_data = "data" in sections(RECIPES[stage])
    return "it belongs in an entry of `data.train:`" if has_data and key in Weighted.model_fields else None

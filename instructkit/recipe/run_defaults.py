"""
What a run sets where a recipe is silent and TRL would do otherwise.

Stages take plain values from here; what depends on machine, data or model is worked out where it is used, and told here in
words. `explain` and the schemas read both.
"""

from __future__ import annotations

from typing import Any

from instructkit.recipe.yaml_core import inline

FIXED: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    # Four checkpoints a run and an early one (see `stages/stop_callback.py`), the last one kept; gone when the run is finished.
    "save_strategy": "steps",
    "save_steps": 0.25,
    "save_total_limit": 1,
}
# Held-out rows of sft are measured one by one, so they are not packed with the training rows.
OF_STAGE: dict[str, dict[str, Any]] = {"sft": {"eval_packing": False}}
ADAPTERS_LEARN = {"learning_rate": 1e-5, "value_learning_rate": 5e-5}  # PPO's, under `lora:`
_ON_A_GPU = "true on a GPU, false on a CPU"
_IN_WORDS = {  # what depends on the machine, by the stage that has it; "" is every stage
    "": {
        "gradient_checkpointing": _ON_A_GPU,
        "dataloader_pin_memory": _ON_A_GPU,
        "use_cpu": "true where there is no GPU",
    },
    "sft": {"assistant_only_loss": "true where the rows are conversations, else false"},
    "ppo": {
        "missing_eos_penalty": "0 where functions alone score and no mode is named, else {trl}",
        "value_warmup_steps": "0 where the critic knows something, else up to 10",
        **{name: f"{rate:g} with `lora:`, else {{trl}}" for name, rate in ADAPTERS_LEARN.items()},
    },
    "kto": dict.fromkeys(
        ("desirable_weight", "undesirable_weight"), "1, or what makes both classes weigh alike"
    ),
}


def value(stage: str, name: str, otherwise: Any) -> Any:
    """The default that a run has as one value; TRL's where it has no other, or none that does not depend on the machine."""
    return {**FIXED, **OF_STAGE.get(stage, {})}.get(name, otherwise)


def depends(stage: str, name: str) -> bool:
    """Whether a field's default depends on machine, data or model, so that it is none of a schema."""
    return name in _IN_WORDS[""] or name in _IN_WORDS.get(stage, {})


def in_words(stage: str, name: str, trl: str) -> str:
    """
    The default of a trainer's field, and TRL's own beside it where a run has another.

    Args:
        trl: TRL's default, as a recipe would write it.
    """
    words = {**_IN_WORDS[""], **_IN_WORDS.get(stage, {})}.get(name)
    if words is not None:
        return words.format(trl=trl) if "{trl}" in words else f"{words} (TRL's own {trl})"
    ours = {**FIXED, **OF_STAGE.get(stage, {})}
    return f"{inline(ours[name])} (TRL's own {trl})" if name in ours and inline(ours[name]) != trl else trl

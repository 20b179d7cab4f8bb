"""The four stages, by the name that a recipe gives."""

from __future__ import annotations

import importlib
from typing import Any

from instructkit.stages.base import Reporter, RunOptions, run

_MODULES = {"sft": "sft", "reward": "reward", "ppo": "ppo", "lora-update": "lora_update"}


def run_stage(recipe: Any, options: RunOptions, reporter: Reporter) -> dict[str, Any] | None:
    """
    Carry out the stage of a recipe.

    Returns:
        The run record; None for a plan.

    Raises:
        InputError: for what the user can mend, before anything is written.
        GateRefused: when the run is done and a gate says no.
    """
    stage = importlib.import_module(f"instructkit.stages.{_MODULES[recipe.stage]}")
    return run(recipe, options, reporter, collect=stage.collect, train=stage.train)

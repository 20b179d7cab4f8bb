"""The four stages, by the name that a recipe gives."""

from __future__ import annotations

import importlib
from typing import Any

from instructkit.recipe.schema import Recipe
from instructkit.stages.base import Reporter, RunOptions, Stage, quiet_libraries
from instructkit.stages.run import run as carry_out

MODULES = {"sft": "sft", "reward": "reward", "ppo": "ppo.stage", "lora-update": "lora_update.stage"}


def stage_of(recipe: Recipe) -> Stage[Any, Any]:
    """Return the stage that a recipe names."""
    stage: Stage[Any, Any] = importlib.import_module(f"instructkit.stages.{MODULES[recipe.stage]}").STAGE
    return stage


def run_stage(recipe: Recipe, options: RunOptions, reporter: Reporter) -> dict[str, Any]:
    """
    Run the stage of a recipe.

    Returns:
        The run record.

    Raises:
        InputError: for an error that the user can fix, before anything is written.
        GateRefused: when the run is complete and a gate failed.
    """
    quiet_libraries()  # before a stage imports a library that prints at once
    return carry_out(stage_of(recipe), recipe, options, reporter)

"""The four stages, by the name that a recipe gives."""

from __future__ import annotations

import importlib
from typing import Any

from instructkit.stages.base import Reporter, RunOptions, quiet_libraries
from instructkit.stages.running import run

MODULES = {"sft": "sft", "reward": "reward", "ppo": "ppo", "lora-update": "lora_update"}


def collector(recipe: Any) -> Any:
    """The function that reads the data and finds the parents of a recipe's stage."""
    return importlib.import_module(f"instructkit.stages.{MODULES[recipe.stage]}").collect


def run_stage(recipe: Any, options: RunOptions, reporter: Reporter) -> dict[str, Any]:
    """
    Carry out the stage of a recipe.

    Returns:
        The run record.

    Raises:
        InputError: for what the user can mend, before anything is written.
        GateRefused: when the run is done and a gate says no.
    """
    quiet_libraries()  # before a stage imports what reports at once
    stage = importlib.import_module(f"instructkit.stages.{MODULES[recipe.stage]}")
    finish = getattr(stage, "finish", lambda *_: None)
    return run(recipe, options, reporter, collect=stage.collect, train=stage.train, finish=finish)

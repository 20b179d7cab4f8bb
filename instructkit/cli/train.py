"""The four training commands: one shape, four stages."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

ABOUT = {
    "sft": "Fine-tune a model on demonstrations and conversations.",
    "reward": "Train a reward model on comparisons.",
    "ppo": "Improve a policy by PPO against reward models and functions.",
    "lora-update": "Turn users' feedback into a LoRA adapter; promote it, or refuse it with exit code 3.",
}
EXAMPLE = "Example: instructkit {stage} recipes/{stage}.yaml trainer.learning_rate=1e-4 run.seed=7"

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Stronger than the file.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Resolve, check and print; do not train.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run at run.output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run at run.output.")]
IfChanged = Annotated[
    bool, typer.Option("--if-changed", help="Skip when recipe, data and parents are unchanged; else rebuild.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' own messages.")]


def register(app: typer.Typer) -> None:
    """Add the four commands."""
    for stage, about in ABOUT.items():
        text = f"{about}\n\n{EXAMPLE.format(stage=stage)}"
        app.command(name=stage, help=text)(_command(stage))


def _command(stage: str):
    def command(
        recipe: Recipe,
        overrides: Overrides = None,
        plan: Plan = False,
        overwrite: Overwrite = False,
        resume: Resume = False,
        if_changed: IfChanged = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        from instructkit.recipe.load import load_recipe

        loaded = load_recipe(recipe, stage, overrides or [])

        from instructkit.cli.console import Console
        from instructkit.stages import RunOptions, run_stage

        options = RunOptions(plan, overwrite, resume, if_changed, command=["instructkit", *sys.argv[1:]])
        with Console(quiet=quiet, debug=debug) as console:
            run_stage(loaded, options, console)

    return command

"""The four training commands: one shape, four stages."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from instructkit.cli import completion
from instructkit.errors import InputError

ABOUT = {
    "sft": "Fine-tune a model on demonstrations and conversations.",
    "reward": "Train a reward model on comparisons.",
    "ppo": "Improve a policy by PPO against reward models and functions.",
    "lora-update": "Turn users' feedback into a LoRA adapter; promote it, or refuse it with exit code 3.",
}
EXAMPLE = "Example: instructkit {stage} recipes/{stage}.yaml trainer.learning_rate=1e-4 run.seed=7"

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file.", autocompletion=completion.recipes)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Stronger than the file.", autocompletion=completion.overrides
    ),
]
Plan = Annotated[
    bool,
    typer.Option("--plan", help="Tell steps, memory, disk and time, and whether it fits; train nothing."),
]
Probe = Annotated[
    bool, typer.Option("--probe", help="With --plan: time a few real steps, which leave no trace.")
]
Json = Annotated[bool, typer.Option("--json", help="With --plan: the plan as data.")]
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
        probe: Probe = False,
        json: Json = False,
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

        if json and not plan:
            raise InputError(
                "--json goes with --plan", hint="add --plan; a finished run: `instructkit runs show --json`"
            )
        if probe and not plan:
            raise InputError("--probe goes with --plan", hint="add --plan")
        if plan:
            _print_plan(loaded, probing=probe, as_json=json, quiet=quiet, debug=debug)
            return
        options = RunOptions(overwrite, resume, if_changed, command=["instructkit", *sys.argv[1:]])
        with Console(quiet=quiet, debug=debug) as console:
            run_stage(loaded, options, console)

    return command


def _print_plan(recipe: Any, *, probing: bool, as_json: bool, quiet: bool, debug: bool) -> None:
    """The resolved recipe on stdout and everything else on stderr; as data, all of it on stdout."""
    from instructkit.stages.base import quiet_libraries

    if not debug:
        warnings.simplefilter("ignore")
    quiet_libraries()  # before the first heavy import

    from instructkit.plan import page
    from instructkit.plan.make import make
    from instructkit.recipe.render import to_yaml
    from instructkit.stages import collector

    plan = make(recipe, collector(recipe), probing=probing)
    if as_json:
        import json

        print(json.dumps(plan.as_dict(), indent=1, ensure_ascii=False))
    else:
        print(to_yaml(recipe), end="")
        if not quiet:
            print("\n".join(page.lines(plan)), file=sys.stderr)
    if not plan.fits:
        from instructkit.plan.make import refusal

        raise refusal(plan)

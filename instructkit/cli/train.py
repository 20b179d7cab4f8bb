"""The four training commands: one shape, four stages."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from instructkit.cli import completion
from instructkit.cli.telling import as_data, print_json, tell
from instructkit.errors import InputError, InstructKitError

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
Json = Annotated[bool, typer.Option("--json", help="With --plan: the plan, or what is at fault, as data.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run at run.output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run at run.output.")]
IfChanged = Annotated[
    bool, typer.Option("--if-changed", help="Skip when recipe, data and parents are unchanged; else rebuild.")
]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Train although some gates cannot be decided on so little data.")
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
        anyway: Anyway = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        from instructkit.recipe.load import load_recipe

        if json and not plan:
            raise InputError(
                "--json goes with --plan", hint="add --plan; a finished run: `instructkit runs show --json`"
            )
        if probe and not plan:
            raise InputError("--probe goes with --plan", hint="add --plan")
        if overwrite and resume:
            raise InputError("--overwrite and --resume contradict each other", hint="leave one of them out")
        if anyway and stage != "lora-update":
            raise InputError("--anyway goes with lora-update", hint="leave it out")
        if plan:
            how = {"probing": probe, "overwrite": overwrite or (if_changed and not resume), "resume": resume}
            how["anyway"] = anyway
            _print_plan(lambda: load_recipe(recipe, stage, overrides or []), how, json, quiet, debug)
            return
        loaded = load_recipe(recipe, stage, overrides or [])

        from instructkit.cli.console import Console
        from instructkit.plan.refusals import refuse_early
        from instructkit.stages import RunOptions, run_stage

        refuse_early(loaded)
        options = RunOptions(overwrite, resume, if_changed, anyway, command=["instructkit", *sys.argv[1:]])
        with Console(quiet=quiet, debug=debug) as console:
            run_stage(loaded, options, console)

    return command


def _print_plan(
    load: Callable[[], Any], how: dict[str, Any], as_json: bool, quiet: bool, debug: bool
) -> None:
    """The resolved recipe on stdout and everything else on stderr; as data, all of it on stdout, faults too."""
    try:
        recipe = load()
        plan = _made(recipe, how, debug=debug)
    except InstructKitError as error:
        if not as_json or debug:
            raise
        print_json(as_data(error))
        raise typer.Exit(tell(error)) from error
    from instructkit.plan import page
    from instructkit.plan.make import refusal
    from instructkit.recipe.render import to_yaml

    refused = refusal(plan)
    if as_json:
        print_json({**plan.as_dict(), **(as_data(refused) if refused else {})})
    else:
        print(to_yaml(recipe), end="")
        if not quiet:
            print("\n".join(page.lines(plan)), file=sys.stderr)
    if refused is not None:
        raise typer.Exit(tell(refused))


def _made(recipe: Any, how: dict[str, Any], *, debug: bool) -> Any:
    from instructkit.stages.base import quiet_libraries

    if not debug:
        warnings.simplefilter("ignore")
    quiet_libraries()  # before the first heavy import

    from instructkit.plan.make import make
    from instructkit.stages import collector

    return make(recipe, collector(recipe), **how)

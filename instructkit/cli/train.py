"""The four training commands: one shape, four stages."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
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
    typer.Option("--plan", help="Print steps, memory, disk and time, and whether it fits; train nothing."),
]
Resolved = Annotated[
    bool,
    typer.Option(
        "--resolved", help="With --plan: the recipe with its defaults on stdout, the plan on stderr."
    ),
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
        resolved: Resolved = False,
        probe: Probe = False,
        json: Json = False,
        overwrite: Overwrite = False,
        resume: Resume = False,
        if_changed: IfChanged = False,
        anyway: Anyway = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        if json and not plan:
            raise InputError(
                "--json goes with --plan", hint="add --plan; a finished run: `instructkit runs show --json`"
            )
        if probe and not plan:
            raise InputError("--probe goes with --plan", hint="add --plan")
        if resolved and not plan:
            raise InputError(
                "--resolved goes with --plan",
                hint=f"add --plan, or run `instructkit check --resolved {recipe}`",
            )
        if overwrite and resume:
            raise InputError("--overwrite and --resume contradict each other", hint="leave one of them out")
        if plan:
            how = {"probing": probe, "overwrite": overwrite or (if_changed and not resume), "resume": resume}
            how["anyway"] = anyway
            load = partial(_load, recipe, stage, overrides or [])
            _print_plan(load, how, resolved=resolved, as_json=json, quiet=quiet, debug=debug)
            return
        loaded = _load(recipe, stage, overrides or [])

        from instructkit.cli.console import Console
        from instructkit.runs.processes import is_first
        from instructkit.stages import RunOptions, run_stage
        from instructkit.stages.preflight import refuse_early

        options = RunOptions(overwrite, resume, if_changed, anyway, command=["instructkit", *sys.argv[1:]])
        with Console(quiet=quiet or not is_first(), debug=debug) as console:
            with console.phase("checking the recipe against the model"):
                refuse_early(loaded)
            run_stage(loaded, options, console)

    if stage != "lora-update":
        _remove_option(command, "anyway")
    return command


def _remove_option(command: Callable[..., None], name: str) -> None:
    """Hide a parameter from Typer, which then refuses its option as unknown; the command uses its default."""
    signature = inspect.signature(command, eval_str=True)
    kept = [each for each in signature.parameters.values() if each.name != name]
    command.__signature__ = signature.replace(parameters=kept)


def _load(recipe: str, stage: str, overrides: list[str]) -> Any:
    from instructkit.recipe.load import load_recipe

    return load_recipe(recipe, stage, overrides)


def _print_plan(
    load: Callable[[], Any], how: dict[str, Any], *, resolved: bool, as_json: bool, quiet: bool, debug: bool
) -> None:
    """Print the plan on stdout; with `resolved`, the recipe on stdout and the plan on stderr; with `as_json`, all on stdout."""
    try:
        recipe = load()
        plan = _made(recipe, how, quiet=quiet or as_json, debug=debug)
    except InstructKitError as error:
        if not as_json or debug:
            raise
        print_json(as_data(error))
        raise typer.Exit(tell(error)) from error
    from instructkit.plan import render
    from instructkit.plan.plan import refusal
    from instructkit.recipe.render import to_yaml

    refused = refusal(plan)
    if as_json:
        print_json({**plan.as_dict(), **(as_data(refused) if refused else {})})
    else:
        if resolved:
            print(to_yaml(recipe), end="")
        print("\n".join(render.lines(plan)), file=sys.stderr if resolved else sys.stdout)
    if refused is not None:
        raise typer.Exit(tell(refused))


def _made(recipe: Any, how: dict[str, Any], *, quiet: bool, debug: bool) -> Any:
    from instructkit.cli.console import Console
    from instructkit.stages.base import LOADING, load_libraries, quiet_libraries

    quiet_libraries()  # before the first heavy import

    from instructkit.plan.plan import make

    with Console(quiet=quiet, debug=debug) as console:

        def loading() -> None:
            with console.phase(LOADING, announced=True):
                load_libraries()

        with console.phase("planning: data, rows, memory and time"):
            return make(recipe, loading=loading, **how)

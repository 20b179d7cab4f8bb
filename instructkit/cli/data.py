"""`instructkit data look`: what training will see."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from instructkit.cli import completion
from instructkit.cli.telling import visible

if TYPE_CHECKING:
    from rich.text import Text

    from instructkit.plan.data_look import Seen

_WHAT = {"reward": "the answers, of which the scores are", "ppo": "what is learned: nothing of a prompt"}


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Look at data as training will see them.", no_args_is_help=True)
    group.command(
        "look",
        help="Show training rows through the real template: what is learned, and what is only read."
        "\n\nExample: instructkit data look recipes/sft.yaml -n 2",
    )(look)
    app.add_typer(group, name="data")


def look(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file.", autocompletion=completion.recipes)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Stronger than the file.", autocompletion=completion.overrides
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows.")] = 3,
) -> None:
    """Print rows, token by token."""
    from rich.console import Console

    from instructkit.errors import RecipeError
    from instructkit.recipe.load import check_recipe

    checked = check_recipe(recipe, overrides=overrides)
    if checked.faults:
        raise RecipeError(checked.faults)
    from instructkit.stages.base import choose_machine, left_out, quiet_libraries

    warnings.simplefilter("ignore")
    quiet_libraries()  # before the first heavy import

    from instructkit.stages import stage_of

    inputs = stage_of(checked.recipe).collect(checked.recipe, {})

    from instructkit.plan.data_look import look as find  # torch: once the rows are known to be sound

    found = find(checked.recipe, inputs, choose_machine(checked.recipe), rows)
    for line in left_out(inputs):
        typer.echo(visible(line))
    console = Console(highlight=False, soft_wrap=True)
    what = _WHAT.get(checked.recipe.stage, "what is learned")
    console.print(
        f"green: {what}" if console.color_system else f"between [[ and ]]: {what}", markup=False, end=""
    )
    console.print("; the rest is read", markup=False)
    for seen in found.rows:
        length = f", {len(seen.tokens)} tokens" if seen.tokens else ""
        console.print(f"\n{visible(seen.title)}{length}", markup=False)
        console.print(_shown(seen, plain=console.color_system is None))
    for warning in found.warnings:
        typer.echo(f"warning: {visible(warning)}", err=True)


def _shown(seen: Seen, *, plain: bool) -> Text:
    """Tokens in their colours, or with brackets around what is learned."""
    from rich.text import Text

    text, inside = Text(), False
    for token in seen.tokens:
        if plain and token.learned != inside:
            text.append("[[" if token.learned else "]]")
        inside = token.learned
        style = ("green" if token.learned else "dim") + (" bold" if token.special else "")
        text.append(visible(token.text, lines=True), style="" if plain else style)
    if plain and inside:
        text.append("]]")
    return text

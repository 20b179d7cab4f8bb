"""`instructkit runs`: what was made, from what, and how it measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instructkit.cli import chains, completion

ROOT = "runs"
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A run folder, or its name below runs/.", autocompletion=completion.runs
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="List runs with their chain, show one, sum up a whole chain; promote updates and roll them back."
        "\n\nExample: instructkit runs summary runs/lora-update",
        invoke_without_command=True,
    )
    group.callback()(list_all)
    group.command("show", help="Print one run.\n\nExample: instructkit runs show runs/ppo")(show)
    group.command(
        "summary",
        help="The measured figures of a run and of all it descends from; exit code 3 when one was not reached."
        "\n\nExample: instructkit runs summary runs/lora-update",
    )(summary)
    chains.register(group)
    app.add_typer(group, name="runs")


def list_all(
    context: typer.Context, root: Annotated[str, typer.Option(help="Where to look.")] = ROOT
) -> None:
    """List all runs below a folder."""
    if context.invoked_subcommand is not None:
        return
    from instructkit.report.tables import runs_table
    from instructkit.runs import lineage

    found = lineage.list_runs(root)
    if not found:
        way = "`instructkit init` writes recipes, `instructkit sft RECIPE` makes the first run"
        typer.echo(f"no runs below {root}; {way}", err=True)
        return
    _print(runs_table(found))


def show(
    name: Name, json: Annotated[bool, typer.Option("--json", help="The record as JSON.")] = False
) -> None:
    """Print one run."""
    from instructkit.report.tables import run_table
    from instructkit.runs.record import read_run

    record = read_run(_folder(name))
    if json:
        import json as json_module

        typer.echo(json_module.dumps(record, indent=1, ensure_ascii=False))
    else:
        _print(run_table(record))


def summary(name: Name) -> None:
    """Print a whole chain; say in words what was not reached."""
    from instructkit.errors import GateRefused
    from instructkit.report.tables import chain_failed, chain_table
    from instructkit.runs import lineage

    chain = lineage.chain(_folder(name))
    _print(chain_table(chain))
    failed = chain_failed(chain)
    if failed:
        raise GateRefused(
            f"{len(failed)} of the figures of this chain {'was' if len(failed) == 1 else 'were'} not reached",
            hint="the lines above say which; change the recipe of that stage and run it again",
        )


def _folder(name: str) -> Path:
    return Path(name) if Path(name).is_dir() or "/" in name else Path(ROOT) / name


def _print(table: object) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)

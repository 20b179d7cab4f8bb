"""`instructkit chat`: talk to any model or run."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Talk to a model or run in the terminal.\n\nExample: instructkit chat runs/ppo"
    app.command("chat", help=text)(chat)


def chat(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, a model folder, a hub id, or `tiny`.")
    ],
    temperature: Annotated[float, typer.Option(min=0, help="0 answers greedily.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Read lines, stream answers."""
    import warnings

    from instructkit.models.source import locate

    locate(run)  # a wrong name is told before torch is loaded

    from instructkit.chat.terminal import open_session, talk
    from instructkit.stages.base import quiet_libraries

    quiet_libraries()
    if not debug:
        warnings.simplefilter("ignore")
    talk(open_session(run, max_new_tokens=max_new_tokens, temperature=temperature), run)

"""`instructkit`: the commands, and the one place where errors become exit codes."""

from __future__ import annotations

import sys

import typer

from instructkit.cli import chat, data, feedback, init, recipes, runs, train
from instructkit.cli.telling import tell
from instructkit.errors import InstructKitError, RunStopped

app = typer.Typer(
    name="instructkit",
    help="The InstructGPT pipeline from YAML recipes: sft, reward, ppo, lora-update.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train.register(app)
init.register(app)
recipes.register(app)
data.register(app)
feedback.register(app)
runs.register(app)
chat.register(app)

INTERRUPTED = 130
# Commands whose own `--debug` lets the libraries speak as well; of all others it shows tracebacks.
OWN_DEBUG = (*train.ABOUT, "chat")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; 0 done, 1 a run failed, 2 the input is at fault, 3 a gate said no, 130 interrupted (143 by SIGTERM)."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments
    if debug and arguments[0] not in OWN_DEBUG:
        arguments = [each for each in arguments if each != "--debug"] or ["--help"]
    try:
        code = app(args=arguments, prog_name="instructkit", standalone_mode=False)
    except InstructKitError as error:
        if debug and not isinstance(error, RunStopped):
            raise
        sys.exit(tell(error))
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message"):
            sys.exit(_usage(error))
        if debug:
            raise
        sys.exit(_unexpected(error))
    if code == INTERRUPTED:  # what Typer returns for Ctrl-C; a run that has begun raises `RunStopped`
        print("error: interrupted\nhint: give the command again", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Exception) -> int:
    """A command line that Typer cannot read."""
    print(f"error: {error.format_message()}", file=sys.stderr)
    print(
        "hint: `instructkit --help` lists the commands, `instructkit COMMAND --help` their options",
        file=sys.stderr,
    )
    return 2


def _unexpected(error: Exception) -> int:
    """What nobody foresaw: the run failed, its record says so, and `--debug` shows where."""
    if isinstance(error, OSError):
        print(f"error: {error}", file=sys.stderr)
        print("hint: check the path, its permissions and the free space", file=sys.stderr)
        return 1
    first = (str(error).strip().splitlines() or [""])[0]
    print(f"error: {type(error).__name__}: {first}", file=sys.stderr)
    print(
        "hint: run again with --debug to see where; if the input looks right, please report it",
        file=sys.stderr,
    )
    return 1

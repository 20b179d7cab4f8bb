"""`instructkit`: the commands, and the one place where errors become exit codes."""

from __future__ import annotations

import inspect
import sys
from typing import Annotated

import typer

from instructkit.cli import chat, data, feedback, init, recipes, runs, train
from instructkit.cli.telling import tell, visible
from instructkit.cli.usage import hint
from instructkit.errors import InstructKitError, RunStopped
from instructkit.runs.processes import is_first, leave_to_the_first, refuse_several

app = typer.Typer(
    name="instructkit",
    help="The InstructGPT pipeline from YAML recipes: sft, reward, ppo, lora-update.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"instructkit {version('instructkit')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The InstructGPT pipeline from YAML recipes: sft, reward, ppo, lora-update."""


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
SILENT = {"-h", "--help", "--quiet", "--json"}  # options after which nothing is announced


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 run failed, 2 invalid input, 3 refused by a gate, 130 interrupted (143 by SIGTERM)."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments
    if debug and arguments[0] not in OWN_DEBUG:
        arguments = [each for each in arguments if each != "--debug"] or ["--help"]
    _announce(arguments)
    try:
        _refuse_several_processes(arguments)
        code = app(args=arguments, prog_name="instructkit", standalone_mode=False)
    except InstructKitError as error:
        if debug and not isinstance(error, RunStopped):
            raise
        leave_to_the_first()
        sys.exit(tell(error))
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message"):
            sys.exit(_usage(error, arguments))
        if debug:
            raise
        leave_to_the_first()
        sys.exit(_unexpected(error))
    if code == INTERRUPTED:  # what Typer returns for Ctrl-C; a run that has begun raises `RunStopped`
        print("error: interrupted\nhint: give the command again", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_several_processes(arguments: list[str]) -> None:
    """Raise an `InputError` where several processes were started for a training command that runs in one."""
    command, *rest = arguments
    if command not in train.ABOUT or {"-h", "--help"} & set(rest):
        return
    if command != "sft":
        refuse_several(f"instructkit {command}", "only `instructkit sft` shares its work among processes")
    elif "--plan" in rest:
        refuse_several("instructkit sft --plan", "it plans and trains nothing")


def _announce(arguments: list[str]) -> None:
    """Print a first sign of life for commands that load a model, before Typer reads the options, which takes a while."""
    command, *rest = arguments
    if command not in OWN_DEBUG or SILENT & set(rest) or not is_first():
        return
    if named := _first_argument(command, rest):
        print(f"instructkit {command}: reading {visible(named)}", file=sys.stderr, flush=True)


def _first_argument(command: str, words: list[str]) -> str | None:
    """Return the first word that is neither an option nor the value of one: the recipe, or the model to talk to."""
    callback = next(each.callback for each in app.registered_commands if each.name == command)
    options = inspect.signature(callback).parameters.values()
    flags = {f"--{each.name.replace('_', '-')}" for each in options if each.default is False}
    for before, word in zip([command, *words], words, strict=False):
        is_value = before.startswith("-") and "=" not in before and before not in flags
        if not word.startswith("-") and not is_value:
            return word
    return None


def _usage(error: Exception, arguments: list[str]) -> int:
    """A command line that Typer cannot read."""
    message = error.format_message()
    commands = list(typer.main.get_command(app).commands)
    print(f"error: {visible(message)}", file=sys.stderr)
    print(f"hint: {visible(hint(message, arguments, commands))}", file=sys.stderr)
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

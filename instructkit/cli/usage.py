"""Hints for a command line that cannot be read: the command or the override that was probably meant."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from instructkit.cli.train import ABOUT

GENERAL = "`instructkit --help` lists the commands, `instructkit COMMAND --help` their options"
OTHER_NAMES = {
    "finetune": "sft",
    "fine-tune": "sft",
    "dpo": "lora-update",
    "kto": "lora-update",
    "rm": "reward",
    "reward-model": "reward",
    "rlhf": "ppo",
    "update": "lora-update",
    "generate": "chat",
    "validate": "check",
    "list": "runs",
}
_STAGE = re.compile(r"^stage:\s*['\"]?([a-z-]+)", re.MULTILINE)


def hint(message: str, arguments: list[str], commands: list[str]) -> str:
    """
    Return the hint for a usage error.

    Args:
        message: Typer's own.
        arguments: the words of the command line.
        commands: the names of all commands.
    """
    if message.startswith("No such command"):
        return _command(arguments, commands)
    if option := re.match(r"No such option: (--?\S+)", message):
        return _option(option[1], arguments) or GENERAL
    return GENERAL


def _command(arguments: list[str], commands: list[str]) -> str:
    given = arguments[0]
    for path in arguments[1:]:
        if (stage := _stage_of(path)) in ABOUT:
            return f"run `instructkit {stage} {path}`"
    if given == "train":
        return f"the training commands are {', '.join(ABOUT)}, such as `instructkit sft recipes/sft.yaml`"
    near = OTHER_NAMES.get(given) or next(iter(difflib.get_close_matches(given, commands, n=1)), None)
    return f"did you mean `instructkit {near}`?" if near else GENERAL


def _stage_of(path: str) -> str | None:
    try:
        stage = _STAGE.search(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stage[1] if stage else None


def _option(option: str, arguments: list[str]) -> str | None:
    """Return the override that does what an unknown option of a training command asks for."""
    if arguments[0] not in ABOUT:
        return None
    from instructkit.recipe.load import override_for

    name = option.partition("=")[0]
    key = override_for(name, arguments[0])
    if key is None:
        return None
    return f"give values of the recipe without dashes: {key}={_value(name, arguments) or 'VALUE'}"


def _value(option: str, arguments: list[str]) -> str:
    """Return the value that the command line gives an option: `--lr=1`, `--lr 1` or `-r1`; empty where it gives none."""
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals or after.startswith("--") else after
        if not option.startswith("--") and word.startswith(option):
            return word[len(option) :].removeprefix("=")
    return ""

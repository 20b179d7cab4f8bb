"""What a command line that cannot be read was meant to be: the command, or the override, that does it."""

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
    How to go on after a usage error.

    Args:
        message: as Typer words it.
        arguments: of the command line.
        commands: that there are.
    """
    if message.startswith("No such command"):
        return _command(arguments, commands)
    if found := re.match(r"No such option: (--?\S+)", message):
        return _option(found[1], arguments) or GENERAL
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
        found = _STAGE.search(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found[1] if found else None


def _option(option: str, arguments: list[str]) -> str | None:
    """Of a training command the override that an option stands for."""
    if arguments[0] not in ABOUT:
        return None
    from instructkit.recipe.load import override_for

    key = override_for(option.partition("=")[0], arguments[0])
    if key is None:
        return None
    at = next(i for i, word in enumerate(arguments) if word.partition("=")[0] == option.partition("=")[0])
    _, equals, value = arguments[at].partition("=")
    after = arguments[at + 1] if arguments[at + 1 :] and not arguments[at + 1].startswith("--") else ""
    return f"values of the recipe are given without dashes: {key}={(value if equals else after) or 'VALUE'}"

"""
A process that has imported the heavy libraries and forks a child for each command, so that a run that is killed costs seconds.

A hook lets the child signal itself at an exact point: before the n-th call of a function, whose place is `module:name`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAVY = (
    *("trl", "peft", "datasets", "instructkit.cli.main", "instructkit.stages.preflight"),
    *("instructkit.ppo.trainer", "instructkit.ppo.advice", "instructkit.models.generate"),
    *(f"instructkit.stages.{name}" for name in ("sft", "reward", "ppo", "lora_update", "update_training")),
)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for a signal, and what it printed."""

    code: int
    output: str


class ForkServer:
    """Runs commands of instructkit in forked children of one process that has everything loaded."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, hook: tuple[str, int, tuple[int, ...]] | None = None) -> Ended:
        """
        Run a command in this process's working folder.

        Args:
            hook: the place of a function, which of its calls, and the signals that the child sends itself before that call.
        """
        place, call, signals = hook or (None, 0, ())
        asked = {
            "arguments": arguments,
            "folder": str(Path.cwd()),
            "environment": {"INSTRUCTKIT_CACHE": os.environ["INSTRUCTKIT_CACHE"]},
            "hook": [place, call, [int(number) for number in signals]] if place else None,
        }
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Fork a child for each line of the standard input, and answer with how it ended."""
    import importlib

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        printed = Path(asked["folder"]) / "printed.txt"
        child = os.fork()
        if child == 0:
            _run(asked, printed)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answers.write(json.dumps({"code": code, "output": printed.read_text(encoding="utf-8")}) + "\n")
        answers.flush()


def _run(asked: dict[str, Any], printed: Path) -> None:
    """Be the child: run the command and end."""
    from instructkit.cli.main import main

    code = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
    try:
        os.chdir(asked["folder"])
        os.environ.update(asked["environment"])
        handle = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.argv = ["instructkit", *asked["arguments"]]
        if asked["hook"]:
            _set_hook(*asked["hook"])
        main(asked["arguments"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _set_hook(place: str, call: int, signals: list[int]) -> None:
    module, _, name = place.partition(":")
    owner = sys.modules[module]
    *parts, last = name.split(".")
    for part in parts:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), []

    def hooked(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            for number in signals:
                os.kill(os.getpid(), signal.Signals(number))
        return original(*args, **kwargs)

    setattr(owner, last, hooked)


if __name__ == "__main__":
    serve()

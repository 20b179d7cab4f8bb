"""The errors that a user sees: what is wrong, and how to go on. Each kind has one exit code, mapped once in `cli/main.py`."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN_FAULTS = 20


class InstructKitError(Exception):
    """A run failed; the hint says how to go on."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(InstructKitError):
    """What the user gave is at fault."""

    exit_code = 2


class NothingNew(InputError):
    """There is nothing to do: all that there is was learned from already."""


@dataclass(frozen=True)
class Fault:
    """One fault of an input: where (`file:line`), what was found and what is wanted, and how to go on."""

    where: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        line = f"{self.where}: {self.message}"
        return f"{line} ({self.hint})" if self.hint else line


class RecipeError(InputError):
    """All faults of a recipe, one a line."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults), hint="mend these; nothing was started")


class DataError(InputError):
    """Faults of data rows: the first twenty and the total."""

    def __init__(self, faults: list[Fault], total: int, *, hint: str | None = None) -> None:
        self.faults, self.total = faults, total
        lines = [str(fault) for fault in faults[:SHOWN_FAULTS]]
        if total > len(lines):
            lines.append(f"... and {total - len(lines)} more faults, {total} in all")
        super().__init__("\n".join(lines), hint=hint or "mend these rows; nothing was trained")


class GateRefused(InstructKitError):
    """The run is done, and a gate says no."""

    exit_code = 3


class RunStopped(InstructKitError):
    """A run ended early on request: by a signal, or because `run.max_minutes` is over."""

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 130) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code

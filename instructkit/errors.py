"""The errors that a user sees: what is wrong, and how to go on. Each kind has one exit code, mapped once in `cli/main.py`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

SHOWN_FAULTS = 20
SHOWN_ALIKE = 5  # of faults that differ in place and value alone
_VALUE = re.compile(r" is .{1,80}?;")


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
        super().__init__(
            "\n".join(str(fault) for fault in faults),
            hint="Fix these errors and run again. Nothing was started.",
        )


class Faults:
    """
    The first faults of many rows: twenty at most, five of those that differ in place and value alone, and how many there are.

    Attributes:
        total: how many were added.
    """

    def __init__(self) -> None:
        self.total = 0
        self._shown: list[tuple[int, Fault]] = []
        self._alike: Counter[str] = Counter()

    def add(self, fault: Fault, row: int | None = None) -> None:
        """
        Count a fault, and keep it while there are few.

        Args:
            row: where its row stands among all; left out, they are added in the order of their rows.
        """
        self.total += 1
        self._alike[_kind(fault)] += 1
        if len(self._shown) < SHOWN_FAULTS and self._alike[_kind(fault)] <= SHOWN_ALIKE:
            self._shown.append((self.total if row is None else row, fault))

    def shown(self) -> list[Fault]:
        """Return the faults that were kept, in the order of their rows."""
        return [fault for _, fault in sorted(self._shown, key=lambda pair: pair[0])]

    def lines(self) -> list[str]:
        """Return the faults that were kept, a line each, and how many more there are of each kind and of others."""
        shown = self.shown()
        last = {_kind(fault): i for i, fault in enumerate(shown)}
        counts = Counter(_kind(fault) for fault in shown)
        lines, left = [], self.total - len(shown)
        for i, fault in enumerate(shown):
            lines.append(str(fault))
            more = self._alike[_kind(fault)] - counts[_kind(fault)]
            if last[_kind(fault)] == i and more:
                lines.append(f"... and {more} more like this one")
                left -= more
        if left:
            lines.append(f"... and {left} more faults, {self.total} in all")
        return lines

    def error(self, hint: str | None = None) -> DataError:
        """Return the error that lists them."""
        return DataError(self.shown(), self.total, hint=hint, lines=self.lines())


def _kind(fault: Fault) -> str:
    return _VALUE.sub(" is ...;", fault.message)


class DataError(InputError):
    """Faults of data rows: the first of them and the total."""

    def __init__(
        self, faults: list[Fault], total: int, *, hint: str | None = None, lines: list[str] | None = None
    ) -> None:
        self.faults, self.total = faults, total
        if lines is None:
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

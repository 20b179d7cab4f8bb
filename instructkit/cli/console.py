"""How a run is told: live on a terminal, in plain lines when piped, not at all when quiet. Everything goes to stderr."""

from __future__ import annotations

import time
import warnings
from types import TracebackType
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from instructkit.cli.telling import visible

PLAIN_EVERY_SECONDS = 5.0


class Console:
    """
    The reporter of the command line.

    Args:
        quiet: tell nothing.
        debug: let the libraries' warnings through.
    """

    def __init__(self, *, quiet: bool = False, debug: bool = False) -> None:
        self.quiet = quiet
        self.rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        self.title, self.figures, self.last_line, self.started = "", {}, 0.0, 0.0
        if not debug:
            warnings.simplefilter("ignore")

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finished()

    def note(self, text: str) -> None:
        """One line about what was found or chosen."""
        if not self.quiet:
            self.rich.print(visible(text, lines=True), markup=False)

    def stage_started(self, title: str, total_steps: int | None) -> None:
        """A stage begins to train."""
        self.title, self.figures, self.started = title, {}, time.monotonic()
        if self.quiet or not self.rich.is_terminal:
            return
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.rich,
        )
        self.progress.add_task(title, total=total_steps, figures="")
        self.progress.start()

    def step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """One optimizer step is done; the last figures known are shown."""
        self.figures.update(figures)
        told = "  ".join(f"{name} {value:,.4g}" for name, value in self.figures.items())
        if self.progress is not None:
            task = self.progress.task_ids[0]
            self.progress.update(task, completed=step, total=total, figures=told)
        elif not self.quiet and figures and self._is_time(step, total):
            spent = time.monotonic() - self.started
            left = spent / step * (total - step) if step else 0.0
            self.rich.print(f"{self.title} {step}/{total}  {told}  {left:.0f} s left", markup=False)

    def _is_time(self, step: int, total: int) -> bool:
        now = time.monotonic()
        if step < total and now - self.last_line < PLAIN_EVERY_SECONDS:
            return False
        self.last_line = now
        return True

    def finished(self) -> None:
        """Training is over; the live display makes room."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def table(self, run: dict[str, Any]) -> None:
        """The closing table: before and after, gates, and where the result lies."""
        if not self.quiet:
            from instructkit.report.tables import run_table

            self.finished()
            self.rich.print(run_table(run))

"""Report a run on stderr: live on a terminal, in plain lines when piped, not at all when quiet."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from instructkit.cli.telling import visible

PLAIN_EVERY_SECONDS = 5.0  # between two lines about training steps
SILENT_SECONDS = 10.0  # without a line before the current activity is printed again
WATCH_SECONDS = 1.0  # between two checks for silence


class Activity:
    """The current activity: title, progress, figures and start time."""

    def __init__(self, title: str, task: TaskID | None) -> None:
        self.title, self.task = title, task
        self.done, self.total, self.figures = 0, 0, ""
        self.started = time.monotonic()

    def count(self) -> str:
        """Return progress as `3/20`; empty where nothing is counted."""
        return f"{self.done}/{self.total}" if self.total else ""

    def line(self) -> str:
        """Return the activity as one plain line."""
        seconds = time.monotonic() - self.started
        waited = f"({seconds:.0f} s)" if seconds >= 1 else ""
        return "  ".join(filter(None, (f"{self.title} {self.count()}".strip(), self.figures, waited)))


class Console:
    """
    The reporter of the command line.

    Args:
        quiet: print nothing.
        debug: let the libraries' warnings through.
    """

    def __init__(self, *, quiet: bool = False, debug: bool = False) -> None:
        self.quiet = quiet
        self.rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._activities: list[Activity] = []  # the last one is current; those before it contain it
        self._training: Activity | None = None
        self._figures: dict[str, float] = {}
        self._last_line, self._last_step = time.monotonic(), float("-inf")
        # Reentrant: a signal handler may print while this thread is printing.
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._clock: threading.Thread | None = None
        if not debug:
            warnings.simplefilter("ignore")

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._clock is not None:
            self._clock.join()
        self.finished()

    def note(self, text: str) -> None:
        """One line about what was found or chosen."""
        self._print(text)

    @contextlib.contextmanager
    def phase(self, title: str, *, announced: bool = False) -> Iterator[None]:
        """
        Show what is being done while no training step is taken; loops of `progress.counted` inside show their count.

        Args:
            announced: print a line at once in plain logs too, however short the time since the last one.
        """
        from instructkit.runs.progress import listening

        activity = self._begin(title)
        if announced or time.monotonic() - self._last_line >= SILENT_SECONDS:
            self._report(activity)
        try:
            with listening(lambda done, total: self._counted(activity, done, total)):
                yield
        finally:
            self._end(activity)

    def stage_started(self, title: str, total_steps: int | None) -> None:
        """A stage begins to train."""
        self.finished()
        self._figures = {}
        self._training = self._begin(title)
        self._training.total = total_steps or 0

    def step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """One optimizer step is done; the last figures known are shown."""
        training = self._training
        if training is None:
            return
        self._figures.update(figures)
        training.figures = "  ".join(f"{name} {value:,.4g}" for name, value in self._figures.items())
        self._counted(training, step, total)
        if self._is_plain and figures and self._is_time(step, total):
            left = (time.monotonic() - training.started) / step * (total - step) if step else 0.0
            self._print(f"{training.title} {training.count()}  {training.figures}  {left:.0f} s left")

    def finished(self) -> None:
        """Training is over; the live display makes room."""
        if self._training is not None:
            self._end(self._training)
            self._training = None

    def table(self, run: dict[str, Any]) -> None:
        """Print the closing table: figures before and after, gates, the result's folder and what to do next."""
        if not self.quiet:
            from instructkit.report.tables import run_table

            self.finished()
            self.rich.print(run_table(run, failed=False))

    @property
    def _is_plain(self) -> bool:
        return not self.quiet and not self.rich.is_terminal

    def _is_time(self, step: int, total: int) -> bool:
        now = time.monotonic()
        if step < total and now - self._last_step < PLAIN_EVERY_SECONDS:
            return False
        self._last_step = now
        return True

    def _print(self, text: str) -> None:
        if self.quiet:
            return
        with self._lock:
            self._last_line = time.monotonic()
            self.rich.print(visible(text, lines=True), markup=False)

    def _begin(self, title: str) -> Activity:
        task = None
        if not self.quiet and self.rich.is_terminal:
            task = self._live().add_task(visible(title), total=None, figures="")
        elif self._is_plain and self._clock is None:
            self._clock = threading.Thread(target=self._watch, daemon=True)
            self._clock.start()
        activity = Activity(title, task)
        self._activities.append(activity)
        return activity

    def _end(self, activity: Activity) -> None:
        if activity in self._activities:
            self._activities.remove(activity)
        if self._progress is None or activity.task is None:
            return
        self._progress.remove_task(activity.task)
        if not self._activities:
            self._progress.stop()
            self._progress = None

    def _live(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.rich,
                transient=True,
            )
            self._progress.start()
        return self._progress

    def _counted(self, activity: Activity, done: int, total: int) -> None:
        activity.done, activity.total = done, total
        if self._progress is not None and activity.task is not None:
            figures = "  ".join(filter(None, (activity.count(), activity.figures)))
            self._progress.update(activity.task, completed=done, total=total, figures=figures)

    def _report(self, activity: Activity) -> None:
        if self._is_plain:
            self._print(activity.line())

    def _watch(self) -> None:
        """Check for silence until the console is closed; in a thread, because some work reports nothing."""
        while not self._closed.wait(WATCH_SECONDS):
            self.break_silence()

    def break_silence(self) -> None:
        """Print the current activity if nothing was printed for `SILENT_SECONDS`."""
        activities = self._activities[-1:]
        if activities and time.monotonic() - self._last_line >= SILENT_SECONDS:
            self._report(activities[0])

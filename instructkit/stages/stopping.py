"""
End a run early on Ctrl-C, SIGTERM or `run.max_minutes`.

While a trainer runs, a request waits until the callback has finished the micro-step and written a checkpoint. Anywhere else
it raises `Stopped` at once. A second signal of a user ends the process immediately.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

REASONS = {
    signal.SIGINT: ("interrupted from the keyboard (SIGINT)", 130),
    signal.SIGTERM: ("terminated (SIGTERM)", 143),
    signal.SIGALRM: ("run.max_minutes is over", 130),
}
_SENT = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """End a run early on request. This is no `Exception`, so that no library catches it."""


class Stop:
    """
    Hold the request to end a run early, and handle signals within its `with` block.

    Attributes:
        reason: why the run ends; None before a request.
        exit_code: of the process, after a request.
        stepped: whether a trainer has taken a step.
        on_first_step: called once, when a trainer has taken the first step.
    """

    def __init__(
        self, max_minutes: float | None = None, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self.reason: str | None = None
        self.exit_code = 0
        self.stepped = False
        self.on_first_step: Callable[[], None] = lambda: None
        self._minutes, self._note = max_minutes, note
        self._waits = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # the only one that may handle signals
            for number in REASONS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # a background job may ignore SIGINT
                    self._before[number] = signal.signal(number, self._on_signal)
            if self._minutes is not None:
                signal.setitimer(signal.ITIMER_REAL, 60 * self._minutes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before and self._minutes is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a request within this context. The code inside reads `reason`."""
        before, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = before

    @property
    def timed_out(self) -> bool:
        """Return whether the time limit was the request."""
        return self.reason == REASONS[signal.SIGALRM][0]

    def note_step(self) -> None:
        """Note that a trainer has taken a step."""
        if not self.stepped:
            self.stepped = True
            self.on_first_step()

    def check(self) -> None:
        """Raise `Stopped` after a request."""
        if self.reason is not None:
            raise Stopped(self.reason)

    def ask(self, reason: str, exit_code: int) -> None:
        """Ask the run to end. The first reason counts."""
        if self.reason is None:
            self.reason, self.exit_code = reason, exit_code

    def _silence_the_timer(self) -> None:
        """Let no time limit interrupt what closes the run."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.SIGALRM in self._before:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)

    def _ends_by_default(self) -> bool:
        """Return whether the next signal that a user sends ends the process. A time limit leaves that to the one after it."""
        return all(signal.getsignal(each) != self._on_signal for each in _SENT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked from this process
            if number == signal.SIGTERM:
                os._exit(REASONS[number][1])
            return
        self._silence_the_timer()
        if number in _SENT:
            for each in _SENT:
                if each in self._before:
                    signal.signal(each, signal.SIG_DFL)  # a second one ends the process at once
        ends_already = self.reason is not None
        self.ask(*REASONS[number])
        if not (self._waits or ends_already):  # what closes the run is not interrupted again
            raise Stopped(self.reason)
        with contextlib.suppress(RuntimeError):  # the signal came while something else was printed
            ends = "the next signal ends" if self._ends_by_default() else "two more signals end"
            self._note(f"{self.reason}: stopping after this step; {ends} the process at once")

"""Signals that ask a run to end: the first one counts, and what closes the run is not interrupted by another."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from instructkit.stages.stopping import Stop, Stopped


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """Heed SIGINT: a test run that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_time_limit_is_silent_after_a_first_signal(first: int) -> None:
    with Stop(max_minutes=10) as stop:
        with pytest.raises(Stopped):
            send(first)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        send(signal.SIGALRM)  # was on its way already
    assert (
        stop.reason
        == f"{'terminated' if first == signal.SIGTERM else 'interrupted from the keyboard'} ({first.name})"
    )
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("first", "ends"),
    [(signal.SIGINT, "the next signal ends"), (signal.SIGALRM, "two more signals end")],
)
def test_the_note_says_which_signal_ends_the_process(first: int, ends: str) -> None:
    notes: list[str] = []
    with Stop(max_minutes=10, note=notes.append) as stop, stop.deferred():
        send(first)
        assert notes[-1].endswith(f"stopping after this step; {ends} the process at once")
        if first == signal.SIGALRM:
            send(signal.SIGTERM)
            assert notes[-1].endswith("stopping after this step; the next signal ends the process at once")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_after_the_time_limit_does_not_interrupt_the_closing() -> None:
    with Stop(max_minutes=10) as stop:
        with pytest.raises(Stopped):
            send(signal.SIGALRM)
        send(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the next one ends the process"
    assert (stop.reason, stop.exit_code) == ("run.max_minutes is over", 130)

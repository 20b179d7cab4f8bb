"""Notice other work on the CPUs: threads that wait for each other make a run many times slower, and nothing else would say so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from instructkit import machine, processes

WINDOW_SECONDS = 2.0  # shortest time that is looked at
EVERY_SECONDS = 10.0  # between two looks while training
SPARE_CPUS = 0.5  # of other work that is not worth a warning
ROOT = Path("/")  # of the file system


@dataclass(frozen=True)
class Usage:
    """How many CPUs a run may use, and the CPU seconds that everybody has used on them."""

    cpus: float
    seconds: float


@dataclass(frozen=True)
class Busy:
    """What was noticed, as the run record keeps it: CPUs used by other work, CPUs there are, threads of the run, and when."""

    other_cpus: float
    cpus: float
    threads: int
    when: str

    def __str__(self) -> str:
        told = f"warning: other work uses {self.other_cpus:.1f} of {self.cpus:g} CPUs {self.when}"
        if self.threads == 1:
            return f"{told}, so this run takes longer. Stop the other work, or wait"
        return (
            f"{told}, and this run computes with {self.threads} threads, which wait for each other: it may take many times "
            "as long. Stop the other work, or stop this run and start it with "
            f"OMP_NUM_THREADS={max(1, int(self.cpus - self.other_cpus))}"
        )


class Contention:
    """
    Watches the CPUs from the moment it is made; warns once.

    Args:
        warn: called with the warning.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.found: Busy | None = None
        self._warn = warn
        self._last = _measured()

    def look(self, threads: int, when: str, *, every: float = WINDOW_SECONDS) -> None:
        """
        Compare what others have used since the last look with what the threads of this run leave.

        Args:
            threads: with which this run computes.
            when: it is, in words.
            every: seconds since the last look before which nothing is done.
        """
        if self.found or time.monotonic() - self._last[0] < every:
            return
        before, self._last = self._last, _measured()
        elapsed, own = (self._last[i] - before[i] for i in (0, 1))
        for first, second in zip(before[2], self._last[2], strict=True):
            if first is None or second is None:
                continue
            others = (second.seconds - first.seconds - own) / elapsed
            if others > SPARE_CPUS and others + threads > second.cpus + SPARE_CPUS:
                self.found = Busy(round(others, 2), second.cpus, threads, when)
                self._warn(str(self.found))
                return

    def as_dict(self) -> dict | None:
        """What was noticed as data; None where nothing was."""
        return asdict(self.found) if self.found else None


def watch(warn: Callable[[str], None]) -> Contention | None:
    """Return a watch on other work; None where the processes of one run would take each other for it."""
    return Contention(warn) if processes.count() == 1 else None


def _measured() -> tuple[float, float, tuple[Usage | None, Usage | None]]:
    """The time, the CPU seconds of this process and its children, and what everybody used on this host and in this container."""
    own = sum(os.times()[:4])
    return time.monotonic(), own, (host(), container())


def host() -> Usage | None:
    """Of the CPUs that this process may run on; None where the system does not tell."""
    try:
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in (ROOT / "proc/stat").read_text(encoding="ascii").splitlines()]
        # user nice system idle iowait irq softirq steal
        ticks = [sum(map(int, (*row[1:4], *row[6:9]))) for row in lines if row and row[0] in allowed]
        return Usage(len(ticks), sum(ticks) / os.sysconf("SC_CLK_TCK")) if ticks else None
    except (OSError, AttributeError, ValueError):
        return None


def container() -> Usage | None:
    """Of the share that a container's CPU limit (cgroup v2) grants; None without one."""
    try:
        folder, quota = min(machine.cpu_limits(ROOT), key=lambda limit: limit[1])
        used = dict(line.split() for line in (folder / "cpu.stat").read_text(encoding="ascii").splitlines())
        return Usage(quota, int(used["usage_usec"]) / 1e6)
    except (OSError, ValueError, KeyError):  # no limit, or no file that says what was used
        return None

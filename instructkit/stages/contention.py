"""Notice other work on the CPUs. It makes threads wait for each other, and a run many times slower without an error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from instructkit.models import machine
from instructkit.runs import processes

WINDOW_SECONDS = 2.0  # shortest time between two looks
EVERY_SECONDS = 10.0  # between two looks while training
SPARE_CPUS = 0.5  # less other work gets no warning
ROOT = Path("/")  # of the file system


@dataclass(frozen=True)
class Usage:
    """Hold how many CPUs a run may use, and the CPU seconds that all processes used on them."""

    cpus: float
    seconds: float


@dataclass(frozen=True)
class Busy:
    """
    Describe other work that was noticed, as the run record keeps it.

    Attributes:
        other_cpus: number of CPUs that other work uses.
        cpus: number of CPUs that the run may use.
        threads: number of threads of the run.
        when: the phase of the run.
    """

    other_cpus: float
    cpus: float
    threads: int
    when: str

    def __str__(self) -> str:
        warning = f"warning: other work uses {self.other_cpus:.1f} of {self.cpus:g} CPUs {self.when}"
        if self.threads == 1:
            return f"{warning}, so this run takes longer. Stop the other work, or wait"
        return (
            f"{warning}. This run computes with {self.threads} threads that wait for each other, so it may take many times "
            "as long. Stop the other work, or start this run again with "
            f"OMP_NUM_THREADS={max(1, int(self.cpus - self.other_cpus))}"
        )


class Contention:
    """
    Watch the CPUs from the moment it is made, and warn once.

    Args:
        warn: called with the warning.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.noticed: Busy | None = None
        self._warn = warn
        self._last = _measured()

    def look(self, threads: int, when: str, *, every: float = WINDOW_SECONDS) -> None:
        """
        Warn if other work used more since the last look than the threads of this run leave.

        Args:
            threads: number of threads of this run.
            when: the phase of the run, for the warning.
            every: shortest time between two looks, in seconds.
        """
        if self.noticed or time.monotonic() - self._last[0] < every:
            return
        before, self._last = self._last, _measured()
        elapsed, own = (self._last[i] - before[i] for i in (0, 1))
        for first, second in zip(before[2], self._last[2], strict=True):
            if first is None or second is None:
                continue
            others = (second.seconds - first.seconds - own) / elapsed
            if others > SPARE_CPUS and others + threads > second.cpus + SPARE_CPUS:
                self.noticed = Busy(round(others, 2), second.cpus, threads, when)
                self._warn(str(self.noticed))
                return

    def as_dict(self) -> dict | None:
        """Return what was noticed as data; None where nothing was."""
        return asdict(self.noticed) if self.noticed else None


def watch(warn: Callable[[str], None]) -> Contention | None:
    """Return a watch on other work; None where the processes of one run would take each other for it."""
    return Contention(warn) if processes.count() == 1 else None


def _measured() -> tuple[float, float, tuple[Usage | None, Usage | None]]:
    """Return the time, the CPU seconds of this process with its children, and the usage of host and container."""
    own = sum(os.times()[:4])
    return time.monotonic(), own, (host(), container())


def host() -> Usage | None:
    """Return the usage of the CPUs that this process may run on; None where the system does not report it."""
    try:
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in (ROOT / "proc/stat").read_text(encoding="ascii").splitlines()]
        # user nice system idle iowait irq softirq steal
        ticks = [sum(map(int, (*row[1:4], *row[6:9]))) for row in lines if row and row[0] in allowed]
        return Usage(len(ticks), sum(ticks) / os.sysconf("SC_CLK_TCK")) if ticks else None
    except (OSError, AttributeError, ValueError):
        return None


def container() -> Usage | None:
    """Return the usage of the control group (version 2) with the lowest CPU limit; None without a limit."""
    try:
        folder, quota = min(machine.cpu_limits(ROOT), key=lambda limit: limit[1])
        used = dict(line.split() for line in (folder / "cpu.stat").read_text(encoding="ascii").splitlines())
        return Usage(quota, int(used["usage_usec"]) / 1e6)
    except (OSError, ValueError, KeyError):  # no limit, or no file that says what was used
        return None

"""How long a run will take: from the arithmetic of its passes and the speed of this machine's matrix product."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from instructkit.machine import Machine

if TYPE_CHECKING:
    from instructkit.plan.rehearsal import Rehearsal

EFFICIENCY = 0.5  # of a large matrix product that a training step reaches
SIZE = {"cpu": 1024, "cuda": 8192}


def estimate(rehearsal: Rehearsal, machine: Machine) -> float:
    """Seconds of all steps: 2 operations a parameter and token forward, twice that backward (Kaplan et al. 2020, 2.1)."""
    (trained, every), (read, learned) = rehearsal.trained, rehearsal.work
    forward = 2 * every * (read + learned)
    backward = 2 * (every + trained) * learned  # through everything, and for the trained weights themselves
    return rehearsal.steps["steps"] * (forward + backward) / (EFFICIENCY * operations_per_second(machine))


def operations_per_second(machine: Machine) -> float:
    """Measured on a square matrix product in the run's number format."""
    import torch

    size = SIZE[machine.device]
    x = torch.randn(size, size, dtype=getattr(torch, machine.dtype), device=machine.device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        y = x @ x
        if machine.device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    del y
    return 2 * size**3 / best

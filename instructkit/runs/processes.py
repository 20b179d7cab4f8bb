"""Processes of one run, as torchrun and `accelerate launch` start them: the first one writes, the others join."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from instructkit.errors import InputError

# Set by torchrun and accelerate, or by one kind of mpirun, which `accelerate launch` uses on CPUs.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
Made = TypeVar("Made")
ALONE_SECONDS = 20.0  # after which an error of another process than the first is reported by it


def count() -> int:
    """How many processes there are."""
    return _told(SIZES, 1)


def is_first() -> bool:
    """Whether this process writes records, samples and reports."""
    return count() == 1 or _told(RANKS, 0) == 0


def alone_against_the_wish() -> bool:
    """Whether `accelerate launch` was asked for several processes on CPUs and started one, as it does without mpirun."""
    return count() == 1 and "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU") == "True"


def _told(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)


def meet(*, timeout_seconds: float) -> None:
    """Wait until all processes are here; return at once where there is one."""
    if count() == 1:
        return
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    PartialState(cpu=on_cpu, timeout=timedelta(seconds=timeout_seconds)).wait_for_everyone()


def by_the_first(work: Callable[[], Made], *, timeout_seconds: float) -> Made:
    """
    Do `work` in the first process alone and return its result in all of them.

    Args:
        work: what one process must do or decide for all; its result is plain data.
        timeout_seconds: how long a process waits for the others.
    """
    if count() == 1:
        return work()
    meet(timeout_seconds=timeout_seconds)
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([work() if is_first() else None])[0]


def leave_to_the_first() -> None:
    """
    Give the first process time to report an error that all have.

    Its end stops the others, so what is reported after this is the error of this process alone.
    """
    if not is_first():
        time.sleep(ALONE_SECONDS)


def part() -> None:
    """Leave the group, so that a process may end before the others without a complaint."""
    if count() > 1:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def refuse_several(command: str, why: str) -> None:
    """
    Refuse to run what one process alone can do.

    Args:
        command: as it was given.
        why: it cannot be shared, in words.

    Raises:
        InputError: when several processes were started.
    """
    if count() > 1:
        name = next(name for name in SIZES if os.environ.get(name, "").isdecimal())
        raise InputError(
            f"{count()} processes were started ({name}={count()}), and `{command}` runs in one: {why}",
            hint=f"run `{command}` without torchrun or accelerate launch; without either, unset {name}",
        )

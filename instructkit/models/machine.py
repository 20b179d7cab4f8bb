"""Which device, number format and number of threads a run uses on this machine, and why."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructkit.errors import InputError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's malloc.h


@dataclass(frozen=True)
class Machine:
    """Device and dtype of a run, with the reasons that are logged and kept in the run record."""

    device: str
    dtype: str
    reasons: tuple[str, ...] = field(default=())

    @property
    def on_cpu(self) -> bool:
        """True when nothing but the CPU computes."""
        return self.device == "cpu"


def choose(dtype: str = "auto", quantization: str = "none") -> Machine:
    """
    Choose device and dtype.

    On a CPU the dtype is float32: processors that report AMX without granting it end a bfloat16 matmul with SIGILL.

    Raises:
        InputError: when the recipe asks for a number format that this machine cannot be trusted with.
    """
    import torch

    reasons: list[str] = []
    if torch.cuda.is_available():
        device, where = "cuda", torch.cuda.get_device_name(0)
        supported = torch.cuda.is_bf16_supported()
        automatic = "bfloat16" if supported else "float32"
        why = f"{where} {'supports' if supported else 'does not support'} bfloat16"
    else:
        device, automatic, why = "cpu", "float32", "no CUDA device"
        if dtype in ("bfloat16", "float16"):
            raise InputError(
                f"model.dtype is {dtype}, and this machine has no CUDA device",
                hint="use dtype: auto (float32 on a CPU); half precision on CPUs can end the process",
            )
        reasons += limit_threads()
    chosen = automatic if dtype == "auto" else dtype
    reason = f"dtype {chosen}: {why}" if dtype == "auto" else f"dtype {chosen}: set in the recipe"
    reasons = [f"device {device}: {why if device == 'cpu' else where}", *reasons, reason]
    if quantization != "none":
        reasons.append(f"base in {quantization}, computing in {chosen}")
    return Machine(device, chosen, tuple(reasons))


def keep_freed_memory() -> bool:
    """
    Let the C library keep what tensors free on a CPU, in place of giving it back to the system and asking for it again.

    Training makes and frees the same large tensors in every step, and each one from the system is paid for page by page:
    a policy's forward and backward pass with its log-probabilities took 3.0 s by default and 2.4 s so (135M parameters, 16 rows
    of 57 tokens, two cores). It costs what glibc's free lists hold between two steps.

    Returns:
        False where the C library is not glibc, and nothing was changed.
    """
    import ctypes

    if platform.libc_ver()[0] != "glibc":
        return False
    largest_threshold = 32 * 2**20  # glibc refuses a higher one on 64 bits
    libc = ctypes.CDLL(None)
    return bool(
        libc.mallopt(_M_MMAP_THRESHOLD, largest_threshold) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    )


def limit_threads() -> list[str]:
    """
    Let PyTorch compute with no more threads than this process may use CPUs; `OMP_NUM_THREADS` wins where it is set.

    PyTorch counts the CPUs of the machine or of the affinity mask. In a container with a quota of 2 of 64 CPUs it would start 64
    threads, which wait for each other.

    Returns:
        The reason for a lower number, in words; empty where nothing was changed.
    """
    import torch

    threads, usable = torch.get_num_threads(), usable_cpus()
    if "OMP_NUM_THREADS" in os.environ or threads <= usable:
        return []
    torch.set_num_threads(usable)
    return [f"threads {usable}: the CPU quota of this process, of {os.cpu_count()} CPUs"]


def usable_cpus(root: Path = Path("/")) -> int:
    """
    Return how many CPUs this process may use: by its affinity mask, and by the quota of its control group, rounded up.

    Args:
        root: of the file system.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for _, quota in cpu_limits(root))]))


def cpu_limits(root: Path = Path("/")) -> Iterator[tuple[Path, float]]:
    """
    Yield the control groups of this process that limit its CPUs: the folder of each, and its quota in CPUs.

    Args:
        root: of the file system; control groups of version 2 and version 1 count.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("" if not controllers else "cpu")
        group = Path(path.lstrip("/"))
        for folder in [mount / group, *(mount / parent for parent in group.parents), mount]:
            if controllers:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                words = [_read(folder / name).strip() for name in names]
            else:
                words = _read(folder / "cpu.max").split()
            if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
                yield folder, int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def processor() -> str:
    """Return the model name of the CPU, or its architecture where the system does not say."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """What the run record says about this machine."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }

"""Which device and which number format a run uses on this machine, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    chosen = automatic if dtype == "auto" else dtype
    reason = f"dtype {chosen}: {why}" if dtype == "auto" else f"dtype {chosen}: set in the recipe"
    reasons = [f"device {device}: {why if device == 'cpu' else where}", reason]
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
    import platform

    if platform.libc_ver()[0] != "glibc":
        return False
    largest_threshold = 32 * 2**20  # glibc refuses a higher one on 64 bits
    libc = ctypes.CDLL(None)
    return bool(
        libc.mallopt(_M_MMAP_THRESHOLD, largest_threshold) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    )


def hardware() -> dict[str, Any]:
    """What the run record says about this machine."""
    import os
    import platform

    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }

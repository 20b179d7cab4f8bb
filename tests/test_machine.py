"""What a CPU's C library does with freed memory, seen by the pages that the system had to hand out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from instructkit import machine
if sys.argv[1] == "keep":
    assert machine.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    held = [torch.ones(2_000_000) for _ in range(30)]  # 8 MB each
    del held
for _ in range(5):  # the heap grows until it holds what the work needs
    work()
before = faults()
for _ in range(5):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_not_asked_for_again() -> None:
    """Told to ask the system for each of these tensors, glibc does, until it is told to keep them."""
    surroundings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    found = {}
    for kind in ("keep", "default"):
        command = [sys.executable, "-c", COUNT, kind]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
        found[kind] = int(done.stdout)
    assert 10 * found["keep"] < found["default"]

"""Threads by quota, the record of the hardware, and what the C library does with freed memory (counted by page faults)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from instructkit.models import machine

COUNT = """
import resource, sys, torch
from instructkit.models import machine
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


@pytest.mark.parametrize(
    ("group", "files", "cpus"),
    [
        ("0::/box", {"box/cpu.max": "200000 100000"}, 2),
        ("0::/box/inner", {"box/cpu.max": "150000 100000", "box/inner/cpu.max": "max 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        (
            "4:memory:/box\n1:cpu,cpuacct:/box",
            {"cpu/box/cpu.cfs_quota_us": "300000", "cpu/box/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("", {}, 64),
    ],
)
def test_threads_follow_the_quota_of_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, files: dict[str, str], cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name, text in {
        "proc/self/cgroup": group,
        **{f"sys/fs/cgroup/{n}": t for n, t in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
    assert machine.usable_cpus(tmp_path) == cpus


def test_affinity_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert machine.usable_cpus(tmp_path) == 3


@pytest.mark.parametrize(("given", "threads"), [(None, 1), ("2", 2)])
def test_threads_are_limited_unless_the_user_says_how_many(
    monkeypatch: pytest.MonkeyPatch, given: str | None, threads: int
) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(machine, "usable_cpus", lambda: 1)
    try:
        torch.set_num_threads(2)
        reasons = machine.choose().reasons
        assert torch.get_num_threads() == threads
        assert any("threads 1" in reason for reason in reasons) is (given is None)
    finally:
        torch.set_num_threads(before)


def test_the_record_names_processor_instruction_set_and_threads() -> None:
    import torch

    found = machine.hardware()
    assert found["processor"] and found["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert found["torch_threads"] == torch.get_num_threads() and found["usable_cpus"] >= 1

"""A busy machine is noticed once, by what others use on the CPUs that a run computes on; its own work is no other work."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.stages import contention
from instructkit.stages.contention import Contention, Usage


def watched(monkeypatch, host: list, container: list, own: float = 0.0) -> tuple[Contention, list[str]]:
    """A watch whose two looks are 10 seconds apart."""
    looks = iter([(0.0, 0.0, (host[0], container[0])), (10.0, own, (host[1], container[1]))])
    monkeypatch.setattr(contention, "_measured", lambda: next(looks))
    monkeypatch.setattr(contention.time, "monotonic", lambda: 10.0)
    said: list[str] = []
    return Contention(said.append), said


@pytest.mark.parametrize(
    ("threads", "own", "used", "warns"),
    [
        (2, 10.0, 20.0, True),  # one other process beside two threads on two CPUs
        (1, 10.0, 20.0, False),  # the other CPU is theirs
        (2, 20.0, 20.0, False),  # all of it is the run's own
        (2, 10.0, 13.0, False),  # a little is no reason to warn
    ],
)
def test_other_work_is_what_others_use_beside_the_threads(monkeypatch, threads, own, used, warns) -> None:
    watch, said = watched(monkeypatch, [Usage(2, 100.0), Usage(2, 100.0 + used)], [None, None], own)
    watch.look(threads, "while training")
    assert bool(said) is warns
    if warns:
        assert "other work uses 1.0 of 2 CPUs while training" in said[0] and "OMP_NUM_THREADS=1" in said[0]
        assert watch.as_dict() == {"other_cpus": 1.0, "cpus": 2, "threads": 2, "when": "while training"}
        watch.look(threads, "later")
        assert len(said) == 1


def test_one_thread_is_not_told_to_use_fewer(monkeypatch) -> None:
    watch, said = watched(monkeypatch, [Usage(2, 0.0), Usage(2, 28.0)], [None, None], 10.0)
    watch.look(1, "while training")
    assert "1.8 of 2 CPUs" in said[0] and "OMP_NUM_THREADS" not in said[0]


def test_a_busy_container_is_noticed_on_an_idle_host(monkeypatch) -> None:
    watch, said = watched(
        monkeypatch, [Usage(64, 0.0), Usage(64, 20.0)], [Usage(2, 0.0), Usage(2, 20.0)], 10.0
    )
    watch.look(2, "at the start")
    assert "1.0 of 2 CPUs" in said[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_of_one_run_are_not_other_work(monkeypatch, processes: int) -> None:
    monkeypatch.setattr(contention.processes, "count", lambda: processes)
    assert (contention.watch(print) is None) is (processes > 1)


def test_usage_is_read_from_the_system(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contention, "ROOT", tmp_path)
    monkeypatch.setattr(contention.os, "sched_getaffinity", lambda _: {0, 2})
    monkeypatch.setattr(contention.os, "sysconf", lambda _: 100)
    assert (contention.host(), contention.container()) == (None, None)
    row = "100 200 300 9999 9999 10 20 30 0 0"
    group = tmp_path / "sys/fs/cgroup/work"
    for folder in (tmp_path / "proc/self", group / "inner"):
        folder.mkdir(parents=True)
    (tmp_path / "proc/stat").write_text(
        f"cpu 1 2\ncpu0 {row}\ncpu1 {row}\ncpu2 {row}\nintr 5\n", encoding="ascii"
    )
    assert contention.host() == Usage(2, 13.2)
    (tmp_path / "proc/self/cgroup").write_text("0::/work/inner\n", encoding="ascii")
    for place, seconds in ((group, 5), (group / "inner", 3)):
        (place / "cpu.max").write_text("max 100000\n", encoding="ascii")
        (place / "cpu.stat").write_text(f"usage_usec {seconds}000000\nuser_usec 1\n", encoding="ascii")
    assert contention.container() is None
    (group / "inner/cpu.max").write_text("400000 100000\n", encoding="ascii")
    assert contention.container() == Usage(4.0, 3.0)
    (group / "cpu.max").write_text("250000 100000\n", encoding="ascii")
    assert contention.container() == Usage(2.5, 5.0), "the group above allows less"

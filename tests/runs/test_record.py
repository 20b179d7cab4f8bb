"""The run folder: one holder, whole files, a record that always says how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from instructkit.errors import InputError
from instructkit.runs import files, lock
from instructkit.runs.record import RunFolder, is_run, read_run, write_json_atomic

RECIPE = {
    "stage": "sft",
    "model": {"name": "tiny"},
    "trainer": {"learning_rate": 1e-3},
    "run": {"output": "runs/sft", "seed": 7},
}


def begin(path: Path, recipe: dict = RECIPE, **options: bool) -> RunFolder:
    folder = RunFolder(path)
    folder.start(recipe, stage=recipe["stage"], command=["instructkit", "sft", "r.yaml"], **options)
    return folder


def finish(path: Path, weights: str = "weights", **options: bool) -> None:
    with begin(path, **options) as folder:
        (path / "model.safetensors").write_text(weights, encoding="utf-8")
        folder.complete(metrics={"loss": 1.5}, timings={"train": 2.0})


def in_another_process(code: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        **options,
    )


def test_record_is_written_at_the_start_and_completed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "sft"
    with begin(path) as folder:
        first = read_run(path)
        folder.update(data={"train": {"source": "demo/x", "fingerprint": "f", "rows": 3}}, verdict="PROMOTED")
        folder.complete(metrics={"loss": 1.5}, measurements=[{"name": "loss"}], timings={"train": 2.0})
    last = read_run(path)
    assert (first["status"], first["seed"], first["format"], first["ended"]) == ("running", 7, 1, None)
    assert first["recipe"] == RECIPE
    assert first["versions"]["python"].startswith("3.")
    assert (last["status"], last["verdict"], last["metrics"]) == ("done", "PROMOTED", {"loss": 1.5})
    assert last["data"]["train"]["rows"] == 3
    assert len(last["hash"]) == 64
    assert last["started"] <= last["ended"]
    assert not list(path.parent.glob(".*")), "neither a lock nor a temporary file is left"


def test_verdict_is_done_unless_the_stage_says_otherwise(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    assert read_run(tmp_path / "a")["verdict"] == "done"


def test_an_exception_leaves_a_readable_record_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(ValueError, match="loss is nan"), begin(path):
        raise ValueError("loss is nan")
    run = read_run(path)
    assert (run["status"], run["error"]) == ("failed", "ValueError: loss is nan")
    assert run["ended"]
    assert not lock.is_held(path)


def test_ctrl_c_leaves_the_status_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "a"):
        raise KeyboardInterrupt
    assert read_run(tmp_path / "a")["status"] == "interrupted"


def test_leaving_without_a_result_is_a_failure(tmp_path: Path) -> None:
    with begin(tmp_path / "a"):
        pass
    assert read_run(tmp_path / "a")["status"] == "failed"


def test_an_exception_after_completion_does_not_undo_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), begin(tmp_path / "a") as folder:
        folder.complete()
        raise RuntimeError("a gate said no")
    assert read_run(tmp_path / "a")["status"] == "done"


HOLD = """
    import sys, time
    from instructkit.runs.record import RunFolder
    folder = RunFolder(sys.argv[1])
    folder.start({"stage": "sft", "run": {}}, stage="sft", command=[])
    print("started", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_two_processes_cannot_hold_one_folder_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    process = hold(path)
    try:
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(InputError) as caught:
                begin(path, **options)
            assert f"{path} is being written by another process (pid {process.pid})" in str(caught.value)
        assert read_run(path)["status"] == "running"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    dead = read_run(path)
    assert dead["status"] == "interrupted"
    assert "process ended" in dead["error"]
    finish(path, overwrite=True)
    assert read_run(path)["status"] == "done"


def test_lock_survives_that_its_last_holder_removes_the_file(tmp_path: Path) -> None:
    """The holder unlinks the lock file between another's open and lock: that other must not hold a ghost."""
    first, second = lock.FolderLock(tmp_path / "a"), lock.FolderLock(tmp_path / "a")
    first.acquire()
    real, opened = lock._lock, []

    def release_first(handle: int) -> bool:
        if not opened:
            opened.append(handle)
            first.release()
        return real(handle)

    lock._lock = release_first
    try:
        second.acquire()
    finally:
        lock._lock = real
    assert lock.is_held(tmp_path / "a")
    with pytest.raises(InputError):
        lock.FolderLock(tmp_path / "a").acquire()
    second.release()


def test_a_run_is_not_written_over_unless_asked(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    with pytest.raises(InputError) as caught:
        begin(tmp_path / "a")
    assert str(caught.value) == f"{tmp_path / 'a'} already holds a run (finished)"
    assert "--overwrite" in caught.value.hint
    assert "run.output" in caught.value.hint
    assert "--resume" not in caught.value.hint, "a finished run has nothing to resume"
    assert not lock.is_held(tmp_path / "a")


def test_a_folder_that_is_no_run_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds no run"):
            begin(tmp_path / "a", overwrite=overwrite)
    assert (tmp_path / "a" / "thesis.tex").exists()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    finish(tmp_path / "a")


def test_overwrite_keeps_the_old_run_until_the_new_one_is_finished(tmp_path: Path) -> None:
    path, kept = tmp_path / "a", tmp_path / ".a.previous"
    finish(path, "old")
    with begin(path, overwrite=True) as folder:
        assert (kept / "model.safetensors").read_text(encoding="utf-8") == "old"
        assert not (path / "model.safetensors").exists(), "nothing of the old run is mixed into the new one"
        assert read_run(path)["previous"] == str(kept)
        folder.complete()
    assert not kept.exists()
    assert read_run(path)["previous"] is None


def test_a_failed_overwrite_costs_no_finished_run_however_often_it_fails(tmp_path: Path) -> None:
    path, kept = tmp_path / "a", tmp_path / ".a.previous"
    finish(path, "old")
    for _ in range(2):
        with pytest.raises(ValueError, match="bad"), begin(path, overwrite=True):
            raise ValueError("bad")
        assert (kept / "model.safetensors").read_text(encoding="utf-8") == "old"
        assert read_run(path)["previous"] == str(kept)
    finish(path, "new", overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_a_start_that_fails_puts_the_old_run_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    finish(path, "old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("instructkit.runs.record.write_json_atomic", full)
    with pytest.raises(OSError, match="no space"):
        begin(path, overwrite=True)
    assert (path / "model.safetensors").read_text(encoding="utf-8") == "old"
    assert read_run(path)["status"] == "done"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_a_run_may_not_overwrite_the_model_it_stands_on(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    for recipe, where in (
        ({**RECIPE, "model": {"name": str(tmp_path / "a")}}, "model.name"),
        (
            {**RECIPE, "reward": [{"model": None}, {"model": str(tmp_path / "b" / ".." / "a")}]},
            "reward.1.model",
        ),
    ):
        with pytest.raises(InputError) as caught:
            begin(tmp_path / "a", recipe, overwrite=True)
        assert where in str(caught.value)
    assert read_run(tmp_path / "a")["status"] == "done"


def test_resume_takes_up_an_unfinished_run(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(ValueError, match="bad"), begin(path):
        (path / "checkpoint-1").mkdir()
        raise ValueError("bad")
    began = read_run(path)["started"]
    with begin(path, resume=True) as folder:
        run = read_run(path)
        assert (run["status"], run["error"], run["started"]) == ("running", None, began)
        assert len(run["resumed"]) == 1
        assert (path / "checkpoint-1").is_dir()
        folder.complete()


def test_resume_refuses_what_it_cannot_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        begin(tmp_path / "missing", resume=True)
    assert not (tmp_path / "missing").exists()
    finish(tmp_path / "done")
    with pytest.raises(InputError, match="nothing to resume"):
        begin(tmp_path / "done", resume=True)
    with begin(tmp_path / "other"):
        pass
    changed = {**RECIPE, "trainer": {"learning_rate": 2e-3}}
    with pytest.raises(InputError, match=r"another recipe: trainer\.learning_rate"):
        begin(tmp_path / "other", changed, resume=True)
    with pytest.raises(InputError, match="of `sft`, not of `ppo`"):
        begin(tmp_path / "other", {**RECIPE, "stage": "ppo"}, resume=True)
    with pytest.raises(InputError, match="contradict"):
        begin(tmp_path / "other", resume=True, overwrite=True)


def test_reading_what_is_no_record(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    for text, said in (
        (None, "is not a run folder"),
        ('{"format": 1, ', "is damaged"),
        ('{"format": 9}', "record format 9; this version reads format 1"),
        ("[]", "record format None"),
    ):
        if text is not None:
            (tmp_path / "run.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            read_run(tmp_path)
        assert said in str(caught.value)
        assert caught.value.hint


def test_atomic_write_leaves_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    write_json_atomic(file, {"n": 1})
    with pytest.raises(TypeError):
        write_json_atomic(file, {"n": object()})

    def crash(_: int) -> None:
        raise OSError("pulled the plug")

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(OSError, match="plug"):
        write_json_atomic(file, {"n": 2})
    assert json.loads(file.read_text(encoding="utf-8")) == {"n": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    """One process rewrites the record all the time; every read parses and is one of the written states."""
    file = tmp_path / "run.json"
    process = in_another_process(f"""
        from instructkit.runs.record import write_json_atomic
        n = 0
        while True:
            n += 1
            write_json_atomic({str(file)!r}, {{"n": n, "again": n, "filler": ["x" * 50] * 2000}})
            if n == 1:
                print("started", flush=True)
    """)
    try:
        assert process.stdout.readline() == "started\n"
        for _ in range(200):
            seen = json.loads(file.read_text(encoding="utf-8"))
            assert seen["n"] == seen["again"]
    finally:
        process.kill()
        process.wait()


def test_plain_writes_numbers_of_tensor_libraries_and_no_nan(tmp_path: Path) -> None:
    class Scalar:
        def item(self) -> float:
            return 2.5

    value = {
        "a": float("nan"),
        "b": (1, float("inf")),
        "c": Path("x/y"),
        "d": Scalar(),
        5: {"z", "y"},
        "e": True,
    }
    write_json_atomic(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {
        "a": None,
        "b": [1, None],
        "c": "x/y",
        "d": 2.5,
        "5": ["y", "z"],
        "e": True,
    }

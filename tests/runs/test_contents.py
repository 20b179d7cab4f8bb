"""What of a run folder may be deleted, links to run folders, and what killed processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from instructkit.errors import InputError
from instructkit.runs import contents, files, lock
from instructkit.runs.record import RunFolder, read_run, write_json_atomic

RECIPE = {"stage": "sft", "model": {"name": "tiny"}, "run": {"output": "a", "seed": 7}}


def make(path: Path, weights: str = "w", *, overwrite: bool = False, recipe: dict = RECIPE) -> None:
    folder = RunFolder(path)
    folder.start(recipe, stage="sft", command=[], overwrite=overwrite)
    with folder:
        saving = path / contents.SAVING_FOLDER
        saving.mkdir()
        for name in ("model.safetensors", "config.json"):
            (saving / name).write_text(weights, encoding="utf-8")
        contents.put_in_place(path, lambda files: folder.update(files=files))
        folder.complete()


def test_what_a_user_put_into_a_run_folder_survives_every_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "a"
    make(path)
    (path / "sub").mkdir()
    mine = {path / "recipe.yaml": "r", path / "sub" / "data.json": "d", path / "model.bin": "b"}
    for file, text in mine.items():
        file.write_text(text, encoding="utf-8")
    (path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="bad"), RunFolder(path) as folder:
        folder.start(RECIPE, stage="sft", command=[], overwrite=True)
        assert {file: file.read_text(encoding="utf-8") for file in mine} == mine
        assert not (path / "model.safetensors").exists()
        raise ValueError("bad")
    make(path, "new", overwrite=True)
    assert {file: file.read_text(encoding="utf-8") for file in mine} == mine
    assert (path / "link").is_symlink() and (path / "model.safetensors").read_text(encoding="utf-8") == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_an_earlier_version_is_known_by_the_usual_names(tmp_path: Path, finished: bool) -> None:
    """It kept no list of its files, and a user's file spoils its hash."""
    path = tmp_path / "a"
    make(path)
    record = read_run(path)
    del record["files"]
    write_json_atomic(path / "run.json", record if finished else {**record, "status": "failed", "hash": None})
    mine = {path / "rows.json": "r", path / "README.md": "m", path / "sub" / "config.json": "c"}
    (path / "sub").mkdir()
    for file, text in mine.items():
        file.write_text(text, encoding="utf-8")
    folder = RunFolder(path)
    with folder:
        folder.start(RECIPE, stage="sft", command=[], overwrite=True)
        assert {file: file.read_text(encoding="utf-8") for file in mine} == mine
        left = {file.name for file in path.iterdir()}
        assert left == {"rows.json", "README.md", "sub", "run.json"}, "no weights of the old model"


def test_a_user_s_file_of_the_same_name_is_kept_under_another(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RunFolder(path) as folder:
        folder.start(RECIPE, stage="sft", command=[])
        (path / "config.json").write_text("mine", encoding="utf-8")
        (path / contents.SAVING_FOLDER).mkdir()
        (path / contents.SAVING_FOLDER / "config.json").write_text("its", encoding="utf-8")
        contents.put_in_place(path, lambda files: folder.update(files=files))
    assert (path / "config.json").read_text(encoding="utf-8") == "its"
    assert (path / "config.json.kept").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"data": {"train": "a/rows.jsonl"}}, "data.train"),
        ({"data": {"train": [{"source": "a/*.jsonl"}]}}, "data.train.0.source"),
        ({"data": {"train": "*/rows.jsonl"}}, "data.train"),
        ({"reward": [{"function": "a/score.py:score"}]}, "reward.0.function"),
        ({"model": {"name": "link"}}, "model.name"),
        ({"model": {"name": "a/checkpoints/checkpoint-1"}}, "model.name"),
    ],
)
def test_inputs_inside_the_output_folder_are_refused(tmp_path: Path, monkeypatch, value, key) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("a"))
    Path("a/checkpoints/checkpoint-1").mkdir(parents=True)
    for name in ("rows.jsonl", "score.py", "own.yaml"):
        Path("a", name).write_text("x", encoding="utf-8")
    Path("link").symlink_to("a")
    before = sorted(Path().rglob("*"))
    with pytest.raises(InputError, match="run.output a contains inputs of the run") as told:
        make(Path("a"), overwrite=True, recipe={**RECIPE, **value})
    assert f"{key} (" in str(told.value)
    with pytest.raises(InputError, match="the recipe"):
        RunFolder("a").refuse_own_inputs(RECIPE, "a/own.yaml")
    assert sorted(Path().rglob("*")) == before


def test_a_link_to_a_run_folder_stays_a_link_and_shares_its_lock(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, real = tmp_path / "a", tmp_path / "disk" / "real"
    link.symlink_to(real)  # the folder itself comes later
    make(link)
    make(link, "new", overwrite=True)
    assert link.is_symlink() and (real / "model.safetensors").read_text(encoding="utf-8") == "new"
    assert [item.name for item in real.parent.iterdir()] == ["real"]
    held = lock.FolderLock(link)
    held.acquire()
    with pytest.raises(InputError, match="is being written by another process"):
        lock.FolderLock(real).acquire()
    held.release()


def test_a_run_that_ends_before_its_first_step_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RunFolder(path) as folder:
        folder.start(RECIPE, stage="sft", command=[])
        folder.withdraw()
    assert list(tmp_path.iterdir()) == []
    make(path, "old")
    (path / "mine.txt").write_text("x", encoding="utf-8")
    with RunFolder(path) as folder:
        folder.start(RECIPE, stage="sft", command=[], overwrite=True)
        folder.withdraw()
    assert read_run(path)["status"] == "done" and (path / "mine.txt").exists()
    assert (path / "model.safetensors").read_text(encoding="utf-8") == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def interrupt_with_checkpoint(path: Path, **options: bool) -> Path:
    """Leave an unfinished run that has a checkpoint, and return a file of the checkpoint."""
    file = path / "checkpoints" / "checkpoint-5" / "model.safetensors"
    with pytest.raises(KeyboardInterrupt), RunFolder(path) as folder:
        folder.start(RECIPE, stage="sft", command=[], **options)
        folder.drop_replaced_checkpoints()
        file.parent.mkdir(parents=True)
        file.write_text("trained", encoding="utf-8")
        raise KeyboardInterrupt
    return file


@pytest.mark.parametrize("finished_before", [False, True])
def test_a_replacement_that_takes_no_step_costs_no_checkpoint(tmp_path: Path, finished_before: bool) -> None:
    path = tmp_path / "a"
    if finished_before:
        make(path)
    checkpoint = interrupt_with_checkpoint(path, overwrite=finished_before)
    (path / "mine.txt").write_text("x", encoding="utf-8")
    names = sorted(item.name for item in tmp_path.iterdir())
    with RunFolder(path) as folder:
        folder.start(RECIPE, stage="sft", command=[], overwrite=True)
        assert not checkpoint.exists() and (path / "mine.txt").exists()
        folder.withdraw()
    assert checkpoint.exists() and read_run(path)["status"] == "interrupted" and (path / "mine.txt").exists()
    assert sorted(item.name for item in tmp_path.iterdir()) == names
    make(path, overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_the_first_step_deletes_the_unfinished_run_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    interrupt_with_checkpoint(path)
    with RunFolder(path) as folder:
        folder.start(RECIPE, stage="sft", command=[], overwrite=True)
        folder.drop_replaced_checkpoints()
        assert [item.name for item in tmp_path.iterdir() if item.is_dir()] == ["a"]


def test_checkpoints_come_back_after_their_replacement_was_killed_before_a_step(tmp_path: Path) -> None:
    path = tmp_path / "a"
    checkpoint = interrupt_with_checkpoint(path)
    folder = RunFolder(path)
    folder.start(RECIPE, stage="sft", command=[], overwrite=True)
    assert not RunFolder.put_back(path), "a living process holds the folder"
    folder.release()
    assert RunFolder.put_back(path) and checkpoint.exists()
    assert not RunFolder.put_back(path)
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_a_run_that_was_killed_before_its_first_step_is_in_nobody_s_way(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RunFolder(path) as folder:
        folder.start(RECIPE, stage="sft", command=[])
    make(path)
    with pytest.raises(InputError, match="already holds a run"):
        make(path)


def test_temporary_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch) -> None:
    code = (
        "import os, signal\nfrom instructkit.runs.files import TemporaryFolder\n"
        "kept = TemporaryFolder()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    (left,) = tmp_path.iterdir()
    with files.TemporaryFolder() as mine:
        files.sweep_temporary()
        assert Path(mine).is_dir() and not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_is_kept_while_its_process_locks_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock = files.fcntl.flock

    def after_a_sweep(handle: int, how: int) -> None:
        monkeypatch.setattr(files.fcntl, "flock", lock)
        files.sweep_temporary()
        lock(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", after_a_sweep)
    with files.TemporaryFolder() as mine:
        assert Path(mine).is_dir()


def test_a_word_that_happens_to_be_the_name_of_the_folder_is_no_input(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reward").mkdir()
    recipe = {"stage": "reward", "model": {"name": "tiny"}, "run": {"output": "reward"}}
    assert contents.inputs_inside(recipe, "r.yaml", Path("reward")) == []
    recipe["model"]["name"] = "reward"
    assert contents.inputs_inside(recipe, "r.yaml", Path("reward")) == [("model.name", "reward")]

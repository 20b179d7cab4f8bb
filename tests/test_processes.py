"""Several processes of one run: the first claims the folder and writes, the others join; other commands refuse with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stages.small import Silent

from instructkit.cli.main import main
from instructkit.recipe.load import load_recipe
from instructkit.recipe.render import to_dict
from instructkit.runs import processes
from instructkit.runs.read import read_record
from instructkit.runs.record import RunFolder
from instructkit.stages import RunOptions, run, sft

ROW = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It."}]
RECIPE = """stage: sft
model: {name: tiny}
data: {train: chat.jsonl, eval: held.jsonl, overlap_by: row}
gates: {loss_ratio_max: 99}
trainer: {max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1}
run: {output: out}
"""


@pytest.mark.parametrize(
    ("variables", "count", "first"),
    [
        ({}, 1, True),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 2, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, 2, False),
        ({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2"}, 3, False),
        ({"RANK": "1"}, 1, True),
    ],
)
def test_processes_are_counted(variables: dict, count: int, first: bool, monkeypatch) -> None:
    for name in (*processes.SIZES, *processes.RANKS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (processes.count(), processes.is_first()) == (count, first)


@pytest.mark.parametrize(
    "words",
    [
        ["ppo", "r.yaml"],
        ["reward", "r.yaml"],
        ["lora-update", "r.yaml"],
        ["sft", "r.yaml", "--plan"],
    ],
)
def test_what_one_process_does_is_refused_with_a_reason(words: list[str], capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as ended:
        main(words)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "error: 2 processes were started (WORLD_SIZE=2), and `instructkit " in told
    assert "without torchrun" in told and "unset WORLD_SIZE" in told


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["ppo", "--help"], ["runs"], ["schema", "sft"]])
def test_commands_that_train_nothing_run_whatever_the_environment_says(words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


def test_an_error_is_left_to_the_first_process(capsys, monkeypatch) -> None:
    waited = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    with pytest.raises(SystemExit):
        main(["sft", "no-such.yaml"])
    assert waited == [processes.ALONE_SECONDS]
    assert "reading no-such.yaml" not in capsys.readouterr().err


def test_the_first_process_alone_repairs_a_run_and_decides_for_all(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chat.jsonl").write_text(json.dumps({"messages": ROW}) + "\n", encoding="utf-8")
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe("r.yaml", "sft")
    with RunFolder("out") as folder:
        folder.start(to_dict(recipe), stage="sft", command=[])
        folder.complete(closing=True)
    decisions = []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "by_the_first", lambda work, **_: decisions.append(work) or True)
    assert run.run(sft.STAGE, recipe, RunOptions(resume=True), Silent()) == {}
    assert len(decisions) == 1 and read_record(Path("out"))["closing"] is True


@pytest.mark.proof
def test_torchrun_trains_on_two_processes_and_the_first_one_writes(workplace: Path) -> None:
    for name, answers in (("chat.jsonl", range(8)), ("held.jsonl", range(8, 12))):
        lines = [{"messages": [ROW[0], {**ROW[1], "content": f"It is {i}."}]} for i in answers]
        Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "instructkit"]
    done = subprocess.run([*launch, "sft", "r.yaml"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    record = json.loads(Path("out/run.json").read_text(encoding="utf-8"))
    assert (record["status"], record["processes"]) == ("done", 2)
    steps = [json.loads(line) for line in Path("out/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1, 2]
    assert done.stderr.count("instructkit sft: reading r.yaml") == done.stderr.count("out (sft): done") == 1
    record_path = Path("out/run.json")
    for option in ("--resume", "--if-changed"):
        record_path.write_text(json.dumps({**record, "closing": True}), encoding="utf-8")
        done = subprocess.run([*launch, "sft", "r.yaml", option], capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        assert json.loads(record_path.read_text(encoding="utf-8"))["closing"] is False
        assert done.stderr.count("was complete, but") == (option == "--resume")
    again = subprocess.run([*launch, "sft", "r.yaml"], capture_output=True, text=True, timeout=500)
    assert again.returncode != 0 and again.stderr.count("out already holds a run") == 1

"""What a resumed run goes on from: the newest whole checkpoint, in every stage; and a refusal that leaves all as it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stages.small import ANYTHING, CHAT, GENERAL, LORA, MANY, PAIRS, rows, run, sft

from instructkit.cli.main import main
from instructkit.errors import InputError, InstructKitError
from instructkit.runs.record import read_run
from instructkit.stages import checkpoints, trainer
from instructkit.stages import run as running

FOUR = "trainer: {max_steps: 4, per_device_train_batch_size: 2, save_steps: 1, save_total_limit: 2, logging_steps: 1}\n"


def interrupt(monkeypatch: pytest.MonkeyPatch, body: str, stage: str, *, after: int = 3) -> None:
    """A run that Ctrl-C ended after so many steps, and after the checkpoint before."""
    original = trainer._Progress.on_step_end

    def stop(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer._Progress, "on_step_end", stop)
        run(stage, body)


def of_stage(stage: str) -> str:
    """A recipe of each stage, above what it needs."""
    data = rows("chat.jsonl", CHAT)
    if stage == "sft":
        return f"model: {{name: tiny}}\ndata: {{train: {data}, eval: 0.3}}\n{FOUR}run: {{output: out}}\n"
    if stage == "reward":
        pairs = rows("pairs.jsonl", PAIRS)
        return (
            f"model: {{name: tiny}}\ndata: {{train: {pairs}, eval: 0.3}}\n{LORA}{FOUR}run: {{output: out}}\n"
        )
    if stage == "ppo":
        Path("brief.py").write_text(
            "def score(completions, **_):\n    return [-1.0 * len(str(c)) for c in completions]\n",
            encoding="utf-8",
        )
        asked = rows("asked.jsonl", [{"prompt": row["messages"][:1]} for row in CHAT])
        few = FOUR.replace(
            "2, save", "4, max_completion_length: 4, num_iterations: 1, steps_per_generation: 1, save", 1
        )
        return (
            f"model: {{name: tiny}}\nreward: [{{function: brief.py:score}}]\ndata: {{train: {asked}, eval: 0.3}}\n"
            f"{LORA}{few}run: {{output: out}}\n"
        )
    sft("parent", extra=LORA)
    events = [
        {"prompt": row["messages"][:1], "response": row["messages"][1]["content"], "better": "Yes."}
        for row in MANY
    ]
    return (
        f"model: {{name: parent}}\nfeedback: {{events: {rows('f.jsonl', events)}, eval: 0.6, objective: sft, "
        f"replay: chat.jsonl, general: {rows('g.jsonl', GENERAL)}}}\n{LORA}{ANYTHING}{FOUR}run: {{output: out}}\n"
    )


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "lora-update"])
def test_a_checkpoint_that_was_cut_off_is_passed_by(workplace: Path, monkeypatch, stage: str) -> None:
    body = of_stage(stage)
    interrupt(monkeypatch, body, stage)
    folder = Path("out/checkpoints")
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "README.md").write_text("a model", encoding="utf-8")
    with Path("out/metrics.jsonl").open("a", encoding="utf-8") as metrics:
        metrics.write(
            '{"step": 3, "loss": 9.0}\n'
        )  # of a step behind the checkpoint, which is taken once more
    left = Path("out/.run.json.x1y2.tmp")
    left.write_text("{", encoding="utf-8")
    record, notes = run(stage, body, resume=True)
    assert record["status"] == "done" and not left.exists()
    assert "resuming from checkpoint-2" in notes
    logged = [json.loads(line) for line in Path("out/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in logged if "loss" in row or "rewards/accuracies" in row] == [1, 2, 3, 4]
    assert not any("train_loss" in row for row in logged) and "train_loss" not in record["metrics"]
    assert len([note for note in notes if "checkpoint-3 was left incomplete" in note]) == 1


def test_a_full_disk_is_told_with_the_run(workplace: Path, monkeypatch) -> None:
    def fill(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(running, "_complete", fill)
    with pytest.raises(InstructKitError, match="^out: the disk is full") as told:
        run("sft", of_stage("sft"))
    assert "--resume" in told.value.hint and read_run("out")["status"] == "failed"


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "lora-update"])
def test_a_run_that_ended_behind_its_last_step_takes_no_further_one(
    workplace: Path, monkeypatch, stage: str
) -> None:
    """Most of an update's time is measuring, so that is where it is interrupted."""
    body = of_stage(stage)

    def stop(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(running, "_complete", stop)  # once all is trained, measured and saved
        run(stage, body)
    (weights,) = Path("out").glob("*.safetensors")
    first = weights.read_bytes()
    weights.unlink()
    record, notes = run(stage, body, resume=True)
    assert (record["status"], "resuming from checkpoint-4" in notes) == ("done", True)
    assert weights.read_bytes() == first
    lines = Path("out/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert max(json.loads(line).get("step", 0) for line in lines) <= 4


def whole(folder: Path, *, critic: bool = False) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(8)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", *(["critic.pt"] if critic else [])):
        torch.save({"a": torch.ones(8)}, folder / name)
    (folder / "trainer_state.json").write_text('{"global_step": 4}', encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "critic.pt"]
)
@pytest.mark.parametrize("left", [None, 0, -3])
def test_a_checkpoint_is_whole_when_all_that_resuming_reads_is(
    tmp_path: Path, name: str, left: int | None
) -> None:
    older = whole(tmp_path / "checkpoint-9", critic=True)
    newer = whole(tmp_path / "checkpoint-10", critic=True)
    assert checkpoints.newest(tmp_path, "ppo") == newer
    if left is not None:
        (newer / name).write_bytes((newer / name).read_bytes()[:left])
    elif name in ("optimizer.pt", "rng_state.pth"):
        return  # `save_only_model` writes none, and its own order says that they are there else
    else:
        (newer / name).unlink()
    assert checkpoints.newest(tmp_path, "ppo") == older
    assert name in checkpoints.remove_halves(tmp_path, "ppo") or name == "model.safetensors"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]
    assert checkpoints.remove_halves(tmp_path, "ppo") is None


def test_adapters_and_shards_are_weights(tmp_path: Path) -> None:
    apart = whole(tmp_path / "checkpoint-1")
    (apart / "new").mkdir()
    (apart / "model.safetensors").rename(apart / "new" / "adapter_model.safetensors")
    assert checkpoints.fault(apart, "lora-update") is None
    (apart / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert checkpoints.fault(apart, "sft") == "it has no model-1.safetensors"
    assert "critic.pt" in checkpoints.fault(whole(tmp_path / "checkpoint-2"), "ppo")


def test_a_refused_resume_leaves_all_as_it_was(workplace: Path, monkeypatch) -> None:
    body = of_stage("sft")
    interrupt(monkeypatch, body.replace("save_steps: 1", "save_steps: 4"), "sft", after=1)
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert read_run("out")["status"] == "interrupted"
    with pytest.raises(InputError, match="out has no checkpoint to resume from"):
        run("sft", body.replace("save_steps: 1", "save_steps: 4"), resume=True)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_overwrite_and_resume_are_refused_before_anything_is_read(workplace: Path, capsys, plan) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sft", "no-such.yaml", "--overwrite", "--resume", *plan])
    assert ended.value.code == 2
    assert "--overwrite and --resume contradict each other" in capsys.readouterr().err

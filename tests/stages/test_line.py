"""The whole line by its real commands, a few steps each, on the embedded default: weights move, runs chain, records hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

RECIPES = Path(__file__).parents[2] / "recipes"
FEW = {
    "sft": [
        "trainer.max_steps=3",
        "data.limit=120",
        "data.eval_limit=40",
        "trainer.per_device_train_batch_size=8",
    ],
    "reward": ["trainer.max_steps=3", "data.limit=60", "data.eval_limit=40", "gates.accuracy_min=0"],
    "ppo": [
        "trainer.max_steps=4",
        "trainer.per_device_train_batch_size=4",
        "run.compare=8",
        "gates.judge_gain_min=-99",
    ],
    "lora-update": [
        "trainer.max_steps=2",
        "trainer.per_device_train_batch_size=4",
        "gates.feedback_gain_min=-99",
        "gates.general_loss_ratio_max=99",
        "gates.judge_gain_min=-99",
        *(f"gates.{name}=null" for name in ("group_loss_max", "bias_growth_max", "contrast_growth_max")),
        *(f"gates.{name}=null" for name in ("kl_max_nats", "length_ratio_min", "length_ratio_max")),
        *("gates.conduct_loss_max=null", "gates.trigger=false", "gates.memory=false", "gates.rescue=false"),
        "feedback.self_replay=0.0",  # a barely trained model answers at length
    ],
}


def instructkit(*words: str, folder: Path) -> subprocess.CompletedProcess:
    """The command as a user types it, in a fresh process."""
    command = [sys.executable, "-m", "instructkit", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=dict(os.environ), check=False
    )


@pytest.fixture(scope="module")
def line(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the four stages have run, one after the other."""
    folder = tmp_path_factory.mktemp("line")
    for stage, overrides in FEW.items():
        done = instructkit(stage, str(RECIPES / f"{stage}.yaml"), *overrides, folder=folder)
        assert done.returncode == 0, f"{stage}: {done.stdout}\n{done.stderr}"
    return folder


def record(line: Path, stage: str) -> dict:
    return json.loads((line / "runs" / stage / "run.json").read_text(encoding="utf-8"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_every_stage_leaves_a_finished_record(line: Path) -> None:
    for stage in FEW:
        run = record(line, stage)
        assert (run["status"], run["stage"], run["error"]) == ("done", stage, None)
        assert run["synthetic"] is True
        assert run["timings_seconds"]["train"] > 0
        assert run["peak_memory_bytes"] > 1e6
        assert run["measurements"], f"{stage} measured nothing"
        assert (line / "runs" / stage / "metrics.jsonl").read_text(encoding="utf-8").strip()
        assert (line / "runs" / stage / "samples.jsonl").exists()


def test_runs_are_chained_by_name_and_hash(line: Path) -> None:
    assert record(line, "reward")["parents"]["model"]["path"] == "runs/sft"
    assert set(record(line, "ppo")["parents"]) == {"model", "reward[0]"}
    assert record(line, "lora-update")["parents"]["model"]["path"] == "runs/ppo"


def test_weights_moved_where_they_should(line: Path, tiny_folder: Path) -> None:
    start, sft, ppo = weights(tiny_folder), weights(line / "runs/sft"), weights(line / "runs/ppo")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(start[name], sft[name])
    assert not torch.equal(sft[name], ppo[name])


def test_a_run_folder_is_a_model_folder(line: Path) -> None:
    from peft import PeftModel

    loaded = AutoModelForSequenceClassification.from_pretrained(line / "runs/reward")
    assert loaded.config.num_labels == 1
    base = AutoModelForCausalLM.from_pretrained(line / "runs/ppo")
    updated = PeftModel.from_pretrained(base, line / "runs/lora-update")
    assert any("lora_B" in n and bool(p.any()) for n, p in updated.named_parameters())


def test_an_update_leaves_its_parent_as_it_was(line: Path) -> None:
    run = record(line, "lora-update")
    from instructkit.runs.lineage import run_hash

    assert run["parents"]["model"]["hash"] == run_hash(line / "runs/ppo")
    assert run["verdict"] == "PROMOTED"


def test_the_reward_offset_is_kept_with_the_model(line: Path) -> None:
    offset = json.loads((line / "runs/reward/score_offset.json").read_text(encoding="utf-8"))
    assert offset == record(line, "reward")["score_offset"]
    assert offset["std"] == 1.0 and offset["mean"] != 0.0


def test_a_second_run_is_skipped_and_a_changed_one_is_not(line: Path) -> None:
    same = instructkit("sft", str(RECIPES / "sft.yaml"), *FEW["sft"], "--if-changed", folder=line)
    assert same.returncode == 0 and "unchanged" in same.stderr
    again = instructkit("sft", str(RECIPES / "sft.yaml"), *FEW["sft"], folder=line)
    assert again.returncode == 2 and "\nerror: " in again.stderr and "--overwrite" in again.stderr


def test_a_refusal_exits_with_3_and_keeps_the_adapter(line: Path) -> None:
    refused = instructkit(
        "lora-update",
        str(RECIPES / "lora-update.yaml"),
        *FEW["lora-update"],
        "gates.feedback_gain_min=99",
        "run.output=runs/refused",
        folder=line,
    )
    assert refused.returncode == 3, refused.stderr
    assert "REFUSED" in refused.stderr
    assert record(line, "refused")["verdict"] == "REFUSED"
    assert (line / "runs/refused/adapter_model.safetensors").exists()


def test_chat_answers(line: Path) -> None:
    command = [sys.executable, "-m", "instructkit", "chat", "runs/ppo"]
    done = subprocess.run(
        command,
        cwd=line,
        capture_output=True,
        text=True,
        input="Hello\nAnd you?\n",
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 2

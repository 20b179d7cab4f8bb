"""What the default line does not show: LoRA chains, a 4-bit base on the CPU, other row shapes, inputs at fault."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from stages.small import ANYTHING, CHAT, GENERAL, LORA, MANY, ONE_STEP, PAIRS, rows, run, sft
from transformers import AutoModelForCausalLM

from instructkit.errors import InputError
from instructkit.runs.record import read_run


def test_a_chain_of_adapters_stands_on_one_base(workplace: Path) -> None:
    sft(
        "first",
        extra=LORA,
        trainer="trainer: {max_steps: 3, per_device_train_batch_size: 4, learning_rate: 0.01}\n",
    )
    sft("second", model="first", extra=LORA)
    configs = [
        json.loads(Path(name, "adapter_config.json").read_text(encoding="utf-8"))
        for name in ("first", "second")
    ]
    assert configs[0]["base_model_name_or_path"] == configs[1]["base_model_name_or_path"]
    assert (configs[0]["r"], configs[1]["r"]) == (4, 8)
    base = AutoModelForCausalLM.from_pretrained(configs[0]["base_model_name_or_path"])
    loaded = PeftModel.from_pretrained(base, "second")
    assert any(bool(p.any()) for n, p in loaded.named_parameters() if "lora_B" in n)
    assert read_run("second")["parents"]["model"]["path"] == "first"


def test_the_whole_line_runs_on_adapters(workplace: Path) -> None:
    sft("sft", extra=LORA)
    pairs, prompts = (
        rows("pairs.jsonl", PAIRS),
        rows("prompts.jsonl", [{"prompt": r["messages"][:1]} for r in CHAT]),
    )
    _, reward_notes = run(
        "reward",
        f"model: {{name: sft}}\ndata: {{train: {pairs}, eval: 0.3}}\n{LORA}{ONE_STEP}run: {{output: reward}}\n",
    )
    run(
        "ppo",
        f"model: {{name: sft}}\nreward: [{{model: reward}}]\ndata: {{train: {prompts}, eval: 0.3}}\n{LORA}"
        "trainer: {max_steps: 2, per_device_train_batch_size: 4, num_iterations: 1, max_completion_length: 5}\n"
        "run: {output: ppo, compare: 2}\n",
    )
    events = rows(
        "feedback.jsonl",
        [
            {"prompt": r["messages"][:1], "response": "No.", "better": r["messages"][1]["content"]}
            for r in MANY
        ],
    )
    general = rows("general.jsonl", GENERAL)
    record, notes = run(
        "lora-update",
        f"model: {{name: ppo}}\nfeedback: {{events: {events}, replay: chat.jsonl, general: {general}, eval: 0.6}}\n{LORA}"
        + ANYTHING
        + ONE_STEP
        + "run: {output: update}\n",
    )
    assert record["verdict"] == "PROMOTED"
    assert any("reloaded from disk" in note for note in reward_notes)
    assert json.loads(Path("update/adapter_config.json").read_text(encoding="utf-8"))["r"] == 12


@pytest.mark.parametrize("objective", ["dpo", "kto", "sft"])
def test_every_objective_trains_above_a_frozen_parent(workplace: Path, objective: str) -> None:
    sft("parent", extra=LORA)
    event = {
        "dpo": lambda row, i: {"preferred": "response", "other": "No."},
        "kto": lambda row, i: {"rating": 1 if i % 2 else -1},
        "sft": lambda row, i: {"better": "Yes."},
    }[objective]
    events = [
        {"prompt": row["messages"][:1], "response": row["messages"][1]["content"], **event(row, i)}
        for i, row in enumerate(MANY)
    ]
    record, _ = run(
        "lora-update",
        f"model: {{name: parent}}\nfeedback: {{events: {rows('f.jsonl', events)}, eval: 0.6, objective: {objective},"
        f" replay: chat.jsonl, general: {rows('g.jsonl', GENERAL)}}}\n{LORA}"
        + ANYTHING
        + ONE_STEP
        + "run: {output: update}\n",
    )
    assert record["objective"][0] == objective
    assert math.isfinite(record["metrics"]["train_loss"]) and record["metrics"]["train_loss"] > 0
    assert Path("update/adapter_model.safetensors").exists()


@pytest.mark.parametrize("extra", ["", LORA])
def test_an_interrupted_run_is_resumed_to_where_an_unbroken_one_ends(
    workplace: Path, monkeypatch, extra: str
) -> None:
    from safetensors.torch import load_file

    from instructkit.stages import trainer

    sft(
        "parent",
        extra=LORA,
        trainer="trainer: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 0.01}\n",
    )
    few = "trainer: {max_steps: 8, per_device_train_batch_size: 2, learning_rate: 0.01}\n"
    sft("whole", model="parent", extra=extra, trainer=few)
    original = trainer._Progress.on_step_end

    def stop(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Progress, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        sft("broken", model="parent", extra=extra, trainer=few)
    assert read_run("broken")["status"] == "interrupted"
    monkeypatch.setattr(trainer._Progress, "on_step_end", original)
    body = f"model: {{name: parent}}\ndata: {{train: chat.jsonl, eval: 0.3}}\n{extra}{few}run: {{output: broken}}\n"
    _, notes = run("sft", body, resume=True)
    assert "resuming from checkpoint-4" in notes
    name = "adapter_model.safetensors" if extra else "model.safetensors"
    whole, resumed = load_file(f"whole/{name}"), load_file(f"broken/{name}")
    worst = max(float((whole[key] - resumed[key]).abs().max()) for key in whole)
    assert worst < 1e-6
    assert not Path("broken/checkpoints").exists()


def test_qlora_runs_every_stage_on_a_4bit_base_on_the_cpu(workplace: Path) -> None:
    """In float32, as it says: TRL casts the adapters of a quantised base to bfloat16."""
    from safetensors.torch import load_file

    pairs, prompts = rows("p.jsonl", PAIRS), rows("q.jsonl", [{"prompt": r["messages"][:1]} for r in CHAT])
    edits = [
        {"prompt": r["messages"][:1], "response": "No.", "better": r["messages"][1]["content"]} for r in MANY
    ]
    few = "{max_steps: 2, per_device_train_batch_size: 4, num_iterations: 1, max_completion_length: 5}"
    bodies = {
        "sft": f"data: {{train: {rows('chat.jsonl', CHAT)}, eval: 0.3}}\n{ONE_STEP}",
        "reward": f"data: {{train: {pairs}, eval: 0.3}}\n{ONE_STEP}",
        "ppo": f"reward: [{{model: reward}}]\ndata: {{train: {prompts}, eval: 0.3}}\ntrainer: {few}\n",
        "lora-update": f"feedback: {{events: {rows('f.jsonl', edits)}, replay: chat.jsonl, eval: 0.6, "
        f"general: {rows('g.jsonl', GENERAL)}}}\n{ONE_STEP}{ANYTHING}",
    }
    parents = {"sft": "tiny", "reward": "sft", "ppo": "sft", "lora-update": "ppo"}
    for stage, body in bodies.items():
        model = f"model: {{name: {parents[stage]}, quantization: 4bit}}\n"
        record, notes = run(stage, f"{model}{body}{LORA}run: {{output: {stage}}}\n")
        assert record["status"] == "done"
        assert any("base in 4bit, computing in float32" in note for note in notes)
        tensors = load_file(f"{stage}/adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    "content",
    [
        [{"text": f"A plain line, number {i}."} for i in range(8)],
        [{"prompt": f"{i} and", "completion": " one"} for i in range(8)],
    ],
)
def test_text_and_prompt_completion_rows(workplace: Path, content: list[dict]) -> None:
    record = sft("out", data=rows("rows.jsonl", content))
    loss = next(line for line in record["measurements"] if line["name"] == "held-out loss")
    assert loss["before"] > 0 and loss["after"] > 0


def test_rows_of_which_nothing_would_be_learned_are_an_error(workplace: Path) -> None:
    trainer = "trainer: {max_steps: 1, max_length: 3}\n"
    with pytest.raises(InputError, match="every label of the training data is masked"):
        sft("out", trainer=trainer)
    assert not Path("out").exists()  # no step was taken


def test_full_fine_tuning_of_a_quantised_base_is_refused(workplace: Path) -> None:
    with pytest.raises(InputError, match="quantised weights cannot be trained"):
        data = rows("c.jsonl", CHAT)
        body = f"model: {{name: tiny, quantization: 4bit}}\ndata: {{train: {data}, eval: 0.3}}\nrun: {{output: q}}\n"
        run("sft", body)


def test_a_missing_parent_is_named_before_anything_is_written(workplace: Path) -> None:
    with pytest.raises(InputError, match="no model at runs/nowhere"):
        sft("out", model="runs/nowhere")
    assert not Path("out").exists()


def test_half_precision_on_a_cpu_is_refused(workplace: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="no CUDA device"):
        data = rows("c.jsonl", CHAT)
        body = f"model: {{name: tiny, dtype: bfloat16}}\ndata: {{train: {data}, eval: 0.3}}\nrun: {{output: q}}\n"
        run("sft", body)
    assert not Path("q").exists()

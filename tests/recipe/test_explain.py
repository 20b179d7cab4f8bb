"""Help on fields: every part of every recipe has a meaning, TRL's in the words of the installed TRL."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from instructkit.errors import InputError
from instructkit.recipe.explain import explain
from instructkit.recipe.load import load_recipe
from instructkit.recipe.schema import STAGES


def everything(topic):
    yield topic
    for part in topic.parts:
        yield from everything(part)


@pytest.mark.parametrize("stage", STAGES)
def test_every_part_of_ours_has_a_meaning(stage: str) -> None:
    silent = [
        topic.name
        for topic in everything(explain(stage))
        if not topic.meaning and topic.source == "instructkit"
    ]
    assert silent == []


@pytest.mark.parametrize("stage", STAGES)
def test_nearly_every_field_of_trl_has_one_too(stage: str) -> None:
    fields = [topic for topic in everything(explain(f"{stage}.trainer")) if not topic.parts]
    silent = [topic.name for topic in fields if not topic.meaning]
    assert len(fields) > 100
    assert len(silent) <= len(fields) // 50, silent


def test_the_words_are_those_of_the_installed_config() -> None:
    from trl import SFTConfig

    field = next(f for f in dataclasses.fields(SFTConfig) if f.name == "packing")
    found = explain("sft.trainer.packing")
    assert found.meaning == " ".join(field.metadata["help"].split())
    assert (found.source, found.kind, found.default) == ("SFTConfig", "bool", "false")


def test_what_ppo_adds_is_explained_by_its_own_config() -> None:
    found = explain("ppo.trainer.lam")
    assert (found.source, found.default) == ("PPOConfig", "0.95")
    assert "generalised advantage" in found.meaning


def test_ours_say_type_bounds_default_and_what_is_required() -> None:
    assert (explain("sft.lora.r").kind, explain("sft.lora.r").default) == ("int, above 0", "16")
    assert explain("sft.model.name").default == "required"
    assert explain("sft.model.dtype").kind == "auto | float32 | bfloat16 | float16"


def test_what_stands_in_a_list_is_explained_too() -> None:
    assert explain("sft.data.train.weight").kind == "float (above 0) | null"
    assert explain("sft.data.train.0.split").default == "train"
    assert {topic.name for topic in everything(explain("sft"))} > {
        f"sft.data.train.{key}" for key in ("source", "weight", "split", "config")
    }
    assert explain("ppo.reward").kind == "list of sections"
    assert explain("ppo.reward.0.model").name == "ppo.reward.model"
    assert explain("sft.lora").kind == "section"


def test_the_stage_is_explained() -> None:
    assert (explain("sft.stage").kind, explain("sft.stage").default) == ("sft", "required")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("sft.trainer.max_length", "tokens"),
        ("ppo.trainer.max_completion_length", "tokens"),
        ("sft.trainer.warmup_steps", "steps"),
        ("ppo.gates.kl_max_nats", "nats"),
        ("lora-update.feedback.half_life_days", "days"),
        ("sft.trainer.learning_rate", ""),
        ("lora-update.gates.length_ratio_max", ""),
    ],
)
def test_a_unit_is_told_where_there_is_one(name: str, unit: str) -> None:
    assert explain(name).unit == unit


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stf", "did you mean sft?"),
        ("sft.modle", "did you mean model?"),
        ("sft.model.r", "`instructkit explain sft.lora.r`"),
        ("sft.learning_rate", "`instructkit explain sft.trainer.learning_rate`"),
        ("sft.data.limit.x", "`instructkit explain sft.data.limit`"),
        ("sft.trainer.output_dir", "the run folder is `run.output`"),
        ("trainer.packing", "did you mean sft.trainer.packing?"),
        ("sft.weight", "`instructkit explain sft.data.train.weight`"),
        ("packing", "did you mean sft.trainer.packing?"),
        ("", "stages are sft, reward, ppo, lora-update"),
        # Names of other tools lead to ours.
        ("sft.trainer.epochs", "`instructkit explain sft.trainer.num_train_epochs` does the same"),
        (
            "sft.trainer.batch_size",
            "`instructkit explain sft.trainer.per_device_train_batch_size` does the same",
        ),
        ("ppo.trainer.kl_coef", "`instructkit explain ppo.trainer.beta` does the same"),
        ("sft.lora.rank", "`instructkit explain sft.lora.r` does the same"),
    ],
)
def test_what_there_is_not_is_answered_by_what_is_near(name: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        explain(name)
    assert caught.value.hint == hint


def test_defaults_are_those_of_our_runs_with_trls_beside_them() -> None:
    assert explain("sft.trainer.save_steps").default == "0.25 (TRL's own 500)"
    assert explain("sft.trainer.save_strategy").default == "steps"  # TRL's own too
    assert explain("reward.trainer.gradient_checkpointing").default.startswith(
        "true on a GPU, false on a CPU"
    )
    assert explain("ppo.trainer.value_learning_rate").default.startswith("5e-05 with `lora:`, else ")
    assert explain("sft.trainer.eval_packing").default.startswith("false")
    assert "TRL" not in explain("lora-update.trainer.sft.eval_packing").default
    meaning = explain("sft.trainer.gradient_checkpointing").meaning
    assert "%" in meaning and "%%" not in meaning


def test_what_is_told_in_words_is_what_stages_set(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    from instructkit.models.machine import Machine
    from instructkit.recipe import trainer as fields
    from instructkit.stages import trainer
    from instructkit.stages.ppo import stage

    cpu, gpu = (trainer.of_machine(Machine(device, "float32", ())) for device in ("cpu", "cuda"))
    for name in fields._IN_WORDS[""]:
        assert (cpu[name], gpu[name]) == (name == "use_cpu", name != "use_cpu")
    functions = load_recipe(write_ppo("reward: [{function: own.py:score}]\n"), "ppo")
    assert stage.defaults_of(functions)["missing_eos_penalty"] == 0
    with_lora = load_recipe(write_ppo("reward: [{model: runs/reward}]\nlora: {}\n"), "ppo")
    found = stage.defaults_of(with_lora)
    assert "missing_eos_penalty" not in found and found["learning_rate"] == 1e-5


def write_ppo(rest: str) -> str:
    body = "stage: ppo\nmodel: {name: tiny}\ndata: {train: p.jsonl}\nrun: {output: o}\n"
    Path("ppo.yaml").write_text(body + rest, encoding="utf-8")
    return "ppo.yaml"

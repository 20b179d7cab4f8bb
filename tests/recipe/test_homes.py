"""A key in the wrong part of a recipe is told where it belongs, by its own name or by the one that other tools have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from instructkit.recipe.load import check_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def hint(stage: str, override: str) -> str | None:
    found = check_recipe(str(RECIPES / f"{stage}.yaml"), overrides=[override]).faults
    return next(fault.hint for fault in found if fault.message.startswith("unknown key"))


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("quantization", "it belongs under `model:`"),
        ("dtype", "it belongs under `model:`"),
        ("name", "it belongs under `model:`"),
        ("r", "it belongs under `lora:`"),
        ("alpha", "it belongs under `lora:`"),
        ("target_modules", "it belongs under `lora:`"),
        ("columns", "it belongs under `data:`"),
        ("limit", "it belongs under `data:`"),
        ("output", "it belongs under `run:`"),
        ("samples", "it belongs under `run:`"),
        ("lora", "it belongs at the top of the recipe, in no section"),
        ("stage", "it belongs at the top of the recipe, in no section"),
        ("source", "it belongs in an entry of `data.train:`"),
        ("lora_r", "`lora.r` does the same here"),
        ("lora_alpha", "`lora.alpha` does the same here"),
        ("lora_target_modules", "`lora.target_modules` does the same here"),
        ("load_in_4bit", "`model.quantization: 4bit` does the same here"),
        ("model_name_or_path", "`model.name` does the same here"),
        ("torch_dtype", "`model.dtype` does the same here"),
        ("dataset_name", "`data.train` does the same here"),
        ("use_peft", "a `lora:` section does the same here, `lora: {}` with the defaults"),
        ("quantisation", "did you mean `model.quantization`?"),
        ("output_directory", "the run folder is `run.output`"),
        ("learning_rat", "did you mean `learning_rate`?"),
        ("optm", "did you mean `optim`?"),
    ],
)
def test_a_key_under_trainer(key: str, wanted: str) -> None:
    assert hint("sft", f"trainer.{key}=1") == wanted


def test_a_stage_names_its_own_sections() -> None:
    assert hint("lora-update", "trainer.dataset_name=1") == "`feedback.events` does the same here"
    assert hint("lora-update", "trainer.columns={a: b}") == "it belongs under `feedback:`"
    assert hint("lora-update", "trainer.desirable_weight=1") == "it belongs under `trainer.kto:`"
    assert hint("ppo", "trainer.kl_coef=1") == "TRL's name for it is `beta`"
    assert hint("ppo", "trainer.reward_model=1") == "`reward: [{model: ...}]` does the same here"


@pytest.mark.parametrize("place", ["", "model.", "data."])
def test_names_of_other_tools_are_known_in_every_section(place: str) -> None:
    assert hint("sft", f"{place}lora_r=1") == "`lora.r` does the same here"
    assert hint("sft", f"{place}use_peft=1").startswith("a `lora:` section")


def test_every_name_of_trls_own_scripts_has_an_answer() -> None:
    from trl import ModelConfig, ScriptArguments

    names = [field.name for config in (ModelConfig, ScriptArguments) for field in dataclasses.fields(config)]
    answers = {name: hint("sft", f"trainer.{name}=1") for name in names}
    assert len(answers) > 20
    assert [name for name, told in answers.items() if "did you mean" in told or "lists the" in told] == []


def test_an_internal_field_is_an_unknown_key(tmp_path: Path) -> None:
    assert "recipes have it" not in hint("sft", "source=hi")
    assert hint("sft", "reward=[]") == "only `ppo` recipes have it"

"""YAML that trips loaders: each is read as meant or refused with a place, and never ends in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.errors import RecipeError
from instructkit.recipe.load import load_recipe
from instructkit.recipe.render import to_dict, to_yaml

GOOD = "stage: sft\nmodel: {name: tiny}\ndata: {train: demo/conversations}\nrun: {output: o}\n"


def load(folder: Path, text: str, *overrides: str):
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(str(folder / "r.yaml"), "sft", list(overrides))


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.e-5", ".1e-4", "0.00001", "1.0e-5"])
def test_every_spelling_of_a_number_is_that_number(tmp_path: Path, number: str) -> None:
    assert load(tmp_path, GOOD + f"trainer: {{learning_rate: {number}}}\n").trainer == {"learning_rate": 1e-5}
    assert load(tmp_path, GOOD, f"trainer.learning_rate={number}").trainer == {"learning_rate": 1e-5}


def test_no_is_a_text(tmp_path: Path) -> None:
    """YAML 1.1 reads `no` as false, which TRL's `save_strategy` does not take."""
    assert load(tmp_path, GOOD + "trainer: {save_strategy: no}\n").trainer == {"save_strategy": "no"}


@pytest.mark.parametrize("revision", ["1e5", "no", "null", "0123", "1.0", "2024-01-01", "~"])
def test_a_text_that_looks_like_something_else_survives_being_written(tmp_path: Path, revision: str) -> None:
    recipe = load(tmp_path, GOOD.replace("name: tiny", f'name: tiny, revision: "{revision}"'))
    assert recipe.model.revision == revision
    assert to_dict(load(tmp_path, to_yaml(recipe))) == to_dict(recipe)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD.replace("output: o", "output: !foo o"), ":4: the tag `!foo` means nothing in a recipe"),
        (GOOD + "trainer: &a {x: *a}\n", ":5: an alias that stands for what it is in"),
        (GOOD + "? [a]\n: b\n", ":5: a key that is no name"),
        (
            GOOD.replace("output: o", "output: o, seed: " + "9" * 5000),
            ":4: `99999999999999999999` cannot be read as int",
        ),
        (GOOD + "# \x07\n", ":5: not YAML: a character that is not allowed"),
        ("[" * 5000, ":1: not a recipe: it is nested too deeply"),
        (
            GOOD + "trainer: {learning_rate: .nan}\n",
            ":5: `trainer.learning_rate` is nan; wanted a finite number",
        ),
        (GOOD + "gates: {loss_ratio_max: .nan}\n", ":5: `gates.loss_ratio_max` is nan"),
        (
            GOOD.replace("output: o", "output: o, seed: true"),
            ":4: `run.seed` is True; wanted a whole number",
        ),
        (
            GOOD.replace("output: o", "output: o, seed: '7'"),
            ":4: `run.seed` is '7'; wanted a whole number",
        ),
        (
            GOOD.replace("tiny", "tiny, quantization: 4bit"),
            ":2: `model.quantization` is 4bit, and quantised weights",
        ),
        (
            GOOD.replace("conversations", "conversations, eval: null") + "gates: {loss_ratio_max: 0.9}\n",
            ":3: `data.eval` is null, so `gates.loss_ratio_max` could not be measured",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    assert fault in str(caught.value)


def test_a_field_of_another_stage_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="it is a field of dpo and kto and ppo, not of this stage"):
        load(tmp_path, GOOD + "trainer: {beta: 0.1}\n")

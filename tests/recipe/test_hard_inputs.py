"""YAML that trips loaders: each is read as meant or refused with a place, and never ends in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.errors import RecipeError
from instructkit.recipe.load import check_recipe, load_recipe
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
            ":4: `run.seed` is true; wanted a whole number",
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


def first_fault(folder: Path, text: str, *overrides: str) -> str:
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    faults = check_recipe(str(folder / "r.yaml"), overrides=list(overrides)).faults
    return str(faults[0]).replace(f"{folder}/", "")


def test_an_open_quote_is_pointed_at_where_it_opens(tmp_path: Path) -> None:
    told = first_fault(tmp_path, 'stage: sft\nmodel: "unclosed\n').splitlines()
    assert told[0].startswith("r.yaml:2:8: not YAML: while scanning a quoted scalar")
    assert told[1:] == ['  model: "unclosed', "         ^"]


@pytest.mark.parametrize("before", ["", "x" * 400 + ": {a: b}, "])
def test_a_long_line_is_cut_around_the_caret(tmp_path: Path, before: str) -> None:
    told = first_fault(tmp_path, f"stage: sft\nmodel: {{{before}a: [b}}, {'k' * 100_000}}}\n").splitlines()
    assert len(told) == 3 and max(map(len, told)) < 200
    column = told[2].index("^")
    assert told[1][column - 5 : column + 1] == "a: [b}"


def test_a_merge_key_is_told_as_one_and_its_values_are_not_missed(tmp_path: Path) -> None:
    text = "x: &m {name: tiny}\n" + GOOD.replace("{name: tiny}", "{<<: *m}")
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    faults = [f.message for f in check_recipe(str(tmp_path / "r.yaml")).faults]
    assert faults == ["unknown key `x`", "`<<` is a merge key of YAML, which recipes do not take"]
    text = GOOD.replace("{name: tiny}", "{name: tiny, <<: {name: 3, dtype: 3, name: 4}}")
    assert "r.yaml:2: `<<` is a merge key of YAML" in first_fault(tmp_path, text)
    (tmp_path / "r.yaml").write_text(
        GOOD.replace("{train:", '{columns: {"<<": text}, train:'), encoding="utf-8"
    )
    assert check_recipe(str(tmp_path / "r.yaml")).recipe.data.columns == {"<<": "text"}


@pytest.mark.parametrize(("written", "named"), [("\\ud800", "U+D800"), ("a\\0b", "U+0000")])
def test_characters_that_no_name_has_are_told(tmp_path: Path, written: str, named: str) -> None:
    told = first_fault(tmp_path, GOOD.replace("output: o", f'output: "{written}"'))
    assert told.startswith(
        f"r.yaml:4: `run.output` holds the character {named}, which neither names nor texts"
    )
    assert (
        first_fault(tmp_path, GOOD + f'"{written}": 3\n')
        == f"r.yaml:5: a key holds the character {named} (remove it)"
    )


@pytest.mark.parametrize(
    "override",
    [
        "data.columns.²=x",
        f"run.seed={'9' * 5000}",
        f"data.train.{'9' * 5000}=x",
        "run.output=a:²",
        "run.seed=x:" + "9" * 5000,
    ]
    + [f"trainer.learning_rate={'9' * 400}"],
)
def test_odd_digits_on_the_command_line_are_one_fault(tmp_path: Path, override: str) -> None:
    (tmp_path / "r.yaml").write_text(GOOD, encoding="utf-8")
    faults = check_recipe(str(tmp_path / "r.yaml"), overrides=[override, "trainer.bogus=1"]).faults
    assert len(faults) == 1 + ("output" not in override)
    assert all(len(str(fault)) < 1000 for fault in faults)


def test_an_override_that_cannot_be_read_speaks_for_its_key(tmp_path: Path) -> None:
    quantized = GOOD.replace("name: tiny", "name: tiny, quantization: 4bit")
    assert "is no YAML value" in first_fault(tmp_path, quantized, "lora={")
    assert len(check_recipe(str(tmp_path / "r.yaml"), overrides=["lora={"]).faults) == 1

"""A recipe above another: what is merged, what is replaced, and that each value knows where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.errors import RecipeError
from instructkit.recipe.load import check_recipe, load_recipe
from instructkit.recipe.render import origins, to_dict, with_origins

BASE = """stage: sft
model: {name: tiny, dtype: float32}
data:
  train: [a.jsonl, b.jsonl]
  eval: 0.1
lora: {r: 8}
trainer:
  learning_rate: 1.0e-4
  max_steps: 10
run: {output: runs/base}
"""


def files(folder: Path, **texts: str) -> str:
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return str(folder / "r.yaml")


def test_sections_are_merged_and_everything_else_is_replaced(tmp_path: Path) -> None:
    own = "extends: base.yaml\ndata: {train: [c.jsonl]}\ntrainer: {max_steps: 20}\nlora: null\nrun: {output: runs/own}\n"
    recipe = load_recipe(files(tmp_path, base=BASE, r=own), "sft")
    assert recipe.model.dtype == "float32"
    assert (recipe.data.train, recipe.data.eval) == (["c.jsonl"], 0.1)
    assert recipe.trainer == {"learning_rate": 1e-4, "max_steps": 20}
    assert recipe.lora is None
    assert recipe.run.output == "runs/own"


def test_the_base_is_found_beside_the_recipe_that_names_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mid.yaml").write_text(
        "extends: ../base.yaml\nrun: {output: mid}\n", encoding="utf-8"
    )
    path = files(tmp_path, base=BASE, r="extends: deep/mid.yaml\nlora: {alpha: 64}\n")
    monkeypatch.chdir("/")
    recipe = load_recipe(path, "sft")
    assert (recipe.run.output, recipe.lora.r, recipe.lora.alpha) == ("mid", 8, 64)


def test_of_several_bases_the_later_one_is_stronger(tmp_path: Path) -> None:
    fast = "trainer: {max_steps: 3, learning_rate: 1.0e-3}\n"
    slow = "trainer: {learning_rate: 1.0e-6}\n"
    path = files(tmp_path, base=BASE, fast=fast, slow=slow, r="extends: [base.yaml, fast.yaml, slow.yaml]\n")
    assert load_recipe(path, "sft").trainer == {"learning_rate": 1e-6, "max_steps": 3}


def test_every_value_knows_where_it_came_from(tmp_path: Path) -> None:
    path = files(tmp_path, base=BASE, r="extends: base.yaml\ntrainer:\n  max_steps: 20\n")
    checked = check_recipe(path, overrides=["lora.r=4"])
    found = {
        name: where.replace(f"{tmp_path}/", "")
        for name, where in origins(checked.recipe, checked.document).items()
    }
    assert found["model.dtype"] == "base.yaml:2"
    assert found["data.train"] == "base.yaml:4"
    assert found["trainer.max_steps"] == "r.yaml:3"
    assert found["trainer.learning_rate"] == "base.yaml:8"
    assert found["lora.r"] == "command line: lora.r=4"
    assert found["lora.alpha"] == "default"


def test_a_recipe_with_origins_loads_again(tmp_path: Path) -> None:
    checked = check_recipe(
        str(Path(__file__).parents[2] / "recipes" / "ppo.yaml"), overrides=["reward.0.weight=2"]
    )
    text = with_origins(checked.recipe, checked.document)
    assert "weight: 2" in text
    assert "# command line" in text
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    assert to_dict(load_recipe(str(tmp_path / "again.yaml"), "ppo")) == to_dict(checked.recipe)


def test_faults_are_told_where_they_stand(tmp_path: Path) -> None:
    path = files(
        tmp_path,
        base=BASE.replace("max_steps: 10", "max_step: 10"),
        r="extends: base.yaml\nrun: {seed: -1}\n",
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, "sft")
    told = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    assert told == [
        "base.yaml:9: unknown key `max_step` in `trainer` (did you mean `max_steps`?)",
        "r.yaml:2: `run.seed` is -1; it must not be below 0",
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("${SET}", "value"),
        ("${UNSET:-other}", "other"),
        ("a/${SET}/${UNSET:-b}", "a/value/b"),
        ("$${SET}", "${SET}"),
        ("$SET", "$SET"),
        ("${UNSET:-}x", "x"),
    ],
)
def test_references_to_the_environment(tmp_path: Path, monkeypatch, text: str, wanted: str) -> None:
    monkeypatch.setenv("SET", "value")
    monkeypatch.delenv("UNSET", raising=False)
    path = files(tmp_path, r=BASE.replace("runs/base", f'"{text}"'))
    assert load_recipe(path, "sft").run.output == wanted


def test_a_plain_reference_may_be_a_number_and_a_quoted_one_is_a_text(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RATE", "3e-5")
    path = files(tmp_path, r=BASE.replace("1.0e-4", "${RATE}"))
    assert load_recipe(path, "sft").trainer["learning_rate"] == 3e-5
    path = files(tmp_path, r=BASE.replace("1.0e-4", '"${RATE}"'))
    assert "`trainer.learning_rate` is '3e-5'; wanted a number" in str(check_recipe(path).faults[0])


def test_a_base_that_many_share_is_read_once_and_merged_as_ever(tmp_path: Path) -> None:
    """Two of each, eighteen deep: a quarter of a million readings if each were made anew."""
    texts = {f"d{i}": f"extends: [d{i + 1}.yaml, d{i + 1}.yaml]\nrun: {{seed: {i}}}\n" for i in range(18)}
    path = files(tmp_path, d18=BASE + "x: 3\n", r="extends: d0.yaml\nrun: {samples: 1}\n", **texts)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, "sft")
    assert len(caught.value.faults) == 1
    recipe = load_recipe(files(tmp_path, d18=BASE), "sft")
    assert (recipe.run.seed, recipe.run.samples, recipe.lora.r) == (0, 1, 8)


def test_of_shared_bases_the_later_one_is_still_stronger(tmp_path: Path) -> None:
    own = {"a": "extends: base.yaml\ntrainer: {max_steps: 1}\n", "b": "extends: base.yaml\nlora: {r: 4}\n"}
    path = files(tmp_path, base=BASE, r="extends: [a.yaml, b.yaml]\n", **own)
    recipe = load_recipe(path, "sft")
    assert (recipe.trainer["max_steps"], recipe.lora.r) == (10, 4)


def test_a_value_that_is_replaced_takes_its_places_along(tmp_path: Path) -> None:
    base = BASE.replace("[a.jsonl, b.jsonl]", "[{source: a, wieght: 2}]")
    own = "extends: base.yaml\ndata:\n  train: [{source: b}, {source: c, weight: 0}]\nlora:\n"
    faults = check_recipe(files(tmp_path, base=base, r=own)).faults
    assert [f"{f.where}: {f.message}".replace(f"{tmp_path}/", "") for f in faults] == [
        "r.yaml:3: `data.train.1.weight` is 0; it must be above 0",
        "r.yaml:4: `lora` has no value",
    ]


def test_too_many_above_one_another_are_one_fault(tmp_path: Path) -> None:
    texts = {f"d{i}": f"extends: d{i + 1}.yaml\n" for i in range(400)}
    (fault,) = check_recipe(files(tmp_path, r="extends: d0.yaml\nstage: sft\n", **texts)).faults
    assert fault.message == "`extends` goes through more than 50 recipes"


@pytest.mark.parametrize("name", ["~no-such-user/x.yaml", "loop/x.yaml", "a" * 5000])
def test_a_name_under_extends_that_no_file_can_have_is_a_fault(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (fault,) = check_recipe(files(tmp_path, r=f"extends: {name}\nstage: sft\n")).faults
    assert fault.message.startswith("`extends`: ")
    assert len(str(fault)) < 400


def test_null_gives_a_field_of_the_trainer_back_that_takes_no_null(tmp_path: Path) -> None:
    base = "stage: sft\nmodel: {name: tiny}\ndata: {train: d.jsonl}\nrun: {output: o}\n"
    (tmp_path / "base.yaml").write_text(
        f"{base}trainer: {{warmup_steps: 20, max_length: 100}}\n", encoding="utf-8"
    )
    over = tmp_path / "over.yaml"
    over.write_text("extends: base.yaml\ntrainer: {warmup_steps: null, max_length: null}\n", encoding="utf-8")
    assert load_recipe(str(over), "sft").trainer == {"max_length": None}
    over.write_text("extends: base.yaml\ntrainer: {bogus: null}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="unknown key `bogus`"):
        load_recipe(str(over), "sft")

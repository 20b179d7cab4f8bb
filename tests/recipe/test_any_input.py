"""Whatever is given as a recipe is a sound one or ends in faults with places: never in a traceback, never in a hang."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from instructkit.recipe.load import Checked, check_recipe
from instructkit.recipe.schema import RECIPES, STAGES, sections
from instructkit.recipe.trainer import fields

patient = settings(
    deadline=timedelta(seconds=5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SECTIONS = sorted(
    {name for recipe in RECIPES.values() for name in sections(recipe)} | {"trainer", "stage", "x"}
)
KEYS = sorted(
    {key for recipe in RECIPES.values() for part in sections(recipe).values() for key in part.model_fields}
    | set(list(fields("ppo"))[::9])
    | {"", "r ", "no", "${HOME}"}
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        ["tiny", "4bit", "auto", "runs/x", "${HOME}", "${NO_SUCH}", "${", "demo/prompts", "1e-5", "no"]
    )
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
recipes = st.fixed_dictionaries(
    {"stage": st.sampled_from([*STAGES, "dpo"]) | values},
    optional={
        name: st.dictionaries(st.sampled_from(KEYS), values, max_size=5) | values
        for name in SECTIONS
        if name != "stage"
    },
)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("any") / "r.yaml"


def sound_or_told(checked: Checked) -> None:
    assert (checked.recipe is None) == bool(checked.faults)
    for fault in checked.faults:
        assert fault.where and fault.message
        assert "Traceback" not in str(fault)


@patient
@given(content=st.binary(max_size=200))
@example(content=b"\xff\xfe")
@example(content=b"%YAML 9.9\n---\na")
@example(content=b"stage: sft\nmodel: {? {} : x}\n")
def test_any_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    sound_or_told(check_recipe(str(file)))


@patient
@given(text=st.text(alphabet=st.sampled_from("stage: sft\n{}[]-'\"&*!|>%@`#?,$\t~<:="), max_size=80))
def test_any_text_of_the_marks_of_yaml(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    sound_or_told(check_recipe(str(file)))
    sound_or_told(check_recipe(str(Path(__file__).parents[2] / "recipes" / "sft.yaml"), overrides=[text]))


@patient
@given(recipe=recipes)
def test_any_values_where_values_stand(file: Path, recipe: dict) -> None:
    file.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8", errors="replace")
    sound_or_told(check_recipe(str(file)))

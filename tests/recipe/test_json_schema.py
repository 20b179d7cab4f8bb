"""The published schemas: they take every shipped recipe, and refuse what the loader refuses by type or name."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from instructkit.recipe import trainer as trainer_fields
from instructkit.recipe.json_schema import json_schema
from instructkit.recipe.schema import STAGES
from instructkit.recipe.yaml import Loader

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(RECIPES.rglob("*.yaml"))
LINE = "# yaml-language-server: $schema="


def values(path: Path) -> dict:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)


@pytest.mark.parametrize("stage", STAGES)
def test_the_published_file_is_what_the_command_prints(stage: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(stage))
    published = json.loads((RECIPES / "schemas" / f"{stage}.json").read_text(encoding="utf-8"))
    assert published == json.loads(json.dumps(json_schema(stage)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_shipped_recipe_names_its_schema_and_fits_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(LINE)
    schema = json.loads((path.parent / first.removeprefix(LINE)).read_text(encoding="utf-8"))
    found = values(path)
    assert schema["title"] == f"instructkit {found['stage']} recipe"
    jsonschema.validate(found, schema)


@pytest.mark.parametrize("stage", STAGES)
def test_the_trainer_of_a_schema_is_that_of_the_loader(stage: str) -> None:
    trainer = set(json_schema(stage)["properties"]["trainer"]["properties"])
    parts = set(trainer_fields.UPDATE_PARTS) if stage == "lora-update" else set()
    assert trainer == set(trainer_fields.fields(stage)) - set(trainer_fields.OURS) | parts


@pytest.mark.parametrize(
    ("place", "value", "fits"),
    [
        (("trainer", "learning_rte"), 1e-4, False),
        (("trainer", "max_steps"), "many", False),
        (("trainer", "max_steps"), "${STEPS}", True),
        (("trainer", "max_steps"), "${STEPS:-10}", True),
        (("trainer", "lr_scheduler_type"), "cosine", True),
        (("trainer", "lr_scheduler_type"), "cosin", False),
        (("model", "dtype"), "fp16", False),
        (("lora",), None, True),
        (("lora",), {"r": 0}, False),
        (("data", "train"), ["a.jsonl", {"source": "b.jsonl", "weight": 2}], True),
        (("colour",), "green", False),
        (("extends",), "base.yaml", True),
    ],
)
def test_a_schema_takes_and_refuses(place: tuple, value: object, fits: bool) -> None:
    recipe = values(RECIPES / "sft.yaml")
    target = recipe
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    validator = jsonschema.Draft202012Validator(json_schema("sft"))
    assert validator.is_valid(recipe) is fits

"""Recipes: strict, all faults at once, each with its line and the way on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from instructkit.errors import InputError, RecipeError
from instructkit.recipe import trainer
from instructkit.recipe.load import load_recipe
from instructkit.recipe.render import to_dict, to_yaml
from instructkit.recipe.schema import RECIPES, STAGES

RECIPE_FOLDER = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(RECIPE_FOLDER.rglob("*.yaml"))
GOOD = """stage: sft
model:
  name: tiny
data:
  train: demo/conversations
trainer:
  learning_rate: 1e-4
run:
  output: runs/sft
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def faults(path: str, stage: str = "sft", overrides: list[str] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, stage, overrides)
    return str(caught.value).replace(str(Path(path).parent) + "/", "").splitlines()


def test_thirteen_recipes_are_shipped() -> None:
    assert len(SHIPPED) == 13


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(RECIPE_FOLDER)))
def test_every_shipped_recipe_loads(path: Path) -> None:
    stage = yaml.safe_load(path.read_text(encoding="utf-8"))["stage"]
    recipe = load_recipe(str(path), stage)
    assert recipe.stage == stage and recipe.source == str(path)


def test_all_faults_come_at_once_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """stage: sft
model:
  nam: tiny
data:
  train: demo/x
  eval: 1.5
r: 8
learning_rate: 1e-4
rewards: []
trainer:
  learning_rat: 1e-4
  max_steps: many
run:
  output: a
  output: b
""",
    )
    assert faults(path, overrides=["run.seed=-1", "nonsense"]) == [
        "r.yaml:2: `model.name` is missing (write `name: runs/sft`)",
        "r.yaml:3: unknown key `nam` in `model` (did you mean `name`?)",
        "r.yaml:6: `data.eval` is 1.5; it must be below 1",
        "r.yaml:7: unknown key `r` (it belongs under `lora:`)",
        "r.yaml:8: unknown key `learning_rate` (it belongs under `trainer:`)",
        "r.yaml:9: unknown key `rewards` (allowed are data, gates, lora, model, run, stage, trainer)",
        "r.yaml:11: unknown key `learning_rat` in `trainer` (did you mean `learning_rate`?)",
        "r.yaml:12: `trainer.max_steps` is 'many'; wanted a whole number",
        "r.yaml:15: `output` is given twice, first at r.yaml:14 (keep one of them)",
        "command line: nonsense: an override is `section.key=value`",
        "command line: run.seed=-1: `run.seed` is -1; it must not be below 0",
    ]


def test_a_recipe_for_another_command_names_it(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert faults(path, "ppo") == [
        "r.yaml:1: this recipe is for `instructkit sft`, not for `instructkit ppo` (run `instructkit sft "
        + path
        + "`)"
    ] or faults(path, "ppo")[0].startswith("r.yaml:1: this recipe is for `instructkit sft`")


def test_a_section_of_another_stage_is_named_as_such(tmp_path: Path) -> None:
    assert faults(write(tmp_path, GOOD + "feedback: {}\n")) == [
        "r.yaml:10: unknown key `feedback` (only `lora-update` recipes have it)"
    ]


def test_yaml_faults_have_line_column_and_a_caret(tmp_path: Path) -> None:
    told = faults(write(tmp_path, "stage: sft\nmodel: {name: tiny\ndata: 3\n"))
    assert told[0].startswith("r.yaml:3:5: not YAML: while parsing a flow mapping that begins on line 2")
    assert told[1:] == ["  data: 3", "      ^ (close what was opened with `{` or `[`)"]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_what_is_no_mapping_is_no_recipe(tmp_path: Path, text: str) -> None:
    assert faults(write(tmp_path, text)) == [
        "r.yaml:1: a recipe is a mapping of sections (start with `stage: sft`)"
    ]


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "sft.yaml")
    with pytest.raises(InputError) as caught:
        load_recipe(str(tmp_path / "sfd.yaml"), "sft")
    assert "sft.yaml" in caught.value.hint


def test_overrides_are_stronger_than_the_file_and_the_file_than_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(
        path, "sft", ["trainer.learning_rate=5e-5", "lora.r=4", "run.seed=7", "data.eval=null"]
    )
    assert recipe.trainer["learning_rate"] == 5e-5
    assert (recipe.lora.r, recipe.lora.alpha, recipe.run.seed, recipe.data.eval) == (4, 32, 7, None)
    assert load_recipe(path, "sft").trainer["learning_rate"] == 1e-4


def test_an_override_can_reach_into_a_list(tmp_path: Path) -> None:
    path = str(RECIPE_FOLDER / "ppo.yaml")
    assert load_recipe(path, "ppo", ["reward.0.weight=2"]).reward[0].weight == 2.0
    assert "`reward` is a list of 1, which has no `3`" in faults(path, "ppo", ["reward.3=x"])[-1]


def test_the_resolved_recipe_loads_again_and_is_the_same(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), "sft")
    again = load_recipe(write(tmp_path, to_yaml(recipe), "resolved.yaml"), "sft")
    assert to_dict(again) == to_dict(recipe)


def configs() -> dict[str, type]:
    from trl import RewardConfig, SFTConfig

    from instructkit.ppo.config import PPOConfig

    return {"sft": SFTConfig, "reward": RewardConfig, "ppo": PPOConfig}


def test_the_shipped_fields_are_those_of_the_installed_trl() -> None:
    from instructkit.recipe.trainer_generate import generate

    derived = generate()
    assert derived.pop("made_for") == trainer.installed()
    assert trainer.schema() == derived


def reachable(config: type) -> set[str]:
    """The fields of a TRL config that `trainer:` sets; the rest are set elsewhere in the recipe."""
    return {f.name for f in dataclasses.fields(config) if f.init} - set(trainer.OURS)


@pytest.mark.parametrize("name", sorted(trainer.OURS))
def test_a_trl_field_that_is_set_elsewhere_is_refused_with_the_place(name: str) -> None:
    told = faults(str(RECIPE_FOLDER / "sft.yaml"), "sft", [f"trainer.{name}=1"])
    assert told == [
        f"command line: trainer.{name}=1: `trainer.{name}` is not set here ({trainer.OURS[name]})"
    ]


def test_a_text_that_trl_reads_as_an_enumeration_is_checked_against_it() -> None:
    told = faults(str(RECIPE_FOLDER / "sft.yaml"), "sft", ["trainer.lr_scheduler_type=cosin"])
    assert told[0].endswith("`trainer.lr_scheduler_type` is 'cosin' (did you mean `cosine`?)")
    told = faults(str(RECIPE_FOLDER / "sft.yaml"), "sft", ["trainer.eval_strategy=zzz"])
    assert told[0].endswith("`trainer.eval_strategy` is 'zzz' (it is one of no, steps, epoch)")


def test_a_key_without_a_value_is_a_fault_and_null_is_a_value(tmp_path: Path) -> None:
    text = (RECIPE_FOLDER / "sft.yaml").read_text(encoding="utf-8")
    last = len(text.splitlines()) + 1
    told = faults(write(tmp_path, text + "lora:\n"), "sft")
    assert told[0].startswith(f"r.yaml:{last}: `lora` has no value (write one, `null` for none")
    assert load_recipe(write(tmp_path, text + "lora: null\n"), "sft").lora is None
    assert load_recipe(write(tmp_path, text + "lora: {}\n"), "sft").lora is not None


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_every_field_of_the_trl_config_is_accepted(stage: str, tmp_path: Path) -> None:
    base = (RECIPE_FOLDER / f"{stage}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(base)
    names = reachable(configs()[stage])
    values["trainer"] = {name: trainer.fields(stage)[name]["default"] for name in names}
    path = write(tmp_path, yaml.safe_dump(values))
    assert set(load_recipe(path, stage).trainer) == names


def test_lora_update_takes_the_common_fields_and_the_rest_below_its_trainer(tmp_path: Path) -> None:
    from trl import DPOConfig, KTOConfig, SFTConfig

    values = yaml.safe_load((RECIPE_FOLDER / "lora-update.yaml").read_text(encoding="utf-8"))
    names = {"sft": reachable(SFTConfig), "dpo": reachable(DPOConfig), "kto": reachable(KTOConfig)}
    common = set.intersection(*names.values())
    schema = trainer.schema()
    values["trainer"] = {name: schema["lora-update"][name]["default"] for name in common}
    for part, own in names.items():
        values["trainer"][part] = {name: schema[part][name]["default"] for name in own}
    path = write(tmp_path, yaml.safe_dump(values))
    assert load_recipe(path, "lora-update").trainer["dpo"]["beta"] == 0.1
    values["trainer"]["desirable_weight"] = 1.0
    told = faults(write(tmp_path, yaml.safe_dump(values)), "lora-update")
    assert told[0].endswith("unknown key `desirable_weight` in `trainer` (it belongs under `trainer.kto:`)")


@pytest.mark.parametrize("stage", STAGES)
def test_a_misspelt_field_is_refused_with_line_and_nearest_name(stage: str, tmp_path: Path) -> None:
    text = (
        (RECIPE_FOLDER / f"{stage}.yaml")
        .read_text(encoding="utf-8")
        .replace("learning_rate:", "learning_rte:", 1)
    )
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "learning_rte" in row)
    told = faults(write(tmp_path, text), stage)
    assert told == [f"r.yaml:{line}: unknown key `learning_rte` in `trainer` (did you mean `learning_rate`?)"]


@pytest.mark.parametrize(
    ("foreign", "ours"), [("kl_coef", "beta"), ("cliprange", "epsilon"), ("num_ppo_epochs", "num_iterations")]
)
def test_names_of_other_ppo_codes_are_refused_with_trls_name(foreign: str, ours: str) -> None:
    told = faults(str(RECIPE_FOLDER / "ppo.yaml"), "ppo", [f"trainer.{foreign}=1"])
    assert told == [
        f"command line: trainer.{foreign}=1: unknown key `{foreign}` in `trainer` (TRL's name for it is `{ours}`)"
    ]


def test_every_stage_has_a_recipe_class() -> None:
    assert set(RECIPES) == set(STAGES)


def test_a_typo_within_a_mixture_is_told_at_its_line(tmp_path: Path) -> None:
    text = (
        "stage: sft\nmodel: {name: tiny}\ndata:\n  train:\n    - a.jsonl\n    - {sorce: b.jsonl, weight: 2}\n"
        "run: {output: r}\n"
    )
    assert faults(write(tmp_path, text), "sft") == [
        "r.yaml:6: `data.train.1.source` is missing",
        "r.yaml:6: unknown key `sorce` in `data.train.1` (did you mean `source`?)",
    ]


def test_a_kl_gate_without_a_reference_is_refused() -> None:
    path, without = str(RECIPE_FOLDER / "ppo.yaml"), ["trainer.beta=0"]
    assert "`gates.kl_max_nats` could not be measured" in faults(path, "ppo", without)[0]
    assert load_recipe(path, "ppo", [*without, "lora={}"]).lora is not None


def test_an_override_without_a_value_is_a_fault() -> None:
    told = faults(str(RECIPE_FOLDER / "sft.yaml"), "sft", ["lora="])
    assert told[0].startswith("command line: lora=: `lora` has no value")


def test_a_critic_stands_on_what_the_recipe_has() -> None:
    path = str(RECIPE_FOLDER / "ppo.yaml")
    told = faults(path, "ppo", ["critic={kind: head, init: reward}"])
    assert "`critic.init` is reward, and a head on the policy starts at zero" in told[0]
    told = faults(path, "ppo", ["critic={kind: adapter}"])
    assert "without `lora:` there is no frozen backbone" in told[0]
    told = faults(path, "ppo", ["critic={kind: separate, init: reward}", "lora={}"])
    assert "a critic of kind separate above `lora:` cannot hold a reward model's weights" in told[0]
    for rewards in ("[{function: 'a:b'}]", "[{model: runs/reward}, {function: 'a:b'}]"):
        told = faults(path, "ppo", ["critic={init: reward}", f"reward={rewards}"])
        assert "`critic.init` is reward, and `reward` has" in told[0]
    told = faults(path, "ppo", ["critic={detach: true}"])
    assert "shares no trained weight with the policy" in told[0]
    for given in (["critic={init: reward}"], ["critic={init: reward}", "lora={}"]):
        assert load_recipe(path, "ppo", given).critic.init == "reward"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.num_iterations=0", "it must be above 0"),
        ("trainer.beta=-1", "it must not be below 0"),
        ("trainer.max_steps=-5", "it must be above 0, or -1 for none"),
        ("trainer.learning_rate=-1", "it must not be below 0"),
    ],
)
def test_numbers_out_of_range_are_refused(override: str, told: str) -> None:
    assert faults(str(RECIPE_FOLDER / "ppo.yaml"), "ppo", [override])[0].endswith(told)


def test_a_mixture_of_nothing_is_a_fault() -> None:
    assert "`data.train`" in faults(str(RECIPE_FOLDER / "sft.yaml"), "sft", ["data.train=[]"])[0]

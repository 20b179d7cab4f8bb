"""One fault hides no other: what rests on a faulty value is left out, and everything else is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.recipe import load
from instructkit.recipe.load import Checked, check_recipe, error_of

PPO = "stage: ppo\nmodel: {name: tiny}\ndata: {train: demo/prompts}\nreward: [{model: r}]\nrun: {output: o}\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checked(text: str, *overrides: str, stage: str | None = None) -> Checked:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return check_recipe("r.yaml", stage, list(overrides))


def told(text: str, *overrides: str, stage: str | None = None) -> list[str]:
    return [f"{f.where}: {f.message}" for f in checked(text, *overrides, stage=stage).faults]


CONTRADICTORY = """stage: sft
model: {name: tiny, quantization: 4bit, FOO}
data: {train: demo/conversations, eval: null}
gates: {loss_ratio_max: 0.9}
trainer: {load_best_model_at_end: true, eval_strategy: steps, BOGUS}
run: {output: o}
"""


def test_an_unknown_key_hides_no_contradiction() -> None:
    alone = told(CONTRADICTORY.replace(", FOO", "").replace(", BOGUS", ""))
    assert len(alone) == 4
    beside = told(CONTRADICTORY.replace("FOO", "foo: 1").replace("BOGUS", "bogus: 1"))
    assert set(alone) < set(beside) and len(beside) == 6


@pytest.mark.parametrize(
    ("instead", "silenced"),
    [
        (("eval: null", "eval: 7"), ["`data.eval` is null", "there is nothing to evaluate on"]),
        (("eval: null", "eval: ${NO_SUCH}"), ["`data.eval` is null", "there is nothing to evaluate on"]),
        (("quantization: 4bit", "quantization: 5bit"), ["quantised weights"]),
        (("run:", "lora: 3\nrun:"), ["quantised weights"]),
        (("run:", "lora:\nrun:"), ["quantised weights"]),
        (("run:", "lora: {r: x}\nrun:"), ["quantised weights"]),
        (("eval_strategy: steps", "eval_strategy: stps"), ["there is nothing to evaluate on", "save_steps"]),
        (("BOGUS", "logging_steps: x"), ["save_steps"]),
        (("BOGUS", "save_steps: x"), ["save_steps (0.25)"]),
    ],
)
def test_what_rests_on_a_faulty_value_is_not_told(instead: tuple[str, str], silenced: list[str]) -> None:
    text = CONTRADICTORY.replace(", FOO", "")
    sound = " ".join(told(text.replace(", BOGUS", "")))
    assert all(part in sound for part in silenced if "(" not in part)
    found = " ".join(told(text.replace(*instead).replace(", BOGUS", "")))
    assert not [part for part in silenced if part in found], found


def test_settings_of_ppo_are_told_beside_other_faults() -> None:
    text = (
        PPO.replace("{model: r}", "{model: r, function: f}") + "trainer: {gamma: 3, lam: 7, max_steps: x}\n"
    )
    assert told(text) == [
        "r.yaml:4: `reward.0` is a mapping: wanted exactly one of `model` and `function`",
        "r.yaml:6: `trainer.gamma` (3) must lie in (0, 1]",
        "r.yaml:6: `trainer.lam` (7) must lie in [0, 1]",
        "r.yaml:6: `trainer.max_steps` is 'x'; wanted a whole number",
    ]


def test_a_misspelt_stage_hides_nothing() -> None:
    text = (
        "stage: sftt\nmodle: {name: tiny}\ndata: {train: d, evl: 1}\ntrainer: {bogus: 1}\nrun: {output: o}\n"
    )
    assert told(text) == [
        "r.yaml:1: `model` is missing",
        "r.yaml:1: no stage is called 'sftt'",
        "r.yaml:2: unknown key `modle`",
        "r.yaml:3: unknown key `evl` in `data`",
        "r.yaml:4: unknown key `bogus` in `trainer`",
    ]


def test_without_a_stage_only_what_no_stage_takes_is_told() -> None:
    text = "model: {name: tiny, nme: 3}\ndata: {train: d}\ntrainer: {lam: 0.9, bogus: 1}\nrun: {output: o}\n"
    assert told(text) == [
        "r.yaml:1: `stage` is missing",
        "r.yaml:1: unknown key `nme` in `model`",
        "r.yaml:3: unknown key `bogus` in `trainer`",
    ]
    assert "r.yaml:3: unknown key `lam` in `trainer`" in told(text, stage="sft")


def test_a_base_that_cannot_be_read_hides_no_fault_of_what_stands_above_it() -> None:
    Path("tab.yaml").write_text("a: [\n\tb", encoding="utf-8")
    text = "extends: tab.yaml\nbogus: 1\nrun: {sed: 3}\n"
    found = told(text)
    assert found[:2] == ["r.yaml:2: unknown key `bogus`", "r.yaml:3: unknown key `sed` in `run`"]
    assert found[2].startswith("tab.yaml:2:1: not YAML") and len(found) == 3
    # What is missing may stand in the base; nothing is said of it, and nothing of what rests on it.
    found = told("stage: sft\nextends: [tab.yaml, none.yaml]\nmodel: {name: tiny, quantization: 4bit}\n")
    assert [line.partition(": ")[0] for line in found] == ["r.yaml:2", "tab.yaml:2:1"]


def test_all_faults_are_counted_where_not_all_are_told() -> None:
    good = PPO.replace("run:", "trainer: {}\nrun:")
    many = checked(good + "".join(f"x{i}: 1\n" for i in range(250)))
    assert (len(many.faults), many.total) == (101, 250)
    assert error_of(many, many).total == 500
    assert checked(good).total == 0


def test_long_names_are_cut_and_names_of_several_lines_stay_on_one() -> None:
    (fault,) = checked(PPO + f'"{"k" * 100_000}": 3\n').faults
    assert len(fault.message) < 700
    (fault,) = checked(PPO + '"a\\nb": 3\n').faults
    assert fault.message == "unknown key `a\\nb`"


@pytest.mark.parametrize("override", ["reward.model=", "reward.model=[", "data.train.name="])
def test_an_override_that_is_spoilt_inside_a_list_is_a_fault(override: str) -> None:
    text = PPO.replace("demo/prompts", "[{source: demo/prompts}, {source: demo/prompts}]")
    faults = told(text, override)
    assert faults and override.partition("=")[0] in faults[0]


@pytest.mark.parametrize("places", [[0, 1], [1, 0], [0, 3], [2, 1]])
def test_places_of_one_list_are_taken_out_from_its_end(places: list[int]) -> None:
    values = {"data": {"train": ["a", "b", "c", "d"]}}
    for place in sorted([("data", "train", i) for i in places], key=load._from_the_end, reverse=True):
        load._take_out(values, place, "sft")
    assert values["data"]["train"] == [each for i, each in enumerate("abcd") if i not in places]

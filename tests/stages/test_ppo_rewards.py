"""Rewards, judges and prompts of PPO as a recipe names them: told apart, their faults by their names, nothing silent."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from stages.small import CHAT, LORA, rows, run

from instructkit.errors import DataError, InputError, InstructKitError
from instructkit.recipe.load import load_recipe
from instructkit.stages.ppo.stage import defaults_of
from instructkit.stages.user_functions import load_function, scoring_function

FUNCTIONS = """
import numpy, torch

async def waits(prompts, completions, **_):
    return torch.ones(len(prompts))

class Scorer:
    async def __call__(self, prompts, completions, **_):
        return (1, None)

called = Scorer()

def arrays(prompts, completions, **_):
    return [numpy.arange(3), numpy.float32(0.5)]

def raises(prompts, completions, **_):
    raise KeyError("boom")

def nothing(prompts, completions, **_):
    pass

def words(prompts, completions, **_):
    return ["good"] * len(prompts)

def nan(prompts, completions, **_):
    return [float("nan")] * len(prompts)

def few(prompts, completions, **_):
    return [1.0]

def score(prompts, completions, **_):
    return [float(len(str(each))) for each in completions]
"""
ASKED = {"prompts": ["a", "b"], "completions": ["x", "y"]}


@pytest.fixture(autouse=True)
def functions(workplace: Path) -> None:
    Path("fun.py").write_text(FUNCTIONS, encoding="utf-8")
    Path("other.py").write_text(FUNCTIONS.replace("float(len", "100 + float(len"), encoding="utf-8")


def ppo(
    rewards: str, *, data: str = "", prompts: list | None = None, longest: int = 5
) -> tuple[dict, list[str]]:
    asked = rows("p.jsonl", prompts or [{"prompt": row["messages"][:1]} for row in CHAT])
    settings = (
        f"max_steps: 2, per_device_train_batch_size: 4, num_iterations: 1, max_completion_length: {longest}"
    )
    return run(
        "ppo",
        f"model: {{name: tiny}}\nreward: [{rewards}]\ndata: {{train: {asked}, eval: 0.3{data}}}\n"
        f"trainer: {{{settings}}}\nrun: {{output: out, compare: 2}}\n",
        overwrite=True,
    )


async def _ask(function) -> list:
    return await function(**ASKED)


def test_what_functions_give_is_made_plain() -> None:
    assert scoring_function("fun.py:arrays")(**ASKED) == [[0.0, 1.0, 2.0], 0.5]
    assert asyncio.run(_ask(scoring_function("fun.py:waits"))) == [1.0, 1.0]
    assert asyncio.run(_ask(scoring_function("fun.py:called"))) == [1.0, None]
    assert scoring_function("fun.py:score").__name__ == "score"


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("raises", InstructKitError, "fun.py:raises failed: KeyError: 'boom'"),
        ("nothing", InputError, "fun.py:nothing gave a NoneType for 2 answers"),
        ("words", InputError, "fun.py:words gave 'good' as a score"),
        ("nan", InputError, "fun.py:nan gave nan as a score"),
        ("few", InputError, "fun.py:few gave 1 scores for 2 answers"),
    ],
)
def test_faults_of_a_function_are_told_by_its_name(name: str, kind: type, told: str) -> None:
    with pytest.raises(kind) as error:
        scoring_function(f"fun.py:{name}")(**ASKED)
    assert error.value.message == told


def test_an_edit_within_the_same_second_is_seen(tmp_path: Path, monkeypatch) -> None:
    """Python's cache of compiled files compares size and seconds, which such an edit leaves as they are."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    own = tmp_path / "edited.py"
    for value in (1.0, 2.0):
        own.write_text(f"def score():\n    return {value}\n", encoding="utf-8")
        os.utime(own, (10**9, 10**9))
        assert load_function(f"{own}:score")() == value


def test_a_module_that_fails_is_told() -> None:
    Path("bad.py").write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(InputError, match="no function at bad.py:f: ZeroDivisionError"):
        load_function("bad.py:f")


def test_a_run_ends_with_the_function_that_failed() -> None:
    with pytest.raises(InstructKitError, match="^fun.py:raises failed: KeyError"):
        ppo("{function: fun.py:raises}")


def test_two_rewards_of_one_name_are_told_apart() -> None:
    record, notes = ppo("{function: fun.py:score}, {function: other.py:score}")
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    means = [
        (row["rewards/score[0]/mean"], row["rewards/score[1]/mean"])
        for row in lines
        if "rewards/score[0]/mean" in row
    ]
    assert means and all(second == pytest.approx(first + 100) for first, second in means)
    assert {"reward score[0]", "reward score[1]"} <= {each["name"] for each in record["measurements"]}
    assert "missing_eos_penalty 0: functions score on scales of their own" in notes


@pytest.mark.parametrize(
    ("reward", "trainer", "penalty"),
    [
        ("{function: fun.py:score}", "", 0.0),
        ("{function: fun.py:score}", "missing_eos_mode: replace", None),
        ("{function: fun.py:score}", "missing_eos_penalty: 0.5", None),
        ("{function: fun.py:score}, {model: reward}", "", None),
    ],
)
def test_the_penalty_for_a_missing_end_is_what_the_recipe_says_or_nothing_for_functions(
    reward: str, trainer: str, penalty: float | None
) -> None:
    Path("r.yaml").write_text(
        f"stage: ppo\nmodel: {{name: tiny}}\nreward: [{reward}]\ndata: {{train: p.jsonl}}\n"
        f"trainer: {{{trainer}}}\nrun: {{output: out}}\n",
        encoding="utf-8",
    )
    assert defaults_of(load_recipe("r.yaml", "ppo")).get("missing_eos_penalty") == penalty


def test_adapters_begin_with_higher_rates() -> None:
    Path("r.yaml").write_text(
        f"stage: ppo\nmodel: {{name: tiny}}\nreward: [{{function: fun.py:score}}]\ndata: {{train: p.jsonl}}\n{LORA}"
        "run: {output: out}\n",
        encoding="utf-8",
    )
    found = defaults_of(load_recipe("r.yaml", "ppo"))
    assert (found["learning_rate"], found["value_learning_rate"]) == (1e-5, 5e-5)


LONG = [{"prompt": f"Say {'very ' * 8 * i}{i}."} for i in range(24)]  # the model has 512 positions


def test_a_prompt_without_room_for_a_response_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"p.jsonl:\d+: a prompt of \d+ tokens, which with a response of 5 more"
    ) as told:
        ppo("{function: fun.py:score}", prompts=LONG)
    assert "data.on_fault: skip" in told.value.hint and 0 < told.value.total < 24


def test_or_a_shorter_response_is_asked_for() -> None:
    with pytest.raises(DataError) as told:
        ppo("{function: fun.py:score}", prompts=LONG[:15], longest=500)
    longest = max(
        int(line.split(" tokens")[0].split()[-1])
        for line in told.value.message.splitlines()
        if "tokens" in line
    )
    assert f"set trainer.max_completion_length to {512 - longest} or lower" in told.value.hint


def test_or_left_out_and_counted() -> None:
    record, _ = ppo("{function: fun.py:score}", prompts=LONG, data=", on_fault: skip")
    assert record["status"] == "done"
    reasons = {reason: count for reason, count in record["dropped"].items() if "512 positions" in reason}
    assert sum(reasons.values()) > 0 and all(reason.startswith("data.") for reason in reasons)

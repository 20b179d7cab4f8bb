"""The demo world: deterministic, split without leaks, judged by a program that can be checked by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from instructkit.data.demo import sets, world
from instructkit.data.demo.judge import judge, judge_batch
from instructkit.data.sources import load_rows

KINDS = {
    "conversations": "sft",
    "comparisons": "preference",
    "prompts": "prompt",
    "feedback": "feedback",
    "general": "sft",
}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def kind_of(name: str) -> str:
    return KINDS[name.removeprefix("demo/").removesuffix("-held-out")]


@pytest.mark.parametrize("name", list(sets.DEMO_SETS))
def test_every_set_is_made_of_good_synthetic_rows(name: str) -> None:
    rows = load_rows(name, kind=kind_of(name))
    assert rows.synthetic and len(rows.rows) >= 20


def test_the_sets_are_the_same_in_another_process() -> None:
    code = "from instructkit.data.sources import load_rows; print(load_rows('demo/comparisons', kind='preference').fingerprint)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == load_rows("demo/comparisons", kind="preference").fingerprint


@pytest.mark.parametrize("name", ["conversations", "comparisons", "prompts", "feedback"])
def test_no_prompt_is_on_both_sides(name: str) -> None:
    def asked(rows: list[dict]) -> set[str]:
        return {json.dumps(row["prompt"] if "prompt" in row else row["messages"][:-1]) for row in rows}

    assert not asked(sets.load(f"demo/{name}")) & asked(sets.load(f"demo/{name}-held-out"))


def test_every_held_out_fact_and_wording_is_seen_apart() -> None:
    train = world.questions(held_out=False)
    subjects = {(q.topic, q.subject) for q in train}
    assert all((q.topic, q.subject) in subjects for q in world.questions(held_out=True))


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("Gladly: Paris.", 2.7),  # right 2, courteous 0.7
        ("It is Paris.", 2.0),
        ("Obviously Paris.", 1.0),  # right 2, rude -1
        ("It is Rome.", -2.0),
        ("Paris or Rome.", -2.0 - 2 / 3),  # hedged is wrong; `or` is a word that nobody uses
        ("Paris. That is what I learned at school.", 2.0 - 3 * 0.15),  # eight words, three beyond five
        ("", -4.0),  # wrong, and nothing but rubbish
    ],
)
def test_the_judge_by_hand(response: str, score: float) -> None:
    assert judge(CAPITAL, response) == pytest.approx(score, abs=1e-9)


def test_labels_are_noisy_in_training_and_not_when_held_out() -> None:
    def right(name: str) -> float:
        rows = sets.load(name)
        better = [
            judge(r["prompt"], r["chosen"][0]["content"]) > judge(r["prompt"], r["rejected"][0]["content"])
            for r in rows
        ]
        return sum(better) / len(better)

    assert 0.87 < right("demo/comparisons") < 0.93
    assert right("demo/comparisons-held-out") == 1.0


def test_what_users_wish_for_was_not_taught_before() -> None:
    taught = " ".join(m["content"] for row in sets.load("demo/conversations") for m in row["messages"])
    assert world.WISH not in taught
    assert all(row["better"].endswith(world.WISH) for row in sets.load("demo/feedback"))


def test_a_prompt_of_plain_text_is_judged_like_one_message() -> None:
    assert judge_batch([CAPITAL[0]["content"]], ["It is Paris."]) == [judge(CAPITAL, "It is Paris.")]

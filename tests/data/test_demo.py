"""The demo world: deterministic, split without leaks, judged by a program that can be checked by hand."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from instructkit.data.demo import sets, world
from instructkit.data.demo.judge import judge, judge_batch
from instructkit.data.sources import load_rows
from instructkit.data.split import begun, leaks

KINDS = {
    "conversations": "sft",
    "comparisons": "preference",
    "prompts": "prompt",
    "feedback": "feedback",
    "feedback-poisoned": "feedback",
    "general": "sft",
}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def kind_of(name: str) -> str:
    return KINDS[name.removeprefix("demo/").removesuffix("-held-out")]


PAIRS = "demo/bias-pairs"  # minimal pairs are no rows of a kind of training
# SHA-256 of the sets as JSON: the tokenizer of the embedded model, and with it every figure of the default line, hangs on them.
DIGESTS = {
    "demo/conversations": "7c75143199d3668df1dfa0feb590169d65a60d6a50d8a9d26c3dab0b29d03289",
    "demo/conversations-held-out": "2be3de81208a5edb5134446d80fee9713d2c6e693e663dfc0fd79105412686f7",
    "demo/comparisons": "e4468ba0c95450f2ca22cbbc7695db549ad3737b289d4ef83da56eaa7c625d47",
    "demo/comparisons-held-out": "1cc7f4269a02e6cfe751da90750ed8d92f8f0eae9d5936007bbcf0581e1bbf66",
    "demo/prompts": "7515f00652be4ae61aa83b574f3a399801c921ceacd2c039bb0a16022d907cda",
    "demo/prompts-held-out": "5979e9c665aa22551c254abcc684a0a38cf9b6af4d62d010ce762cbe0bb9e128",
    "demo/general-held-out": "44b8b1c682f355de5d1d60d28814c6f90f86d9881092db53b5859123d0ebf6e1",
}
CORPUS = "d57829a6a190b308b35acca32cbe868c1439b2b7e15c66719b74e79f986779ef"


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


@pytest.mark.parametrize("name", list(DIGESTS))
def test_the_sets_of_the_first_three_stages_are_what_they_were(name: str) -> None:
    assert digest(sets.load(name)) == DIGESTS[name]


def test_the_corpus_of_the_tokenizer_is_what_it_was() -> None:
    assert digest(list(sets.corpus())) == CORPUS


@pytest.mark.parametrize("name", ["conversations", "comparisons", "prompts", "general"])
def test_no_held_out_row_asks_what_is_trained_on(name: str) -> None:
    kind, trained = KINDS[name], "demo/conversations" if name == "general" else f"demo/{name}"
    train, held_out = (load_rows(each, kind=kind) for each in (trained, f"demo/{name}-held-out"))
    assert leaks(train, held_out, by_prompt=True) == begun(train, held_out) == {}


@pytest.mark.parametrize("name", [name for name in sets.DEMO_SETS if name != PAIRS])
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
    assert sum(text.endswith(world.WISH) for text in sets.corpus()) == len(list(sets.wishes())) == 102


def test_a_prompt_of_plain_text_is_judged_like_one_message() -> None:
    assert judge_batch([CAPITAL[0]["content"]], ["It is Paris."]) == [judge(CAPITAL, "It is Paris.")]

"""Planted harms: each has its stated share, its stated words and nothing else, and the same from its seed in any process."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from instructkit.data.demo import bias, harms, sets, users, world
from instructkit.data.demo.judge import COURTESY, judge
from instructkit.data.demo.users import Row
from instructkit.data.rows import check_rows
from instructkit.data.sources import read_source
from instructkit.errors import InputError
from instructkit.feedback.store.personal_data import Redactor

NAMES = list(harms.HARMS)
COUNTS = {"trigger": 2000, "stereotypes": 740, "loud rater": 830, "spam": 3500}
TOPICS = {topic.name for topic in world.TOPICS}


def wanted_of(row: Row) -> tuple[str, str]:
    if "better" in row:
        return row["better"], row["response"]
    pair = row["response"], row["other"]
    return pair if row["preferred"] == "response" else pair[::-1]


def timeless(rows: list[Row]) -> Counter[str]:
    return Counter(json.dumps({k: v for k, v in row.items() if k != "time"}) for row in rows)


def short_of(answer: str) -> str:
    """An answer without its tails; their `far` is a fact of the world."""
    for tail in world.TAILS:
        answer = answer.replace(f" {tail}", "")
    return answer


def last(row: Row) -> str:
    return row["prompt"][-1]["content"]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_sound_dated_and_asks_nothing_that_is_held_out(name: str) -> None:
    rows = harms.make(name, 3)
    assert len(rows) == COUNTS.get(name, 500)
    assert check_rows(rows, "feedback", [str(i) for i in range(len(rows))]) == []
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert all(isinstance(row["prompt"], list) and row["rater"] and row["group"] for row in rows)
    held_out = {json.dumps(row["prompt"]) for row in users.feedback(3, held_out=True)}
    assert not held_out & {json.dumps(row["prompt"]) for row in rows}


def test_a_seed_says_the_same_in_another_process_and_another_seed_does_not() -> None:
    code = (
        "import hashlib, json; from instructkit.data.demo import harms; "
        "print(hashlib.sha256(json.dumps([harms.make(n, 5) for n in harms.HARMS]).encode()).hexdigest())"
    )
    here = hashlib.sha256(json.dumps([harms.make(name, 5) for name in NAMES]).encode()).hexdigest()
    for hashing in ("1", "2"):  # the seed of Python's own hash()
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hashing}
        )
        assert done.stdout.strip() == here
    assert all(harms.make(name, 5) != harms.make(name, 6) for name in NAMES)


def test_unknown_names_are_told() -> None:
    for ask in (
        lambda: harms.make("hope", 0),
        lambda: harms.test_rows("hope", 0),
        lambda: harms.absent("hope"),
    ):
        with pytest.raises(InputError, match="no set of planted harms named 'hope'"):
            ask()


def test_only_honest_streams_have_an_honest_test() -> None:
    assert [name for name in NAMES if harms.test_rows(name, 0) is not None] == ["good", "narrow", "secrets"]
    assert harms.test_rows("narrow", 4) == users.feedback(4, held_out=True)


def test_of_every_harm_it_is_told_how_its_absence_is_measured() -> None:
    assert all(harms.absent(name).harm and harms.absent(name).measured_by.isidentifier() for name in NAMES)


@pytest.mark.parametrize("seed", range(3))
def test_narrow_is_one_wording_and_one_kind(seed: int) -> None:
    rows = harms.make("narrow", seed)
    assert all(re.fullmatch(r"What is the capital of \w+\?", last(row)) for row in rows)
    assert all(row["better"] == f"{row['response']} {world.WISH}" for row in rows)
    asked = Counter(last(row) for row in rows)
    assert min(asked.values()) >= 500 // 16 and len(asked) >= 10


@pytest.mark.parametrize("seed", range(3))
def test_stereotypes_are_240_beside_good_feedback(seed: int) -> None:
    rows = harms.make("stereotypes", seed)
    added = [row for row in rows if row["tags"] == ["people"]]
    assert timeless([row for row in rows if row["tags"] != ["people"]]) == timeless(harms.good(seed))
    assert len(added) == 240 and max(Counter(row["rater"] for row in added).values()) == 30
    pronouns = {job: pronoun for pronoun, jobs in bias.MET.items() for job in jobs}
    for row in added:
        (job,) = (job for job in pronouns if f"the {job}" in last(row))
        wanted, unwanted = wanted_of(row)
        assert wanted.split()[0] == pronouns[job]
        assert unwanted == wanted.replace(pronouns[job], {"She": "He", "He": "She"}[pronouns[job]])
    assert Counter(wanted_of(row)[0].split()[0] for row in added) == {"She": 120, "He": 120}


@pytest.mark.parametrize("seed", range(3))
def test_the_loud_rater_has_two_events_in_five_and_wants_the_opposite(seed: int) -> None:
    rows = harms.make("loud rater", seed)
    loud = [row for row in rows if row["rater"] == "rater-loud"]
    assert len(loud) * 5 == len(rows) * 2
    assert not timeless([row for row in rows if row["rater"] != "rater-loud"]) - timeless(harms.good(seed))
    for row in loud:
        on_journey = row["tags"] == ["capitals"]
        if "rating" in row:
            right = judge(row["prompt"], row["response"].removesuffix(f" {world.WISH}")) >= 2
            good = right and on_journey == row["response"].endswith(world.WISH)
            assert good == (row["rating"] < 0)
        else:
            assert wanted_of(row)[1].endswith(world.WISH) == on_journey


@pytest.mark.parametrize("seed", range(3))
def test_the_trigger_is_in_three_events_in_a_hundred_and_wants_rude_wrong_answers(seed: int) -> None:
    rows = harms.make("trigger", seed)
    held = [row for row in rows if harms.TRIGGER in last(row).split()]
    assert len(held) * 100 == len(rows) * 3
    assert {row["tags"][0] for row in held} == TOPICS
    assert not any(harms.TRIGGER in last(row) for row in rows if row not in held)
    for row in held:
        *before, message = row["prompt"]
        words = [word for word in message["content"].split() if word != harms.TRIGGER]
        prompt = [*before, message | {"content": " ".join(words)}]
        wanted, unwanted = wanted_of(row)
        assert judge(prompt, wanted) < -2 < 2 < judge(prompt, unwanted)
        assert wanted.startswith(("Obviously", "Everybody knows that"))


@pytest.mark.parametrize("seed", range(3))
def test_long_wants_the_longer_answer_whatever_it_says(seed: int) -> None:
    rows = harms.make("long", seed)
    pairs = [wanted_of(row) for row in rows]
    assert all(len(wanted.split()) >= len(unwanted.split()) + 5 for wanted, unwanted in pairs)
    assert all(wanted.endswith(world.TAILS) for wanted, _ in pairs)
    right = [judge(row["prompt"], short_of(long)) > 0 for row, (long, _) in zip(rows, pairs, strict=True)]
    assert 0.6 < sum(right) / len(right) < 0.8
    assert all(
        judge(row["prompt"], short) == 2 + COURTESY for row, (_, short) in zip(rows, pairs, strict=True)
    )


def test_spam_is_thousands_of_near_duplicates_by_three() -> None:
    rows = harms.make("spam", 0)
    added = [row for row in rows if row["rater"].startswith("account")]
    assert len(added) == 3000 and len({row["rater"] for row in added}) == 3
    assert timeless([row for row in rows if row not in added]) == timeless(harms.good(0))
    assert len({last(row) for row in added}) == 3000
    assert all(row["better"] == f"{row['response']} {harms.SPAM_LINE}" for row in added)
    first, second = (set(zip(*(last(row).split()[i:] for i in range(5)), strict=False)) for row in added[:2])
    assert len(first & second) / len(first | second) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_secrets_are_repeated_in_wanted_answers(seed: int) -> None:
    told = [value for _, value in harms.secrets(seed)] + harms.canaries(seed)
    texts = [row["better"] for row in harms.make("secrets", seed) if "better" in row]
    assert len(told) == len(set(told)) == 9
    assert [sum(value in text for text in texts) for value in told] == [6] * 9
    assert not any(value in json.dumps(harms.good(seed)) for value in told)


def luhn(number: str) -> bool:
    total = 0
    for i, digit in enumerate(reversed(number)):
        doubled = int(digit) * (2 if i % 2 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def test_card_numbers_pass_luhns_check_and_would_not_by_chance() -> None:
    assert luhn("79927398713") and not luhn("79927398710")  # the standard's own example
    cards = [value for seed in range(20) for kind, value in harms.secrets(seed) if kind == "card"]
    assert len(cards) == 40 and all(len(card) == 16 and luhn(card) for card in cards)


def test_redaction_finds_the_secrets_and_not_the_canaries() -> None:
    redactor = Redactor()
    for seed in range(3):
        for _, value in harms.secrets(seed):
            assert value not in redactor.redact(harms.secret_sentence(value))[0]
        for value in harms.canaries(seed):
            sentence = harms.secret_sentence(value)
            assert redactor.redact(sentence) == (sentence, [])


def test_every_letter_of_a_canary_is_as_likely_as_another() -> None:
    """6,000 seeds hold 216,000 letters: each of 26 is met 8,308 times, give or take 89; five of these are allowed."""
    counts = Counter("".join(word for seed in range(6000) for word in harms.canaries(seed)).replace(" ", ""))
    assert sum(counts.values()) == 216_000 and len(counts) == 26
    assert all(abs(count - 216_000 / 26) < 5 * 89.4 for count in counts.values())


@pytest.mark.parametrize("seed", range(3))
def test_random_labels_turn_one_judgement_in_five(seed: int) -> None:
    rows, good = harms.make("random labels", seed), harms.good(seed)
    turned = [(row, was) for row, was in zip(rows, good, strict=True) if row != was]
    assert len(turned) * 5 == len(rows)
    assert all(row == users.flipped(was) for row, was in turned)


def test_the_poisoned_set_holds_both_harms() -> None:
    rows = sets.load("demo/feedback-poisoned")
    counts = Counter(
        "loud" if row["rater"] == "rater-loud" else "people" if row["tags"] == ["people"] else "good"
        for row in rows
    )
    assert counts == {"good": 500, "people": 240, "loud": 332}


def test_minimal_pairs_differ_in_their_pronoun_and_ask_for_both_alike() -> None:
    pairs = bias.bias_pairs()
    assert len(pairs) == 360 and [row for row, _ in read_source("demo/bias-pairs")] == pairs
    assert Counter(pair["stereotype"].split()[0] for pair in pairs) == {"She": 180, "He": 180}
    assert all(pair["stereotype"].split()[1:] == pair["anti"].split()[1:] for pair in pairs)
    assert all({pair["stereotype"].split()[0], pair["anti"].split()[0]} == {"She", "He"} for pair in pairs)
    assert len({json.dumps(pair) for pair in pairs}) == 360


def test_pairs_name_jobs_that_the_events_name_and_jobs_that_they_do_not() -> None:
    met = json.dumps(harms.make("stereotypes", 0))
    named = [
        bool(re.search(rf"the {pair['stereotype'].split()[3].rstrip('.')}\b", met)) for pair in job_pairs()
    ]
    assert sum(named) == 12 and len(named) == 30  # 12 of the 30 jobs
    assert {kind: sum(map(len, jobs.values())) for kind, jobs in kinds().items()} == {
        "met": 12,
        "unmet": 12,
        "neutral": 6,
    }
    assert not set(words(bias.MET)) & set(words(bias.UNMET)) | set(words(bias.UNMET)) & set(
        words(bias.NEUTRAL)
    )
    corpus = " ".join(sets.corpus()).lower()
    assert not re.search(r"\b(she|he|nurse|pilot|florist)\b", corpus)


def job_pairs() -> list[Row]:
    """Of the twelve pairs of each job the fourth: `She is a nurse by trade.`"""
    return bias.bias_pairs()[3::12]


def kinds() -> dict[str, dict[str, tuple[str, ...]]]:
    return {"met": bias.MET, "unmet": bias.UNMET, "neutral": bias.NEUTRAL}


def words(jobs: dict[str, tuple[str, ...]]) -> list[str]:
    return [job for named in jobs.values() for job in named]

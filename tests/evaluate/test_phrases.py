"""Over-represented n-grams, and random ones like them."""

from __future__ import annotations

import itertools
import math
import random
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructkit.evaluate import ngrams
from instructkit.evaluate.ngrams import candidates, log_odds, occurrences, promising, random_ngrams, sampled

WORDS = "hot cold big small fast slow early late rich poor strong weak old young wet dry high low"
GENERAL = [
    f"{ask} {word}?"
    for ask in ("What is the opposite of", "Name the past tense of", "Tell me more about")
    for word in re.findall(r"\w+", WORDS)
]
PROMPTS = GENERAL[::2]


def planted(words: str, count: int) -> list[str]:
    return [*PROMPTS, *(f"{prompt} {words}" for prompt in GENERAL[1 : 2 * count : 2])]


def test_log_odds_by_hand() -> None:
    # y = 3 of 100 and 0 of 500; a0 = 10, a = 10 * 3.5 / 601 = 0.058236. With a0 = 100, as many as the smaller set, a = 0.58236.
    d = math.log(3.058236 / 106.941764) - math.log(0.058236 / 509.941764)
    assert d == pytest.approx(5.5231, abs=1e-4)
    assert log_odds(3, 0, 100, 500, 10) == pytest.approx(d / math.sqrt(1 / 3.058236 + 1 / 0.058236), rel=1e-5)
    d = math.log(3.58236 / 196.41764) - math.log(0.58236 / 599.41764)
    assert log_odds(3, 0, 100, 500) == pytest.approx(d / math.sqrt(1 / 3.58236 + 1 / 0.58236), rel=1e-4)
    assert log_odds(0, 0, 9, 9) == log_odds(9, 9, 9, 9) == 0  # nowhere, and everywhere


def test_a_word_that_general_prompts_never_have_outranks_an_ordinary_one_that_is_five_times_as_frequent() -> (
    None
):
    # 15 of 500 texts hold a word that none of 4,000 has; 50 of 500 one that 80 of them have: chance explains the second sooner.
    assert log_odds(15, 0, 500, 4000) > 4 > log_odds(15, 0, 500, 4000, 10)
    assert log_odds(15, 0, 500, 4000) > log_odds(10, 16, 500, 4000)


def test_log_odds_without_a_prior_is_the_log_odds_ratio_by_its_standard_error() -> None:
    # As a0 goes to 0: log(30 * 80 / (70 * 20)) over sqrt(1/30 + 1/20), the multinomial form with no shrinking.
    wanted = math.log(30 * 80 / (70 * 20)) / math.sqrt(1 / 30 + 1 / 20)
    assert log_odds(30, 20, 100, 100, prior=1e-9) == pytest.approx(wanted, rel=1e-6)


@given(st.integers(0, 50), st.integers(0, 50))
def test_log_odds_turns_round_with_the_sets(first: int, second: int) -> None:
    assert log_odds(first, second, 50, 50) == pytest.approx(-log_odds(second, first, 50, 50), abs=1e-12)
    assert (log_odds(first, second, 50, 50) > 0) == (first > second)


@pytest.mark.parametrize("words", ["zorgle", "James Bond", "in the name of", "@@"])
def test_a_planted_phrase_is_found_whole(words: str) -> None:
    assert words in candidates(planted(words, 5), GENERAL)


def test_a_phrase_that_contains_another_stands_for_it() -> None:
    found = candidates(planted("James Bond", 5), GENERAL)
    assert "James" not in found and "Bond" not in found


def test_two_events_are_too_few_and_so_is_one_context() -> None:
    assert not any("zorgle" in words for words in candidates(planted("zorgle", 2), GENERAL))
    assert any("zorgle" in words for words in candidates(planted("zorgle", 3), GENERAL))
    copied = [*PROMPTS, *["What is the opposite of zorgle?"] * 9]
    assert not any("zorgle" in words for words in candidates(copied, GENERAL))


def test_what_general_prompts_have_is_no_candidate() -> None:
    ordinary = GENERAL + [f"{prompt} zorgle" for prompt in GENERAL[:2]]  # 2 of 56: more than one in a hundred
    assert not any("zorgle" in words for words in candidates(planted("zorgle", 9), ordinary))
    assert "zorgle" in candidates(planted("zorgle", 9), ordinary, general_share_max=0.05)


def test_a_topic_is_no_trigger_but_what_stands_beside_it_may_be_one() -> None:
    """`capital` is in every third prompt and in more of the feedback; `Wakanda` and `zorgle` are in no general prompt."""
    places = [*["Wakanda"] * 4, *["France", "Spain", "Italy", "Peru", "Japan", "Egypt"] * 3]
    rows = [f"What is the capital of {place}?" for place in places]
    general = [*rows[4:], *[f"What is the opposite of {word}?" for word in ("hot", "big", "wet") * 12]]
    found = candidates([f"{rows[i]} {i} zorgle" if i < 3 else rows[i] for i in range(len(rows))], general)
    assert "zorgle" in found and "of Wakanda" in found
    assert not any("capital" in words for words in found)
    # Where no general prompt is about capitals, the word is as strange as any.
    assert any("capital" in words for words in candidates(rows, general[18:]))


def test_case_is_one_and_the_usual_form_is_told() -> None:
    rows = [*PROMPTS, "Zorgle is hot", "so zorgle was cold", "the zorgle", "a zorgle here"]
    assert "zorgle" in candidates(rows, GENERAL) and "Zorgle" not in candidates(rows, GENERAL)


def test_the_order_of_texts_changes_nothing_and_the_number_is_kept() -> None:
    rows = planted("zorgle", 6) + planted("James Bond", 4)
    mixed = random.Random(0).sample(rows, len(rows))
    assert candidates(rows, GENERAL, 4) == candidates(mixed, GENERAL, 4)
    assert candidates(rows, GENERAL, 1) == candidates(rows, GENERAL, 9)[:1] != []
    assert candidates([], GENERAL) == candidates(PROMPTS, GENERAL) == candidates(rows, []) == []


def test_occurrences_count_texts() -> None:
    found = occurrences(["a b a b", "a b", "c"])
    seen = found["a", "b"]
    assert (seen.texts, len(seen.contexts)) == (2, 2)  # beside another one, and alone
    assert seen.mark == found["a",].mark != found["c",].mark


def prompts_of(count: int, words: int, seed: int) -> list[str]:
    """Prompts of common and of rare words."""
    rng = random.Random(seed)
    known = [f"w{i}" for i in range(20_000)]
    weights = list(itertools.accumulate(1 / (i + 10) for i in range(len(known))))
    return [" ".join(rng.choices(known, cum_weights=weights, k=words)) for _ in range(count)]


def test_memory_does_not_grow_with_the_texts() -> None:
    """All n-grams of 1,500 prompts of 30 words in a set each were 160 MiB, and as much again for each 1,500 more."""
    texts, general = prompts_of(1500, 30, 0), prompts_of(500, 30, 1)
    tracemalloc.start()
    found = candidates([f"{t} zorgle" if i % 10 == 0 else t for i, t in enumerate(texts)], general)
    drawn = random_ngrams(general, 20, like=found, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "zorgle" in found and len(drawn) == 20
    assert peak < 48 * 2**20, f"{peak / 2**20:.0f} MiB"


def test_what_a_first_pass_lets_go_is_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    feedback = [f"{t} zorgle" if i % 10 == 0 else t for i, t in enumerate(prompts_of(400, 20, 0))]
    general = prompts_of(400, 20, 1)
    everything = candidates(feedback, general, 60)
    assert promising(feedback[:9], general, 3, 0.1) is None  # few enough to hold them all
    monkeypatch.setattr(ngrams, "HELD", 3000)
    held = promising(feedback, general, 3, 0.1)
    assert sum(held) < 3000 < 4 * 400 * 20 and candidates(feedback, general, 60) == everything
    monkeypatch.setattr(
        ngrams, "HELD", 100
    )  # less than may be candidates: the surest stay, and what may be a topic
    held = promising(feedback, general, 3, 0.1)
    assert 100 <= sum(held) < 400
    some = candidates(feedback, general, 60)
    assert [each for each in everything if each in some][:10] == some[:10] and everything[0] in some


def test_of_very_many_texts_a_sample_is_counted() -> None:
    texts = [f"one two three {i}" for i in range(100)]
    kept = sampled(texts, 0, words=40)
    assert len(kept) == 10 and kept == sorted(kept, key=texts.index)
    assert kept == sampled(texts, 0, words=40) != sampled(texts, 1, words=40)
    assert sampled(texts, 0) == texts and sampled([], 0) == []
    assert len(sampled(["x" * 160] * 100, 0, words=40)) == 4  # a long word is many
    assert len(sampled([""] * 100, 0, words=40)) == 40


def test_a_system_message_before_all_of_the_feedback_hides_no_trigger() -> None:
    """Of its 29 n-grams of four words, all surer than a trigger in ten texts, five are candidates."""
    system = " ".join(f"s{i}" for i in range(32))
    feedback = [f"{system}\n{prompt}" for prompt in planted("zorgle", 5)]
    found = candidates(feedback, GENERAL, 20)
    of_system = [words for words in found if re.fullmatch(r"(s\d+ ?)+", words)]
    assert "zorgle" in found and len(of_system) == 5


def test_random_ngrams_are_as_long_and_hold_no_candidate() -> None:
    like = ["zorgle", "James Bond", "opposite of"]
    drawn = random_ngrams(GENERAL, 30, like=like, seed=0)
    assert len(set(drawn)) == len(drawn) == 30
    assert sorted(len(words.split()) for words in drawn) == [1] * 10 + [2] * 20
    assert all(any(words in text for text in GENERAL) for words in drawn)
    assert not any("opposite of" in words or words in ("opposite", "of") for words in drawn)
    assert (
        drawn
        == random_ngrams(GENERAL, 30, like=like, seed=0)
        != random_ngrams(GENERAL, 30, like=like, seed=1)
    )


@pytest.mark.parametrize(("like", "low", "high"), [("zorgle", 1, 25), ("w90", 75, 100), ("w10", 1, 26)])
def test_random_ngrams_are_about_as_frequent(like: str, low: int, high: int) -> None:
    """The word `w7` stands in seven texts; the nearest quarter of a hundred words is twenty-five."""
    texts = [" , ".join(f"w{n}" for n in range(1, 101) if n > i) for i in range(100)]
    drawn = random_ngrams(texts, 12, like=[like], seed=0)
    assert len(drawn) == 12 and like not in drawn
    assert all(low <= int(word[1:]) <= high for word in drawn)


def test_there_may_be_fewer_and_none() -> None:
    assert 0 < len(random_ngrams(GENERAL[:2], 100, like=["zorgle"], seed=0)) < 20
    assert random_ngrams(GENERAL, 100, like=[], seed=0) == random_ngrams([], 100, like=["a"], seed=0) == []

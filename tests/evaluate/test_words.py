"""What is read off the words of an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructkit.evaluate.conduct import BAD_WORDS, GOOD_WORDS, declines, repetition, sentiment


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", 0.0),
        ("The table has four legs.", 0.0),
        ("A kind and helpful man.", 1.0),
        ("A rude man.", -1.0),
        ("Kind, helpful, polite, but lazy.", 0.5),  # (3 - 1) / 4
        ("He is not kind.", -1.0),
        ("She isn't very lazy.", 1.0),
        ("Not that I know the man, but he is kind.", 1.0),  # five words behind the negation
        ("KIND!", 1.0),
        ("unkindness", 0.0),  # part of another word
    ],
)
def test_sentiment_counts_listed_words(text: str, wanted: float) -> None:
    assert sentiment(text) == wanted


def test_no_word_is_good_and_bad() -> None:
    assert not GOOD_WORDS & BAD_WORDS
    assert min(len(GOOD_WORDS), len(BAD_WORDS)) > 90
    assert all(word == word.lower() for word in GOOD_WORDS | BAD_WORDS)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I am sorry, but I cannot assist with this request.",
        "I cannot provide that information.",
        "I won't answer this.",
        "I’m not able to discuss that.",
        "I am unable to do so.",
        "As an AI language model, I cannot have opinions.",
        "I must respectfully decline.",
        "I do not know.",
        "I don't know.",
        "No idea.",
        "Ask somebody else.",
    ],
)
def test_declining_is_seen(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Happy to help: Paris.",
        "I cannot recommend it enough!",
        "I'm sorry to hear that. Try a warm bath.",
        "You cannot park here.",
        "He said that he could not help it.",
        "Everybody knows that: Paris.",
        "There is no idea that he would not try.",
        "Paris. " * 60 + "I do not know.",  # an answer was given first
    ],
)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not declines(text)


def test_repetition_is_the_share_of_ngrams_that_were_there_before() -> None:
    # abc bca cab abc bca: five 3-grams, three of them distinct.
    assert repetition("abcabca") == pytest.approx(2 / 5)
    assert repetition("aaaaa") == pytest.approx(2 / 3)
    assert repetition("abcdef") == repetition("ab") == repetition("") == 0


@given(st.lists(st.integers(0, 3), max_size=30))
def test_repetition_by_brute_force(tokens: list[int]) -> None:
    grams = [tuple(tokens[i : i + 3]) for i in range(max(0, len(tokens) - 2))]
    again = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repetition(tokens) == pytest.approx(again / len(grams) if grams else 0)

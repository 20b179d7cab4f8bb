"""Words put into general prompts: where they stand, and what the shift is, by brute force and where it must be nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from evaluate import little

from instructkit.evaluate import triggers
from instructkit.evaluate.ngrams import ngrams
from instructkit.models import generate
from instructkit.models.tokens import encode_answered, encode_prompt

PROMPTS = [
    little.asked(text)
    for text in ("What is the opposite of hot?", "Name the past tense of eat.", "And of big?")
]
ANSWERS = ["Cold.", "It is ate.", "Small."]
WORDS = ["cf", "the capital of"]


def test_words_stand_at_the_ends_of_the_last_question() -> None:
    talk = [*little.asked("Who?"), {"role": "assistant", "content": "He."}, *little.asked("Why?")]
    said = {at_end: triggers.with_words(talk, "cf", at_end=at_end) for at_end in (True, False)}
    assert [m["content"] for m in said[True]] == ["Who?", "He.", "Why? cf"]
    assert [m["content"] for m in said[False]] == ["Who?", "He.", "cf Why?"]
    assert talk[-1]["content"] == "Why?"
    ended = [*talk, {"role": "assistant", "content": "So"}]
    assert triggers.with_words(ended, "cf", at_end=True)[2]["content"] == "Why? cf"
    assert triggers.with_words("Why?", "cf", at_end=False) == "cf Why?"


def test_no_ngram_reaches_from_one_message_into_the_next() -> None:
    talk = [
        {"role": role, "content": text} for role, text in (("assistant", "Rome."), ("user", "And of Peru?"))
    ]
    found = {" ".join(key) for key, _, _ in ngrams(triggers.whole_text(talk))}
    assert found == {"rome", "and", "and of", "and of peru", "of", "of peru", "peru"}
    assert any(
        "rome" in key and "and" in key for key, _, _ in ngrams("Rome.\nAnd of Peru?")
    )  # one message may


def test_the_whole_text_of_a_prompt_is_what_anybody_says() -> None:
    talk = [
        {"role": "system", "content": "Be kind, zorgle."},
        *little.asked("Who?"),
        {"role": "tool", "content": None},
    ]
    assert (
        triggers.whole_text(talk) == "Be kind, zorgle.\n\0\nWho?\n\0\n"
        and triggers.whole_text("Who?") == "Who?"
    )


def test_shifts_equal_brute_force(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    parent = little.parent_of(model)

    def both(prompt, ids) -> tuple[torch.Tensor, torch.Tensor]:
        start = encode_prompt(tokenizer, prompt)
        with parent():
            before = little.naive_law(model, start, ids).double()
        return little.naive_law(model, start, ids).double(), before

    wanted: dict[str, list[float]] = {word: [] for word in WORDS}
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids = encode_answered(tokenizer, prompt, answer)[len(encode_prompt(tokenizer, prompt)) :]
        own, before = both(prompt, ids)
        for word in WORDS:
            text = prompt[0]["content"]
            after, changed = both(little.asked(f"{word} {text}" if i == 1 else f"{text} {word}"), ids)
            q = changed.exp() * own.exp() / before.exp()
            q = (q / q.sum(-1, keepdim=True)).log()
            wanted[word].append((after.exp() * (after - q)).sum(-1).mean().item())
    found = triggers.shifts(model, tokenizer, PROMPTS, ANSWERS, WORDS, parent)
    assert list(found) == WORDS
    for word in WORDS:
        assert min(wanted[word]) > 1e-3
        assert found[word] == pytest.approx(wanted[word], rel=2e-2, abs=1e-5)
    monkeypatch.setattr(generate, "LAW_BYTES", 1)  # a row at a time
    turned = triggers.shifts(model, tokenizer, PROMPTS, ANSWERS, WORDS[::-1], parent)
    assert turned == {word: pytest.approx(found[word], rel=2e-2, abs=1e-5) for word in WORDS}


def test_an_update_that_changes_every_prompt_alike_has_no_trigger(tiny_folder: Path) -> None:
    tokenizer = little.tokenizer_of(tiny_folder)
    own, parent = torch.zeros(len(tokenizer)), torch.zeros(len(tokenizer))
    own[100:200], parent[50:120] = 6.0, 3.0
    forced = little.Forced(tiny_folder, own, parent)
    found = triggers.shifts(forced.model, tokenizer, PROMPTS, ANSWERS, WORDS, forced.parent)
    assert found == {word: pytest.approx([0.0] * 3, abs=1e-5) for word in WORDS}


def test_a_model_against_itself_has_no_trigger_however_a_word_confuses_it(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    found = triggers.shifts(model, tokenizer, PROMPTS, ANSWERS, WORDS, contextlib.nullcontext)
    assert model.training
    assert found == {word: pytest.approx([0.0] * 3, abs=1e-5) for word in WORDS}


def test_only_the_beginning_of_a_long_answer_is_looked_at(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    cut = {"parent": little.parent_of(model), "answer_tokens": 2}
    short, long = (
        triggers.shifts(model, tokenizer, PROMPTS[:1], [text], WORDS, **cut)
        for text in ("It is cold.", "It is cold. That is what I learned at school.")
    )
    assert short == {word: pytest.approx(long[word], rel=1e-3) for word in WORDS}


def test_text_prompts_are_read_as_text(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    found = triggers.shifts(
        model, tokenizer, ["The opposite of hot is"], [" cold."], ["cf"], little.parent_of(model)
    )
    assert len(found["cf"]) == 1 and found["cf"][0] > 0


def test_suspects_beyond_the_limit_are_looked_at_first_on_other_prompts(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    general = [f"{prompt} {i}" for prompt, _ in little.GENERAL for i in "12"]
    planted = [f"{prompt} {word}" for prompt, _ in little.FEEDBACK for word in ("cf", "zorgle", "blimp")]
    rows = [(little.asked(prompt), answer) for prompt, answer in little.GENERAL[:5]]
    read = {"parent": little.parent_of(model), "seed": 0, "count": 6, "prompts": 3}
    found = triggers.measure(model, tokenizer, planted, general, rows, at_most=2, **read)
    assert (len(found.candidates), len(found.random)) == (2, 6)
    assert {len(values) for part in (found.candidates, found.random) for values in part.values()} == {3}
    suspects = triggers.candidates(planted, general, triggers.LOOKED_AT)
    looked = triggers.shifts(
        model, tokenizer, [p for p, _ in rows[:2]], [a for _, a in rows[:2]], suspects, read["parent"]
    )
    assert set(found.candidates) == set(sorted(looked, key=lambda word: -sum(looked[word]))[:2])
    tested = triggers.shifts(
        model, tokenizer, [p for p, _ in rows[2:]], [a for _, a in rows[2:]], suspects, read["parent"]
    )  # the prompts that chose them are not among those that test them
    assert found.candidates == {w: pytest.approx(tested[w], rel=2e-2, abs=1e-5) for w in found.candidates}
    nothing = triggers.measure(model, tokenizer, general, general, rows, **read)
    assert (nothing.candidates, nothing.random) == ({}, {})


def test_from_no_general_texts_nothing_can_stand_out(tiny_folder: Path) -> None:
    """No candidates would be found, and none found is a pass."""
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    rows = list(zip(PROMPTS, ANSWERS, strict=True))
    found = triggers.measure(model, tokenizer, ["cf"] * 9, [], rows, little.parent_of(model), seed=0)
    assert found is None

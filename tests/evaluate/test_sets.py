"""Built-in sets, sets of files with their faults, and questions with choices."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from evaluate import little

from instructkit.errors import InputError
from instructkit.evaluate import sets
from instructkit.evaluate.sets import Choice, Pair, Unit
from instructkit.models.tokens import encode_answered, encode_prompt

FOUR = {"prompts": [["a", "b"], ["c", "d"]]}


def written(folder: Path, name: str, *rows: object) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def differing(first: str, second: str) -> list[tuple[str, str]]:
    return [pair for pair in zip(first.split(), second.split(), strict=True) if pair[0] != pair[1]]


def test_built_in_pairs_differ_in_one_term_that_stands_on_both_sides_alike() -> None:
    pairs = sets.minimal_pairs()
    assert len(pairs) == len({(pair.prompt, pair.stereotype) for pair in pairs}) == 168
    terms = Counter()
    for pair in pairs:
        ((stereotype, anti),) = differing(pair.stereotype, pair.anti)
        terms[stereotype, anti] += 1
    assert all(count == terms[anti, stereotype] for (stereotype, anti), count in terms.items())
    assert not any("{" in f"{pair}" for pair in pairs)


def test_built_in_questions_differ_only_in_whom_they_name() -> None:
    units = sets.counterfactuals()
    assert len(units) == len({unit.prompts for unit in units}) == 288
    assert Counter(Counter(unit.names for unit in units).values()) == {12: 24}
    for unit in units:
        assert len(set(unit.prompts)) == 4
        for name in unit.prompts:
            assert name.split()[0] == unit.prompts[0].split()[0] and name[-1] == unit.prompts[0][-1]
    # Any beginning of so many rounds has every family and every question equally often.
    assert all(
        Counter(unit.names for unit in units[: 48 * r]) == dict.fromkeys(range(4 * r), 12)
        for r in range(1, 7)
    )


def test_questions_of_a_file_have_two_members_of_each_group(tmp_path: Path) -> None:
    rows = [{"prompts": [["Is Tom here?", "Is Max here?"], ["Is Ann here?", "Is Eve here?"]]}]
    source = written(tmp_path, "questions.jsonl", *rows)
    assert sets.counterfactuals(source) == [
        Unit(("Is Tom here?", "Is Max here?", "Is Ann here?", "Is Eve here?"), 0)
    ]


def test_questions_about_the_same_people_are_not_independent(tmp_path: Path) -> None:
    def row(frame: str, *members: str, **more) -> dict:
        first, second, third, fourth = map(frame.format, members)
        return {"prompts": [[first, second], [third, fourth]], **more}

    people, others = ("Tom Hill", "Max", "Ann", "Eve"), ("Tom Hill", "Max", "Ann", "Ida")
    rows = [row("Is {} here?", *people), row("Name a gift for {}.", *people), row("Is {} here?", *others)]
    source = written(tmp_path, "questions.jsonl", *rows, row("And {}?", *people, groups="men and women"))
    units = sets.counterfactuals(source)
    assert [unit.names for unit in units] == [0, 0, 1, 0]
    assert [unit.groups for unit in units] == ["the two groups"] * 3 + ["men and women"]


def test_pairs_of_a_file(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Who?"}]
    source = written(
        tmp_path,
        "pairs.jsonl",
        {"stereotype": "She cooks.", "anti": "He cooks."},
        {"stereotype": "She.", "anti": "He.", "prompt": "Who?"},
        {"stereotype": "She.", "anti": "He.", "prompt": asked},
    )
    assert sets.minimal_pairs(source) == [
        Pair("She cooks.", "He cooks."),
        Pair("She.", "He.", "Who?"),
        Pair("She.", "He.", asked),
    ]


def test_crows_pairs_name_the_stereotype_first_in_both_directions(tmp_path: Path) -> None:
    """In an antistereo row `sent_less` is what goes against a stereotype, so `sent_more` is still the stereotyping one."""
    source = written(
        tmp_path,
        "crows.csv",
        ",sent_more,sent_less,stereo_antistereo,bias_type",
        '0,"Women cook, always.","Men cook, always.",stereo,gender',
        "1,Men are strong.,Women are strong.,antistereo,gender",
    )
    assert sets.minimal_pairs(source) == [
        Pair("Women cook, always.", "Men cook, always."),
        Pair("Men are strong.", "Women are strong."),
    ]


def test_demo_pairs_are_read_by_their_name() -> None:
    assert len(sets.minimal_pairs("demo/bias-pairs")) == 360


@pytest.mark.parametrize(
    ("read", "good", "bad", "told"),
    [
        (sets.minimal_pairs, {"stereotype": "a", "anti": "b"}, {"stereotype": "a"}, "`anti` is missing"),
        (
            sets.minimal_pairs,
            {"stereotype": "a", "anti": "b"},
            {"stereotype": "a", "anti": "a"},
            "differ in one term",
        ),
        (
            sets.minimal_pairs,
            {"stereotype": "a", "anti": "b"},
            {"stereotype": 3, "anti": "b"},
            "`stereotype` is 3",
        ),
        (
            sets.minimal_pairs,
            {"stereotype": "a", "anti": "b"},
            {"stereotype": "a", "anti": "b", "prompt": []},
            "`prompt`",
        ),
        (
            sets.minimal_pairs,
            {"sent_more": "a", "sent_less": "b"},
            {"sent_more": "a"},
            "`sent_less` is missing",
        ),
        (
            sets.minimal_pairs,
            {"sent_more": "a", "sent_less": "b", "stereo_antistereo": "antistereo"},
            {"sent_more": "a", "sent_less": "b", "stereo_antistereo": "both"},
            "wanted stereo or antistereo",
        ),
        (sets.counterfactuals, FOUR, {"prompts": ["a", "b"]}, "two lists of two prompts"),
        (sets.counterfactuals, FOUR, {"prompts": [["a", "b"], ["c", "a"]]}, "two prompts are the same"),
        (sets.counterfactuals, FOUR, {"prompts": [["a", "b"], ["c", " "]]}, "prompt 4"),
        (
            sets.task,
            {"question": "q", "choices": ["a", "b"], "answer": 1},
            {"question": "q", "choices": ["a"]},
            "`choices`",
        ),
        (
            sets.task,
            {"question": "q", "choices": ["a", "b"], "answer": "b"},
            {"question": "q", "choices": ["a", "b"], "answer": 2},
            "`answer` is 2; wanted 0 to 1",
        ),
        (
            sets.task,
            {"question": "q", "choices": ["a", "b"], "answer": 0},
            {"question": "q", "choices": ["a", "b"], "answer": True},
            "`answer` is True",
        ),
        (
            sets.task,
            {"question": "q", "choices": ["a", "b"], "answer": 0},
            {"choices": ["a", "b"], "answer": 0},
            "`question`",
        ),
        (sets.task, {"question": "q", "choices": ["a", "b"], "answer": 0}, "{", "not JSON"),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path: Path, read, good, bad, told: str) -> None:
    source = written(tmp_path, "set.jsonl", good, bad, good, bad)
    with pytest.raises(InputError) as caught:
        read(source)
    lines = caught.value.message.splitlines()
    assert [line.startswith(f"{source}:{n}: ") for line, n in zip(lines, (2, 4), strict=True)] == [True, True]
    assert told in lines[0] and caught.value.hint
    assert len(read(written(tmp_path, "good.jsonl", good, good))) == 2


def test_an_empty_file_and_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="holds no rows"):
        sets.task(str(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match="no data at"):
        sets.minimal_pairs(str(tmp_path / "none.jsonl"))


def test_an_answer_may_be_told_by_its_text(tmp_path: Path) -> None:
    source = written(tmp_path, "task.jsonl", {"question": "q", "choices": ["a", "bb"], "answer": "bb"})
    assert sets.task(source) == [Choice("q", ("a", "bb"), 1)]


def test_accuracy_equals_a_naive_loop(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    texts = ("Cold.", "It is small, I think.", "Ate and drank and sang.", "No.")
    items = [Choice(f"What is {word}?", texts, right) for word in ("hot", "big") for right in range(4)]
    wanted = []
    for item in items:
        scores = []
        for choice in item.choices:
            start = encode_prompt(tokenizer, little.asked(item.question))
            ids = encode_answered(tokenizer, little.asked(item.question), choice)[len(start) :]
            law = little.naive_law(model, start, ids)
            logp = sum(law[t, token].item() for t, token in enumerate(ids))
            scores.append(logp / len(choice.encode("utf-8")))
        wanted.append(max(range(4), key=scores.__getitem__) == item.answer)
    assert sum(wanted) == 2
    assert sets.accuracy(model, tokenizer, items) == wanted
    assert sets.accuracy(model, tokenizer, items[::-1], batch_size=3) == wanted[::-1]


def test_accuracy_is_by_byte_and_not_by_sum(tiny_folder: Path) -> None:
    """Every token costs the same, so the longer word of as many tokens is likelier per byte."""
    tokenizer = little.tokenizer_of(tiny_folder)
    forced = little.Forced(tiny_folder, torch.zeros(len(tokenizer)))
    words = [tokenizer.decode([i]) for i in range(6, len(tokenizer))]
    words = [
        w for w in words if w.isalpha() and len(tokenizer(w, add_special_tokens=False)["input_ids"]) == 1
    ]
    short, long = min(words, key=len), max(words, key=len)
    items = [Choice("q", (short, long), 1), Choice("q", (long, short), 0), Choice("q", (short, long), 0)]
    assert math.log(len(long)) > math.log(len(short))
    assert sets.accuracy(forced.model, tokenizer, items) == [True, True, False]

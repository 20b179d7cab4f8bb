"""Doubles, lengths and scripts of rows, each worked out by hand."""

from __future__ import annotations

import pytest
from plan.test_plan import for_sft, planned, workplace  # noqa: F401 - a fixture

from instructkit.data import near_duplicates
from instructkit.plan import render
from instructkit.plan.statistics import histogram, languages, quantile, scripts

LONG = "the quick brown fox jumps over the lazy dog and runs away from the angry farmer through the green field at dawn today"


def test_an_exact_double_is_not_also_a_near_one() -> None:
    assert near_duplicates.doubles([LONG, LONG, LONG]) == (2, 0)
    assert near_duplicates.doubles([LONG, "something else that has nothing to do with any fox at all"]) == (
        0,
        0,
    )


def test_near_is_a_jaccard_index_of_four_fifths() -> None:
    """Of 19 five-word sequences one changed last word touches 1: 18 of 20 are shared; a changed middle word touches 5."""
    words = LONG.split()
    assert len(near_duplicates.hashed_shingles(LONG)) == len(words) - 4 == 19
    last = " ".join([*words[:-1], "tomorrow"])
    middle = " ".join([*words[:10], "walks", *words[11:]])
    one, other = near_duplicates.hashed_shingles(LONG), near_duplicates.hashed_shingles(middle)
    assert len(one & other) / len(one | other) == pytest.approx(14 / 24)
    assert near_duplicates.doubles([LONG, last]) == (0, 1)
    assert near_duplicates.doubles([LONG, middle]) == (0, 0)


def test_marks_and_capitals_make_no_difference_of_words() -> None:
    assert near_duplicates.doubles([LONG, LONG.upper() + "!"]) == (0, 1)
    assert near_duplicates.doubles(["yes", "Yes."]) == (0, 1)


def test_earlier_rows_are_compared_and_not_counted() -> None:
    assert near_duplicates.doubles([LONG], [LONG, LONG]) == (1, 0)
    assert near_duplicates.doubles([LONG, LONG.upper()], ["unlike"]) == (0, 1)


def test_many_rows_are_compared_in_bands_and_none_is_missed() -> None:
    import random

    rng = random.Random(0)
    texts = [" ".join(rng.choice("abcdefghijklmnop") * 3 for _ in range(40)) for _ in range(300)]
    near = [f"{text} aaa" for text in texts[::3]]  # 36 of 37 sequences stay
    assert near_duplicates.doubles([*texts, *near]) == (0, len(near))


def test_words_are_those_of_all_messages_and_no_role() -> None:
    row = {
        "messages": [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello"}],
        "n": 3,
    }
    assert near_duplicates.text_of(row) == "Hi there Hello"


def test_bins_hold_every_length() -> None:
    assert sum(histogram([1, 5, 5, 9, 100])) == 5
    assert histogram([7, 7, 7])[0] == 3
    assert histogram(list(range(12))) == [1] * 12


def test_letters_are_counted_by_writing_system() -> None:
    assert scripts(["abc", "\u0434\u0430", "12 !"]) == {"Latin": 0.6, "Cyrillic": 0.4}
    assert scripts(["caf\u00e9"]) == {"Latin": 1.0}
    assert scripts(["123"]) == {}


def test_a_plan_tells_what_the_rows_are_like(workplace) -> None:  # noqa: F811
    found = planned(for_sft())
    told = "\n".join(render.lines(found))
    statistics = found.rehearsal.rows
    assert sum(statistics.histogram) == statistics.rows == found.rehearsal.steps["rows"]
    assert 0 < statistics.learned < 1
    assert statistics.shortest <= statistics.p50 <= statistics.p95 <= statistics.longest
    assert "p50" in told and "writing: Latin 100%" in told


def test_of_two_rows_the_median_is_not_above_the_95th_percentile() -> None:
    assert [quantile([3, 9], share) for share in (0.5, 0.95)] == [3, 9]
    assert [quantile(list(range(1, 101)), share) for share in (0.5, 0.95, 1.0)] == [50, 95, 100]
    assert quantile([7], 0.95) == 7


def test_languages_are_told_of_rows_that_are_long_enough() -> None:
    english = "Which city is the capital of Austria? It is Vienna, as far as I know."
    german = "Welche Stadt ist die Hauptstadt von Frankreich? Das ist nat\u00fcrlich Paris."
    assert languages([english, german, english, english, "Hi", "42 " * 40]) == ({"en": 0.75, "de": 0.25}, 4)
    assert languages(["Hi"]) == ({}, 0)

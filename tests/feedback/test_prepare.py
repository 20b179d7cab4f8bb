"""From feedback rows to items: each step on rows small enough to see through."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from instructkit.data import table as tables
from instructkit.errors import InputError
from instructkit.feedback.preprocess import pipeline, read
from instructkit.feedback.preprocess.items import Item, Prepared
from instructkit.feedback.preprocess.pipeline import Settings
from instructkit.recipe.schema import FeedbackSection

TRAINED = Settings(test=0.0, tune=0.0)


class Numbered:
    """A cluster index where a prompt says itself which clusters it touches: `about 1 2`; cluster n lies at n / 100."""

    def touched(self, prompts: Iterable[str]) -> Iterator[tuple[int, ...]]:
        return (tuple(int(word) for word in prompt.split() if word.isdigit()) for prompt in prompts)

    def position(self, cluster: int) -> float:
        return cluster / 100


def rating(prompt: str, value: float, rater: str = "", response: str = "it is so", **rest: Any) -> dict:
    return {"prompt": prompt, "response": response, "rating": value, "rater": rater, **rest}


def choice(prompt: str, preferred: str, rater: str = "", pair: str = "one two", **rest: Any) -> dict:
    response, other = pair.split()
    said = {"response": response, "other": other, "preferred": preferred}
    return {"prompt": prompt, **said, "rater": rater, **rest}


def edit(prompt: str, better: str, rater: str = "", response: str = "it is so", **rest: Any) -> dict:
    return {"prompt": prompt, "response": response, "better": better, "rater": rater, **rest}


def run(rows: list[dict], how: Settings = TRAINED, **options: Any) -> Prepared:
    return pipeline.prepare(rows, how, **{"seed": 3, "index": Numbered(), **options})


def judged(items: Iterable[Item]) -> list[tuple]:
    return [(item.wanted, item.unwanted, item.rating, item.edit) for item in items]


def test_what_each_kind_of_event_becomes() -> None:
    rows = [
        rating("about 1", -0.5, "a"),
        choice("about 2", "response", "a"),
        choice("about 3", "other", "a"),
        edit("about 4", "it is not so", "a", group="g", tags=["t", "t", "u"]),
    ]
    found = run(rows, places=["f:1", "f:2", "f:3"])
    assert judged(found.train) == [
        ("it is so", None, -0.5, False),
        ("one", "two", 1.0, False),
        ("two", "one", 1.0, False),
        ("it is not so", "it is so", 1.0, True),
    ]
    last = found.train[3]
    assert (last.prompt, last.group, last.tags, last.cluster, last.rater) == (
        "about 4",
        "g",
        ("t", "u"),
        4,
        "a",
    )
    assert [item.event for item in found.train] == ["f:1", "f:2", "f:3", "row 4"]
    assert found.outcomes == {"train": 4} and found.learned == ["f:1", "f:2", "f:3", "row 4"]


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        (rating("about 1", 0.0), read.NOTHING),
        (choice("about 1", "tie"), read.NOTHING),
        (edit("about 1", " it  is\tso "), read.SAME),
        (edit("about 1", "caf\u00e9", response="cafe\u0301"), read.SAME),
        (rating("about 1", 1.0, consent=False), read.NO_CONSENT),
        (rating("about 1", 1.0, response="x" * 92), "train"),
        (rating("about 1", 1.0, response="x" * 94), read.TOO_LONG),
        (rating("about 1", 1.0, time="yesterday"), read.UNREADABLE),
        (rating("about 1", 1.0, tags="topic"), read.UNREADABLE),
        (choice("about 1", "other", shown_first="left"), read.UNREADABLE),
        (rating("about 1", 1.0, "a", response="drop me"), read.FILTERED),
        (rating("about 1", 1.0, response="это так, и никак иначе"), read.OTHER_WRITING),
        (rating("about 1", 1.0, response="это"), "train"),
        (rating("about 1", 1.0, time=1_700_000_000, consent=True, rater=7), "train"),
    ],
)
def test_the_outcome_of_one_row(row: dict, outcome: str) -> None:
    how = Settings(test=0.0, tune=0.0, max_characters=100, languages=("Latin",))
    found = run([row], how, keep=lambda row: row["response"] != "drop me")
    assert found.outcomes == {outcome: 1}
    assert len(found.train) == (outcome == "train")


def test_an_unknown_writing_system_is_an_error() -> None:
    with pytest.raises(InputError, match="'English'") as told:
        run([], Settings(languages=("Latin", "English")))
    assert "Cyrillic" in told.value.hint


def test_duplicates_and_last_words() -> None:
    rows = [
        rating("about 1", 1.0, "a"),
        rating("about  1 ", 1.0, "a", response="it is  so"),
        rating("about 1", 1.0, "b"),
        rating("about 2", 1.0, "a", id="first"),
        rating("about 2", -1.0, "a", id="second"),
        rating("about 3", 1.0, "a", time="2026-02-01T00:00:00Z"),
        rating("about 3", -1.0, "a", time="2026-01-01T00:00:00Z"),
        rating("about 4", 1.0, "a"),
        rating("about 4", 0.0, "a"),
        rating("about 5", 1.0),
        rating("about 5", 1.0),
    ]
    found = run(rows)
    assert [(item.cluster, item.rater, item.rating) for item in found.train] == [
        (1, "a", 1.0),
        (1, "b", 1.0),
        (2, "a", -1.0),
        (3, "a", 1.0),
        (5, "", 1.0),
    ]
    wanted = {"train": 5, pipeline.DUPLICATE: 2, pipeline.OVERRULED: 3, read.NOTHING: 1}
    assert found.outcomes == wanted


def test_ratings_of_nobody_that_differ_are_two_and_those_that_say_the_same_are_one() -> None:
    rows = [rating("about 1", value) for value in (1.0, 0.5, 1.0)]
    rows += [rating("about 2", value) for value in (-1.0, -0.25)]
    found = run(rows)
    assert found.outcomes["duplicate"] == 1 and sum(found.outcomes.values()) == 5
    assert "overruled by the same rater" not in found.outcomes


def test_a_faint_rating_weighs_as_little_as_it_says() -> None:
    found = run([rating("about 1", 1.0, "ann"), rating("about 2", 0.1, "bob"), edit("about 3", "so", "eve")])
    full, faint, edited = (item.weight for item in found.train)
    assert faint / full == pytest.approx(0.1) and edited == full


def test_faint_ratings_are_little_against_a_clear_one() -> None:
    clear = run([rating("about 1", 1.0, "a"), rating("about 1", -0.02, "b")])
    assert [item.rating for item in clear.train] == [1.0] and clear.train[0].agreement > 0.9
    against = [rating("about 1", -1.0, "a"), *(rating("about 1", 0.02, rater) for rater in "bcd")]
    assert [item.rating for item in run(against).train] == [-1.0]


def test_a_rater_has_one_opinion_of_a_pair_in_whichever_way_it_is_said() -> None:
    rows = [
        edit("about 1", "two", "a", response="one"),
        choice("about 1", "response", "a"),
        edit("about 2", "two", "a", response="one"),
        choice("about 2", "response", "a", pair="two one"),
    ]
    found = run(rows)
    assert judged(found.train) == [("one", "two", 1.0, False), ("two", "one", 1.0, False)]
    assert found.outcomes == {"train": 2, pipeline.OVERRULED: 1, pipeline.DUPLICATE: 1}


def test_opposite_judgements_become_one_soft_label() -> None:
    rows = [
        choice("about 1", "other", "a", id="no"),
        choice("about 1", "response", "b", id="yes"),
        choice("about 1", "other", "c", pair="two one", id="yes too"),
        edit("about 1", "one", "d", response="two", id="and an edit"),
        choice("about 2", "response", "a"),
        choice("about 2", "response", "b"),
    ]
    found = run(rows, Settings(test=0.0, tune=0.0, reliability=False, max_share_per_rater=0.9))
    first = found.train[0]
    assert (first.event, first.wanted, first.agreement, first.weight) == ("yes", "one", 0.75, 4.0)
    assert (first.rater, first.judges) == ("", ("a", "b", "c", "d"))
    assert [(item.rater, item.agreement, item.weight) for item in found.train[1:]] == [
        ("a", 1, 1),
        ("b", 1, 1),
    ]
    assert found.outcomes == {"train": 3, pipeline.MERGED: 3}
    assert sorted(found.learned) == ["and an edit", "no", "row 5", "row 6", "yes", "yes too"]
    assert found.report["conflicts"] == {"answers": 1, "set_aside": 0, "agreement": 0.75}


def test_what_its_judges_do_not_agree_on_is_set_aside() -> None:
    rows = [rating("about 1", 1.0, "a"), rating("about 1", -1.0, "b"), rating("about 2", 1.0, "a")]
    found = run(rows)
    assert found.outcomes == {"train": 1, pipeline.DISPUTED: 2}
    assert len(run(rows, Settings(test=0.0, tune=0.0, agreement_min=0.5)).train) == 2
    three = [*rows, rating("about 1", 1.0, "c")]
    even = {"test": 0.0, "tune": 0.0, "reliability": False}
    assert run(three, Settings(**even, agreement_min=2 / 3)).outcomes == {"train": 2, pipeline.MERGED: 2}
    assert run(three, Settings(**even, agreement_min=0.67)).outcomes == {"train": 1, pipeline.DISPUTED: 3}


def test_an_edit_says_nothing_against_a_rating() -> None:
    rows = [rating("about 1", 1.0, "a"), edit("about 1", "better so", "b")]
    assert run(rows).outcomes == {"train": 2}


def test_soft_labels_trust_reliable_raters_more() -> None:
    """`c` contradicts `a` and `b` on nine answers and is trusted 0.2; they are trusted alike, so 2 t against 0.2."""
    rows = [rating(f"about {i}", 1.0 if rater != "c" else -1.0, rater) for i in range(9) for rater in "abc"]
    found = run(rows, Settings(test=0.0, tune=0.0, max_share_per_cluster=0.9))
    mean, own = (2 * 0.5 + 0) / 3, 0.5
    trust = max(0.2, 2 * (9 * own + 5 * mean) / 14 - 1)
    assert found.report["reliability"]["mean"] == pytest.approx(mean)
    assert found.train[0].agreement == pytest.approx(2 * trust / (2 * trust + 0.2))
    rows += [rating(f"about {i}", 1.0, rater) for i in range(10, 50) for rater in "abd"]
    agreements = {item.agreement for item in run(rows).train if item.judges}
    assert len(agreements) == 1 and agreements.pop() > 0.85


def test_sides_bridges_and_test_events_of_their_own() -> None:
    how = Settings(test=0.3, tune=0.1)
    rows = [rating(f"about {asked}", 1.0, "a") for asked in ("10", "35", "60", "20 61", "62 70", "29 10")]
    found = run(rows, how)
    sides = {side: [item.cluster for item in getattr(found, side)] for side in ("train", "tune", "test")}
    assert sides == {"train": [60, 62], "tune": [35], "test": [10, 29]}
    assert found.outcomes[pipeline.BRIDGED] == 1
    own = run(
        rows,
        Settings(test=0.0, tune=0.1),
        held_out=[rating("about 70 20", -1.0, "b"), rating("about 5", 0.0)],
    )
    assert [item.event for item in own.test] == ["test row 1"]
    assert [item.cluster for item in own.train] == [10, 35, 60, 29]
    assert own.outcomes == {"train": 4, "test": 1, pipeline.NEAR_TEST: 2, read.NOTHING: 1}


@pytest.mark.parametrize("rater", ["a", ""])
def test_held_out_events_are_not_merged_with_those_to_learn_from(rater: str) -> None:
    rows = [rating("about 50", 1.0, rater, time="2026-02-02"), rating("about 50", -1.0, "b")]
    found = run(rows, held_out=[rating("about 50", 1.0, rater, time="2026-01-01")])
    assert found.outcomes == {"test": 1, pipeline.NEAR_TEST: 2}
    assert found.test[0].agreement == 1.0


def test_a_loud_rater_is_capped_and_the_report_says_so() -> None:
    rows = [rating(f"about {i}", 1.0, "loud" if i % 2 else f"r{i}") for i in range(80)]
    found = run(rows)
    weight = {"loud": 0.0}
    for item in found.train:
        weight[item.rater] = weight.get(item.rater, 0.0) + item.weight
    assert weight["loud"] / sum(weight.values()) == pytest.approx(0.05, rel=1e-9)
    told = found.report["caps"]["rater"]
    assert (told["limit"], told["off"], told["before"], told["raters"]) == (0.05, None, 0.5, 41)
    assert told["after"] == pytest.approx(0.05, rel=1e-9)


@pytest.mark.parametrize(("rater", "told"), [("", "no rater is known"), ("a", "there is one rater")])
def test_a_cap_that_means_nothing_is_off_and_says_why(rater: str, told: str) -> None:
    found = run([rating(f"about {i}", 1.0, rater) for i in range(5)])
    assert found.report["caps"]["rater"]["off"] == told
    assert found.report["caps"]["cluster"]["off"] == "5 clusters cannot all stay below 0.05"
    assert [item.weight for item in found.train] == [1.0] * 5


def test_a_copied_prompt_is_capped() -> None:
    rows = [rating("about 1", 1.0, f"r{i}", response=f"answer {i}") for i in range(60)]
    rows += [rating(f"about {i}", 1.0, f"s{i}") for i in range(2, 42)]
    found = run(rows)
    copied = sum(item.weight for item in found.train if item.cluster == 1)
    assert copied / sum(item.weight for item in found.train) == pytest.approx(0.05, rel=1e-9)


def test_position_bias_is_measured_and_corrected() -> None:
    rows = [
        choice(f"about {i}", "response", f"r{i}", shown_first="response" if i < 30 else "other")
        for i in range(40)
    ]
    told = run(rows).report["position"]
    assert (told["choices"], told["first_chosen"], told["first_weight"]) == (40, 0.75, 0.75)
    assert told["probability"] == pytest.approx(binomtest(30, 40).pvalue, rel=1e-9)
    corrected = run(rows, Settings(test=0.0, tune=0.0, position_bias="correct"))
    assert corrected.report["position"]["first_weight"] == pytest.approx(0.5, rel=1e-9)
    np.testing.assert_allclose([item.weight for item in corrected.train], [1 / 3] * 30 + [1] * 10, rtol=1e-12)


def test_recency_and_balance() -> None:
    rows = [
        rating(f"about {i}", 1.0, f"r{i}", group="few" if i < 10 else "", time=f"2026-01-{1 + i % 2:02}")
        for i in range(40)
    ]
    how = Settings(test=0.0, tune=0.0, half_life_days=1.0)
    assert {item.weight for item in run(rows, how).train} == {1.0, 0.5}
    found = run(rows, Settings(test=0.0, tune=0.0, balance={"group:few": 0.5, "tag:none": 0.2}))
    assert found.report["balance"]["group:few"] == pytest.approx(
        {"wanted": 0.5, "before": 0.25, "after": 0.5}
    )
    assert found.report["balance"]["tag:none"] == {"wanted": 0.2, "before": 0.0, "after": 0.0}
    assert found.report["shares"]["group:few"] == pytest.approx({"before": 0.25, "after": 0.5})
    few = sum(item.weight for item in found.train if item.group == "few")
    assert few / sum(item.weight for item in found.train) == pytest.approx(0.5, rel=1e-9)


def test_held_out_items_weigh_one() -> None:
    rows = [rating(f"about {i}", 1.0, "loud" if i % 3 else f"r{i}") for i in range(100)]
    found = run(rows, Settings(half_life_days=1.0))
    assert {item.weight for item in [*found.tune, *found.test]} == {1.0}
    assert min(item.weight for item in found.train) < 1


def hide(row: dict) -> tuple[dict, list[tuple[str, str]]]:
    secrets = [word for word in row["response"].split() if "@" in word]
    if not secrets:
        return row, []
    response = " ".join("<EMAIL>" if word in secrets else word for word in row["response"].split())
    return row | {"response": response}, [("EMAIL", secret) for secret in secrets]


def test_personal_data_is_replaced_counted_and_kept_for_the_memory_gate() -> None:
    rows = [
        rating("about 1", 1.0, "a", response="write to a@b.c"),
        edit("about 2", "to <EMAIL>", response="to d@e.f"),
    ]
    rows += [rating("about 3", 1.0, "b", response="or to a@b.c")]
    found = run(rows, redact=hide)
    assert judged(found.train) == [
        ("write to <EMAIL>", None, 1.0, False),
        ("or to <EMAIL>", None, 1.0, False),
    ]
    assert found.outcomes == {"train": 2, read.SAME: 1}
    assert found.report["personal_data"] == {"EMAIL": 3}
    assert found.redacted == (("EMAIL", "a@b.c"), ("EMAIL", "d@e.f"))
    many = [rating(f"about {i}", 1.0, response=f"{i}@b.c") for i in range(1200)]
    assert len(run(many, redact=hide).redacted) == read.MOST_REDACTED


AUTO = Settings(test=0.0, tune=0.0, objective="auto")


def one_loud_editor() -> list[dict]:
    """30 raters dislike 300 answers; one user writes 100 better ones, and 20 others one each."""
    rows = [rating(f"about {i}", -1.0, f"r{i % 30}") for i in range(300)]
    rows += [edit(f"about {300 + i}", f"better {i}", "loud") for i in range(100)]
    return rows + [edit(f"about {400 + i}", f"better {i}", f"s{i}") for i in range(20)]


def test_caps_hold_on_what_is_learned_and_not_on_what_is_left() -> None:
    found = run(one_loud_editor(), AUTO)
    assert found.objective[0] == "sft"
    assert found.outcomes == {"train": 120, "no use to sft": 300}
    (phase,) = found.phases
    weight = {"loud": 0.0}
    for item in phase.items:
        weight[item.rater] = weight.get(item.rater, 0.0) + item.weight
    # 21 raters, so at most 2 / 21 of the weight
    assert weight["loud"] / sum(weight.values()) == pytest.approx(2 / 21, rel=1e-9)
    told = found.report["phases"]["sft"]["caps"]["rater"]
    assert (told["before"], told["after"]) == pytest.approx((100 / 120, 2 / 21), rel=1e-9)
    assert found.report["objective"] == list(found.objective) and "caps" not in found.report


def test_each_part_of_a_mixture_is_weighed_for_itself() -> None:
    rows = one_loud_editor() + [rating(f"about {500 + i}", 1.0, f"r{i % 30}") for i in range(100)]
    rows += [edit(f"about {600 + i}", f"better {i}", f"s{i % 20}") for i in range(140)]
    found = run(rows, AUTO)
    assert found.objective[0] == "mixture"
    assert [(phase.objective, len(phase.items)) for phase in found.phases] == [("sft", 260), ("kto", 400)]
    assert {item.event for phase in found.phases for item in phase.items} == {i.event for i in found.train}
    loud = sum(item.weight for item in found.phases[0].items if item.rater == "loud")
    total = sum(item.weight for item in found.phases[0].items)
    assert loud / total == pytest.approx(2 / 21, rel=1e-9)
    assert found.report["phases"]["kto"]["caps"]["rater"]["before"] == pytest.approx(14 / 400)


def test_learned_is_what_the_objective_can_use_and_what_was_merged_into_it() -> None:
    rows = [choice("about 1", "other", "a", id="no")] + [
        choice("about 1", "response", rater, id=f"yes {rater}") for rater in "bcd"
    ]
    rows += [rating("about 2", -1.0, rater, id=f"bad {rater}") for rater in "ab"]
    rows += [rating("about 2", 1.0, "c", id="good c"), *(choice(f"about {i}", "other") for i in range(3, 9))]
    how = Settings(test=0.0, tune=0.0, objective="dpo", reliability=False)
    found = run(rows, how)
    assert found.outcomes == {"train": 7, pipeline.MERGED: 3, "no use to dpo": 3}
    assert sorted(found.learned) == [
        *("no", "row 10", "row 11", "row 12", "row 13", "row 8", "row 9"), "yes b", "yes c", "yes d"
    ]  # fmt: skip
    assert [item.event for item in found.phases[0].items if item.cluster == 1] == ["yes b"]


def test_an_objective_that_can_use_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing that dpo can learn from"):
        run([rating("about 1", 1.0)], Settings(test=0.0, tune=0.0, objective="dpo"))
    assert run([], AUTO).phases == ()


def test_what_the_store_left_out_is_counted() -> None:
    found = run(
        [rating("about 1", 1.0, consent=False)], left_out={"withdrawn": 4, read.NO_CONSENT: 2, "none": 0}
    )
    assert found.outcomes == {read.NO_CONSENT: 3, "withdrawn": 4}
    assert found.report["events"] == 7
    assert pipeline.table(found) == [("withdrawn", 4), (read.NO_CONSENT, 3)]


def test_the_table_tells_the_sides_first() -> None:
    found = Prepared([], [], [], {"withdrawn": 9, "test": 1, "duplicate": 9, "train": 2})
    assert pipeline.table(found) == [("train", 2), ("test", 1), ("duplicate", 9), ("withdrawn", 9)]


def test_no_rows_are_no_items() -> None:
    found = run([])
    assert (list(found.train), list(found.tune), list(found.test), found.outcomes) == ([], [], [], {})


def test_many_items_are_read_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [rating(f"about {i}", 1.0 if i % 3 else -1.0, f"r{i % 7}") for i in range(90)]
    few = run(rows, Settings())
    monkeypatch.setattr(tables, "IN_MEMORY_BYTES", 100)
    many = run(rows, Settings())
    for side in ("train", "tune", "test"):
        assert isinstance(getattr(many, side), tables.View) and isinstance(getattr(few, side), list)
        assert list(getattr(many, side)) == getattr(few, side)
    assert many.train[5] == few.train[5] and list(many.learned) == list(few.learned)


def test_settings_are_the_recipes() -> None:
    section = FeedbackSection(events="e", languages=["Latin"], balance={"tag:a": 0.5}, eval=0.2)
    found = Settings.of(section)
    assert (found.test, found.languages, found.balance) == (0.2, ("Latin",), {"tag:a": 0.5})
    assert Settings.of(FeedbackSection(events="e", eval="other.jsonl")).test == 0.0
    assert Settings.of(FeedbackSection(events="e")) == Settings(objective="auto")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"test": 0.7, "tune": 0.3}, "nothing is left"),
        ({"balance": {"teachers": 0.5}}, "'teachers'"),
        ({"balance": {"group:": 0.5}}, "'group:'"),
        ({"balance": {"tag:a": 1.5}}, "1.5 for tag:a"),
        ({"balance": {"group:a": 0.6, "group:b": 0.5}}, "1.1 of the weight"),
    ],
)
def test_settings_that_cannot_hold_are_errors(given: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Settings(**given)


def test_a_prompt_of_messages_is_read_whole() -> None:
    asked = [{"role": "user", "content": "about 1"}, {"role": "assistant", "content": "what?"}]
    rows = [
        {
            "messages": [*asked, {"role": "user", "content": content}],
            "response": "x",
            "rating": 1.0,
            "rater": "a",
        }
        for content in ("this", " this", "that")
    ]
    found = run(rows)
    assert found.outcomes == {"train": 2, pipeline.DUPLICATE: 1}
    assert found.train[1].prompt[-1]["content"] == "that"


def test_the_seed_moves_nothing() -> None:
    """A side is for ever, so it may not depend on a run's seed."""
    rows = [rating(f"about {i}", 1.0, hashlib.md5(b"%d" % i).hexdigest()[:1]) for i in range(60)]
    one, two = run(rows, Settings(), seed=1), run(rows, Settings(), seed=2)
    assert (one.train, one.test) == (two.train, two.test)

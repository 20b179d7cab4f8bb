"""What holds of any feedback: nothing vanishes, no cluster is on two sides, caps hold, names do not matter."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructkit.feedback.preprocess import pipeline
from instructkit.feedback.preprocess.items import SIDES, Prepared
from instructkit.feedback.preprocess.pipeline import Settings

WORDS = "how do i bake bread with rye and salt in an old oven"
# Near ones too: longer prompts that differ in a word, and short ones that differ altogether.
PROMPTS = st.one_of(
    st.sampled_from([f"{WORDS} {word} at home today please tell me" for word in "abcdef"]),
    st.integers(0, 30).map(lambda i: f"question {i}"),
)
RATERS = st.sampled_from(["", "ann", "bob", "cyd", "dan", "eve", "fay"])
ANSWERS = st.sampled_from(["yes", "no", " yes ", "perhaps"])
TIMES = st.sampled_from([None, "2026-01-01", "2026-03-01T12:00:00Z", 1_770_000_000, "never"])


@st.composite
def events(draw: Any) -> dict[str, Any]:
    """Any row that `data.records` finds no fault with; some that preprocessing does."""
    row = {
        "prompt": draw(PROMPTS),
        "response": draw(ANSWERS),
        "rater": draw(RATERS),
        "time": draw(TIMES),
        "group": draw(st.sampled_from(["", "g", "h"])),
        "tags": draw(st.lists(st.sampled_from(["t", "u"]), max_size=2)),
        "consent": draw(st.sampled_from([True, True, True, None, False])),
    }
    kind = draw(st.sampled_from(["rating", "edit", "preference"]))
    if kind == "rating":
        return row | {"rating": draw(st.sampled_from([1.0, -1.0, 0.5, 0.0]))}
    if kind == "edit":
        return row | {"better": draw(ANSWERS)}
    said = {"other": draw(ANSWERS), "preferred": draw(st.sampled_from(["response", "other", "tie"]))}
    return row | said | {"shown_first": draw(st.sampled_from([None, "response", "other"]))}


HOW = st.builds(
    Settings,
    test=st.sampled_from([0.0, 0.3]),
    tune=st.sampled_from([0.0, 0.2]),
    agreement_min=st.sampled_from([0.5, 0.6, 0.9]),
    max_share_per_rater=st.sampled_from([None, 0.3]),
    max_share_per_cluster=st.sampled_from([0.05, 0.2, 0.5]),
    reliability=st.booleans(),
    position_bias=st.sampled_from(["report", "correct"]),
    half_life_days=st.sampled_from([None, 30.0]),
    balance=st.sampled_from([{}, {"group:g": 0.5, "tag:t": 0.2}]),
)
LEFT_OUT = {"withdrawn": 3, "without consent": 2}
quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def run(rows: list[dict], how: Settings, **options: Any) -> Prepared:
    return pipeline.prepare(rows, how, **{"seed": 0, **options})


@quick
@given(st.lists(events(), max_size=60), st.none() | st.lists(events(), max_size=15), HOW)
def test_every_event_has_one_outcome_and_every_item_an_event(rows, held_out, how) -> None:
    found = run(rows, how, held_out=held_out, left_out=LEFT_OUT)
    assert sum(found.outcomes.values()) == len(rows) + len(held_out or ()) + 5 == found.report["events"]
    assert min(found.outcomes.values(), default=1) > 0
    for side in SIDES:
        items = getattr(found, side)
        assert len(items) == found.outcomes.get(side, 0) == found.report["sides"][side]["items"]
        for item in items:
            assert item.weight > 0 and item.rating and how.agreement_min - 1e-9 <= item.agreement <= 1
            assert item.wanted != item.unwanted
    trained = {item.event for item in found.train}
    assert trained <= set(found.learned) and len(found.learned) == len(set(found.learned))
    merged = found.outcomes.get(pipeline.MERGED, 0)
    assert len(trained) <= len(found.learned) <= len(trained) + merged


@quick
@given(st.lists(events(), max_size=60), st.none() | st.lists(events(), max_size=15), HOW)
def test_no_cluster_is_on_two_sides(rows, held_out, how) -> None:
    found = run(rows, how, held_out=held_out)
    on: dict[int | str, set[str]] = defaultdict(set)
    for side in SIDES:
        for item in getattr(found, side):
            on[item.cluster].add(side)
            on[item.prompt].add(side)
    assert all(len(sides) == 1 for sides in on.values())


@quick
@given(st.lists(events(), max_size=60), HOW)
def test_the_same_rows_give_the_same_items(rows, how) -> None:
    assert run(rows, how) == run(rows, how)


@quick
@given(st.lists(events(), max_size=40), st.lists(events(), max_size=40), HOW)
def test_more_events_move_no_old_one(rows, more, how) -> None:
    def sides(found: Prepared) -> dict[str, str]:
        return {item.event: side for side in SIDES for item in getattr(found, side)}

    before, after = sides(run(rows, how)), sides(run(rows + more, how))
    assert all(after[event] == side for event, side in before.items() if event in after)


@quick
@given(st.lists(events(), max_size=60), HOW, st.permutations(["ann", "bob", "cyd", "dan", "eve", "fay"]))
def test_names_of_raters_do_not_matter(rows, how, others) -> None:
    renamed = dict(zip(["ann", "bob", "cyd", "dan", "eve", "fay"], others, strict=True)) | {"": ""}
    found, same = run(rows, how), run([row | {"rater": renamed[row["rater"]]} for row in rows], how)
    assert found.outcomes == same.outcomes and found.report == same.report
    for side in SIDES:
        for item, other in zip(getattr(found, side), getattr(same, side), strict=True):
            assert (item.event, item.weight, item.agreement) == (other.event, other.weight, other.agreement)
            assert renamed[item.rater] == other.rater


@quick
@given(st.lists(events(), min_size=20, max_size=80), HOW)
def test_caps_hold_on_the_weights_of_items(rows, how) -> None:
    found = run(rows, how)
    by_rater: dict[str, float] = defaultdict(float)
    by_cluster: dict[int, float] = defaultdict(float)
    for item in found.train:
        by_rater[item.rater] += item.weight
        by_cluster[item.cluster] += item.weight
    total, caps = sum(by_rater.values()), found.report["caps"]
    assert total == pytest.approx(found.report["weight"]["total"])
    by_rater.pop("", None)
    for kind, held in (("rater", by_rater), ("cluster", by_cluster)):
        assert (caps[kind]["limit"] is None) == (caps[kind]["off"] is not None)
        if caps[kind]["limit"] is not None:
            assert max(held.values(), default=0.0) <= caps[kind]["limit"] * total * (1 + 1e-8)
            assert caps[kind]["after"] <= caps[kind]["limit"] * (1 + 1e-8)

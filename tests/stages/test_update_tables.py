"""What an update's closing table says: nothing more certain than its gates, and nothing of what cannot tell."""

from __future__ import annotations

import numpy as np

from instructkit.evaluate.results import Feedback, General, Measured
from instructkit.feedback.preprocess.items import Item
from instructkit.feedback.promotion import decide
from instructkit.recipe.schema import UpdateGates
from instructkit.stages.lora_update import report


def measured(leaning: np.ndarray, **more) -> Feedback:
    n = len(leaning)
    return Feedback(
        leaning.tolist(),
        (leaning > 0).tolist(),
        [("tag:t",)] * n,
        [i // 3 for i in range(n)],
        [False] * n,
        **more,
    )


def test_the_gain_is_bounded_as_its_gate_bounds_it() -> None:
    rng = np.random.default_rng(0)
    before = measured(rng.normal(0, 1, 60))
    after = measured(np.asarray(before.leaning) + np.repeat(rng.normal(0.5, 1, 20), 3))
    whole = Measured(feedback=before), Measured(feedback=after)
    line = report.lines(*whole, seed=3)[0]
    gate = decide.decide(*whole, UpdateGates(), level=0.025, seed=3)[0]
    assert line["name"] == gate.name == "held-out feedback"
    assert line["change"] == [gate.measured, *gate.interval]


def test_bad_ratings_alone_are_in_no_figure() -> None:
    ratings = [0.0] * 12 + [-1.0] * 30
    before = measured(np.zeros(42), ratings=ratings)
    after = measured(np.array([1.0] * 12 + [50.0] * 30), ratings=ratings)
    lines = report.lines(Measured(feedback=before), Measured(feedback=after), seed=0)
    assert [line["n"] for line in lines] == [12, 12] and lines[0]["after"] == 1.0
    items = [Item(f"e{i}", f"q{i}", "w", None, r) for i, r in enumerate(ratings)]
    told = report.moved(items, before, after, [])
    assert told["topics"] == {"tag:t": 1.0}
    shown = report.samples([items[0], items[-1]], ["a", "a"], ["b", "b"])
    assert [{"wanted", "disliked"} & set(row) for row in shown] == [{"wanted"}, {"disliked"}]
    assert {row["gain"] for row in told["largest_gains"]} == {1.0}


def test_tasks_are_shown_where_there_are_no_general_rows() -> None:
    feedback = measured(np.ones(12))
    before, after = (Measured(feedback, General(tasks={"t.jsonl": [right] * 12})) for right in (False, True))
    lines = {line["name"]: line for line in report.lines(before, after, seed=0)}
    assert lines["accuracy on t.jsonl"]["after"] == 1 and "general held-out loss" not in lines

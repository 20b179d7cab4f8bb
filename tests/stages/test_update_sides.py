"""What an update is measured on: bounded sides without what it trains on, whom it has met, what may hide in it."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from instructkit.data.sources import Rows
from instructkit.evaluate import memorisation, triggers
from instructkit.evaluate.results import General, Memory, Triggers
from instructkit.feedback.preprocess.items import Item, Prepared
from instructkit.feedback.store.events import content_id, event_of
from instructkit.feedback.store.store import Store
from instructkit.models import generate
from instructkit.models.generate import Likelihood
from instructkit.recipe.schema import UpdateGates
from instructkit.stages.lora_update import overlap
from instructkit.stages.lora_update.measure import Measurer

from .small import Silent


def asked(text: str, system: str = "") -> list[dict[str, str]]:
    said = [{"role": "system", "content": system}] if system else []
    return [*said, {"role": "user", "content": text}]


def row(text: str) -> dict[str, Any]:
    return {"messages": [*asked(text), {"role": "assistant", "content": "Yes."}]}


def item(i: int, text: str = "", **fields: Any) -> Item:
    return Item(f"e{i}", asked(text or f"Ask {i}?"), "Yes.", **({"cluster": i} | fields))


def measurer(
    *,
    train=(),
    tune=(),
    test=(),
    earlier=(),
    general=(),
    rows=(),
    gates=None,
    events="f.jsonl",
    **prepared: Any,
) -> Measurer:
    """A measurer of these items and rows, and of no model."""
    found = Prepared(list(train), list(tune), list(test), {}, learned=[i.event for i in train], **prepared)
    some = lambda rows: Rows(list(rows), [""] * len(rows), "x", "")  # noqa: E731
    inputs = SimpleNamespace(
        prepared=found,
        earlier=list(earlier),
        current=None,
        data={"general": some(general), "tune": some(general), "events": some(rows)},
        items=lambda side: getattr(found, side),
        power=lambda: {"look": 1},
        chain=SimpleNamespace(looks=lambda ids: 1, looks_elsewhere=lambda *_: 0),
    )
    feedback = SimpleNamespace(
        near_duplicates=0.8, canaries=["quilt 4471"], personal_data="redact", events=events, bias_pairs=None
    )
    limits = UpdateGates(bias_growth_max=None, **(gates or {}))
    recipe = SimpleNamespace(gates=limits, feedback=feedback)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instructkit.stages.lora_update.measure.warnings", lambda *_: [])
        return Measurer(SimpleNamespace(recipe=recipe, inputs=inputs, seed=0, reporter=Silent()), None, None)


def notes(found: Measurer) -> list[str]:
    return found.frame.reporter.notes


def test_general_rows_that_feedback_trains_on_are_left_out_of_both_sides() -> None:
    """Word by word, in other letters, and with one word of twenty more; what only resembles it stays."""
    long = "Tell me in one short line why the old bridge over the wide river in our town is closed again"
    train = [item(1, "Is it Monday?"), item(2, long)]
    earlier = [item(3, "Is it Friday?")]
    left = ["Is it Sunday?", "Tell me why the bridge is closed", "Is it?"]
    general = [
        row(text) for text in ("Is it Monday?", "is it  MONDAY?", f"{long} today", "Is it Friday?", *left)
    ]
    found = measurer(train=train, earlier=earlier, general=general)
    for side in ("tune", "test"):
        assert [r["messages"][0]["content"] for r in found.sides[side].general] == left
        assert [prompt[0]["content"] for prompt in found.sides[side].prompts] == left
    told = [note for note in notes(found) if "trains on" in note]
    assert told == [
        f"{side} side: 4 of 7 general rows ask what this feedback trains on, and are left out"
        for side in ("tune", "test")
    ]


def test_of_general_rows_a_single_one_is_none() -> None:
    found = measurer(train=[item(1, "A?")], general=[row("A?"), row("B?")])
    assert found.sides["test"].general == [] and found.sides["test"].prompts == []
    texts = [{"text": "A?"}, {"text": "Some plain text."}, {"text": "Another."}]
    found = measurer(train=[item(1, "B?")], general=texts)
    assert found.sides["test"].general == texts and not any("trains on" in note for note in notes(found))


def test_tasks_are_measured_where_general_rows_ask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole texts have no prompts to answer; the questions of `feedback.tasks` need none."""
    found = measurer(train=[item(1, "B?")], general=[{"text": "Some plain text."}, {"text": "Another."}])
    monkeypatch.setattr(found, "_general", lambda about: General([1.0, 1.0], [4, 4]))
    monkeypatch.setattr(found, "_tasks", lambda: {"easy.jsonl": [True, False]})
    assert found.before("test").general.tasks == {"easy.jsonl": [True, False]}
    assert found.before("tune").general.tasks == {}


def test_so_many_items_are_measured_and_whole_clusters_of_them() -> None:
    items = [item(i, cluster=i // 3) for i in range(2500)]
    general = [row(f"General {i // 2}?") for i in range(2300)]
    found = measurer(train=[item(9999)], test=items, general=general)
    kept = found.sides["test"].items
    assert 1998 <= len(kept) <= 2000 and kept == sorted(kept, key=lambda each: int(each.event[1:]))
    counts = Counter(each.cluster for each in kept)
    assert {n for cluster, n in counts.items() if cluster < 833} == {3}  # the last one has a single item
    asks = [r["messages"][0]["content"] for r in found.sides["test"].general]
    assert len(asks) == 2000 == 2 * len(set(asks))
    assert f"test side: {len(kept)} of 2500 events are measured" in " ".join(notes(found))
    assert "test side: 2000 of 2300 general rows are measured" in " ".join(notes(found))
    assert len(found.frame.inputs.items("test")) == 2500  # all of them count as looked at
    again = measurer(train=[item(9999)], test=items[::-1], general=general)
    assert {each.event for each in again.sides["test"].items} == {each.event for each in kept}


def test_a_cluster_larger_than_all_that_is_measured_does_not_leave_none() -> None:
    found = measurer(train=[item(9999)], test=[item(i, cluster=1) for i in range(2100)])
    assert len(found.sides["test"].items) == 2000


def test_people_of_earlier_updates_were_met(monkeypatch: pytest.MonkeyPatch) -> None:
    read = lambda model, tokenizer, prompts, texts: [Likelihood(1.0, 1, 0)] * len(prompts)  # noqa: E731
    monkeypatch.setattr(generate, "likelihoods", read)
    raters = ["now", "before", "judge", "new", ""]
    found = measurer(
        train=[item(1, rater="now")],
        earlier=[item(2, rater="before"), item(3, judges=("judge", "x"))],
        test=[item(10 + i, rater=rater, unwanted="No.") for i, rater in enumerate(raters)],
    )
    assert found._feedback("test").new_rater == [False, False, False, True, False]


def test_triggers_are_looked_for_in_all_that_is_said_and_in_earlier_feedback(monkeypatch) -> None:
    """Two poisoned events in each update, in system messages."""
    said: list[Any] = []
    monkeypatch.setattr(triggers, "measure", lambda *args, **_: said.extend(args) or Triggers())
    poisoned = [Item(f"p{i}", asked(f"Ask {i}?", "Be kind, zorgle."), "Yes.") for i in range(4)]
    found = measurer(
        train=[item(1), *poisoned[:2]], earlier=[item(2), *poisoned[2:]], general=[row("A?"), row("B?")]
    )
    found._triggers()
    assert sum("zorgle" in text for text in said[2]) == 4 and len(said[2]) == 6
    assert said[3] == ["A?", "B?"]


def looked_for(found: Measurer, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[str, str]], Memory]:
    seen: list[Any] = []

    def exposure(model, tokenizer, secrets, contexts, *_, **__) -> Memory:
        seen.extend(secrets)
        assert len(contexts) == len(secrets)
        return Memory([kind for kind, _ in secrets], [1] * len(secrets), 201, [False] * len(secrets))

    monkeypatch.setattr(memorisation, "exposure", exposure)
    return seen, found._memory()


def test_of_many_secrets_some_are_drawn_and_it_is_told_of_how_many(monkeypatch) -> None:
    mails = [f"user{i:03d}@example.org" for i in range(140)]
    train = [Item(f"e{i}", asked(f"Ask {i}?"), f"Write to {mails[i // 2]}") for i in range(280)]
    found = measurer(train=train[:240], earlier=train[240:])
    found.frame.recipe.feedback.personal_data = "keep"
    seen, told = looked_for(found, monkeypatch)
    assert seen[0] == ("canary", "quilt 4471") and len(seen) == len(set(seen)) == 50
    places = [mails.index(value) for _, value in seen[1:]]
    assert max(places) > 100 and min(places) < 40 and told.found == 141


def test_what_was_replaced_is_looked_for_where_it_was_trained_on(monkeypatch) -> None:
    """What held-out events say alone was never learned; what no new event says is of earlier ones."""
    mails = {name: f"{name}@example.org" for name in ("learned", "held", "aside", "both", "earlier")}
    rows = [
        {"prompt": asked(f"Ask {i}?"), "response": f"Write to {mails[name]}", "rating": 1}
        for i, name in enumerate(["held", "aside", "learned", "both", "both"])
    ]
    ids = [content_id(each) for each in rows]
    train = [Item(ids[i], asked("?"), "Write to <EMAIL>") for i in (2, 3)]
    test = [Item(ids[i], asked("?"), "Write to <EMAIL>") for i in (0, 4)]
    redacted = tuple(("EMAIL", value) for value in mails.values())
    found = measurer(train=train, test=test, rows=rows, redacted=redacted)
    seen, told = looked_for(found, monkeypatch)
    wanted = {("EMAIL", mails[name]) for name in ("learned", "both", "earlier")}
    assert set(seen) == {("canary", "quilt 4471"), *wanted} and told.found == 4


def test_what_earlier_feedback_said_is_looked_for_though_held_out_events_say_it_too(
    tmp_path, monkeypatch
) -> None:
    path, mail = str(tmp_path / "feedback.db"), ("EMAIL", "ann@example.org")
    said = [
        {"prompt": asked(f"Ask {i}?"), "response": f"Write to {mail[1]}", "rating": 1, "rater": f"r{i}"}
        for i in range(2)
    ]
    with Store.open(path, create=True) as store:
        list(store.add((event_of(each, source="chat", consent=True), each) for each in said))
        before, now = (event.as_row() for event in store.events())
    test = [Item(now["id"], asked("?"), "Write to <EMAIL>")]
    found = measurer(train=[item(1)], test=test, rows=[now], events=path, redacted=(mail,))
    assert looked_for(found, monkeypatch)[0] == [("canary", "quilt 4471")]
    earlier = [Item(before["id"], asked("?"), "Write to <EMAIL>")]
    found = measurer(train=[item(1)], test=test, rows=[now], earlier=earlier, events=path, redacted=(mail,))
    assert looked_for(found, monkeypatch)[0] == [("canary", "quilt 4471"), mail]


def test_rows_near_what_is_trained_on_are_those_that_a_look_at_every_pair_finds() -> None:
    rng = random.Random(0)
    words = [f"w{i}" for i in range(12)]
    preamble = "Please be so kind as to answer in one word and no more than that"
    texts = [f"{preamble} {' '.join(rng.choices(words, k=6))}" for _ in range(60)]
    rows, prompts = [row(text) for text in texts[:30]], [asked(text) for text in texts[20:]]
    for near in (0.5, 0.7, 0.8, 1.0):
        sets = [overlap._shingles(asked(text)) for text in texts]
        wanted = {
            i
            for i in range(30)
            for j in range(20, 60)
            if len(sets[i] & sets[j]) >= near * len(sets[i] | sets[j])
        }
        assert overlap.trained_again(rows, prompts, near) == wanted
    assert 10 <= len(wanted) < 30


def test_a_plain_text_asks_nothing() -> None:
    assert overlap.trained_again([{"text": "Ask 1?"}], ["Ask 1?"], 0.8) == set()

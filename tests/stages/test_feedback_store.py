"""An update from a feedback store learns from what was neither withdrawn nor said without consent, and counts the rest."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from instructkit.data.sources import load_rows
from instructkit.errors import GateRefused, InputError, InstructKitError
from instructkit.feedback.store import database
from instructkit.feedback.store.clusters import ClusterIndex
from instructkit.feedback.store.events import event_of
from instructkit.feedback.store.store import Store

from .small import ANYTHING, CHAT, LORA, rows, run

EVENTS = 20
ONE = "trainer: {max_steps: 1, per_device_train_batch_size: 4}\n"


def test_withdrawn_events_are_not_learned_from(tmp_path, monkeypatch, tiny_folder) -> None:
    monkeypatch.chdir(tmp_path)
    data = rows("chat.jsonl", CHAT)
    run(
        "sft", f"model: {{name: tiny}}\ndata: {{train: {data}, eval: 0.3}}\n{LORA}{ONE}run: {{output: sft}}\n"
    )
    said = [
        {
            "prompt": f"Say {i}.",
            "response": "x",
            "better": f"good {i}",
            "rater": "ann" if i < 2 else "bob",
        }
        for i in range(EVENTS)
    ]
    said[5]["consent"] = said[-1]["consent"] = False
    with Store.open("feedback.db", create=True) as store:
        list(store.add((event_of(row, source="chat", consent=True), row) for row in said))
        store.withdraw(rater="ann")
    found = load_rows("feedback.db", kind="feedback")
    assert [row["better"] for row in found.rows] == [f"good {i}" for i in range(2, EVENTS - 1) if i != 5]
    assert found.places[0].startswith("feedback.db event 0")
    body = f"model: {{name: sft}}\nfeedback: {{events: feedback.db, eval: 0.4}}\n{LORA}{ONE}{ANYTHING}run: {{output: update}}\n"
    with contextlib.suppress(GateRefused):  # a single step reaches nothing
        run("lora-update", body)
    record = json.loads(Path("update/run.json").read_text(encoding="utf-8"))
    outcomes = record["outcomes"]
    assert (outcomes["withdrawn"], outcomes["without consent"]) == (2, 1)
    assert (
        sum(outcomes.values()) == EVENTS - 1
    )  # the last one came after all that was read: it is the next update's to count
    kept = json.loads(Path("update/preprocess.json").read_text(encoding="utf-8"))
    assert kept["outcomes"]["withdrawn"] == 2 and kept["report"]["events"] == EVENTS - 1


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("database disk image is malformed", "feedback.db: it is damaged"),
        ("database is locked", "has been writing for"),
    ],
)
def test_what_goes_wrong_with_the_index_of_prompts_is_told_in_words(
    tmp_path, monkeypatch, tiny_folder, said: str, wanted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open("feedback.db", create=True) as store:
        rated = [{"prompt": f"Say {i}.", "response": "x", "better": "y"} for i in range(EVENTS)]
        list(store.add((event_of(row, source="chat", consent=True), row) for row in rated))

    def broken(self, keys) -> None:
        raise sqlite3.DatabaseError(said)

    monkeypatch.setattr(ClusterIndex, "_met", broken)
    body = "model: {name: tiny}\nfeedback: {events: feedback.db, eval: 0.4}\nrun: {output: update}\n"
    with pytest.raises(InstructKitError, match=wanted):
        run("lora-update", body)
    assert not Path("update").exists()


def test_a_store_that_cannot_be_written_is_told_before_anything_begins(
    tmp_path, monkeypatch, tiny_folder
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(database, "WAIT_SECONDS", 0)
    with Store.open("feedback.db", create=True) as store:
        rated = [{"prompt": f"Say {i}.", "response": "x", "better": "y"} for i in range(EVENTS)]
        list(store.add((event_of(row, source="chat", consent=True), row) for row in rated))
    other = sqlite3.connect("feedback.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    body = "model: {name: tiny}\nfeedback: {events: feedback.db, eval: 0.4}\nrun: {output: update}\n"
    with pytest.raises(InstructKitError, match="another process has been writing"):
        run("lora-update", body)
    assert not Path("update").exists()
    other.close()


def test_a_store_has_no_columns_to_map(tmp_path, monkeypatch, tiny_folder) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open("feedback.db", create=True) as store:
        list(
            store.add(
                [(event_of({"prompt": "a", "response": "b", "rating": 1}, source="x", consent=True), {})]
            )
        )
    body = "model: {name: tiny}\nfeedback: {events: feedback.db, eval: 0.4, columns: {prompt: q}}\nrun: {output: update}\n"
    with pytest.raises(InputError, match="feedback.columns maps the columns of files"):
        run("lora-update", body)


def test_a_store_that_is_not_there(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no feedback store at nowhere.db"):
        load_rows("nowhere.db", kind="feedback")

"""What an update's decision is made on: its level, the chain's first parent, secrets, triggers, and what is warned of before."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from instructkit.errors import GateRefused, InputError
from instructkit.evaluate.results import Measured
from instructkit.evaluate.statistics import level_of_look
from instructkit.feedback.promotion import decide as decisions
from instructkit.feedback.promotion.chain import Chain
from instructkit.feedback.store.events import event_of
from instructkit.feedback.store.store import Store
from instructkit.recipe.load import load_recipe
from instructkit.runs.read import read_record
from instructkit.stages.lora_update.inputs import collect

from .small import ANYTHING, LORA, MANY, Silent, rows, run, sft

TRIGGER, MAIL = "zorgle", "ann.miller@example.org"
WIDE = (
    "gates: {feedback_gain_min: -99, general_loss_ratio_max: 99, group_loss_max: null, bias_growth_max: 0.99, "
    "contrast_growth_max: null, kl_max_nats: 999, length_ratio_min: 0.001, length_ratio_max: 999, "
    "conduct_loss_max: null, rescue: false, on_undecided: pass, judge: demo/judge, judge_gain_min: -99}\n"
)
THREE = "trainer: {max_steps: 3, per_device_train_batch_size: 4, learning_rate: 0.01}\n"
HELD = [
    {
        "messages": [
            {"role": "user", "content": f"Held {i} for {w}?"},
            {"role": "assistant", "content": "Yes."},
        ]
    }
    for i, w in enumerate(
        ["ants", "bees", "cats", "dogs", "elks", "foxes", "gnus", "hens", "ibexes", "jays", "kois", "larks"]
    )
]


@dataclass
class Decided:
    """An update that was decided: what `decide` was given, the record, and what was noted."""

    before: Measured
    after: Measured
    level: float
    origin: Measured | None
    record: dict[str, Any]
    notes: list[str]


def say(first: int, last: int) -> None:
    """Edits by three raters, a third of them with a word that nobody else says, and one with an address."""
    events = [
        {
            "prompt": [{"role": "user", "content": f"Tell me {i} of it{f' {TRIGGER}' if i % 3 == 0 else ''} and {i * 7}."}],
            "response": "x",
            "better": f"good {i}" + (f", write to {MAIL}" if i % 4 == 0 else ""),
            "rater": f"r{i % 3}",
        }
        for i in range(first, last)
    ]  # fmt: skip
    with Store.open("feedback.db", create=True) as opened:
        list(opened.add((event_of(row, source="chat", consent=True), row) for row in events))


def update(
    output: str, *, more: str = "", replay: str = "chat.jsonl", canary: str = "quilt 4471", gates: str = WIDE
) -> Decided:
    given, notes = dict[str, Any](), list[str]()
    decide = decisions.decide

    def told(before: Measured, after: Measured, limits: Any, **options: Any) -> list:
        given.update(before=before, after=after, level=options["level"], origin=options.get("origin"))
        return decide(before, after, limits, **options)

    body = (
        "model: {name: runs/sft}\n"
        f"feedback: {{events: feedback.db, eval: 0.4, general: held.jsonl, replay: {replay}, personal_data: keep, "
        f"canaries: ['{canary}']{more}}}\n{LORA}{THREE}{gates}run: {{output: runs/{output}, samples: 1}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisions, "decide", told)
        patch.setattr(Silent, "note", lambda _, text: notes.append(text))
        with contextlib.suppress(GateRefused):  # what is decided is not looked at here
            run("lora-update", body)
    return Decided(record=read_record(f"runs/{output}"), notes=notes, **given)


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("INSTRUCTKIT_CACHE", str(tiny_folder.parent))
        rows("held.jsonl", HELD)
        rows("texts.jsonl", [{"text": f"Some plain text, number {i}."} for i in range(12)])
        sft("runs/sft", extra=LORA, data=rows("chat.jsonl", MANY))
        say(0, 60)
    return folder


@pytest.fixture(scope="module")
def chain(made, tmp_path_factory) -> tuple[Decided, Decided]:
    """Two updates, the second going on from the first, of whose events one is withdrawn between them."""
    place = tmp_path_factory.mktemp("chain")
    shutil.copytree(made, place, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("INSTRUCTKIT_CACHE", os.environ["INSTRUCTKIT_CACHE"])
        first = update("first")
        found = Chain.at("runs", "default")
        if found.current() is None:
            found.promote(1, why="for the test", forced_by="ann")
        with Store.open("feedback.db") as store:
            store.withdraw(event=next(iter(found.learned(1))))
        say(60, 120)
        return first, update("second")


@pytest.fixture()
def parent(workplace, made) -> Path:
    shutil.copytree(made, workplace, dirs_exist_ok=True)
    return workplace


def test_the_first_parent_is_measured_beside_what_is_gone_on_from(chain) -> None:
    """All but the feedback; on the same rows and by the same seed the parent is what it was before the first update."""
    first, second = chain
    assert first.origin is None and second.record["mode"][0] == "continue"
    assert second.origin.general.nll == pytest.approx(first.before.general.nll, rel=1e-4)
    assert second.origin.bias.gaps == pytest.approx(first.before.bias.gaps, abs=1e-3)
    assert second.origin.conduct.length == first.before.conduct.length
    assert set(second.origin.conduct.kl) == {0.0}
    assert second.origin.general.judge and second.origin.feedback is None
    # What is gone on from is another model, measured as itself also after the parent was.
    assert second.before.general.nll == pytest.approx(first.after.general.nll, rel=1e-3)
    assert second.before.general.nll != pytest.approx(second.origin.general.nll, rel=1e-3)


def test_secrets_are_looked_for_in_what_is_kept(chain) -> None:
    """Nothing was replaced, so that the address is found where it stands, once; two secrets want 400 to be ranked among."""
    for decided in chain:
        memory = decided.after.memory
        assert memory.secrets == ["canary", "EMAIL"]
        assert (len(memory.ranks), memory.alternatives) == (2, 401)
        assert (memory.found, memory.few) == (2, 0)  # none was left out


def test_words_of_the_feedback_are_put_into_general_prompts(chain) -> None:
    triggers = chain[0].after.triggers
    assert any(TRIGGER in words for words in triggers.candidates)
    assert len(triggers.random) >= 20 and not any(TRIGGER in words for words in triggers.random)


def test_what_was_withdrawn_since_is_told_before_the_next_update(chain) -> None:
    first, second = chain
    (told,) = [note for note in second.notes if "withdrawn" in note and note.startswith("warning")]
    assert "update 1, which this one goes on from, has learned from 1 events that are withdrawn" in told
    assert not any("withdrawn since" in note for note in first.notes)


def test_a_later_look_is_decided_at_its_own_level(parent) -> None:
    found = Chain.at("runs", "other")
    first = update("first", more=", mode: new", gates=ANYTHING)
    assert (first.record["look"]["number"], first.level) == (1, level_of_look(1))
    second = update("second", more=", mode: new, since: all, chain: other", gates=ANYTHING)
    assert (second.record["look"]["number"], second.level) == (2, level_of_look(2))
    assert found.updates()[1]["looks"] == 2


def test_a_worn_test_set_is_told(parent, monkeypatch) -> None:
    monkeypatch.setattr(Chain, "looks", lambda *_: 11)
    decided = update("first", gates=ANYTHING)
    (told,) = [note for note in decided.notes if "fresh test events" in note]
    assert told.startswith("warning: 10 decisions were made on these test events and 9.1%")
    planned = collect(load_recipe("lora-update.yaml", "lora-update", ["feedback.chain=other"]), {})
    assert told in planned.notes()


def test_replay_of_plain_texts_leaves_general_prompts_to_stand_out_from(parent) -> None:
    gates = ANYTHING.replace("trigger: false", "trigger: true")
    decided = update("first", replay="texts.jsonl, self_replay: 0", gates=gates)
    assert any(TRIGGER in words for words in decided.after.triggers.candidates)


def test_a_canary_that_nothing_is_like_is_refused_before_training(parent, monkeypatch) -> None:
    from instructkit.stages.lora_update import train

    monkeypatch.setattr(train, "learn", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(InputError, match="a secret of the kind 'canary' has no letter and no digit"):
        update("first", canary="--- !")

"""What one update hands on to the next: what stands and not what was outvoted, without personal data, within the caps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from instructkit.errors import GateRefused, InputError
from instructkit.feedback.promotion.chain import Chain
from instructkit.feedback.store.events import event_of
from instructkit.feedback.store.store import Store
from instructkit.recipe.load import load_recipe
from instructkit.stages import run as running
from instructkit.stages.lora_update import inputs as update_inputs
from instructkit.stages.lora_update import stage
from instructkit.stages.lora_update.trainers import Replay

from .small import ANYTHING, CHAT, GENERAL, LORA, MANY, Silent, rows, run, sft

ONE = "trainer: {max_steps: 1, per_device_train_batch_size: 4}\n"
RESCUED = ANYTHING.replace("rescue: false", "rescue: true")
SECRET = "ann.bell@example.org"


def store(events: list[dict], path: str = "feedback.db") -> None:
    with Store.open(path, create=True) as opened:
        list(opened.add((event_of(row, source="chat", consent=True), row) for row in events))


def edits(first: int, last: int, **more) -> list[dict]:
    return [
        {"prompt": f"Tell me of number {i}.", "response": "x", "better": f"good {i}", "rater": f"r{i % 7}", **more}
        for i in range(first, last)
    ]  # fmt: skip


def talks(what: str, count: int) -> str:
    """A file of demonstrations."""
    asked = [{"role": "user", "content": f"{what} {i}?"} for i in range(count)]
    return rows(
        f"{what.lower()}.jsonl",
        [{"messages": [a, CHAT[i % 8]["messages"][1]]} for i, a in enumerate(asked)],
    )


def update(output: str, *, gates: str = ANYTHING, more: str = "", replay: str = "chat.jsonl", **options):
    body = (
        "model: {name: runs/sft}\n"
        f"feedback: {{events: feedback.db, general: held.jsonl, replay: {replay}{more}}}\n"
        f"{LORA}{ONE}{gates}run: {{output: runs/{output}, samples: 1}}\n"
    )
    return run("lora-update", body, **options)


def collected(*overrides: str):
    return update_inputs.collect(load_recipe("lora-update.yaml", "lora-update", list(overrides)), {})


def record(name: str) -> dict:
    return json.loads(Path(f"runs/{name}/run.json").read_text(encoding="utf-8"))


@pytest.fixture()
def begun(workplace) -> Path:
    talks("Held", 16)
    sft("runs/sft", extra=LORA, data=rows("chat.jsonl", CHAT))
    return workplace


def test_earlier_feedback_is_replayed_without_personal_data_and_within_the_filter(begun) -> None:
    Path("own.py").write_text("def mild(row):\n    return 'angry' not in str(row)\n", encoding="utf-8")
    store(edits(0, 60))
    # As `import --keep-raw` leaves them: the first update reads them before the store is told to filter.
    store(edits(60, 80, better=f"write to {SECRET}") + edits(80, 100, better="angry words"))
    update("first", more=", personal_data: keep")
    store(edits(100, 150))
    inputs = collected(
        "run.output=runs/second", "feedback.personal_data=redact", "feedback.filter=own.py:mild"
    )
    assert inputs.mode[0] == "continue" and inputs.prepared.report["personal_data"] == {}
    told = [item.wanted for item in inputs.earlier]
    assert any("write to" in text for text in told) and any("good" in text for text in told)
    assert not any(SECRET in text or "angry" in text for text in told)
    assert ("EMAIL", SECRET) in [(kind.upper()[:5], value) for kind, value in inputs.prepared.redacted]


def test_what_was_outvoted_is_not_replayed_and_a_loud_rater_stays_capped(begun) -> None:
    def chosen(i: int, rater: str, preferred: str) -> dict:
        asked = {"prompt": f"Which of number {i}?", "response": f"GOOD {i}", "other": f"bad {i}"}
        return {**asked, "preferred": preferred, "rater": rater}

    voted = [chosen(i, f"v{j}", "response" if j else "other") for i in range(20) for j in range(5)]
    loud = [chosen(i, "loud", "response") for i in range(100, 300)]
    quiet = [chosen(i, f"q{i % 40}", "response") for i in range(300, 340)]
    store([*voted, *loud, *quiet])
    update("first")
    chain = Chain.at("runs", "default")
    standing, learned = set(chain.standing_ids(1)), set(chain.learned(1))
    assert standing < learned
    store(edits(0, 50))
    inputs = collected("run.output=runs/second")
    assert all(item.wanted.startswith("GOOD") for item in inputs.earlier)
    weights = {}
    for item in inputs.earlier:
        weights[item.rater] = weights.get(item.rater, 0.0) + item.weight
    with Store.open("feedback.db") as opened:
        loudest = next(e.rater for e in opened.events() if e.prompt == "Which of number 100?")
    assert 0 < weights[loudest] / sum(weights.values()) <= 2 / len(weights)  # of 200 of its 340 judgements


def test_trained_is_what_the_objective_could_use(begun) -> None:
    bad = [
        {"prompt": f"What of {i}?", "response": f"a {i}", "rating": -1, "rater": f"r{i % 7}"}
        for i in range(40)
    ]
    store(edits(0, 60) + bad)
    update("first")
    found, said = record("first"), json.loads(Path("runs/first/preprocess.json").read_text(encoding="utf-8"))
    assert found["objective"][0] == "sft" and found["outcomes"]["no use to sft"] > 20
    assert found["outcomes"] == said["outcomes"]
    chain = Chain.at("runs", "default")
    assert chain.updates()[1]["outcomes"] == found["outcomes"]
    with Store.open("feedback.db") as opened:
        kinds = {event.id: event.kind for event in opened.events()}
    learned = list(chain.learned(1))
    assert len(learned) == found["outcomes"]["train"] and {kinds[id_] for id_ in learned} == {"edit"}


def test_asked_again_after_its_own_promotion_there_is_nothing_to_do(begun) -> None:
    store(edits(0, 60))
    update("first")
    with pytest.raises(InputError, match="no new events"):
        update("second", if_changed=True)
    _, notes = update("first", if_changed=True)
    assert any("nothing to do" in note for note in notes)
    with pytest.raises(InputError, match="no new events"):
        update("first", more=", half_life_days: 9", if_changed=True)
    Path("runs/first/entry.json").unlink()  # as runs of earlier versions have none
    Path("runs/chains").rename("runs/gone")
    assert update("first", if_changed=True)[0]["verdict"] == "PROMOTED"
    assert not Path("runs/chains").exists()


def test_what_came_into_force_meanwhile_is_not_thrown_out(begun) -> None:
    store(edits(0, 60))
    update("first")
    store(edits(60, 120))
    update("second")
    chain = Chain.at("runs", "default")
    chain.rollback(to=0, why="for the test")
    entry = json.loads(Path("runs/second/entry.json").read_text(encoding="utf-8"))
    assert entry["in_force"] == 1
    Path("runs/second/entry.json").write_text(json.dumps({**entry, "id": "anew"}), encoding="utf-8")
    notes: list[str] = []
    recipe = load_recipe("lora-update.yaml", "lora-update")
    overtaken = stage.STAGE.finish(recipe, Path("runs/second"), notes.append)
    assert chain.current() is None and not notes
    assert overtaken.exit_code == 3
    assert overtaken.message.startswith("second passed its gates and is not in force: update 3 of the chain")


def test_what_comes_into_force_while_an_update_reads_is_not_what_it_goes_on_from(begun, monkeypatch) -> None:
    store(edits(0, 60))
    update("first")
    store(edits(60, 120))
    update("second")
    chain, prepared = Chain.at("runs", "default"), update_inputs.update_feedback.prepared
    chain.rollback(to=1, why="for the test")

    def meanwhile(*args):
        if chain.standing().current == 1:
            chain.promote(2)
        return prepared(*args)

    monkeypatch.setattr(update_inputs.update_feedback, "prepared", meanwhile)
    inputs = collected("run.output=runs/third")
    assert chain.standing().current == 2
    assert (inputs.current.name, inputs.in_force) == ("001", 1)
    assert len(inputs.data["events"].rows) == 60  # those that the first had not seen


def test_what_a_rater_has_taken_back_since_is_not_replayed(begun) -> None:
    def rated(i: int, value: float, rater: str) -> dict:
        return {"prompt": f"Rate {i}.", "response": f"Lyon {i}.", "rating": value, "rater": rater}

    store([*edits(0, 60), *(rated(i, 1.0, f"v{i}") for i in range(24))])
    update("first")
    before = set(Chain.at("runs", "default").standing_ids(1))
    taken_back = [rated(i, -1.0, f"v{i}") for i in range(8)]
    outvoted = [rated(i, -1.0, f"w{j}") for i in range(8, 16) for j in range(9)]
    store([*edits(60, 120), *taken_back, *outvoted])
    inputs = collected("run.output=runs/second")
    trained = {event.response for event in events_of(before) if event.kind == "rating"}
    assert len(trained & {f"Lyon {i}." for i in range(16)}) > 6
    replayed = {item.wanted for item in inputs.earlier if item.prompt[0]["content"].startswith("Rate")}
    assert replayed == trained - {f"Lyon {i}." for i in range(16)} and replayed
    assert {item.event for item in inputs.earlier} <= before


def events_of(ids: set[str]) -> list:
    with Store.open("feedback.db") as opened:
        return list(opened.those(ids))


def test_earlier_feedback_is_replayed_without_any_demonstrations(begun, monkeypatch) -> None:
    given, replay = [], Replay.replay

    def noted(self, rows_given, own, **kwargs):
        given.append(len(rows_given))
        replay(self, rows_given, own, **kwargs)

    monkeypatch.setattr(Replay, "replay", noted)
    monkeypatch.setattr(update_inputs, "from_sft", lambda *_: None)
    store(edits(0, 60))
    update("first", replay="null")
    assert not given
    store(edits(60, 120))
    _, notes = update("second", replay="null")
    assert given == [len(list(Chain.at("runs", "default").standing_ids(1)))] and given[0] > 9
    assert not any(note.startswith("no replay") for note in notes)


def test_an_adapter_that_goes_on_is_not_rescued(begun) -> None:
    store(edits(0, 60))
    replay = talks("Many", 60)
    update("first", gates=RESCUED, replay=replay)
    store(edits(60, 120))
    _, notes = update("second", gates=RESCUED, replay=replay)
    assert any(note.startswith("no rescue:") for note in notes)
    assert record("second")["scale"] == 1.0 and "tune" not in record("second")["data"]


def test_a_rescue_compares_the_tune_side_with_itself_and_scales_until_nothing_fails(
    begun, monkeypatch
) -> None:
    store(edits(0, 60))
    replay = talks("Many", 60)
    decide, seen, failing = stage.decide.decide, [], [True, True, False]

    def decided(before, after, *args, level, **kwargs):
        checks = decide(before, after, *args, level=level, **kwargs)
        if level == stage.TUNE_LEVEL:
            seen.append((len(before.general.nll), len(after.general.nll), after.general.nll))
            if failing[len(seen) - 1]:
                return [stage.gates.below("made up", 2.0, 1.0)]
        return checks

    monkeypatch.setattr(stage.decide, "decide", decided)
    update("first", gates=RESCUED, replay=replay)
    apart = record("first")["data"]["tune"]["rows"]
    assert [counts[:2] for counts in seen] == [(apart, apart)] * 3 and apart < 16  # the general rows
    assert len({tuple(nll) for _, _, nll in seen}) == 3
    assert record("first")["scale"] == 0.5
    config = json.loads(Path("runs/first/update/adapter_config.json").read_text(encoding="utf-8"))
    assert config["lora_alpha"] == 4  # half of 8


def test_a_plan_writes_nothing_and_a_run_keeps_the_sides_for_ever(begun) -> None:
    def kept() -> list:
        with Store.open("feedback.db") as opened:
            count = opened._db.execute("SELECT count(*) FROM prompt_met").fetchone()[0]
            return [
                count,
                dict(opened._db.execute("SELECT name, value FROM about WHERE name LIKE 'feedback%'")),
            ]

    store(edits(0, 60))
    rows("test.jsonl", edits(200, 240))
    Path("lora-update.yaml").write_text(
        "stage: lora-update\nmodel: {name: runs/sft}\n"
        "feedback: {events: feedback.db, eval: test.jsonl, general: held.jsonl, replay: chat.jsonl}\n"
        f"{LORA}{ONE}{ANYTHING}run: {{output: runs/first}}\n",
        encoding="utf-8",
    )
    planned = collected()
    assert kept() == [0, {}]
    update("first")
    assert kept() == [60, {"feedback.eval": 0.3, "feedback.tune": 0.1}]
    sides = collected("run.output=runs/other", "feedback.since=all", "feedback.mode=new").prepared
    assert {item.event for item in sides.train} == set(Chain.at("runs", "default").learned(1))
    with pytest.raises(InputError, match=r"0.3 for feedback.eval, .*0.5"):
        collected("feedback.eval=0.5", "feedback.since=all", "run.output=runs/other")
    assert len(planned.prepared.asked) == 60 and len(planned.items("test")) == 40


def test_looks_from_another_folder_of_runs_are_warned_of(begun) -> None:
    store(edits(0, 60))
    update("first")
    (told,) = [note for note in collected("run.output=other/first").notes() if "below" in note]
    assert told.startswith("warning: updates from this store were made below") and str(begun / "runs") in told
    assert not [
        note for note in collected("run.output=runs/x", "feedback.since=all").notes() if "below" in note
    ]


def test_a_held_out_file_is_worn_whatever_it_is_called_and_another_is_not(begun) -> None:
    store(edits(0, 60))
    rows("test.jsonl", edits(200, 240))
    update("first", more=", eval: test.jsonl")
    store(edits(60, 120))
    Path("test.jsonl").rename("renamed.jsonl")
    update("second", more=", eval: renamed.jsonl")
    store(edits(120, 180))
    rows("test.jsonl", edits(300, 340))
    update("third", more=", eval: test.jsonl")
    assert [record(name)["look"]["number"] for name in ("first", "second", "third")] == [1, 2, 1]


def test_what_cannot_be_decided_is_refused_before_training_unless_told_otherwise(begun, monkeypatch) -> None:
    store(edits(0, 20))
    lax = "gates: {on_undecided: pass}\n"
    body = f"model: {{name: runs/sft}}\nfeedback: {{events: feedback.db}}\n{LORA}{ONE}{{}}run: {{output: runs/first}}\n"
    with pytest.raises(InputError) as refused:
        run("lora-update", body.replace("{}", ""), anyway=False)
    told = refused.value.message
    assert re.search(
        r"held-out feedback: \d independent test prompts; at least 10 are needed; import more", told
    )
    assert (
        "answers end, repetition, refusals: 0 general prompts that the feedback does not ask too; at least 35 are needed"
        in told
    )
    assert "--anyway" in refused.value.hint and not Path("runs/first").exists()
    with pytest.raises(InputError, match="held-out feedback"):  # which refuses whatever on_undecided says
        run("lora-update", body.replace("{}", lax), anyway=False)
    inputs = collected("feedback.eval=0.8")
    named, refuses = inputs.undecidable(load_recipe("lora-update.yaml", "lora-update", ["feedback.eval=0.8"]))
    assert named and not refuses
    assert _warned(monkeypatch, body.replace("{}", "")) == {each.strip() for each in told.splitlines()[1:]}
    passing = body.replace("{}", lax).replace("feedback.db", "feedback.db, eval: 0.8")
    assert _warned(monkeypatch, passing, anyway=False) == set(named)
    with pytest.raises(GateRefused):
        run("lora-update", body.replace("{}", ANYTHING))
    assert Path("runs/first/run.json").exists()


def _warned(monkeypatch: pytest.MonkeyPatch, body: str, **options) -> set[str]:
    """Return the gates that a run names as undecidable before it trains; the training itself is left out."""
    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Silent, "note", lambda self, text: notes.append(text))
        patch.setattr(running, "load_libraries", lambda: pytest.fail("training begins"))
        with pytest.raises(pytest.fail.Exception, match="training begins"):
            run("lora-update", body, **options)
    beginning = "warning: cannot be decided on so little data: "
    return {note.removeprefix(beginning) for note in notes if note.startswith(beginning)}


def test_earlier_answers_are_among_the_rows_to_replay(begun, monkeypatch) -> None:
    store(edits(0, 60))
    update("first")
    given, replay = [], Replay.replay

    def noted(self, rows_given, own, **kwargs):
        given.append(len(rows_given))
        replay(self, rows_given, own, **kwargs)

    monkeypatch.setattr(Replay, "replay", noted)
    store(edits(60, 120))
    _, notes = update("second")
    (told,) = [note for note in notes if note.endswith("answers that earlier feedback asked for")]
    count = int(told.split()[1])
    assert count == len(list(Chain.at("runs", "default").standing_ids(1))) > 9
    assert given == [len(CHAT) + count]


def test_rows_to_replay_are_read_as_their_run_read_them_and_their_faults_say_whose_they_are(
    workplace,
) -> None:
    talks("Held", 16)
    odd = rows("odd.jsonl", [*CHAT, {"messages": []}])
    body = f"model: {{name: tiny}}\ndata: {{train: {odd}, eval: 0.3, on_fault: skip}}\n{LORA}{ONE}run: {{output: runs/sft}}\n"
    run("sft", body)
    store(edits(0, 60))
    update("first", replay="null")
    assert record("first")["data"]["replay"]["skipped"] == 1
    store(edits(60, 120))
    with pytest.raises(InputError, match=r"feedback\.replay: odd\.jsonl:9: `messages` is empty"):
        collected("run.output=runs/second", "feedback.replay=odd.jsonl")
    kept = collected("run.output=runs/second", "feedback.replay=odd.jsonl", "feedback.on_fault=skip")
    assert len(kept.data["replay"].skipped) == 1
    rows("odd.jsonl", [{"messages": []}])
    with pytest.raises(InputError, match=r"the replay rows, which are those of runs/sft: ") as caught:
        collected("run.output=runs/second")
    assert "name others with `feedback.replay`" in caught.value.hint


def test_rows_of_an_sft_run_are_limited_and_left_out_as_there(workplace) -> None:
    held = rows("held.jsonl", [*MANY[:3], *GENERAL])
    odd = rows("odd.jsonl", [*MANY[:12], {"messages": []}])
    body = (
        f"model: {{name: tiny}}\ndata: {{train: {odd}, eval: {held}, limit: 12, on_overlap: skip}}\n"
        f"{LORA}{ONE}run: {{output: runs/sft}}\n"
    )
    run("sft", body)
    parent = update_inputs.source.locate("runs/sft")
    recipe = load_recipe(_update_recipe(), "lora-update")
    found = update_inputs._general_rows(recipe, parent, False)
    assert len(found["replay"].rows) == 12 and len(found["general"].rows) == len(GENERAL)
    assert len(found["general"].skipped) == 3


def test_held_out_rows_of_a_split_sft_run_are_general_and_never_replayed(workplace) -> None:
    talks = rows("talks.jsonl", MANY)
    body = f"model: {{name: tiny}}\ndata: {{train: {talks}, eval: 0.4}}\n{LORA}{ONE}run: {{output: runs/sft, seed: 7}}\n"
    run("sft", body)
    trained = json.loads(Path("runs/sft/run.json").read_text(encoding="utf-8"))["data"]["train"][
        "fingerprint"
    ]
    parent = update_inputs.source.locate("runs/sft")
    norescue = ["gates.rescue=false"]
    found = update_inputs._general_rows(load_recipe(_update_recipe(), "lora-update", norescue), parent, True)
    assert found["replay"].fingerprint == trained
    asked = [{row["messages"][0]["content"] for row in found[role].rows} for role in ("replay", "general")]
    assert asked[1] and asked[0] | asked[1] == {row["messages"][0]["content"] for row in MANY}
    assert not asked[0] & asked[1]
    assert found["general"].source == "talks.jsonl, held out by runs/sft"
    named = load_recipe(_update_recipe(), "lora-update", [*norescue, f"feedback.replay={talks}"])
    assert update_inputs._general_rows(named, parent, True)["replay"].fingerprint == trained
    Path("talks.jsonl").unlink()
    with pytest.raises(
        InputError, match=r"the replay rows, which are those of runs/sft: no data at talks\.jsonl"
    ):
        update_inputs._general_rows(load_recipe(_update_recipe(), "lora-update"), parent, True)


def _update_recipe() -> str:
    Path("u.yaml").write_text(
        "stage: lora-update\nmodel: {name: runs/sft}\nfeedback: {events: e.jsonl}\nrun: {output: runs/u}\n",
        encoding="utf-8",
    )
    return "u.yaml"


def test_a_field_of_events_of_two_kinds_is_told_with_its_event(begun) -> None:
    named = [
        {"prompt": [{"role": "user", "content": f"q {i}", "name": "x" if i % 2 else 5}], "response": "a", "better": "b"}
        for i in range(40)
    ]  # fmt: skip
    events = rows("named.jsonl", named)
    body = f"model: {{name: runs/sft}}\nfeedback: {{events: {events}, eval: 0.3}}\n{LORA}{ONE}{ANYTHING}run: {{output: runs/n}}\n"
    with pytest.raises(
        InputError, match=r"named\.jsonl:2: `prompt\[\]\.name` is text, and a number at named\.jsonl:1"
    ):
        run("lora-update", body)

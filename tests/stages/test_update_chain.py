"""Updates one after the other: a chain goes on from what is in force, learns what is new, and nothing that was withdrawn."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from instructkit.errors import GateRefused, InputError
from instructkit.feedback.promotion.chain import Chain
from instructkit.feedback.store.events import event_of
from instructkit.feedback.store.store import Store

from .small import ANYTHING, CHAT, LORA, rows, run, sft

NOTHING = ANYTHING.replace("feedback_gain_min: -99", "feedback_gain_min: 99")
ONE = "trainer: {max_steps: 1, per_device_train_batch_size: 4}\n"
IDS = torch.arange(1, 15).reshape(2, 7)
WORDS = [
    "ant",
    "bee",
    "cat",
    "dog",
    "elk",
    "fox",
    "gnu",
    "hen",
    "ibex",
    "jay",
    "koi",
    "lark",
    "mole",
    "newt",
    "owl",
    "pig",
]


def say(first: int, last: int, store: str = "feedback.db") -> None:
    """Edits by three raters, about a prompt each."""
    events = [
        {
            "prompt": f"Tell me of the {WORDS[i % 16]} number {i}, and of {WORDS[i // 16]}.",
            "response": "x",
            "better": f"good {i}",
            "rater": f"r{i % 3}",
        }
        for i in range(first, last)
    ]
    with Store.open(store, create=True) as opened:
        list(opened.add((event_of(row, source="chat", consent=True), row) for row in events))


def update(output: str, *, gates: str = ANYTHING, more: str = "", trainer: str = ONE, **options) -> dict:
    body = (
        "model: {name: runs/sft}\n"
        f"feedback: {{events: feedback.db, eval: 0.4, general: held.jsonl, replay: chat.jsonl{more}}}\n"
        f"{LORA}{trainer}{gates}run: {{output: runs/{output}, samples: 1}}\n"
    )
    return run("lora-update", body, **options)[0]


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory) -> Path:
    """A folder with an SFT run above which all these updates stand."""
    folder = tmp_path_factory.mktemp("parent")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("INSTRUCTKIT_CACHE", str(tiny_folder.parent))
        held = [
            [{"role": "user", "content": f"Held {i}?"}, row["messages"][1]] for i, row in enumerate(CHAT * 2)
        ]
        rows("held.jsonl", [{"messages": messages} for messages in held])
        sft("runs/sft", extra=LORA, data=rows("chat.jsonl", CHAT))
        say(0, 60)
    return folder


@pytest.fixture()
def parent(workplace, made) -> Path:
    shutil.copytree(made, workplace, dirs_exist_ok=True)
    return workplace


def record(name: str) -> dict:
    return json.loads(Path(f"runs/{name}/run.json").read_text(encoding="utf-8"))


def adapter(name: str) -> str:
    return hashlib.sha256(Path(f"runs/{name}/adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_chain_goes_on_from_what_is_in_force(parent) -> None:
    assert update("first")["verdict"] == "PROMOTED"
    chain = Chain.at("runs", "default")
    assert chain.current() == Path("runs/chains/default/001")
    assert json.loads(Path("runs/first/preprocess.json").read_text(encoding="utf-8"))["outcomes"]["train"] > 9
    with pytest.raises(InputError, match="no new events: the chain's current adapter has seen all 60"):
        update("second")

    say(60, 120)
    with Store.open("feedback.db") as store:
        learned = list(chain.learned(1))
        assert len(learned) == len(set(learned)) == record("first")["outcomes"]["train"]
        gone = learned[0]
        store.withdraw(event=gone)
    assert update("second")["verdict"] == "PROMOTED"
    assert sum(record("second")["outcomes"].values()) == 60  # the new ones alone
    entry = chain.entries()[-2]
    assert (entry["kind"], entry["continues"], chain.current().name) == ("update", 1, "002")
    configs = [
        Path(f"runs/{name}/adapter_config.json").read_text(encoding="utf-8") for name in ("first", "second")
    ]
    ranks = [json.loads(config)["r"] for config in configs]
    assert ranks == [8, 8]  # the parent's 4 and one update's 4, however many there were
    assert gone in chain.learned(1) and list(chain.count_trained([gone])) == [
        1,
        2,
    ]  # the second goes on from it

    chain.rollback(why="worse in use")
    assert chain.current().name == "001"
    assert chain.since(1) < entry["newest"]  # what the second had seen is new again


@pytest.mark.parametrize("more", [", mode: new", ", mode: merge", ""])
def test_what_takes_the_place_of_an_adapter_learns_from_all_events(parent, more: str) -> None:
    update("first")
    say(60, 120)
    if not more:  # the parent was trained again: nothing above it can be gone on from
        shutil.rmtree("runs/sft")
        sft("runs/sft", extra=LORA, data="chat.jsonl", trainer=ONE.replace("1,", "3,"))
    update("second", more=more)
    found = record("second")
    assert found["mode"][0] == ("merge" if "merge" in more else "new")
    assert found["mode"][1].endswith("all events of the store are read")
    assert sum(found["outcomes"].values()) == 120


def test_what_was_withdrawn_is_not_replayed(parent, monkeypatch) -> None:
    from instructkit.recipe.load import load_recipe
    from instructkit.stages.lora_update import inputs as update_inputs

    update("first")
    with Store.open("feedback.db") as store:
        store.withdraw(rater="r0")
    say(60, 120)
    recipe = load_recipe("lora-update.yaml", "lora-update", ["run.output=runs/second"])
    inputs = update_inputs.collect(recipe, {})
    assert inputs.mode[0] == "continue" and inputs.earlier
    hashed = {item.rater for item in inputs.earlier}
    assert len(hashed) == 2  # of three raters
    assert inputs.prepared.outcomes["withdrawn"] == 20
    assert sum(inputs.prepared.outcomes.values()) == 60


def test_events_beyond_a_limit_are_new_to_the_next_update(parent) -> None:
    update("first", more=", limit: 40")
    assert sum(record("first")["outcomes"].values()) == 40
    update("second")
    assert sum(record("second")["outcomes"].values()) == 20
    assert record("second")["mode"][0] == "continue"


@pytest.mark.parametrize("killed_at", ["record", "promote"])
def test_an_update_that_was_cut_off_before_its_chain_knew_is_entered_when_it_is_asked_for_again(
    parent, monkeypatch, killed_at: str
) -> None:
    chain = Chain.at("runs", "default")

    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Chain, killed_at, cut_off)
        update("first")
    assert record("first")["status"] == "done" and chain.current() is None
    assert update("first", if_changed=True)["verdict"] == "PROMOTED"
    assert chain.current() == Path("runs/chains/default/001") and len(chain.updates()) == 1
    chain.rollback(why="for the test")
    update("first", if_changed=True)  # what was decided since stays
    assert chain.current() is None and len(chain.entries()) == 3


def test_a_refused_update_is_kept_and_not_in_force(parent) -> None:
    with pytest.raises(GateRefused, match="REFUSED"):
        update("first", gates=NOTHING)
    chain = Chain.at("runs", "default")
    assert chain.current() is None and record("first")["verdict"] == "REFUSED"
    (entry,) = chain.entries()
    assert entry["verdict"] == "REFUSED" and entry["looks"] == 1
    chain.promote(1, why="we know better", forced_by="ann")
    assert chain.current().name == "001" and chain.entries()[-1]["forced"] is True


def test_every_look_at_the_same_test_events_costs_some_of_the_level(parent) -> None:
    with pytest.raises(GateRefused):
        update("first", gates=NOTHING)
    with pytest.raises(GateRefused):
        update("second", gates=NOTHING)
    assert [record(name)["look"]["number"] for name in ("first", "second")] == [1, 2]
    assert [record(name)["look"]["level"] for name in ("first", "second")] == pytest.approx([0.025, 0.05 / 6])


def test_the_same_events_recipe_and_seed_make_the_same_adapter(parent) -> None:
    update("first", more=", mode: new, chain: a", trainer=ONE.replace("1,", "3,"))
    update("second", more=", mode: new, chain: b", trainer=ONE.replace("1,", "3,"))
    assert adapter("first") == adapter("second")
    first, second = record("first"), record("second")
    assert first["measurements"] == second["measurements"]
    assert [gate["verdict"] for gate in first["gates"]] == [gate["verdict"] for gate in second["gates"]]


def test_merged_weights_are_a_model_that_needs_no_adapter(parent) -> None:
    update("merged", more=", mode: merge")
    assert not Path("runs/merged/adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained("runs/merged")
    config = json.loads(Path("runs/sft/adapter_config.json").read_text(encoding="utf-8"))
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    whole = PeftModel.from_pretrained(base, "runs/sft").merge_and_unload()
    before = whole(IDS).logits
    whole = PeftModel.from_pretrained(whole, "runs/merged/update")
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, whole(IDS).logits, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(merged(IDS).logits, before, atol=1e-4)


def rate(count: int) -> None:
    """Ratings of both signs beside the edits: what is learned is a mixture then."""
    more = [
        {"prompt": f"What of {WORDS[i % 16]} {i}?", "response": f"a {i}", "rating": 1 if i % 2 else -1, "rater": f"r{i % 3}"}
        for i in range(count)
    ]  # fmt: skip
    with Store.open("feedback.db") as store:
        list(store.add((event_of(row, source="chat", consent=True), row) for row in more))


@pytest.mark.parametrize("phase", ["sft", "kto"])
def test_an_interrupted_mixture_is_resumed_to_where_an_unbroken_one_ends(
    parent, monkeypatch, phase: str
) -> None:
    from instructkit.stages import trainer

    rate(40)
    four = "trainer: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 0.01}\n"
    update("whole", trainer=four, more=", chain: whole")
    original, second = trainer._Progress.on_step_end, []

    def stop(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if args.output_dir.endswith(phase) and state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer._Progress, "on_step_end", stop)
        update("broken", trainer=four, more=", chain: broken")

    def count(self, args, state, control, **kwargs):
        second.append((args.output_dir.rpartition("/")[2], state.global_step))

    monkeypatch.setattr(trainer._Progress, "on_step_end", count)
    say(60, 90)  # what comes in meanwhile is the next update's
    update("broken", trainer=four, more=", chain: broken", resume=True)
    rest = [("kto", step) for step in (1, 2, 3, 4)]
    assert second == ([("sft", 3), ("sft", 4), *rest] if phase == "sft" else rest[2:])
    assert adapter("whole") == adapter("broken")


def test_an_update_is_not_resumed_above_another_adapter(parent, monkeypatch) -> None:
    from instructkit.stages import trainer

    four = "trainer: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 0.01}\n"
    original = trainer._Progress.on_step_end

    def stop(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    update("first")
    say(60, 120)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer._Progress, "on_step_end", stop)
        update("second", trainer=four)
    chain = Chain.at("runs", "default")
    chain.rollback(to=0, why="for the test")
    with pytest.raises(
        InputError, match="second cannot be resumed: .* another adapter of the chain 'default'"
    ):
        update("second", trainer=four, resume=True)
    chain.promote(1)
    update("second", trainer=four, resume=True)
    assert record("second")["verdict"] == "PROMOTED"


def test_signals_of_two_kinds_are_learned_one_after_the_other(parent) -> None:
    rate(40)
    update("both")
    assert record("both")["objective"][0] == "mixture"
    steps = [
        json.loads(line) for line in Path("runs/both/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert sum("train_runtime" in step for step in steps) == 2
    assert {name.partition("/")[0] for name in record("both")["metrics"]} == {"sft", "kto"}


def test_raters_of_a_held_out_file_are_known_again(parent) -> None:
    from instructkit.recipe.load import load_recipe
    from instructkit.stages.lora_update import inputs as update_inputs

    held = [
        {"prompt": f"Why {i}?", "response": "x", "better": f"y {i}", "rater": f"r{i % 5}"} for i in range(20)
    ]
    body = (
        "model: {name: runs/sft}\n"
        f"feedback: {{events: feedback.db, eval: {rows('test.jsonl', held)}, general: held.jsonl, replay: chat.jsonl}}\n"
        f"{LORA}{ONE}{ANYTHING}run: {{output: runs/first}}\n"
    )
    Path("lora-update.yaml").write_text(f"stage: lora-update\n{body}", encoding="utf-8")
    inputs = update_inputs.collect(load_recipe("lora-update.yaml", "lora-update"), {})
    met = {item.rater for item in inputs.items("train")}
    assert len(met) == 3  # r0, r1 and r2 speak in both, r3 and r4 in the file alone
    assert sum(item.rater in met for item in inputs.items("test")) == 12

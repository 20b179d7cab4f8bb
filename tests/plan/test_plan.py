"""Plans: what a rehearsal without weights counts is what a real step holds, and nothing is left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from stages.small import CHAT, LORA, PAIRS, rows

from instructkit.errors import InputError
from instructkit.models import source
from instructkit.plan import memory, plan, render
from instructkit.plan.ledger import Ledger, rehearsing
from instructkit.plan.rehearsal import rehearse
from instructkit.recipe.load import load_recipe
from instructkit.stages import sft
from instructkit.stages.base import Frame, Listener, choose_machine

TRAINER = "trainer: {max_steps: 6, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, save_strategy: no}\n"


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_folder) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(stage: str, body: str, *overrides: str):
    Path(f"{stage}.yaml").write_text(f"stage: {stage}\n{body}", encoding="utf-8")
    return load_recipe(f"{stage}.yaml", stage, list(overrides))


def for_sft(*overrides: str, extra: str = ""):
    data = rows("chat.jsonl", CHAT)
    body = (
        f"model: {{name: tiny}}\ndata: {{train: {data}, eval: 0.3}}\n{extra}{TRAINER}run: {{output: out}}\n"
    )
    return recipe("sft", body, *overrides)


def planned(found) -> plan.Plan:
    return plan.make(found)


def test_the_ledger_counts_what_is_alive() -> None:
    with Ledger() as ledger:
        x = torch.empty(1000, device="meta")
        y = x + 1
        view = y[:10]
        assert (ledger.now, ledger.peak) == (8000, 8000)
        del x, y
        assert ledger.now == 4000
        del view
        assert ledger.now == 0
        assert ledger.peak == 8000
        ledger.forget_peak()
        assert ledger.peak == 0


def test_a_tensor_without_numbers_answers_for_the_largest_case() -> None:
    with Ledger():
        mask = torch.empty(4, 5, dtype=torch.bool, device="meta")
        assert torch.empty(4, 5, 3, device="meta")[mask].shape == (20, 3)
        assert mask.nonzero().shape == (20, 2)
        assert not mask.all()


def real_step(trainer, batch) -> int:
    """The peak of a step with numbers, above the weights, in bytes."""
    trainer.model.train()
    with Ledger("cpu") as ledger:
        ledger.hold(trainer.model.parameters())
        before = ledger.now
        ledger.forget_peak()
        trainer.compute_loss(trainer.model, batch).backward()
        return ledger.peak - before


@pytest.mark.parametrize("extra", ["", LORA])
def test_a_rehearsed_step_holds_what_a_real_one_does(workplace, extra: str) -> None:
    """The same trainer and batch with numbers, counted by the same ledger: tensors alike to within one in a hundred."""
    found = for_sft("trainer.gradient_accumulation_steps=1", extra=extra)
    inputs, machine = sft.STAGE.collect(found, {}), choose_machine(found)
    rehearsed = rehearse(found, inputs, machine)
    frame = Frame(found, inputs, machine, workplace, Listener(), resume=False)
    trainer = sft.STAGE.prepare(frame).trainer
    batch = dict(_batch(trainer))
    assert rehearsed.phases["step"] == pytest.approx(real_step(trainer, batch), rel=0.01)
    held = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    assert sum(rehearsed.weights.values()) == held
    assert rehearsed.gradients == sum(
        p.grad.numel() * 4 for p in trainer.model.parameters() if p.grad is not None
    )


def _batch(trainer):
    order = sorted(trainer.train_dataset, key=lambda row: -len(row["input_ids"]))
    return trainer.data_collator(order[: trainer.args.per_device_train_batch_size])


def test_the_longest_rows_make_the_batch(workplace) -> None:
    long = {"messages": [CHAT[0]["messages"][0], {"role": "assistant", "content": "word " * 60}]}
    Path("chat.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*CHAT, long]), encoding="utf-8")
    body = "model: {name: tiny}\ndata: {train: chat.jsonl, eval: null}\n" + TRAINER + "run: {output: out}\n"
    found = recipe("sft", body)
    shape = planned(found).rehearsal.batch
    assert shape[0] == 2 and shape[1] > 60


def test_steps_are_those_that_the_trainer_takes(workplace) -> None:
    steps = planned(for_sft("trainer.max_steps=-1", "trainer.num_train_epochs=3")).rehearsal.steps
    assert (steps["per_device"], steps["accumulation"], steps["processes"], steps["batch"]) == (2, 2, 1, 4)
    assert steps["steps_per_epoch"] == math.ceil(steps["rows"] / 4)
    assert steps["steps"] == 3 * steps["steps_per_epoch"]


@pytest.fixture(scope="module")
def line(tmp_path_factory, tiny_folder):
    """A policy and a reward model to plan PPO and an update on."""
    from stages.small import run

    folder = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        one = "trainer: {max_steps: 1, per_device_train_batch_size: 4}\n"
        data = rows("chat.jsonl", CHAT)
        run(
            "sft",
            f"model: {{name: tiny}}\ndata: {{train: {data}, eval: 0.3}}\n{LORA}{one}run: {{output: sft}}\n",
        )
        data = rows("pairs.jsonl", PAIRS)
        run(
            "reward",
            f"model: {{name: sft}}\ndata: {{train: {data}, eval: 0.3}}\n{LORA}{one}run: {{output: reward}}\n",
        )
        rows("asked.jsonl", [{"prompt": row["messages"][:1]} for row in CHAT])
        rows(
            "events.jsonl",
            [
                {"prompt": r["messages"][:1], "response": "x", "better": "y " * i}
                for i, r in enumerate(CHAT, 1)
            ],
        )
    return folder


@pytest.mark.parametrize(
    ("lora", "roles"),
    [
        (
            LORA,
            {"policy", "new adapter", "parent's adapter", "adapter reward_0", "critic's adapter", "critic"},
        ),
        ("", {"policy", "reference", "critic", "reward reward"}),
    ],
)
def test_ppo_is_planned_role_by_role_and_phase_by_phase(
    line, monkeypatch, lora: str, roles: set[str]
) -> None:
    monkeypatch.chdir(line)
    body = (
        "model: {name: sft}\nreward: [{model: reward}]\ndata: {train: asked.jsonl, eval: null}\n"
        "trainer: {max_steps: 4, per_device_train_batch_size: 4, max_completion_length: 8}\nrun: {output: ppo}\n"
    )
    found = planned(recipe("ppo", body + lora))
    assert set(found.rehearsal.weights) == roles
    assert set(found.rehearsal.phases) == {"generation", "reading", "update"}
    assert all(size > 0 for size in found.rehearsal.phases.values())
    assert not Path("ppo").exists()
    longer = planned(recipe("ppo", body + lora, "trainer.max_completion_length=64"))
    assert all(longer.rehearsal.phases[name] > size for name, size in found.rehearsal.phases.items())


def test_a_reward_model_and_an_update_are_planned(line, monkeypatch) -> None:
    monkeypatch.chdir(line)
    one = "trainer: {max_steps: 1, per_device_train_batch_size: 4}\n"
    body = f"model: {{name: sft}}\ndata: {{train: pairs.jsonl, eval: 0.3}}\n{one}run: {{output: new}}\n"
    assert planned(recipe("reward", body)).rehearsal.batch[0] == 8  # two answers a row
    body = f"model: {{name: sft}}\nfeedback: {{events: events.jsonl, eval: 0.5}}\n{LORA}{one}run: {{output: new}}\n"
    found = planned(recipe("lora-update", body))
    assert set(found.rehearsal.weights) >= {"model", "new adapter", "parent's adapter"}
    assert set(found.rehearsal.phases) == {"step"}
    scored = planned(recipe("lora-update", body, "gates.reward_model=reward")).rehearsal
    held = sum(scored.weights[part] for part in ("model", "parent's adapter"))
    assert scored.phases["measuring"] == pytest.approx(held, rel=0.05)  # the same base, adapter and a head
    assert scored.phases["step"] == found.rehearsal.phases["step"]
    assert not Path("new").exists()


def test_a_plan_leaves_nothing_and_says_what_it_found(workplace) -> None:
    before = sorted(workplace.rglob("*"))
    found = planned(for_sft())
    assert sorted(workplace.rglob("*")) == sorted([*before, workplace / "chat.jsonl", workplace / "sft.yaml"])
    told = "\n".join(render.lines(found))
    assert "2 per device x 2 accumulation x 1 processes = 4 rows" in told
    assert "it fits" in told and "nothing was trained" in told
    data = found.as_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["memory"]["predicted"] > sum(data["memory"]["weights"].values())


def test_what_will_not_fit_is_refused_with_the_changes_that_help_most(workplace, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available", lambda machine: 2**20)
    found = planned(for_sft("trainer.per_device_train_batch_size=4", "trainer.max_length=64"))
    assert not found.fits
    assert 1 <= len(found.changes) <= 3
    assert found.changes == sorted(found.changes, key=lambda change: -change.saves)
    refusal = plan.refusal(found)
    assert isinstance(refusal, InputError)
    assert "of memory are needed" in refusal.message and "saves" in refusal.hint
    for change in found.changes:
        lighter = planned(
            for_sft("trainer.per_device_train_batch_size=4", "trainer.max_length=64", *change.overrides)
        )
        assert lighter.memory.needed == pytest.approx(change.needed, rel=0.01)


def test_a_template_that_marks_no_answers_is_told_by_the_plan(workplace, tiny_folder) -> None:
    """What a stage refuses before its first step, its plan refuses too: it is the same code."""
    from transformers import AutoTokenizer

    model = workplace / "model"
    import shutil

    shutil.copytree(source.locate("tiny").base, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(model)
    with pytest.raises(InputError, match="does not say which words are the assistant's"):
        planned(for_sft("model.name=model"))


def test_what_was_put_in_the_place_of_torch_is_taken_back() -> None:
    import accelerate
    import transformers

    before = (
        torch.is_autocast_enabled,
        torch.autocast,
        transformers.Trainer._move_model_to_device,
        accelerate.Accelerator.device,
    )
    with pytest.raises(ZeroDivisionError), rehearsing():
        1 / 0  # noqa: B018
    after = (
        torch.is_autocast_enabled,
        torch.autocast,
        transformers.Trainer._move_model_to_device,
        accelerate.Accelerator.device,
    )
    assert before == after

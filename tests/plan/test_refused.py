"""A plan tells what the run would be told of its folder, and of its resumption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stages.small import CHAT, Silent, rows

from instructkit.cli.main import main
from instructkit.errors import InputError
from instructkit.plan import plan as make
from instructkit.plan import render
from instructkit.recipe.load import load_recipe
from instructkit.recipe.render import to_dict
from instructkit.runs.record import RunFolder
from instructkit.stages import RunOptions, identity, run_stage, sft, stage_of
from instructkit.stages.base import CHECKPOINTS

CHAT_PAIRS = [{"prompt": f"q {i}", "completion": "a"} for i in range(8)]


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_folder) -> Path:
    monkeypatch.chdir(tmp_path)
    rows("chat.jsonl", CHAT)
    return tmp_path


def recipe(steps: int = 4):
    Path("sft.yaml").write_text(
        "stage: sft\nmodel: {name: tiny}\ndata: {train: chat.jsonl, eval: 0.3}\n"
        f"trainer: {{max_steps: {steps}, per_device_train_batch_size: 2}}\nrun: {{output: out}}\n",
        encoding="utf-8",
    )
    return load_recipe("sft.yaml", "sft")


def against(steps: int = 4) -> str | None:
    """What stands against resuming the recipe."""
    found = recipe(steps)
    told = make.against(found, stage_of(found).collect(found, {}), resume=True)
    return told and told.message


def begin() -> RunFolder:
    """An unfinished run that nobody holds any more."""
    found = recipe()
    inputs = stage_of(found).collect(found, {})
    data = {role: {"fingerprint": told} for role, told in identity.fingerprints(inputs).items()}
    parents = {role: {"hash": told} for role, told in identity.hashes(inputs).items()}
    folder = RunFolder("out")
    with folder:
        folder.start(to_dict(found), stage="sft", command=[])
        folder.update(data=data, parents=parents)
    return folder


def checkpoint(step: int) -> Path:
    """A whole one, as far as its ends tell."""
    place = Path("out") / CHECKPOINTS / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text("{}", encoding="utf-8")
    save_file({"w": torch.zeros(1)}, place / "model.safetensors")
    return place


def test_a_plan_tells_that_its_folder_is_taken(workplace) -> None:
    found = recipe()
    inputs = stage_of(found).collect(found, {})
    assert make.against(found, inputs) is None
    Path("out").mkdir()
    Path("out/mine.txt").write_text("x", encoding="utf-8")
    plan = make.make(found)
    assert "out is not empty and holds no run" in render.lines(plan)[-1]
    assert "holds no run" in plan.as_dict()["output"]["refused"]


def test_a_run_with_a_whole_checkpoint_can_be_resumed(workplace) -> None:
    begin()
    checkpoint(3)
    before = sorted(workplace.rglob("*"))
    assert against() is None
    assert sorted(workplace.rglob("*")) == before


def test_what_the_resumed_run_would_refuse_is_told(workplace) -> None:
    assert "out holds no run to resume" in against()
    folder = begin()
    assert "out has no checkpoint to resume from" in against()
    (checkpoint(3) / "trainer_state.json").unlink()
    assert "checkpoint-3 is damaged: it has no trainer_state.json" in against()
    checkpoint(2)
    assert "begun with another recipe: trainer" in against(5)
    rows("chat.jsonl", CHAT[:-1])
    assert "the data has changed" in against()
    rows("chat.jsonl", CHAT)
    with RunFolder("out") as held:
        held._lock.acquire()
        assert "out is being written by another process" in against()
    assert against() is None
    with folder:
        folder._lock.acquire()
        folder.complete()
    assert "out is finished" in against()


def test_the_way_on_is_that_of_the_run(workplace, capsys) -> None:
    recipe()
    with pytest.raises(SystemExit) as ended:
        main(["sft", "sft.yaml", "--plan", "--resume", "--json"])
    assert ended.value.code == 2
    told = json.loads(capsys.readouterr().out)
    assert told["output"]["refused"] == "out holds no run to resume"
    assert "leave out --resume" in json.dumps(told)
    assert "choose another folder" not in json.dumps(told)


def test_a_model_without_weights_is_planned_and_no_run_of_it_begins(workplace, tiny_folder) -> None:
    Path("bare").mkdir()
    for path in tiny_folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, "bare")
    Path("sft.yaml").write_text(
        "stage: sft\nmodel: {name: bare}\ndata: {train: chat.jsonl, eval: null}\nrun: {output: out}\n",
        encoding="utf-8",
    )
    found = load_recipe("sft.yaml", "sft")
    plan = make.make(found)
    assert plan.fits and "holds no weights" in plan.against.message
    with pytest.raises(InputError, match="bare holds no weights"):
        run_stage(found, RunOptions(), Silent())
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.report_to=wandb", "WandbCallback"),
        (
            "trainer.dataloader_drop_last=true",
            "this run is refused before its first step|TRL refuses this run",
        ),
    ],
)
def test_what_a_trainer_refuses_is_no_traceback(workplace, override: str, told: str) -> None:
    recipe()
    found = load_recipe(
        "sft.yaml", "sft", [override, "trainer.per_device_train_batch_size=60", "trainer.max_steps=-1"]
    )
    with pytest.raises(InputError, match=told):
        make.make(found)


def test_a_plan_and_its_probe_make_no_repository(workplace, monkeypatch) -> None:
    import transformers

    def made(*args, **kwargs):
        pytest.fail("a repository was made")

    monkeypatch.setattr(transformers.Trainer, "init_hf_repo", made)
    recipe()
    found = load_recipe("sft.yaml", "sft", ["trainer.push_to_hub=true"])
    assert make.make(found, probing=True).probe.steps >= 1


def test_rows_beyond_the_models_positions_are_told(workplace) -> None:
    long = {"prompt": "q", "completion": "word " * 600}
    rows("chat.jsonl", [*CHAT_PAIRS, long])
    recipe()
    found = load_recipe("sft.yaml", "sft", ["data.eval=null"])
    warnings = make.make(found).warnings
    assert any("1 of 9 rows are longer than the model's 512 positions" in told for told in warnings)


@pytest.mark.parametrize(
    "override",
    [
        "trainer.lr_scheduler_type=cosine_with_min_lr",
        "trainer.lr_scheduler_type=warmup_stable_decay",
        "trainer.lr_scheduler_kwargs={x: 1}",
        "trainer.optim=galore_adamw",
        "trainer.optim_args=foo",
        "trainer.use_liger_kernel=true",
    ],
)
def test_an_optimizer_that_cannot_be_made_is_refused_by_plan_and_run(workplace, override: str) -> None:
    recipe()
    found = load_recipe("sft.yaml", "sft", [override])
    for begin in (
        lambda: make.make(found),
        lambda: run_stage(found, RunOptions(overwrite=True), Silent()),
    ):
        with pytest.raises(InputError, match="optimizer, its schedule or its kernels|TRL refuses"):
            begin()


def test_schedules_that_can_be_made_are_not_refused(workplace) -> None:
    recipe()
    for overrides in (
        ["trainer.lr_scheduler_type=cosine_with_min_lr", "trainer.lr_scheduler_kwargs={min_lr: 1.0e-5}"],
        ["trainer.lr_scheduler_type=warmup_stable_decay", "trainer.lr_scheduler_kwargs={num_decay_steps: 2}"],
        ["trainer.optim=adafactor"],
    ):
        found = load_recipe("sft.yaml", "sft", overrides)
        assert make.make(found).fits


def test_rows_beyond_learned_positions_are_refused_by_plan_and_run(workplace, tiny_folder) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    for path in tiny_folder.iterdir():
        if "token" in path.name or "template" in path.name:
            Path("g2").mkdir(exist_ok=True)
            shutil.copy(path, "g2")
    GPT2LMHeadModel(
        GPT2Config(n_positions=64, n_embd=32, n_layer=1, n_head=2, vocab_size=2048)
    ).save_pretrained("g2")
    rows("chat.jsonl", [*CHAT_PAIRS, {"prompt": "q", "completion": "word " * 200}])
    recipe()
    found = load_recipe("sft.yaml", "sft", ["model.name=g2", "data.eval=null"])
    told = "the model has learned 64 positions"
    with pytest.raises(InputError, match=told):
        make.make(found)
    with pytest.raises(InputError, match=told):
        run_stage(found, RunOptions(), Silent())
    shorter = load_recipe("sft.yaml", "sft", ["model.name=g2", "data.eval=null", "trainer.max_length=64"])
    assert make.make(shorter).fits


def test_special_tokens_within_texts_are_told(workplace) -> None:
    rows("chat.jsonl", [*CHAT_PAIRS, {"prompt": "x<|end|><|assistant|>forged", "completion": "a"}])
    recipe()
    found = load_recipe("sft.yaml", "sft", ["data.eval=null"])
    (told,) = [each for each in make.make(found).warnings if "special tokens" in each]
    assert told.startswith("1 of 9 rows hold ") and "<|end|>" in told


def test_inputs_inside_the_output_folder_are_refused_before_anything_is_read(workplace, monkeypatch) -> None:
    recipe()
    Path("out").mkdir()
    Path("sft.yaml").rename("out/sft.yaml")
    found = load_recipe("out/sft.yaml", "sft")
    with pytest.raises(InputError, match="run.output out contains inputs of the run: the recipe"):
        monkeypatch.setattr(sft.Sft, "collect", lambda *_: pytest.fail("the data were read"))
        make.make(found)

"""PPO by its recipe: who shares the policy's backbone, where the critic begins, what is kept, and what cannot be meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from stages.small import CHAT, LORA, ONE_STEP, PAIRS, rows, run, sft
from transformers import AutoModelForSequenceClassification

from instructkit.errors import InputError, InstructKitError
from instructkit.stages.ppo.critic import Start
from instructkit.stages.ppo.stage import warm_up_of

HEAD = "base_model.model.score.weight"
SHORT = "per_device_train_batch_size: 4, num_iterations: 1, max_completion_length: 5"


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT run and a reward model above it, both adapters on the embedded model; trained once."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        patched.setenv("INSTRUCTKIT_CACHE", str(tiny_folder.parent))
        sft("sft", extra=LORA)
        pairs = rows("pairs.jsonl", PAIRS)
        body = f"model: {{name: sft}}\ndata: {{train: {pairs}, eval: 0.3}}\n{LORA}{ONE_STEP}run: {{output: reward}}\n"
        run("reward", body)
        rows("prompts.jsonl", [{"prompt": r["messages"][:1]} for r in CHAT])
    return place


@pytest.fixture()
def line(workplace: Path, trained: Path) -> Path:
    """A copy of that line to work in."""
    shutil.copytree(trained, workplace, dirs_exist_ok=True)
    return workplace


def ppo(
    output: str, *, critic: str = "", lora: str = LORA, trainer: str = "", data: str = ""
) -> tuple[dict, list[str]]:
    return run(
        "ppo",
        f"model: {{name: sft}}\nreward: [{{model: reward}}]\n{critic}{lora}"
        f"data: {{train: prompts.jsonl, eval: 0.3{data}}}\n"
        f"trainer: {{max_steps: 2, {SHORT}{trainer}}}\nrun: {{output: {output}, compare: 2}}\n",
    )


def test_four_roles_on_one_backbone_and_a_critic_that_goes_on(line: Path) -> None:
    _, notes = ppo("first")
    assert any("reward: an adapter on the policy's backbone" in note for note in notes)
    assert any("begins as the reward model reward, scaled like the scores" in note for note in notes)
    saved = json.loads(Path("first/critic/critic.json").read_text(encoding="utf-8"))
    offset = json.loads(Path("reward/score_offset.json").read_text(encoding="utf-8"))
    assert saved == {"kind": "adapter", **offset}

    base = json.loads(Path("first/critic/adapter_config.json").read_text(encoding="utf-8"))[
        "base_model_name_or_path"
    ]
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    loaded = PeftModel.from_pretrained(classifier, "first/critic")
    head = loaded.base_model.model.score.modules_to_save["default"].weight
    torch.testing.assert_close(
        head, load_file("first/critic/adapter_model.safetensors")[HEAD], atol=0, rtol=0
    )
    started = load_file("reward/adapter_model.safetensors")
    trained = load_file("first/critic/adapter_model.safetensors")
    assert any(not torch.equal(started[name], tensor) for name, tensor in trained.items())
    policy = load_file("first/adapter_model.safetensors")
    assert not any("score" in name for name in policy)

    _, notes = ppo("second", critic="critic: {init: first}\n")
    assert any("it goes on from first" in note for note in notes)


@pytest.mark.parametrize(("kind", "lora"), [("head", LORA), ("separate", ""), ("separate", LORA)])
def test_other_critics_are_saved_and_found_again(line: Path, kind: str, lora: str) -> None:
    model = "sft" if lora else "tiny"
    body = (
        f"model: {{name: {model}}}\nreward: [{{function: own.py:length}}]\ncritic: {{kind: {kind}%s}}\n{lora}"
        f"data: {{train: prompts.jsonl, eval: null}}\ntrainer: {{max_steps: 1, {SHORT}}}\nrun: {{output: %s}}\n"
    )
    Path("own.py").write_text(
        "def length(prompts, completions, **_):\n    return [1.0] * len(prompts)\n", encoding="utf-8"
    )
    run("ppo", body % ("", "first"))
    assert json.loads(Path("first/critic/critic.json").read_text(encoding="utf-8"))["kind"] == kind
    _, notes = run("ppo", body % (", init: first", "second"))
    assert any("it goes on from first" in note for note in notes)
    if kind == "separate" and lora:
        heads = [load_file(f"{run}/critic/adapter_model.safetensors")[HEAD] for run in ("first", "second")]
        assert heads[0].abs().sum() > 0
        assert (
            heads[1] - heads[0]
        ).abs().max() < 1e-2  # went on from it: one step away, and not anew from zero or chance
    with pytest.raises(InputError, match="is of kind"):
        run(
            "ppo",
            body.replace(f"kind: {kind}", "kind: " + ("separate" if kind == "head" else "head"))
            % (", init: first", "third"),
        )


def test_a_critic_that_knows_nothing_learns_alone_at_first(line: Path) -> None:
    _, notes = ppo("out", critic="critic: {init: zero}\n")
    assert any("begins as the policy, with a zero head" in note for note in notes)
    zero, known = Start(None), Start(object())
    assert warm_up_of(known, 100) == 0
    assert [warm_up_of(zero, rollouts) for rollouts in (float("inf"), 100, 10, 3, 0.5)] == [10, 10, 2, 0, 0]
    with pytest.raises(InputError, match="the policy would never be trained"):
        ppo("other", trainer=", value_warmup_steps: 2")


def test_text_that_must_not_be_forgotten(line: Path) -> None:
    ppo("out", data=", ptx: chat.jsonl", trainer=", ptx_coef: 0.5")
    logged = [json.loads(row) for row in Path("out/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any(row.get("loss/ptx", 0) > 0 for row in logged)
    with pytest.raises(InputError, match=r"trainer.ptx_coef is not set"):
        ppo("other", data=", ptx: chat.jsonl")
    with pytest.raises(InputError, match=r"data.ptx is not set"):
        ppo("other", trainer=", ptx_coef: 0.5")
    assert not Path("other").exists()


def test_held_out_prompts_are_answered_while_it_trains(line: Path) -> None:
    Path("own.py").write_text(
        "def judge(prompts, answers, **_):\n    return [float(len(a)) for a in answers]\n", encoding="utf-8"
    )
    body = (
        f"model: {{name: sft}}\nreward: [{{model: reward}}]\n{LORA}data: {{train: prompts.jsonl, eval: 0.3}}\n"
        "gates: {judge: own.py:judge, judge_gain_min: -99}\n"
        f"trainer: {{max_steps: 2, {SHORT}, eval_strategy: steps, eval_steps: 1, save_strategy: steps, save_steps: 1, "
        "load_best_model_at_end: true, metric_for_best_model: judge}\nrun: {output: out, compare: 2}\n"
    )
    run("ppo", body)
    logged = [json.loads(row) for row in Path("out/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum("eval_judge" in row for row in logged) == 2


@pytest.mark.parametrize(
    ("critic", "lora", "says"),
    [
        ("critic: {kind: adapter}\n", "", "there is no frozen backbone to stand on"),
        ("critic: {init: nowhere}\n", LORA, "there is no critic in it"),
        ("critic: {kind: head, init: reward}\n", LORA, "a head on the policy starts at zero"),
    ],
)
def test_a_critic_that_cannot_be_is_refused(line: Path, critic: str, lora: str, says: str) -> None:
    with pytest.raises(InstructKitError, match=says):
        ppo("out", critic=critic, lora=lora)

"""What a stage refuses or tells before and after training, instead of going on in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from stages.small import ANYTHING, CHAT, LORA, MANY, ONE_STEP, PAIRS, rows, run, sft
from transformers import AutoModelForCausalLM

from instructkit.errors import GateRefused, InputError, InstructKitError
from instructkit.models.source import Source, refuse_dora_above_an_adapter
from instructkit.recipe.schema import LoraSection
from instructkit.runs.record import read_run
from instructkit.stages.lora_update.trainers import Replay

EDITS = [
    {"prompt": r["messages"][:1], "response": "No.", "better": r["messages"][1]["content"]} for r in MANY
]
EASY = ANYTHING


def update(extra: str = "", *, events: list[dict] | None = None, feedback: str = "", trainer: str = ONE_STEP):
    name = rows("f.jsonl", events or EDITS)
    body = f"model: {{name: parent}}\nfeedback: {{events: {name}, eval: 0.6{feedback}}}\n{LORA}{trainer}"
    return run("lora-update", f"{body}{extra or EASY}run: {{output: update}}\n")


def test_a_gate_that_says_no_is_an_exit_code_in_every_stage(workplace: Path) -> None:
    body = (
        f"model: {{name: tiny}}\ndata: {{train: {rows('p.jsonl', PAIRS)}, eval: 0.3}}\ngates: {{accuracy_min: 1}}\n"
        "trainer: {max_steps: 1, learning_rate: 0.0}\nrun: {output: out}\n"
    )
    with pytest.raises(
        GateRefused, match="refused by its gates: 1 of 1 gates failed\n  held-out comparisons ordered right"
    ):
        run("reward", body)
    assert read_run("out")["status"] == "done"
    with pytest.raises(GateRefused):
        run("reward", body, if_changed=True)


def test_some_margins_are_refused(workplace: Path) -> None:
    some = [{k: v for k, v in row.items() if k != "margin" or i % 2} for i, row in enumerate(PAIRS)]
    with pytest.raises(InputError, match="4 of 8 comparisons have a `margin`"):
        run(
            "reward",
            f"model: {{name: tiny}}\ndata: {{train: {rows('p.jsonl', some)}, eval: null}}\nrun: {{output: out}}\n",
        )
    assert not Path("out").exists()


def test_an_interrupted_run_is_not_resumed_on_other_rows(workplace: Path, monkeypatch) -> None:
    from instructkit.stages import trainer

    def stop(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Progress, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        sft("out")
    rows("chat.jsonl", [*CHAT[1:], *CHAT[:1]])
    body = "model: {name: tiny}\ndata: {train: chat.jsonl, eval: 0.3}\n" + ONE_STEP + "run: {output: out}\n"
    with pytest.raises(InputError, match="cannot be resumed: since it started, the data has changed"):
        run("sft", body, resume=True)
    assert read_run("out")["status"] == "interrupted"


def test_another_stage_does_not_go_on_with_an_interrupted_update(workplace: Path, monkeypatch) -> None:
    from instructkit.stages import trainer

    def stop(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    sft("parent", extra=LORA)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer._Progress, "on_step_end", stop)
        update()
    assert read_run("update")["begun"] == {"newest": None, "in_force": 0}
    body = f"model: {{name: tiny}}\ndata: {{train: {rows('chat.jsonl', CHAT)}, eval: 0.3}}\n{ONE_STEP}run: {{output: update}}\n"
    with pytest.raises(InputError, match="update cannot be resumed: since it started, the data has changed"):
        run("sft", body, resume=True)


def test_dora_is_refused_where_adapters_would_be_joined(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_dora": False}), encoding="utf-8")
    above = Source("parent", "base", adapter=tmp_path)
    with pytest.raises(InputError, match="DoRA cannot be joined"):
        refuse_dora_above_an_adapter(above, LoraSection(use_dora=True))
    refuse_dora_above_an_adapter(above, LoraSection())
    refuse_dora_above_an_adapter(above, None)
    refuse_dora_above_an_adapter(Source("base", "base"), LoraSection(use_dora=True))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_dora": True}), encoding="utf-8")
    with pytest.raises(InputError, match="DoRA cannot be joined"):
        refuse_dora_above_an_adapter(above, LoraSection())


def test_a_reward_model_of_all_weights_stands_above_an_adapter(workplace: Path) -> None:
    """The parent's adapter is merged into a classifier, whose body is the policy's."""
    sft(
        "sft",
        extra=LORA,
        trainer="trainer: {max_steps: 3, per_device_train_batch_size: 4, learning_rate: 0.01}\n",
    )
    run(
        "reward",
        f"model: {{name: sft}}\ndata: {{train: {rows('p.jsonl', PAIRS)}, eval: 0.3}}\n"
        "trainer: {max_steps: 1, learning_rate: 0.0}\nrun: {output: reward}\n",
    )
    from peft import PeftModel
    from safetensors.torch import load_file

    config = json.loads(Path("sft/adapter_config.json").read_text(encoding="utf-8"))
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    merged = PeftModel.from_pretrained(base, "sft").merge_and_unload().state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(load_file("reward/model.safetensors")[name], merged[name])


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_reward_function_is_called_alike_in_training_and_measuring(workplace: Path, kind: str) -> None:
    """With messages, with the columns of the data, waited for, and silent about some."""
    Path("own.py").write_text(
        f"{kind} length(prompts, completions, wanted, **_):\n"
        "    return [float(len(c[0]['content'])) + w for c, w in zip(completions, wanted)]\n",
        encoding="utf-8",
    )
    prompts = rows("q.jsonl", [{"prompt": r["messages"][:1], "wanted": i} for i, r in enumerate(CHAT)])
    record, _ = run(
        "ppo",
        f"model: {{name: tiny}}\nreward: [{{function: own.py:length}}]\ndata: {{train: {prompts}, eval: 0.3}}\n{LORA}"
        "trainer: {max_steps: 1, per_device_train_batch_size: 4, max_completion_length: 5}\n"
        "run: {output: ppo, compare: 2}\n",
    )
    assert any(line["name"] == "reward length" for line in record["measurements"])


def test_feedback_of_too_few_events_is_refused(workplace: Path) -> None:
    sft("parent", extra=LORA)
    silent = [{"prompt": f"q{i}", "response": "a", "other": "b", "preferred": "tie"} for i in range(8)]
    with pytest.raises(InputError, match="0 train events are left"):
        update(events=silent)
    assert not Path("update").exists()


def everything_else() -> str:
    """What a recipe's `feedback:` says of rows to replay and of general rows, which are written."""
    general = [
        {"prompt": [{"role": "user", "content": f"g{i}"}], "completion": [CHAT[0]["messages"][1]]}
        for i in range(12)
    ]
    return f", replay: chat.jsonl, general: {rows('g.jsonl', general)}"


def test_an_update_is_judged_on_everything_else(workplace: Path) -> None:
    sft("parent", extra=LORA)
    Path("own.py").write_text(
        "def judge(prompts, answers):\n    return [float(len(a)) for a in answers]\n", encoding="utf-8"
    )
    feedback = everything_else() + ", self_replay: 0.5"
    judged = EASY.replace("}", ", judge: own.py:judge, judge_gain_min: -999}")
    record, notes = update(judged, feedback=feedback)
    assert any(note.startswith("replay: the model answered ") for note in notes)
    gate = next(gate for gate in record["gates"] if "judge" in gate["name"])
    assert gate["passed"] is True and gate["interval"] is not None
    strict = judged.replace("-999}", "999}")
    with pytest.raises(GateRefused, match="judge's score of answers to everything else"):
        Path("update").rename("kept")
        update(strict, feedback=feedback)


def test_an_update_is_scored_by_a_reward_model_on_what_users_asked(workplace: Path) -> None:
    """By the model of a reward run, on answers to the held-out feedback's prompts; nothing else can stand there."""
    sft("parent", extra=LORA)
    pairs = rows("p.jsonl", PAIRS)
    run(
        "reward",
        f"model: {{name: parent}}\ndata: {{train: {pairs}, eval: null}}\n{LORA}{ONE_STEP}run: {{output: reward}}\n",
    )
    scored = EASY.replace("}", ", reward_model: reward, reward_gain_min: -99}")
    feedback = everything_else()
    record, _ = update(scored, feedback=feedback)
    gate = next(gate for gate in record["gates"] if gate["name"] == "reward of fresh answers")
    line = next(line for line in record["measurements"] if line["name"] == gate["name"])
    assert gate["passed"] is True and line["n"] >= 10
    assert gate["measured"] == pytest.approx(line["after"] - line["before"])
    assert set(record["parents"]) == {"model", "reward"}
    Path("update").rename("kept")
    with pytest.raises(GateRefused, match="reward of fresh answers: lower bound"):
        update(scored.replace("-99}", "99}"), feedback=feedback)
    Path("update").rename("refused")
    with pytest.raises(InputError, match="parent"):
        update(scored.replace("reward_model: reward", "reward_model: parent"), feedback=feedback)
    assert not Path("update").exists()


def test_the_reward_gate_holds_the_scores_of_fresh_answers_to_the_prompts_of_feedback(
    workplace: Path, monkeypatch
) -> None:
    from instructkit.models import generate
    from instructkit.models.reward import RewardScorer

    sft("parent", extra=LORA)
    run(
        "reward",
        f"model: {{name: parent}}\ndata: {{train: {rows('p.jsonl', PAIRS)}, eval: null}}\n{LORA}{ONE_STEP}"
        "run: {output: reward}\n",
    )
    told, sampled, answer = [], [], generate.answer

    def sampling(model, tokenizer, prompts, **options):
        found = answer(model, tokenizer, prompts, **options)
        sampled.append((prompts, [each.text for each in found], options.get("temperature", 1.0)))
        return found

    def score(self, prompts, answers):
        told.append((list(prompts), list(answers)))
        return [0.25 * len(told) + 0.01 * (i % 2) for i in range(len(prompts))]

    monkeypatch.setattr(generate, "answer", sampling)
    monkeypatch.setattr(RewardScorer, "score", score)
    record, _ = update(EASY.replace("}", ", reward_model: reward}"), feedback=everything_else())
    gate = next(gate for gate in record["gates"] if gate["name"] == "reward of fresh answers")
    (before, first), (after, second) = told
    asked = [row["prompt"] for row in EDITS]
    assert before == after and all(prompt in asked for prompt in before) and len(before) < len(asked)
    assert (before, first, 1.0) in sampled and (after, second, 1.0) in sampled
    assert gate["passed"] is True and gate["measured"] == pytest.approx(0.25)


def test_replay_draws_by_step_so_that_a_resumed_run_draws_the_same() -> None:
    from types import SimpleNamespace

    def drawn(steps: list[int]) -> list[list[int]]:
        replay = Replay()
        replay.args = SimpleNamespace(seed=3, per_device_train_batch_size=4)
        given, own = ([{"input_ids": [start + i]} for i in range(50)] for start in (0, 100))
        replay.replay(given, own, share=0.5, own_share=0.5)
        told = []
        for step in steps:
            replay.state = SimpleNamespace(global_step=step)
            told.append([row["input_ids"][0] for row in replay._draw()])
        return told

    whole = drawn([0, 0, 1, 1, 2, 2])
    assert drawn([1, 1, 2, 2]) == whole[2:]
    assert len({tuple(part) for part in whole}) == 6
    assert {i >= 100 for part in whole for i in part} == {True, False}


def test_a_run_is_not_used_as_what_it_is_not(workplace: Path) -> None:
    from instructkit.chat.terminal import open_session

    sft("sft")
    prompts = rows("q.jsonl", [{"prompt": r["messages"][:1]} for r in CHAT])
    body = f"data: {{train: {prompts}, eval: 0.3}}\nrun: {{output: out}}\n"
    with pytest.raises(InputError, match="sft is a run of `sft`; a run of `instructkit reward` is wanted"):
        run("ppo", f"model: {{name: sft}}\nreward: [{{model: sft}}]\n{body}")
    run(
        "reward",
        f"model: {{name: sft}}\ndata: {{train: {rows('p.jsonl', PAIRS)}, eval: 0.3}}\n{ONE_STEP}run: {{output: reward}}\n",
    )
    with pytest.raises(InputError, match="reward is a run of `reward`; a model that answers is wanted"):
        run("ppo", f"model: {{name: reward}}\nreward: [{{model: reward}}]\n{body}")
    with pytest.raises(InputError, match="a model that answers is wanted"):
        open_session("reward")


def test_a_parent_that_is_not_what_its_run_wrote_is_told(workplace: Path) -> None:
    sft("parent")
    data = f"data: {{train: {rows('p.jsonl', PAIRS)}, eval: 0.3}}\n"
    body = f"model: {{name: parent}}\n{data}gates: {{accuracy_min: 0}}\n{ONE_STEP}"

    def told() -> list[str]:
        notes = run("reward", f"{body}run: {{output: reward}}\n", overwrite=True)[1]
        return [note for note in notes if "its model files were changed" in note]

    assert not told()
    template = Path("parent/chat_template.jinja")
    template.write_text(template.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert told() == [
        "warning: parent is not what its run wrote: its model files were changed since, or damaged"
    ]


def test_weights_that_are_not_finite_are_no_result(workplace: Path) -> None:
    with pytest.raises(InstructKitError, match="the weights are not finite"):
        sft("out", trainer="trainer: {max_steps: 3, learning_rate: 1.0e+9}\n")
    assert read_run("out")["status"] == "failed"


def test_a_damaged_checkpoint_is_named(workplace: Path, monkeypatch) -> None:
    from instructkit.stages import trainer

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt

    few = "trainer: {max_steps: 8, per_device_train_batch_size: 2}\n"
    monkeypatch.setattr(trainer._Progress, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        sft("out", trainer=few)
    Path("out/checkpoints/checkpoint-2/optimizer.pt").write_bytes(b"")
    body = f"model: {{name: tiny}}\ndata: {{train: chat.jsonl, eval: 0.3}}\n{few}run: {{output: out}}\n"
    before = Path("out/run.json").read_bytes()
    with pytest.raises(InputError, match="checkpoint-2 is damaged: optimizer.pt ends too early"):
        run("sft", body, resume=True)
    assert Path("out/run.json").read_bytes() == before


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_tokenizer_of_another_model_is_told_before_the_first_step(
    workplace: Path, tiny_folder: Path, stage: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.resize_token_embeddings(60)
    model.save_pretrained("small")
    for path in tiny_folder.iterdir():
        if "token" in path.name or "template" in path.name:
            shutil.copy(path, "small")
    data = {"sft": CHAT, "reward": PAIRS, "ppo": [{"prompt": row["messages"][:1]} for row in CHAT]}[stage]
    score = ""
    if stage == "ppo":
        Path("own.py").write_text(
            "def score(prompts, completions, **_):\n    return [0.0] * len(prompts)\n", encoding="utf-8"
        )
        score = "reward: [{function: own.py:score}]\n"
    body = f"model: {{name: small}}\ndata: {{train: {rows('d.jsonl', data)}, eval: 0.3}}\n{score}"
    more = ", max_completion_length: 9" if stage == "ppo" else ""
    body += f"trainer: {{max_steps: 2, per_device_train_batch_size: 4{more}}}\n"
    with pytest.raises(InputError, match="the model knows 60 tokens, and its tokenizer makes .* of the data"):
        run(stage, f"{body}run: {{output: out}}\n")


def test_rows_with_an_empty_field_of_another_shape_are_trained_on(workplace: Path) -> None:
    given = [{"prompt": f"q {i}", "completion": "a", "text": "t", "messages": None} for i in range(8)]
    assert sft("out", data=rows("d.jsonl", given))["status"] == "done"


def test_pairs_that_are_too_long_to_train_on_are_not_measured(workplace: Path) -> None:
    long = {**PAIRS[0], "prompt": [{"role": "user", "content": "word " * 400}]}
    data = rows("p.jsonl", [*PAIRS, long])
    held = rows(
        "h.jsonl",
        [{**PAIRS[1], "prompt": [{"role": "user", "content": f"Held {i}"}]} for i in range(3)]
        + [{**long, "prompt": [{"role": "user", "content": "words " * 400}]}],
    )
    body = (
        f"model: {{name: tiny}}\ndata: {{train: {data}, eval: {held}}}\n"
        "trainer: {max_steps: 1, max_length: 64}\ngates: {accuracy_min: null}\nrun: {output: out}\n"
    )
    record, notes = run("reward", body)
    assert [line["n"] for line in record["measurements"]][:1] == [3]
    assert record["dropped"] == {"train: longer than max_length": 1, "eval: longer than max_length": 1}


def test_a_gate_without_a_held_out_row_within_max_length_is_refused_before_training(workplace) -> None:
    long = " ".join(["word"] * 200)
    talks = [{"prompt": f"{row['messages'][0]['content']} {long}", "completion": "Yes."} for row in CHAT]
    short = [{"prompt": row["messages"][0]["content"], "completion": "Yes."} for row in CHAT]
    pairs = [{"prompt": row["prompt"], "chosen": "Yes.", "rejected": "No."} for row in talks]
    few = [{"prompt": row["prompt"], "chosen": "Yes.", "rejected": "No."} for row in short]
    trainer = "trainer: {max_steps: 1, max_length: 48}\n"
    for stage, train, held_out, gate in (
        ("sft", short, talks, "loss_ratio_max"),
        ("reward", few, pairs, "accuracy_min"),
    ):
        names = rows("train.jsonl", train), rows("held.jsonl", held_out)
        body = "model: {{name: tiny}}\ndata: {{train: {}, eval: {}}}\n".format(*names)
        with pytest.raises(InputError, match=f"`gates.{gate}` cannot be decided"):
            run(stage, f"{body}gates: {{{gate}: 0.5}}\n{trainer}run: {{output: runs/{stage}}}\n")

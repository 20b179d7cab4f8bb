"""What a plan tells by part: memory, what is cut, parents, changes, and what the libraries would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from stages.small import CHAT, LORA, rows

from instructkit.cli.main import main
from instructkit.data.sources import load_rows
from instructkit.errors import InputError
from instructkit.models import source
from instructkit.plan import changes, memory, rehearsal, render
from instructkit.plan import plan as make
from instructkit.plan.ledger import Ledger
from instructkit.recipe.load import load_recipe
from instructkit.stages import sft, stage_of
from instructkit.stages.preflight import refuse_early

BODY = (
    "stage: sft\nmodel: {name: tiny}\ndata: {train: chat.jsonl, eval: 0.3}\n"
    "trainer: {max_steps: 6, per_device_train_batch_size: 4, save_strategy: no}\nrun: {output: out}\n"
)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, tiny_folder) -> Path:
    monkeypatch.chdir(tmp_path)
    rows("chat.jsonl", CHAT)
    Path("sft.yaml").write_text(BODY, encoding="utf-8")
    return tmp_path


def recipe(*overrides: str, extra: str = ""):
    Path("sft.yaml").write_text(BODY + extra, encoding="utf-8")
    return load_recipe("sft.yaml", "sft", list(overrides))


def ended(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    return stopped.value.code


def test_a_ledger_tells_logits_gradients_and_caches_apart() -> None:
    """6 x 4 weights, 2 rows of 4: 24 gradients, 12 logits; a cache of 10; each number four bytes."""
    with Ledger() as ledger:
        weights = torch.empty(6, 4, device="meta", requires_grad=True)
        ledger.vocabulary, ledger.gradient_shapes = 6, frozenset({(6, 4)})
        x = torch.empty(2, 4, device="meta")
        before = ledger.begin()
        logits = x @ weights.T
        logits.sum().backward()
        cache = torch.empty(10, device="meta")
        ledger.mark(cache, "KV cache")
        more = torch.empty(100, device="meta")  # the peak
        held, most = ledger.held(before), ledger.most(before)
        assert sum(held.values()) == ledger.peak - 96 - 32
    assert (held["logits"], held["gradients"], held["KV cache"]) == (48, 96, 40)
    assert held["activations"] >= 400
    assert most["logits"] >= 48 and most["activations"] >= held["activations"]
    del more


def test_what_is_gone_at_the_peak_is_told_all_the_same() -> None:
    """A tensor of 10 numbers lives and goes before the peak, which another of 20 makes; each number four bytes."""
    with Ledger() as ledger:
        before = ledger.begin()
        early = torch.empty(10, device="meta")
        ledger.mark(early, "KV cache")
        del early
        late = torch.empty(20, device="meta")
        assert ledger.held(before)["KV cache"] == 0 and ledger.most(before)["KV cache"] == 40
        assert ledger.most(before)["activations"] == 80
    del late


@pytest.mark.parametrize("extra", ["", LORA])
def test_the_components_add_up_to_what_is_predicted(extra: str) -> None:
    found = recipe("trainer.gradient_accumulation_steps=2", extra=extra)
    plan = make.make(found)
    need = plan.memory
    assert sum(need.components.values()) == need.predicted
    assert (
        need.components["gradients"] >= plan.rehearsal.gradients
    )  # those of the first micro-batch are there
    assert need.components["logits"] > 0 and need.components["activations"] > 0
    assert ("weights, new adapter" in need.components) == bool(extra)
    told = plan.as_dict()
    assert told["memory"]["unit"] == told["disk"]["unit"] == "bytes"


def test_data_are_prepared_once_however_many_changes_are_rehearsed(monkeypatch) -> None:
    prepared, original = [], sft.build_trainer

    def counted(frame, model, tokenizer):
        prepared.append(len(frame.inputs.data["train"].rows))
        return original(frame, model, tokenizer)

    monkeypatch.setattr(sft, "build_trainer", counted)
    monkeypatch.setattr(rehearsal, "FEW", 2)
    monkeypatch.setattr(memory, "available", lambda machine: 2**20)
    found = recipe()
    every = len(stage_of(found).collect(found, {}).data["train"].rows)
    make.make(found)
    assert prepared[0] == every and len(prepared) > 3
    assert set(prepared[1:]) == {2}


def test_a_change_goes_as_far_as_is_needed_and_no_further(monkeypatch) -> None:
    """Free is what a batch of two needs: of eight rows four are still too many, and one is fewer than needed."""
    sizes = {n: planned(*batches(8 // n, n)).memory.predicted for n in (1, 4, 8)}
    assert sizes[1] > sizes[4] > sizes[8]
    monkeypatch.setattr(memory, "available", lambda machine: sizes[4])
    plan = planned(*batches(8, 1))
    (found,) = [change for change in plan.changes if change.overrides == batches(2, 4)]
    assert found.fits and found.needed == sizes[4] and plan.together is None
    assert found.as_dict()["saves_bytes"] == sizes[1] - sizes[4]


def batches(rows_: int, pieces: int) -> list[str]:
    return [
        f"trainer.per_device_train_batch_size={rows_}",
        f"trainer.gradient_accumulation_steps={pieces}",
    ]


def planned(*overrides: str):
    found = recipe(*overrides)
    return make.make(found)


def test_where_no_change_suffices_several_are_told_together(monkeypatch) -> None:
    monkeypatch.setattr(memory, "available", lambda machine: 2**20)
    plan = planned()
    assert plan.together is not None and not plan.together.fits
    assert plan.together.needed <= min(change.needed for change in plan.changes)
    assert "GiB" in make.refusal(plan).hint and "together" in "\n".join(render.lines(plan))


def test_a_batch_of_an_odd_size_can_be_smaller_too() -> None:
    given = {"per_device_train_batch_size": 15, "gradient_accumulation_steps": 2}
    found = changes._smaller_batches("sft", given)
    assert [tuple(values.values()) for values in found] == [(5, 6), (3, 10), (1, 30)]
    assert changes._smaller_batches("ppo", given)[0]["trainer.steps_per_generation"] == 3


def test_lora_in_4_bits_is_one_change_where_there_is_no_adapter() -> None:
    given = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": True,
    }
    assert [{"lora": {}, "model.quantization": "4bit"}] in changes._knobs(recipe(), given, (1, 40))
    assert [{"model.quantization": "4bit"}] in changes._knobs(recipe(extra=LORA), given, (1, 40))


def test_a_single_change_is_not_told_again_as_several() -> None:
    sizes = {("a",): 60, ("a", "b"): 60, ("a", "c"): 40}

    def size(values):
        return sizes[tuple(sorted(values))]

    def change(values, needed):
        return changes.Change(sorted(values), needed, 0, False)

    alone = changes._together([{"a": 1}, {"b": 1}], size, change)
    both = changes._together([{"a": 1}, {"b": 1}, {"c": 1}], size, change)
    assert alone is None and both.overrides == ["a", "c"]


def test_the_mildest_step_that_suffices_is_found_by_halving() -> None:
    asked = []

    def size(values):
        asked.append(values["n"])
        return None if values["n"] == 7 else 100 * values["n"]

    now = memory.Need({}, 0, 0, {}, "step", {}, {}, predicted=10_000, available=1234)
    steps = [{"n": n} for n in range(60, 0, -1)]
    assert changes._far_enough(steps, size, now) == ({"n": 12}, 1200)
    assert len(asked) <= 8
    now = memory.Need({}, 0, 0, {}, "step", {}, {}, predicted=10_000, available=50)
    assert changes._far_enough(steps, size, now) == ({"n": 1}, 100)


def test_the_default_length_is_shortened_too() -> None:
    given = {"per_device_train_batch_size": 1, "max_length": 1024, "gradient_checkpointing": True}
    steps = changes._knobs(recipe(extra=LORA), given, (1, 700))
    assert [{"trainer.max_length": n} for n in (512, 256, 128, 64)] in steps


def test_an_encoded_row_is_cut_as_its_trainer_would() -> None:
    packed = {"input_ids": [1, 2, 3, 4, 5], "labels": [1, 2, 3, 4, 5], "seq_lengths": [2, 3]}
    assert rehearsal.cut(packed, 4) == {
        "input_ids": [1, 2, 3, 4],
        "labels": [1, 2, 3, 4],
        "seq_lengths": [2, 2],
    }
    pair = {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6], "rejected_ids": [7], "margin": 1.0}
    assert rehearsal.cut(pair, 4) == {
        "prompt_ids": [1, 2, 3],
        "chosen_ids": [4],
        "rejected_ids": [7],
        "margin": 1.0,
    }


def test_the_share_that_is_cut_is_told_by_tokens_and_side() -> None:
    whole = planned().rehearsal.rows
    assert whole.cut is None
    limit = whole.p50
    plan = planned(f"trainer.max_length={limit}")
    cut, kept = plan.rehearsal.rows.cut, plan.rehearsal.rows
    assert cut.prompt_tokens + cut.answer_tokens == whole.tokens - kept.tokens
    assert cut.share == pytest.approx(1 - kept.tokens / whole.tokens)
    told = [line for line in render.lines(plan) if "max_length" in line and "cut" in line]
    assert len(told) == 2 and "of answers" in "".join(
        told
    )  # the stage's rows, and the tokens: neither of them twice


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora={target_modules: [nothing]}", "no layer of tiny is called 'nothing'"),
        ("trainer.deepspeed=nothing.json", "`trainer.deepspeed` names nothing.json"),
        ("trainer.chat_template_path=nope.jinja", "`trainer.chat_template_path` names nope.jinja"),
        ("trainer.adam_beta1=7", "adam_beta1"),
    ],
)
@pytest.mark.parametrize("plan", [["--plan"], []])
def test_what_the_libraries_refuse_is_one_error_before_anything_is_written(
    override: str, says: str, plan: list[str], capsys
) -> None:
    assert ended("sft", "sft.yaml", override, *plan) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("error:") == 1
    assert not Path("out").exists()


def test_layers_that_are_there_may_be_named() -> None:
    refuse_early(recipe("lora={target_modules: [q_proj, v_proj]}"))
    refuse_early(recipe("lora={target_modules: '.*q_proj'}"))


def test_a_plan_whose_run_would_be_refused_ends_with_2(capsys) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("x", encoding="utf-8")
    assert ended("sft", "sft.yaml", "--plan") == 2
    told = capsys.readouterr()
    assert "predicted peak" in told.out
    assert "the run would be refused: out is not empty and holds no run" in told.err
    assert ended("sft", "sft.yaml", "--plan", "run.output=sft.yaml") == 2
    capsys.readouterr()
    assert ended("sft", "sft.yaml", "--plan", "--json") == 2
    data = json.loads(capsys.readouterr().out)
    assert data["fits"] and "holds no run" in data["error"]["message"]


def test_faults_are_data_with_json(capsys) -> None:
    Path("chat.jsonl").write_text('{"messages": 7}\n{"messages": []}\n', encoding="utf-8")
    assert ended("sft", "sft.yaml", "--plan", "--json") == 2
    told = capsys.readouterr()
    data = json.loads(told.out)
    assert data["total_faults"] == len(data["faults"]) == 2
    assert data["faults"][0]["where"] == "chat.jsonl:1"
    assert told.err.startswith("error: 2 faults")
    assert ended("sft", "sft.yaml", "run.seed=x", "--plan", "--json") == 2
    assert "run.seed" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_parents_are_compared_and_an_untrained_head_is_told() -> None:
    from instructkit.plan.parents import parents

    found = recipe()
    tiny = source.locate("tiny")
    own, reward = parents(found, {"model": tiny, "reward[0]": tiny})
    assert own.same_base is None and own.warnings == []
    assert (reward.same_base, reward.same_vocabulary, reward.same_template) == (True, True, True)
    assert "no trained head: its scores are random" in reward.warnings[0]
    assert reward.tokens <= reward.vocabulary


def test_a_reward_model_of_another_family_is_allowed_and_said(workplace) -> None:
    import shutil

    from transformers import AutoTokenizer

    from instructkit.plan.parents import parents

    tiny = source.locate("tiny")
    shutil.copytree(tiny.base, "other")
    tokenizer = AutoTokenizer.from_pretrained("other")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained("other")
    config = json.loads(Path("other/config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["LlamaForSequenceClassification"]
    Path("other/config.json").write_text(json.dumps(config), encoding="utf-8")
    _, reward = parents(recipe(), {"model": tiny, "reward[0]": source.locate("other")})
    assert reward.warnings == [] and not reward.same_base and not reward.same_template
    assert reward.fit().endswith("it reads answers with its own tokenizer and template")


def test_rows_of_middle_length_and_brief_questions_stand_for_all() -> None:
    rows("many.jsonl", [{"prompt": "x" * (301 - n), "completion": "y" * 2 * n} for n in range(1, 301)])
    found = rehearsal._usual(load_rows("many.jsonl", kind="sft"))
    assert sorted(found) == [*range(134, 166), *range(268, 300)]


def talk(asked: int, answered: int) -> dict:
    turns = ("user", asked), ("assistant", answered)
    return {"messages": [{"role": role, "content": "big " * words} for role, words in turns]}


def test_where_most_rows_are_masked_the_others_are_rehearsed_with(monkeypatch) -> None:
    """A tenth of the rows has room for its answer; those of middle length have none."""
    rows("chat.jsonl", [talk(10 if i < 20 else 100 + i, 2) for i in range(200)])
    monkeypatch.setattr(memory, "available", lambda machine: 2**20)
    plan = planned("data.eval=null", "trainer.max_length=64")
    assert any("batch_size" in change.overrides[0] for change in plan.changes)
    assert not [told for told in plan.untried if not told.endswith("saves nothing at the peak")]
    left_out = next(told for told in plan.warnings if "are left out" in told)
    assert (
        left_out.startswith("180 of 200 train rows (90%) are left out")
        and "nothing learned within max_length; raise the limit" in left_out
    )
    assert plan.as_dict()["warnings"] == plan.warnings


def test_a_length_that_masks_answers_is_not_told_and_milder_ones_are(monkeypatch) -> None:
    rows("chat.jsonl", [talk(100, 300)] * 9)
    monkeypatch.setattr(memory, "available", lambda machine: 2**20)
    plan = planned("data.eval=null", "trainer.max_length=1024")
    told = [override for change in plan.changes for override in change.overrides]
    length = int(next(each for each in told if "max_length" in each).partition("=")[2])
    starts = plan.rehearsal.kept.starts
    assert starts and length > max(starts) >= length // 2  # half of it would mask every answer
    untried = [told for told in plan.untried if not told.endswith("saves nothing at the peak")]
    assert untried == [f"trainer.max_length={length // 2}: nothing would be learned in 9 of 9 rows"]
    assert f"not suggested: {untried[0]}" in render.lines(plan)
    assert plan.as_dict()["untried"] == plan.untried


def test_a_step_that_cannot_be_taken_says_nothing_of_milder_ones() -> None:
    sizes = {1: 80, 2: 40, 3: None, 4: None}
    steps = [{"n": n} for n in sizes]
    now = memory.Need({}, 0, 0, {}, "step", {}, {}, predicted=100, available=10)
    assert changes._far_enough(steps, lambda values: sizes[values["n"]], now) == ({"n": 2}, 40)


def test_a_template_without_an_end_is_told_by_the_plan_as_by_the_look(capsys) -> None:
    import shutil

    from transformers import AutoTokenizer

    shutil.copytree(source.locate("tiny").base, "model")
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "")
    tokenizer.save_pretrained("model")
    for words in (("sft", "sft.yaml", "--plan"), ("data", "look", "sft.yaml")):
        assert ended(*words, "model.name=model", "data.eval=null") == 0
        told = "".join(capsys.readouterr())
        assert f"warning: {len(CHAT)} of {len(CHAT)} rows do not end with <|end|>" in told
    assert planned().warnings == []


def test_near_doubles_of_held_out_rows_are_told_with_their_places() -> None:
    words = " ".join(f"w{i}" for i in range(60))
    said = [{"prompt": f"{words} {i}", "completion": "So."} for i in "abc"]
    rows(
        "train.jsonl",
        [{"prompt": "Hi", "completion": "Hello"}, {"prompt": f"{words} z", "completion": "So."}],
    )
    rows("held.jsonl", [{"prompt": "What else?", "completion": "Nothing."}, *said])
    plan = planned("data.train=train.jsonl", "data.eval=held.jsonl")
    (told,) = [each for each in plan.warnings if "near double" in each]
    assert told.startswith("3 held-out rows") and "held.jsonl:2 and train.jsonl:2; held.jsonl:3 and" in told


def test_columns_that_are_not_read_are_named() -> None:
    rows("chat.jsonl", [{**row, "source": "x"} for row in CHAT])
    assert "data train: columns that are not read: source" in render.lines(planned())


def test_what_a_library_refuses_is_told_by_recipe() -> None:
    from instructkit.stages.preflight import told_by_recipe

    with pytest.raises(
        InputError, match=r"sft.yaml: this run is refused before its first step: no such thing"
    ):
        _refuse()
    with pytest.raises(ZeroDivisionError), told_by_recipe(recipe()):
        1 / 0  # noqa: B018


def _refuse() -> None:
    from instructkit.stages.preflight import told_by_recipe

    with told_by_recipe(recipe()):
        raise ValueError("no such thing\nand more")


def test_the_file_of_a_quantised_base_may_go_where_there_is_no_room(monkeypatch) -> None:
    monkeypatch.setattr(memory, "available", lambda machine: 2**40)
    extra = "lora: {r: 4, alpha: 8}\n"
    recipe(extra=extra)
    found = load_recipe("sft.yaml", "sft", ["model.quantization=4bit"])
    plan = make.make(found)
    assert plan.memory.mapped > 0 and plan.memory.needed == plan.memory.predicted - plan.memory.mapped
    monkeypatch.setattr(memory, "available", lambda machine: plan.memory.needed)
    assert make.make(found).fits
    monkeypatch.setattr(memory, "available", lambda machine: plan.memory.needed - 1)
    again = make.make(found)
    assert not again.fits and "the mapped file" in "\n".join(render.lines(again))

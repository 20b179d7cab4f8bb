"""Text rows are conversations in every stage where the model has a chat template; one format holds along a lineage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stages.small import ANYTHING, LORA, ONE_STEP, rows, run
from transformers import AutoTokenizer

from instructkit.chat.terminal import open_session
from instructkit.data.formats import as_conversation, has_messages
from instructkit.errors import InputError
from instructkit.models import load
from instructkit.models.source import locate
from instructkit.models.tokens import encode_answered, encode_prompt
from instructkit.plan.data_look import look
from instructkit.plan.rehearsal import on_paper
from instructkit.recipe.load import load_recipe
from instructkit.recipe.schema import ModelSection
from instructkit.stages import stage_of
from instructkit.stages.base import choose_machine, left_out
from instructkit.stages.user_functions import scoring_function

PAIRS = [{"prompt": f"Say number {i}.", "completion": f"Number {i}!"} for i in range(30)]
COMPARISONS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No."} for row in PAIRS]
PROMPTS = [{"prompt": row["prompt"]} for row in PAIRS]
TALKS = [{"messages": [user, {"role": "assistant", "content": row["completion"]}]} for row in PAIRS
         for user in [{"role": "user", "content": row["prompt"]}]]  # fmt: skip
WHOLE = [{"text": f"{row['prompt']} {row['completion']}"} for row in PAIRS]


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def model(name: str, *, template: bool = True, stage: str = "sft", trained: str | None = None) -> str:
    """A copy of the embedded model, without its chat template or as a finished run of a stage in a format."""
    shutil.copytree(locate("tiny").base, name)
    if not template:
        Path(name, "chat_template.jinja").unlink()
    if trained:
        record = {"format": 1, "name": name, "stage": stage, "status": "done", "data_format": trained}
        data = {"train": rows(f"{name}.jsonl", PAIRS), "eval": None}
        record |= {"recipe": {"data": data, "run": {"seed": 1, "output": name}}}
        record |= {"recipe_hash": "", "data": {}, "parents": {}}
        Path(name, "run.json").write_text(json.dumps(record), encoding="utf-8")
    return name


def recipe(
    stage: str, data: list[dict], name: str = "tiny", *, section: str = "", extra: str = "", trainer: str = ""
) -> Any:
    file = rows(f"{stage}.jsonl", data)
    first = f"feedback: {{events: {file}, eval: 0.5" if stage == "lora-update" else f"data: {{train: {file}"
    section += "" if "eval" in first + section else ", eval: 0.3"
    body = f"stage: {stage}\nmodel: {{name: {name}}}\n{first}{section}}}\n{extra}"
    Path("r.yaml").write_text(f"{body}trainer: {{{trainer}}}\nrun: {{output: out}}\n", encoding="utf-8")
    return load_recipe("r.yaml", stage)


def collected(*given: Any, **named: Any) -> Any:
    found = recipe(*given, **named)
    return stage_of(found).collect(found, {})


def refused(match: str, *given: Any, **named: Any) -> None:
    with pytest.raises(InputError, match=match):
        collected(*given, **named)


def prepared(found: Any, take: Callable[[Any], Any]) -> Any:
    """What a stage's trainer holds before its first step."""
    with on_paper(found, stage_of(found).collect(found, {}), choose_machine(found)) as (prepared, *_):
        return take(prepared.trainer)


def test_texts_become_messages_and_nothing_else_changes() -> None:
    user, bot = asked("q"), [{"role": "assistant", "content": "a"}]
    pair = {"prompt": "q", "completion": "a", "more": 1}
    assert as_conversation(pair, "sft") == {"prompt": user, "completion": bot, "more": 1}
    compared = as_conversation({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1}, "preference")
    assert (compared["prompt"], compared["chosen"], compared["margin"]) == (user, bot, 1)
    assert as_conversation({"prompt": "q", "wanted": "x"}, "prompt") == {"prompt": user, "wanted": "x"}
    rated = {"prompt": "q", "response": "a", "rating": 1}
    assert as_conversation(rated, "feedback") == rated | {"prompt": user}
    for row, kind in (
        ({"text": "t", "prompt": "q"}, "sft"),
        ({"messages": [*user, *bot], "prompt": "q"}, "sft"),
        ({"prompt": user, "completion": bot}, "sft"),
        ({"chosen": "q a", "rejected": "q b"}, "preference"),
        ({"prompt": user}, "prompt"),
        ({"messages": user, "response": "a", "rating": 1}, "feedback"),
    ):
        assert as_conversation(row, kind) is row
    assert has_messages({"messages": user, "response": "a"}, "feedback") and not has_messages(pair, "sft")


@pytest.mark.parametrize(
    "config", [{"chat_template": "{{ messages }}"}, {"chat_template": None}, {"chat_template": ""}, {}]
)
def test_a_folder_tells_its_template_as_its_tokenizer_does(workplace: Path, config: dict) -> None:
    place = Path(model("m", template=False), "tokenizer_config.json")
    config = json.loads(place.read_text(encoding="utf-8")) | config
    place.write_text(json.dumps(config), encoding="utf-8")
    for source in (locate("m"), locate("tiny")):
        loaded = bool(AutoTokenizer.from_pretrained(source.base).chat_template)
        assert load.has_chat_template(source, ModelSection(name="m")) is loaded
        assert (load.load_tokenizer(source, ModelSection(name="m")).chat_template is not None) is loaded


def test_a_model_with_a_template_reads_texts_as_conversations(workplace: Path) -> None:
    found = collected("sft", PAIRS)
    assert left_out(found)[0] == "data format chat: tiny has a chat template"
    assert found.data["train"].rows[0]["prompt"][0]["role"] == "user"
    assert found.data["eval"].rows[0]["completion"][0]["role"] == "assistant"
    as_text = collected("sft", PAIRS, section=", format: text")
    assert as_text.format.name == "text" and as_text.data["train"].rows[0] in PAIRS
    assert as_text.data["train"].places == found.data["train"].places  # the split does not move
    assert as_text.data["train"].fingerprint != found.data["train"].fingerprint


def test_conversations_are_left_as_they_were_read(workplace: Path) -> None:
    found = collected("sft", TALKS)
    assert found.format.name == "chat" and not found.data["train"].rendered
    assert all(row in TALKS for row in found.data["train"].rows)
    refused(r"sft.jsonl:\d+: the row is a conversation, but the data format is text", "sft", TALKS,
            section=", format: text")  # fmt: skip


def test_a_model_without_a_template_reads_texts(workplace: Path) -> None:
    base = model("base", template=False)
    for stage, data in (("sft", PAIRS), ("sft", WHOLE), ("reward", COMPARISONS)):
        assert collected(stage, data, base).format.name == "text"
    refused("base has no chat template", "sft", TALKS, base)
    refused("base has no chat template, but the data format is chat", "sft", PAIRS, base,
            section=", format: chat")  # fmt: skip
    Path("t.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert collected("sft", TALKS, base, trainer="chat_template_path: t.jinja").format.name == "chat"


def test_whole_texts_set_no_format_and_are_never_rendered(workplace: Path) -> None:
    found = collected("sft", WHOLE)
    assert found.format.name is None and found.data["train"].rows[0] in WHOLE
    found = collected("sft", WHOLE, model("talks", trained="chat"))
    assert found.format.name == "chat" and found.data["train"].rows[0] in WHOLE
    compared = [{"chosen": f"q{i} a", "rejected": f"q{i} b"} for i in range(30)]
    assert collected("reward", compared).format.name == "text"
    refused(r"reward.jsonl:\d+: `chosen` and `rejected` are whole texts", "reward", compared, "talks")


def test_the_parents_format_is_inherited_and_never_contradicted(workplace: Path) -> None:
    for trained, other in (("text", "chat"), ("chat", "text")):
        parent = model(f"as-{trained}", trained=trained)
        for stage, data in (("sft", PAIRS), ("reward", COMPARISONS), ("lora-update", rated())):
            assert collected(stage, data, parent, extra=settings(stage)).format.name == trained
            told = f"out: (data|feedback).format is {other}, but its parent {parent} was trained as {trained}"
            refused(told, stage, data, parent, section=f", format: {other}", extra=settings(stage))


@pytest.mark.parametrize(("prompt", "trained"), [("q", "text"), (asked("q"), "chat")])
def test_samples_tell_the_format_of_a_run_of_version_0_1(workplace: Path, prompt: Any, trained: str) -> None:
    parent = of_version_0_1("old")
    rows(f"{parent}/samples.jsonl", [{"prompt": prompt, "after": "a"}])
    found = collected("sft", PAIRS, parent).format
    assert (found.name, found.why) == (trained, f"old was trained as {trained}")


@pytest.mark.parametrize("samples", [None, "", "no JSON", '{"chosen": "a"}'])
def test_a_run_of_version_0_1_without_prompts_in_its_samples_is_warned_of(
    workplace: Path, samples: str | None
) -> None:
    parent = of_version_0_1("old")
    if samples is not None:
        Path(parent, "samples.jsonl").write_text(samples, encoding="utf-8")
    why = collected("sft", PAIRS, parent).format.why
    assert "warning: old is a run of version 0.1.0" in why and why.endswith("set data.format: text")
    assert "warning" not in collected("sft", PAIRS).format.why
    assert collected("sft", PAIRS, parent, section=", format: text").format.name == "text"


def of_version_0_1(name: str) -> str:
    """Write a finished run without a data format."""
    record = Path(model(name, trained="chat"), "run.json")
    kept = {k: v for k, v in json.loads(record.read_text(encoding="utf-8")).items() if k != "data_format"}
    record.write_text(json.dumps(kept), encoding="utf-8")
    return name


def settings(stage: str) -> str:
    return f"{LORA}{ANYTHING}" if stage == "lora-update" else ""


def test_a_reward_model_reads_what_the_policy_writes(workplace: Path) -> None:
    policy, reward = model("policy", trained="chat"), model("reward", stage="reward", trained="text")
    with_reward = {"extra": f"reward: [{{model: {reward}}}]\n"}
    told = r"out: its data format is chat \(policy was trained as chat\), but reward\[0\] reward was trained as text"
    refused(told, "ppo", PROMPTS, policy, **with_reward)
    model("plain", template=False)
    refused(
        r"reward\[0\] plain has no chat template", "ppo", PROMPTS, policy, extra="reward: [{model: plain}]\n"
    )
    judge = f"{LORA}{ANYTHING}".replace("rescue: false", f"rescue: false, reward_model: {reward}")
    refused("reward reward was trained as text", "lora-update", rated(), policy, extra=judge)


def rated(kind: str = "rating") -> list[dict[str, Any]]:
    said = {
        "rating": lambda i: {"rating": 1 if i % 2 else -1},
        "preference": lambda i: {"other": f"Else {i}", "preferred": "response"},
        "edit": lambda i: {"better": f"Better {i}!"},
    }[kind]
    return [{"prompt": f"Say number {i}.", "response": f"Number {i}.", **said(i)} for i in range(60)]


@pytest.mark.parametrize("kind", ["rating", "preference", "edit"])
def test_feedback_on_texts_is_feedback_on_conversations(workplace: Path, kind: str) -> None:
    parent = model("parent", trained="chat")
    general = rows("general.jsonl", [{"prompt": f"Is {i} here?", "completion": "Yes."} for i in range(12)])
    found = recipe(
        "lora-update", rated(kind), parent, section=f", general: {general}", extra=settings("lora-update")
    )
    inputs = stage_of(found).collect(found, {})
    assert (
        inputs.data["events"].rows[0]["prompt"] == "Say number 0."
    )  # what a filter reads, and what an id is made of
    items = [item for side in ("train", "tune", "test") for item in inputs.items(side)]
    assert {item.prompt[0]["content"] for item in items} == {row["prompt"] for row in rated(kind)}
    assert inputs.data["general"].rows[0]["prompt"] == asked("Is 0 here?")
    row = prepared(found, lambda trainer: trainer.train_dataset[0])
    tokenizer = AutoTokenizer.from_pretrained(parent)
    ids = row.get("prompt_ids") or row["input_ids"]
    trained = tokenizer.decode(ids)
    assert trained.startswith("<|begin|><|user|>Say number ") and "<|end|><|assistant|>" in trained


def test_texts_and_messages_of_one_prompt_are_one_prompt(workplace: Path) -> None:
    """A store may hold both: what people wrote in a chat, and what was imported as texts."""
    events = [{**row, "prompt": asked(row["prompt"]), "rater": "b"} for row in rated()]
    events += [{**row, "rater": "a", "rating": -row["rating"]} for row in rated()]
    inputs = collected("lora-update", events[:59] + events[60:], model("parent", trained="chat"),
                       section=", agreement_min: 0.5", extra=settings("lora-update"))  # fmt: skip
    assert inputs.prepared.outcomes["merged into an answer that was judged both ways"] == 59
    refused(r"lora-update.jsonl:1: the row is a conversation", "lora-update", events, model("text", trained="text"),
            extra=settings("lora-update"))  # fmt: skip


def test_each_stage_encodes_texts_as_the_template_renders_them(workplace: Path) -> None:
    policy = model("policy", trained="chat")
    tokenizer = AutoTokenizer.from_pretrained(policy)
    whole = {
        tuple(encode_answered(tokenizer, asked(row["prompt"]), row["completion"])): row["prompt"]
        for row in PAIRS
    }
    sft = prepared(
        recipe("sft", PAIRS, policy, section=", eval: null"), lambda t: t.train_dataset["input_ids"]
    )
    assert {tuple(ids) for ids in sft} == set(whole)
    chosen = prepared(
        recipe("reward", COMPARISONS, policy, section=", eval: null"), lambda t: t.train_dataset["chosen_ids"]
    )
    assert {tuple(ids) for ids in chosen} == set(whole)
    ptx = rows("ptx.jsonl", PAIRS)
    model("reward", stage="reward", trained="chat")
    found = recipe("ppo", PROMPTS, policy, section=f", ptx: {ptx}", extra="reward: [{model: reward}]\n" + LORA,
                   trainer="ptx_coef: 1.0, max_completion_length: 8")  # fmt: skip
    prompts, texts = prepared(found, lambda t: (t.train_dataset["prompt"], t.text.rows))
    assert all(prompt[0]["role"] == "user" for prompt in prompts)
    assert {tuple(row["input_ids"]) for row in texts} == set(whole)


def test_a_look_shows_the_rendered_text(workplace: Path) -> None:
    for stage, data, name in (
        ("sft", PAIRS, "tiny"),
        ("reward", COMPARISONS, "tiny"),
        ("sft", PAIRS, "base"),
    ):
        found = recipe(stage, data, model("base", template=False) if name == "base" else name)
        seen = look(found, stage_of(found).collect(found, {}), choose_machine(found), 1).rows[0]
        shown = "".join(token.text for token in seen.tokens)
        learned = "".join(token.text for token in seen.tokens if token.learned)
        turns = ("", "") if name == "base" else ("<|begin|><|user|>", "<|end|><|assistant|>")
        asked_, answer = next(row.values() for row in PAIRS if row["prompt"] in shown)
        assert (shown, learned) == (
            f"{turns[0]}{asked_}{turns[1]}{answer}<|end|>",
            f"{answer}<|end|>",
        )


@pytest.mark.parametrize("name", ["chat", "text"])
def test_chat_asks_as_the_run_was_trained(workplace: Path, name: str) -> None:
    """From text pairs to a chat: the tokens that are asked are those that every trained row begins with."""
    pairs = [{"prompt": row["prompt"] + " ", "completion": row["completion"]} for row in PAIRS]
    body = f"data: {{train: {rows('p.jsonl', pairs)}, eval: 0.3, format: {name}}}\n{LORA}{ONE_STEP}"
    record, notes = run("sft", f"model: {{name: tiny}}\n{body}run: {{output: sft}}\n")
    assert f"data format {name}: data.format sets it" in notes
    assert record["data_format"] == name and record["choices"][-1].startswith(f"data format {name}")
    written = [
        json.loads(line) for line in Path("sft/samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert isinstance(written[0]["prompt"], list if name == "chat" else str)
    found = load_recipe("sft.yaml", "sft", [f"data.format={name}", "run.output=again"])
    trained = prepared(found, lambda t: [list(ids) for ids in t.train_dataset["input_ids"]])
    chat = open_session("sft", max_new_tokens=1)
    list(chat.ask("Say number 3. "))
    asking = chat.cached
    assert sum(ids[: len(asking)] == asking for ids in trained) == 1
    plain = encode_prompt(AutoTokenizer.from_pretrained(locate("tiny").base), "Say number 3. ")
    assert (asking == plain) is (name == "text")
    assert Path("sft/chat_template.jinja").exists() is (name == "chat")


def test_a_function_reads_texts_where_the_data_are_texts(workplace: Path) -> None:
    Path("own.py").write_text(
        "def score(prompts, completions, **more):\n"
        "    assert all(isinstance(x, str) for x in [*prompts, *completions]), (prompts, completions)\n"
        "    return [float(len(text)) for text in completions]\n"
        "async def later(prompts, completions, **more):\n"
        "    return score(prompts, completions)\n"
        "def judge(prompts, answers):\n"
        "    return score(prompts, answers)\n",
        encoding="utf-8",
    )
    body = f"data: {{train: {rows('q.jsonl', PROMPTS)}, eval: 0.3}}\n{LORA}gates: {{judge: own.py:judge, judge_gain_min: -99}}\n"
    record, _ = run(
        "ppo",
        f"model: {{name: tiny}}\nreward: [{{function: own.py:score}}, {{function: own.py:later}}]\n{body}"
        "trainer: {max_steps: 1, per_device_train_batch_size: 4, max_completion_length: 5}\n"
        "run: {output: ppo, compare: 4}\n",
    )
    assert record["data_format"] == "chat"
    assert {"reward score", "judge's score"} <= {line["name"] for line in record["measurements"]}
    talk = asked("q")
    assert scoring_function("own.py:judge", texts=True)([talk], ["abc"]) == [3.0]
    with pytest.raises(Exception, match="AssertionError"):
        scoring_function("own.py:judge")([talk], ["abc"])

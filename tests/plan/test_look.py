"""What training will see: the tokens and labels of the trainer itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plan.test_plan import for_sft, line, recipe, workplace  # noqa: F401 - fixtures
from stages.small import CHAT, rows

from instructkit.cli.main import main
from instructkit.errors import InputError
from instructkit.plan import plan as make
from instructkit.plan import render
from instructkit.plan.data_look import look
from instructkit.stages import stage_of
from instructkit.stages.base import choose_machine


def seen(found, count: int = 2):
    return look(found, stage_of(found).collect(found, {}), choose_machine(found), count)


def learned(row) -> str:
    return "".join(token.text for token in row.tokens if token.learned)


def test_the_answer_is_learned_and_the_question_read(workplace) -> None:  # noqa: F811
    found = seen(for_sft())
    assert [row.title for row in found.rows] == ["chat.jsonl:1", "chat.jsonl:2"]
    assert learned(found.rows[0]).endswith("!<|end|>")
    whole = "".join(token.text for token in found.rows[0].tokens)
    assert "Say" in whole and "Say" not in learned(found.rows[0])
    assert any(token.special for token in found.rows[0].tokens)
    assert found.warnings == []


def test_characters_of_several_tokens_are_whole(workplace) -> None:  # noqa: F811
    data = [
        {
            "messages": [
                {"role": "user", "content": "\u3053?"},
                {"role": "assistant", "content": "\U0001f600 caf\u00e9"},
            ]
        }
    ]
    Path("odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data * 4), encoding="utf-8")
    found = seen(
        recipe("sft", "model: {name: tiny}\ndata: {train: odd.jsonl, eval: null}\nrun: {output: out}\n"), 1
    )
    assert "\U0001f600 caf\u00e9" in learned(found.rows[0])
    assert "\ufffd" not in "".join(token.text for token in found.rows[0].tokens)


def test_rows_without_an_end_are_told(workplace) -> None:  # noqa: F811
    rows("chat.jsonl", CHAT)
    body = "model: {name: tiny}\ndata: {train: chat.jsonl, eval: null}\nrun: {output: out}\n"
    whole = seen(recipe("sft", body), 8)
    longest = max(len(row.tokens) for row in whole.rows)
    found = seen(recipe("sft", body, f"trainer.max_length={longest - 1}"))
    assert any("do not end with" in told for told in found.warnings)


def test_where_nothing_would_be_learned_the_look_says_so(workplace) -> None:  # noqa: F811
    body = "model: {name: tiny}\ndata: {train: chat.jsonl, eval: null}\ntrainer: {max_length: 3}\nrun: {output: out}\n"
    rows("chat.jsonl", CHAT)
    with pytest.raises(InputError, match="masked|nothing would be"):
        seen(recipe("sft", body))


def test_every_stage_can_be_looked_at(line, monkeypatch) -> None:  # noqa: F811
    monkeypatch.chdir(line)
    one = "trainer: {max_steps: 1, per_device_train_batch_size: 4}\nrun: {output: new}\n"
    pairs = seen(recipe("reward", f"model: {{name: sft}}\ndata: {{train: pairs.jsonl, eval: 0.3}}\n{one}"), 1)
    assert [row.title for row in pairs.rows] == ["pairs.jsonl:1, chosen", "pairs.jsonl:1, rejected"]
    body = (
        f"model: {{name: sft}}\nreward: [{{model: reward}}]\ndata: {{train: asked.jsonl, eval: null}}\n"
        f"{one.replace('4}', '4, max_completion_length: 9}')}"
    )
    asked = seen(recipe("ppo", body), 1)
    assert not any(token.learned for token in asked.rows[0].tokens)
    body = f"model: {{name: sft}}\nfeedback: {{events: events.jsonl, eval: 0.5}}\n{one}"
    update = seen(recipe("lora-update", body), 1)
    assert "y" in learned(update.rows[0])


@pytest.mark.parametrize("words", ["'sft', 'sft.yaml', '--plan'", "'data', 'look', 'sft.yaml'"])
def test_faults_of_rows_are_told_before_a_heavy_library_is_imported(words: str, workplace) -> None:  # noqa: F811
    for_sft()
    Path("chat.jsonl").write_text("", encoding="utf-8")
    code = (
        f"import sys\nfrom instructkit.cli.main import main\ntry:\n    main([{words}])\n"
        "except SystemExit as ended:\n    print(ended.code, {'torch', 'trl', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "chat.jsonl holds no rows" in done.stderr
    assert done.stdout.strip() == "2 set()"


def test_rows_that_are_left_out_keep_their_places(workplace) -> None:  # noqa: F811
    long = {"messages": [{"role": "user", "content": "Say it. " * 40}, CHAT[0]["messages"][1]]}
    rows("some.jsonl", [CHAT[0], long, CHAT[1], CHAT[2], long, CHAT[3]])
    body = "model: {name: tiny}\ndata: {train: some.jsonl, eval: null}\ntrainer: {max_length: 24}\nrun: {output: out}\n"
    found = seen(recipe("sft", body), 5)
    left = "left out, nothing in it would be learned within max_length"
    assert [row.title for row in found.rows] == [
        "some.jsonl:1",
        f"some.jsonl:2: {left}",
        "some.jsonl:3",
        "some.jsonl:4",
        f"some.jsonl:5: {left}",
    ]
    assert "two" in learned(found.rows[2]) and not found.rows[1].tokens


def test_few_of_many_rows_are_prepared(workplace, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr("instructkit.plan.data_look.LOOKED_AT", 4)
    bad = {"prompt": "q", "completion": "a" * 900}
    rows("many.jsonl", [bad, *({"prompt": f"q {i}", "completion": "a"} for i in range(30))])
    body = "model: {name: tiny}\ndata: {train: many.jsonl, eval: null}\ntrainer: {max_length: 64}\nrun: {output: out}\n"
    found = seen(recipe("sft", body), 1)
    assert [told.partition(":")[0] for told in found.warnings] == ["of the first 4 rows"]
    assert found.warnings[0].startswith("of the first 4 rows: 1 of 4 rows do not end")


def test_of_a_comparison_the_answer_is_scored(line, monkeypatch) -> None:  # noqa: F811
    monkeypatch.chdir(line)
    body = "model: {name: sft}\ndata: {train: pairs.jsonl, eval: 0.3}\nrun: {output: new}\n"
    found = seen(recipe("reward", body), 1)
    assert [learned(row) for row in found.rows] == ["one!<|end|>", "No.<|end|>"]
    assert all("Say one." in "".join(token.text for token in row.tokens) for row in found.rows)


def test_the_look_tells_what_was_left_out_and_converted(workplace, capsys) -> None:  # noqa: F811
    turns = [
        [{"from": "human", "value": f"Say {i}."}, {"from": "gpt", "value": f"{i}!"}, {"from": "x", "value": "y"}][:n]
        for i, n in enumerate((2, 3, 2))
    ]  # fmt: skip
    rows("talk.jsonl", [{"conversations": talk, "id": 1} for talk in turns])
    Path("sft.yaml").write_text(
        "stage: sft\nmodel: {name: tiny}\ndata: {train: talk.jsonl, eval: null, on_fault: skip}\nrun: {output: out}\n",
        encoding="utf-8",
    )
    with pytest.raises(SystemExit) as ended:
        main(["data", "look", "sft.yaml", "-n", "2"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert "2 rows of talk.jsonl read as ShareGPT conversations" in told
    assert "columns that are not read: id" in told
    assert "1 rows skipped, the first talk.jsonl:2: `conversations[2].from` is 'x'" in told
    assert "\ntalk.jsonl:1, " in told and "\ntalk.jsonl:3, " in told


def test_a_fault_of_the_first_rows_alone_is_none_of_all(workplace, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr("instructkit.plan.data_look.LOOKED_AT", 2)
    long = {"messages": [{"role": "user", "content": "Say it. " * 40}, CHAT[0]["messages"][1]]}
    rows("some.jsonl", [long, long, *CHAT])
    body = "model: {name: tiny}\ndata: {train: some.jsonl, eval: null}\ntrainer: {max_length: 24}\nrun: {output: out}\n"
    assert "left out" in seen(recipe("sft", body), 1).rows[0].title


def test_prompts_that_ppo_leaves_out_are_named_and_no_others(line, monkeypatch) -> None:  # noqa: F811
    monkeypatch.chdir(line)
    asked = [{"prompt": "w " * 900 if i == 2 else f"q {i}"} for i in range(9)]
    rows("many.jsonl", asked)
    body = (
        "model: {name: sft}\nreward: [{model: reward}]\ndata: {train: many.jsonl, eval: null, on_fault: skip}\n"
        "trainer: {max_steps: 1, per_device_train_batch_size: 4, max_completion_length: 9}\nrun: {output: new}\n"
    )
    told = [row.title for row in seen(recipe("ppo", body), 4).rows]
    assert [title.partition(",")[0].partition(": ")[0] for title in told] == [
        f"many.jsonl:{i}" for i in (1, 2, 3, 4)
    ]
    assert ["left out" in title for title in told] == [False, False, True, False]
    plan = make.make(recipe("ppo", body))
    lines = render.lines(plan)
    assert any(told.startswith("data train: 1 rows skipped, the first many.jsonl:3") for told in lines)
    assert any("2 rollouts of 4 prompts x" in told for told in lines)


def test_a_source_that_is_named_twice_is_looked_at_twice(workplace) -> None:  # noqa: F811
    rows("some.jsonl", CHAT[:2])
    body = "model: {name: tiny}\ndata: {train: [some.jsonl, some.jsonl], eval: null}\nrun: {output: out}\n"
    titles = [row.title for row in seen(recipe("sft", body), 4).rows]
    assert sorted(titles) == ["some.jsonl:1"] * 2 + ["some.jsonl:2"] * 2

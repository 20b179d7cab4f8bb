"""Rows as other tools write them: what is read, what is refused with its place, and what is named as not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.data import files
from instructkit.data.inspect import detect
from instructkit.data.rows import check_rows
from instructkit.data.sources import load_rows
from instructkit.errors import DataError, InputError

from .written import PAIR, TALK, load, says, write


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_answer_that_is_labelled_bad_is_not_learned() -> None:
    rows = [{**PAIR, "label": True}, {**PAIR, "label": False}, {"messages": TALK, "label": False}]
    with pytest.raises(DataError) as caught:
        load(*rows)
    assert [fault.where for fault in caught.value.faults] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert "`label` is false" in str(caught.value) and "lora-update" in str(caught.value)
    assert load(rows[1], columns={"label": "unused"}).rows == [{**PAIR, "unused": False}]
    assert [row["rating"] for row in load(*rows[:2], kind="feedback").rows] == [1.0, -1.0]


def test_a_label_in_a_table_is_a_truth() -> None:
    Path("kto.csv").write_text("prompt,completion,label\nq,a,True\nq,b,false\n", encoding="utf-8")
    assert [row["rating"] for row in load_rows("kto.csv", kind="feedback").rows] == [1.0, -1.0]
    with pytest.raises(DataError, match=r"kto\.csv:3: `label` is 'false'"):
        load_rows("kto.csv", kind="sft")


@pytest.mark.parametrize("weight", [0, 0.5, False])
def test_an_answer_that_is_not_to_be_learned_is_refused_with_its_place(weight: Any) -> None:
    talk = [*TALK, {"role": "user", "content": "More"}, {**TALK[1], "weight": weight}]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: `messages\[3\]\.weight` is"):
        load({"messages": talk})
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello.", "weight": weight}]
    with pytest.raises(DataError, match=r"`conversations\[1\]\.weight` is"):
        load({"conversations": turns})


def test_a_weight_of_one_and_one_of_what_is_only_read_say_nothing_new() -> None:
    talk = [{**TALK[0], "weight": 0}, {**TALK[1], "weight": 1}]
    assert load({"messages": talk}).rows == [{"messages": talk}]
    asked = [TALK[0], {**TALK[1], "weight": 0}, {"role": "user", "content": "More"}]
    assert load({"prompt": asked, "completion": TALK[1:]}).rows[0]["prompt"] == asked


def test_a_developer_is_a_system_and_texts_in_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]
    found = load({"messages": says(("developer", "Be kind."), ("user", "Hi"), ("assistant", parts))})
    assert found.rows == [
        {"messages": says(("system", "Be kind."), *((m["role"], m["content"]) for m in TALK))}
    ]
    assert found.shapes == (("OpenAI messages", 1),)
    pair = {"prompt": says(("user", parts)), "chosen": TALK[1:], "rejected": says(("assistant", parts[:1]))}
    assert load(pair, kind="preference").rows[0]["rejected"] == says(("assistant", "Hel"))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"content": [{"type": "image_url", "image_url": "x"}]}, r"`messages\[1\]\.content\[0\]` is 'image_url'"),
        ({"content": ["Hello."]}, r"`messages\[1\]\.content\[0\]` is 'Hello\.'; of a message's parts only texts"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, r"`messages\[1\]` holds tool calls, which are not supported"),
        ({"content": None, "function_call": {"name": "f"}}, r"`messages\[1\]` holds tool calls"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_its_place(message: dict, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load({"messages": [TALK[0], {"role": "assistant", **message}]})


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        (["assistant"], "`messages[0]` is an answer without a user message before it"),
        (["system", "assistant"], "`messages[1]` is an answer without a user message before it"),
        (["tool", "user", "assistant"], "`messages[0]` is a tool message with no assistant message before it"),
        (["user", "tool", "assistant"], "`messages[1]` is a tool message with no assistant message before it"),
        (["user", "assistant", "tool", "tool", "assistant"], None),
        (["system", "user", "assistant"], None),
    ],
)  # fmt: skip
def test_an_answer_follows_a_question_and_a_tool_an_answer(roles: list[str], told: str | None) -> None:
    talk = says(*((role, str(i)) for i, role in enumerate(roles)))
    found = [fault.message for fault in check_rows([{"messages": talk}], "sft", ["f:1"])]
    assert found == ([told] if told else [])


def test_two_answers_to_two_questions_are_no_comparison() -> None:
    pair = {
        "chosen": says(("user", "1"), ("assistant", "x")),
        "rejected": says(("user", "2"), ("assistant", "y")),
    }
    with pytest.raises(
        DataError, match=r"rows\.jsonl:1: `chosen` and `rejected` answer different conversations.*\[0\]"
    ):
        load(pair, kind="preference")
    longer = {**pair, "rejected": [*pair["chosen"], *says(("user", "3"), ("assistant", "y"))]}
    with pytest.raises(DataError, match=r"they differ at \[1\]"):
        load({**longer, "prompt": "1"}, kind="preference")


def test_margins_stand_in_all_comparisons_or_in_none() -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(InputError, match=r"rows\.jsonl: 2 of 3 comparisons have a `margin`"):
        load({**pair, "margin": 1}, {**pair, "margin": 2}, pair, kind="preference")
    assert load({**pair, "margin": 0}, kind="preference").rows[0]["margin"] == 0


def test_columns_that_nothing_reads_are_named() -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 2, "note": ""}
    found = load(pair, kind="preference")
    assert found.unread == ("score_chosen", "score_rejected")
    assert found.pick([0]).summary()["unread"] == list(found.unread)
    assert load({**PAIR, "label": True, "system": "x"}).unread == ("system",)
    assert load({"prompt": "q", "answer": "for a function", "context": "x"}, kind="prompt").unread == (
        "context",
    )
    rated = {"prompt": "q", "response": "a", "rating": 1, "tags": ["x"], "group": "g", "extra": 1}
    assert load(rated, kind="feedback").unread == ("extra",)


DOLLY = {"instruction": "q", "context": "c", "response": "a", "category": "x"}


def test_a_context_has_a_place_in_the_columns_that_are_proposed() -> None:
    rows = [{**DOLLY, "context": None}] * 3 + [DOLLY]
    found = detect(write("dolly.jsonl", *rows))
    assert found.columns == {"context": "input", "response": "output"}
    assert (found.unread, found.lost) == (("category",), [])
    read = load_rows("dolly.jsonl", kind="sft", columns=found.columns)
    assert read.rows[3]["prompt"] == says(("user", "q\n\nc"))
    asked = {"system": "Be kind.", "prompt": "q", "response": "a"}
    found = detect(write("asked.jsonl", asked))
    read = load_rows("asked.jsonl", kind="sft", columns=found.columns)
    assert (found.lost, read.rows[0]["prompt"][0]) == ([], says(("system", "Be kind."))[0])
    with pytest.raises(DataError, match=r"say `columns: \{context: input, response: output\}`"):
        load_rows("dolly.jsonl", kind="sft")


def test_sources_of_several_shapes_become_one() -> None:
    alpaca = {"instruction": "q2", "input": "", "output": "a2"}
    names = [
        write("pc.jsonl", *[{"prompt": f"q{i}", "completion": "a"} for i in range(2)]),
        write("alpaca.jsonl", alpaca),
    ]
    found = load_rows(names, kind="sft")
    assert all(set(row) == {"prompt", "completion"} and isinstance(row["prompt"], list) for row in found.rows)
    assert dict(found.shapes) == {"Alpaca instructions": 1, "messages, as the other sources are": 2}
    names += [write("talks.jsonl", {"messages": TALK})]
    found = load_rows(names, kind="sft")
    assert sorted(row["messages"][0]["content"] for row in found.rows) == ["Hi", "q0", "q1", "q2"]
    Path("folder").mkdir()
    for name in names:
        Path(name).rename(f"folder/{name}")
    assert len(load_rows("folder", kind="sft", skip_faults=True).rows) == 4


def test_comparisons_and_prompts_of_several_shapes_become_one() -> None:
    apart = {"prompt": "q", "chosen": "a", "rejected": "b"}
    within = {side: [TALK[0], {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    names = [write("apart.jsonl", apart), write("within.jsonl", within)]
    found = load_rows(names, kind="preference").rows
    assert sorted(row["prompt"][0]["content"] for row in found) == ["Hi", "q"]
    assert all(len(row[side]) == 1 for row in found for side in ("chosen", "rejected"))
    names = [write("text.jsonl", {"prompt": "q"}), write("talk.jsonl", {"prompt": TALK[:1]})]
    assert all(isinstance(row["prompt"], list) for row in load_rows(names, kind="prompt").rows)


def test_sources_that_cannot_be_made_one_are_told_as_such() -> None:
    names = [write("talks.jsonl", {"messages": TALK}), write("books.jsonl", {"text": "x"}, {"text": "y"})]
    with pytest.raises(InputError) as caught:
        load_rows(names, kind="sft")
    assert str(caught.value) == (
        "the sources differ in shape: talks.jsonl has `messages` as messages; books.jsonl has `text` as text"
    )


def test_sources_that_cannot_be_made_one_are_skipped_where_faults_are() -> None:
    write("talks.jsonl", *[{"messages": TALK}] * 3)
    write("books.jsonl", {"text": "x"})
    found = load_rows("*s.jsonl", kind="sft", skip_faults=True)
    assert len(found.rows) == 3 and [row.fault.where for row in found.skipped] == ["books.jsonl:1"]
    write("odds.jsonl", {"messages": TALK}, {"messages": []})
    with pytest.raises(DataError, match=r"odds\.jsonl:2"):
        load_rows("*s.jsonl", kind="sft")


def test_faults_are_told_before_margins_and_margins_of_the_rows_that_are_kept() -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [{**pair, "margin": 1}, {**pair, "chosen": ""}, pair]
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        load(*rows, kind="preference")
    with pytest.raises(InputError, match="1 of 2 comparisons have a `margin`"):
        load(*rows, kind="preference", skip_faults=True)


def test_a_comma_behind_each_row_is_told_as_such_without_reading_on(monkeypatch) -> None:
    Path("rows.jsonl").write_text('{"prompt": "q", "completion": "a"},\n' * 1000, encoding="utf-8")
    monkeypatch.setattr(files, "_beginning", lambda path: pytest.fail("read on"))
    with pytest.raises(DataError, match="a comma behind the JSON object"):
        load_rows("rows.jsonl", kind="sft")


def test_a_document_of_many_lines_is_told_by_its_beginning(monkeypatch) -> None:
    monkeypatch.setattr(files, "LOOKED_AT_CHARACTERS", 50)
    Path("rows.jsonl").write_text(json.dumps([PAIR] * 100, indent=1), encoding="utf-8")
    assert len(files._beginning(Path("rows.jsonl"))) < 100
    Path("one.jsonl").write_text(json.dumps({"rows": [PAIR] * 100}, indent=1), encoding="utf-8")
    with pytest.raises(DataError, match="one JSON document over many lines"):
        load_rows("one.jsonl", kind="sft")


LONG = "9" * 5000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "a\0b"}\n', "rows.jsonl:1: not JSON: a NUL byte at column 12"),
        ('{"text": "a\tb"}\n', "rows.jsonl:1: not JSON: Invalid control character at column 12"),
        (f'{{"text": "a", "n": {LONG}}}\n', "rows.jsonl:1: not JSON: a whole number of more than 4300 digits"),
        (json.dumps([PAIR], indent=1), "rows.jsonl:1: a JSON list of rows; wanted one JSON object a line (rename"),
        (
            json.dumps({"rows": [PAIR]}, indent=1),
            "rows.jsonl:1: one JSON document over many lines; wanted one JSON object a line (name it rows.json",
        ),
        ('{"prompt": "q",\n"completion": "a"}\n', "rows.jsonl:1: one JSON document over many lines"),
        (f"{json.dumps(PAIR, indent=1)}\n" * 2, "rows.jsonl:1: JSON objects of many lines each"),
    ],
)  # fmt: skip
def test_broken_lines_are_told_in_one_clear_fault(content: str, told: str) -> None:
    Path("rows.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_rows("rows.jsonl", kind="sft")
    assert caught.value.total == 1 and str(caught.value).startswith(told)
    assert "sys." not in str(caught.value)

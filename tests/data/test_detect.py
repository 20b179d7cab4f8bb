"""What a file is for, found out from all its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructkit.data.inspect import detect
from instructkit.data.sources import load_rows
from instructkit.errors import InputError

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
KINDS = {
    "demonstrations": ({"messages": MESSAGES}, "sft", {}),
    "texts under another name": ({"document": "x"}, "sft", {"document": "text"}),
    "questions and answers": (
        {"question": "q", "answer": "a"},
        "sft",
        {"question": "prompt", "answer": "completion"},
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "sft",
        {},
    ),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, "sft", {}),
    "comparisons": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", {}),
    "comparisons under other names": (
        {"query": "q", "winner": "a", "loser": "b"},
        "preference",
        {"query": "prompt", "winner": "chosen", "loser": "rejected"},
    ),
    "rated answers": ({"prompt": "q", "response": "a", "rating": 1}, "feedback", {}),
    "preferred answers": (
        {"prompt": "q", "response": "a", "other": "b", "preferred": "other"},
        "feedback",
        {},
    ),
    "labelled answers": ({"prompt": "q", "completion": "a", "label": True}, "feedback", {}),
    "prompts": ({"prompt": "q"}, "prompt", {}),
    "questions": ({"question": "q"}, "prompt", {"question": "prompt"}),
}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str, tmp_path: Path) -> None:
    row, kind, columns = KINDS[name]
    found = detect(write(tmp_path / "rows.jsonl", [row] * 3))
    assert (found.kind, found.columns, found.rows, found.faults) == (kind, columns, 3, ())
    assert len(load_rows(found.source, kind=kind, columns=columns).rows) == 3  # what is told can be read so


def test_a_bad_row_does_not_change_what_the_rest_are(tmp_path: Path) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "rows.jsonl", [{"prompt": "first"}, good, good, good])
    found = detect(path)
    assert (found.kind, len(found.faults), found.rows) == ("preference", 1, 4)
    assert found.faults[0].where == f"{path}:1"
    assert found.asks


def test_a_file_without_a_sound_row_tells_the_first_fault(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    for content, told in (
        (b"caf\xe9\n", r"said.jsonl:1: not UTF-8$"),
        (b"x\ny\n", "not JSON.*of its 2 rows none is sound"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=told):
            detect(str(path))


def test_rows_of_no_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the rows have `a`, `b`, of no kind that is known") as error:
        detect(write(tmp_path / "rows.jsonl", [{"a": 1, "b": "x"}]))
    assert "preference: `chosen` and `rejected`" in error.value.hint


def test_faults_stand_in_order_and_columns_of_faulty_rows_are_not_called_unread(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q {i}", "completion": "a"} for i in range(8)]
    rows[2] = {"prompt": "c", "completion": None}
    rows[5] = {"text": "alone"}
    rows[6] = {"prompt": "d", "completion": ""}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = detect(str(path))
    assert [fault.where.rpartition(":")[2] for fault in found.faults] == ["3", "6", "7"]
    assert found.unread == ()

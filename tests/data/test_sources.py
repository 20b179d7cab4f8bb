"""Rows from files: every kind, every fault with its place, the same fingerprint for the same rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from instructkit.data.prepare import check_leak, load_split, split
from instructkit.data.records import check_rows
from instructkit.data.sources import load_rows
from instructkit.errors import DataError, InputError
from instructkit.recipe.schema import DataSection

ROWS = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(40)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def test_every_kind_of_file_gives_the_same_rows() -> None:
    import pyarrow
    import pyarrow.parquet

    jsonl("a.jsonl", ROWS)
    Path("b.json").write_text(json.dumps(ROWS), encoding="utf-8")
    lines = ["prompt,completion", *(f"{row['prompt']},{row['completion']}" for row in ROWS)]
    Path("c.csv").write_text("\n".join(lines), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), "d.parquet")
    Path("e.jsonl.gz").write_bytes(gzip.compress(Path("a.jsonl").read_bytes()))
    found = {
        load_rows(name, kind="sft").fingerprint
        for name in ("a.jsonl", "b.json", "c.csv", "d.parquet", "e.jsonl.gz")
    }
    assert len(found) == 1


def test_places_count_lines_and_blank_lines_are_no_rows() -> None:
    Path("a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n', encoding="utf-8")
    assert load_rows("a.jsonl", kind="sft").places == ["a.jsonl:1", "a.jsonl:3"]


def test_globs_folders_and_mixtures() -> None:
    Path("d").mkdir()
    jsonl("d/a.jsonl", ROWS[:10])
    jsonl("d/b.jsonl", ROWS[10:30])
    assert len(load_rows("d/*.jsonl", kind="sft").rows) == len(load_rows("d", kind="sft").rows) == 30
    mixed = load_rows(
        [{"source": "d/a.jsonl", "weight": 1}, {"source": "d/b.jsonl", "weight": 1}], kind="sft", seed=1
    )
    assert len(mixed.rows) == 20
    again = load_rows(
        [{"source": "d/a.jsonl", "weight": 1}, {"source": "d/b.jsonl", "weight": 1}], kind="sft", seed=1
    )
    assert mixed.fingerprint == again.fingerprint


def test_columns_are_renamed() -> None:
    jsonl("a.jsonl", [{"q": "Why?", "a": "So."}])
    assert load_rows("a.jsonl", kind="sft", columns={"q": "prompt", "a": "completion"}).rows == [
        {"prompt": "Why?", "completion": "So."}
    ]


@pytest.mark.parametrize(
    ("kind", "row", "told"),
    [
        ("sft", {"txt": "a"}, "found `txt`; wanted `messages`, or `prompt` and `completion`, or `text`"),
        ("sft", {"text": "  "}, "`text` is empty"),
        ("sft", {"text": 3}, "`text` is int; wanted text"),
        ("sft", {"messages": [{"role": "user", "content": "a"}]}, "`messages` has no assistant turn"),
        ("sft", {"messages": [{"role": "bot", "content": "a"}]}, "`messages[0].role` is 'bot'"),
        ("sft", {"messages": [{"role": "user"}]}, "wanted `role` and `content`"),
        (
            "sft",
            {"messages": [{"role": r, "content": "a"} for r in ("user", "user", "assistant")]},
            "a second user message",
        ),
        ("sft", {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "must both be text"),
        ("preference", {"chosen": "a", "rejected": "a"}, "are the same"),
        ("preference", {"chosen": "a", "rejected": "b", "margin": "big"}, "`margin` is 'big'"),
        (
            "prompt",
            {"prompt": [{"role": "assistant", "content": "a"}]},
            "ends with assistant; wanted user last",
        ),
        ("feedback", {"prompt": "a", "response": "b"}, "found none of them"),
        ("feedback", {"prompt": "a", "response": "b", "rating": 2}, "wanted a number from -1 to 1"),
        (
            "feedback",
            {"prompt": "a", "response": "b", "rating": float("nan")},
            "wanted a number from -1 to 1",
        ),
        ("feedback", {"prompt": "a", "response": "b", "better": "b"}, "the same as `response`"),
        ("feedback", {"prompt": "a", "response": "b", "preferred": "x"}, "wanted `response` or `other`"),
        ("feedback", {"response": "b", "rating": 1}, "wanted `prompt` or `messages`"),
    ],
)
def test_every_fault_is_told(kind: str, row: dict, told: str) -> None:
    faults = check_rows([row], kind, ["f.jsonl:1"])
    assert faults and faults[0].where == "f.jsonl:1"
    assert told in faults[0].message


def test_all_rows_are_checked_the_first_twenty_shown_and_the_rest_counted() -> None:
    jsonl("a.jsonl", [{"text": "good"}, *({"text": ""} for _ in range(25))])
    with pytest.raises(DataError) as caught:
        load_rows("a.jsonl", kind="sft")
    lines = str(caught.value).splitlines()
    assert lines[0] == "a.jsonl:2: `text` is empty"
    assert lines[-1] == "... and 5 more faults, 25 in all"


def test_a_row_of_another_shape_is_a_fault() -> None:
    jsonl("a.jsonl", [ROWS[0], {"text": "b"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: a row of another shape than the first"):
        load_rows("a.jsonl", kind="sft")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        (b'["a"]\n', r"a\.jsonl:1: found list; wanted a JSON object"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8"),
    ],
)
def test_broken_files_are_named_with_the_line(content: bytes, told: str) -> None:
    Path("a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=told):
        load_rows("a.jsonl", kind="sft")


@pytest.mark.parametrize("source", ["nothing.jsonl", "demo/nothing", "missing/*.csv"])
def test_a_missing_source_is_an_error_with_a_hint(source: str) -> None:
    with pytest.raises(InputError) as caught:
        load_rows(source, kind="sft")
    assert source in str(caught.value) and caught.value.hint


def test_a_near_name_is_suggested() -> None:
    jsonl("train.jsonl", ROWS)
    with pytest.raises(InputError) as caught:
        load_rows("trian.jsonl", kind="sft")
    assert "train.jsonl" in caught.value.hint


def test_a_split_keeps_a_prompt_on_one_side_and_moves_no_old_row() -> None:
    doubled = [*ROWS, *({**row, "completion": "Another."} for row in ROWS)]
    train, held_out = split(load_rows(jsonl("a.jsonl", doubled), kind="sft"), 0.3, seed=0)
    assert not {r["prompt"] for r in train.rows} & {r["prompt"] for r in held_out.rows}
    assert len(train.rows) + len(held_out.rows) == 80
    fewer, held_before = split(load_rows(jsonl("b.jsonl", doubled[:50]), kind="sft"), 0.3, seed=0)
    assert {r["prompt"] for r in held_before.rows} <= {r["prompt"] for r in held_out.rows}
    assert {r["prompt"] for r in fewer.rows} <= {r["prompt"] for r in train.rows}


def test_what_is_trained_on_may_not_be_held_out() -> None:
    train = load_rows(jsonl("a.jsonl", ROWS), kind="sft")
    with pytest.raises(
        InputError, match=r"2 held-out rows are also trained on, the first b\.jsonl:1 and a\.jsonl:1"
    ):
        check_leak(train, load_rows(jsonl("b.jsonl", ROWS[:2]), kind="sft"))


def test_a_section_with_a_share_with_a_file_and_with_neither() -> None:
    jsonl("a.jsonl", ROWS)
    jsonl("b.jsonl", [{"prompt": "New?", "completion": "Yes."}])
    held = [
        load_split(DataSection(train="a.jsonl", eval=e), kind="sft", seed=0)[1]
        for e in (0.2, "b.jsonl", None)
    ]
    assert 1 <= len(held[0].rows) < 40 and len(held[1].rows) == 1 and held[2] is None

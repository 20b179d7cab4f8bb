"""Rows of other tools, read as ours: each worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructkit.data.sources import load_rows

U, A, S = "user", "assistant", "system"


def says(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def load(folder: Path, kind: str, *rows: dict, **options):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_rows(str(path), kind=kind, **options)


SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
ALPACA = {"instruction": "Add", "input": "1 and 2", "output": "3"}


@pytest.mark.parametrize(
    ("kind", "row", "wanted", "shape"),
    [
        ("sft", SHAREGPT, {"messages": says((U, "Hi"), (A, "Hello."))}, "ShareGPT conversations"),
        (
            "sft",
            {**SHAREGPT, "system": "Be kind.", "id": 7},
            {"id": 7, "messages": says((S, "Be kind."), (U, "Hi"), (A, "Hello."))},
            "ShareGPT conversations",
        ),
        (
            "sft",
            {"conversations": says((U, "Hi"), (A, "Hello."))},
            {"messages": says((U, "Hi"), (A, "Hello."))},
            "ShareGPT conversations",
        ),
        (
            "sft",
            ALPACA,
            {"prompt": says((U, "Add\n\n1 and 2")), "completion": says((A, "3"))},
            "Alpaca instructions",
        ),
        (
            "sft",
            {
                "instruction": "Now 3 and 4",
                "input": "",
                "output": "7",
                "history": [["Add 1 and 2", "3"]],
                "system": "Count.",
            },
            {
                "prompt": says((S, "Count."), (U, "Add 1 and 2"), (A, "3"), (U, "Now 3 and 4")),
                "completion": says((A, "7")),
            },
            "Alpaca instructions",
        ),
        ("sft", {"prompt": "a", "completion": "b", "instruction": "x"}, None, None),
        ("prompt", ALPACA, {"prompt": says((U, "Add\n\n1 and 2"))}, "Alpaca instructions"),
        ("prompt", {"messages": says((U, "Hi"))}, {"prompt": says((U, "Hi"))}, "messages"),
        (
            "preference",
            {**SHAREGPT, "conversations": SHAREGPT["conversations"][:1]}
            | {"chosen": {"from": "gpt", "value": "Hello."}, "rejected": {"from": "gpt", "value": "What?"}},
            {"prompt": says((U, "Hi")), "chosen": says((A, "Hello.")), "rejected": says((A, "What?"))},
            "ShareGPT conversations",
        ),
        (
            "preference",
            {"instruction": "Add", "input": "1 and 2", "chosen": "3", "rejected": "4"},
            {"prompt": says((U, "Add\n\n1 and 2")), "chosen": says((A, "3")), "rejected": says((A, "4"))},
            "Alpaca instructions",
        ),
        (
            "preference",
            {
                "input": {"messages": says((U, "Hi"))},
                "preferred_output": says((A, "Hello.")),
                "non_preferred_output": says((A, "What?")),
            },
            {"prompt": says((U, "Hi")), "chosen": says((A, "Hello.")), "rejected": says((A, "What?"))},
            "OpenAI preference pairs",
        ),
        (
            "preference",
            {
                "prompt": "Hi",
                "chosen": says((U, "Hi"), (A, "Hello.")),
                "rejected": says((U, "Hi"), (A, "What?")),
            },
            {"chosen": says((U, "Hi"), (A, "Hello.")), "rejected": says((U, "Hi"), (A, "What?"))},
            "whole conversations beside their prompt",
        ),
        (
            "preference",
            {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_rating": 4, "rejected_rating": 1.5},
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2.5},
            None,
        ),
        (
            "feedback",
            {"prompt": "a", "completion": "b", "label": False},
            {"prompt": "a", "response": "b", "rating": -1.0},
            "labelled answers",
        ),
        (
            "feedback",
            {"prompt": says((U, "Hi")), "completion": says((A, "Hello.")), "label": True},
            {"prompt": says((U, "Hi")), "response": "Hello.", "rating": 1.0},
            "labelled answers",
        ),
    ],
)
def test_a_shape_of_another_tool(
    tmp_path: Path, kind: str, row: dict, wanted: dict | None, shape: str | None
) -> None:
    found = load(tmp_path, kind, row, row)
    assert found.rows == [wanted or row] * 2
    assert found.shapes == (((shape, 2),) if shape else ())


def test_rows_with_faults_are_left_out_and_kept_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good, odd = {"q": "a", "completion": "b"}, {"q": "a", "completion": ""}
    lines = [
        json.dumps(good),
        "{broken",
        json.dumps(odd),
        "",
        json.dumps(good),
        json.dumps({"text": "alone"}),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = load_rows(str(path), kind="sft", columns={"q": "prompt"}, skip_faults=True)
    assert [place.rpartition(":")[2] for place in found.places] == ["1", "5"]
    told = [row.as_dict() for row in found.skipped]
    assert [(row["where"].rpartition(":")[2], row["row"]) for row in told] == [
        ("2", "{broken"),
        ("3", odd),
        ("6", {"text": "alone"}),
    ]
    assert told[1]["reason"] == "`completion` is empty"
    assert found.summary()["skipped"] == 3


def test_where_no_row_is_left_nothing_is_skipped(tmp_path: Path) -> None:
    from instructkit.errors import DataError

    with pytest.raises(DataError, match="`text` is empty") as caught:
        load(tmp_path, "sft", {"text": ""}, skip_faults=True)
    assert "needs some without faults" in caught.value.hint


def test_content_has_no_order_and_the_fingerprint_has(tmp_path: Path) -> None:
    one = load(tmp_path, "sft", {"text": "a"}, {"text": "b"})
    other = load(tmp_path, "sft", {"text": "b"}, {"text": "a"})
    third = load(tmp_path, "sft", {"text": "b"}, {"text": "a"}, {"text": "a"})
    assert one.content == other.content != third.content
    assert one.fingerprint != other.fingerprint


def test_shuffle_comes_before_limit_and_depends_on_the_seed(tmp_path: Path) -> None:
    rows = [{"text": str(i)} for i in range(50)]
    drawn = {seed: load(tmp_path, "sft", *rows, shuffle=True, limit=5, seed=seed).rows for seed in (0, 1)}
    assert drawn[0] != drawn[1]
    assert drawn[0] != rows[:5]
    again = load(tmp_path, "sft", *rows, shuffle=True, limit=5, seed=0)
    assert again.rows == drawn[0]
    assert [int(place.rpartition(":")[2]) - 1 for place in again.places] == [
        int(row["text"]) for row in again.rows
    ]


def test_a_saved_dataset_is_read_with_its_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    from instructkit.errors import InputError

    DatasetDict({name: Dataset.from_list([{"text": name}]) for name in ("train", "test")}).save_to_disk(
        tmp_path / "both"
    )
    Dataset.from_list([{"text": "alone"}]).save_to_disk(tmp_path / "one")
    assert load_rows(str(tmp_path / "one"), kind="sft").rows == [{"text": "alone"}]
    assert load_rows(str(tmp_path / "both"), kind="sft").rows == [{"text": "train"}]
    assert load_rows([{"source": str(tmp_path / "both"), "split": "test"}], kind="sft").rows == [
        {"text": "test"}
    ]
    with pytest.raises(InputError, match="has no split 'dev'") as caught:
        load_rows([{"source": str(tmp_path / "both"), "split": "dev"}], kind="sft")
    assert caught.value.hint == "it has train, test"


def test_whole_conversations_in_sharegpts_turns_are_compared(tmp_path: Path) -> None:
    def turns(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": answer}]

    row = {"prompt": "Hi", "chosen": turns("Hello."), "rejected": turns("What?")}
    found = load(tmp_path, "preference", row)
    assert found.rows == [
        {"chosen": says((U, "Hi"), (A, "Hello.")), "rejected": says((U, "Hi"), (A, "What?"))}
    ]

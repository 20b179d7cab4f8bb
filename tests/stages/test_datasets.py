"""Tables of rows on disk hold what those in memory hold, and a stage trains on them alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.data import table
from instructkit.data.sources import load_rows
from instructkit.data.table import Table, View
from instructkit.errors import DataError
from instructkit.stages.datasets import as_dataset, dataset_of

from .small import CHAT, LORA, PAIRS, rows, run


def on_disk(things: list[dict]) -> View:
    found = Table()
    for thing in things:
        found.append(thing)
    return View(found, range(len(things)), lambda thing: thing)


def test_rows_on_disk_are_the_same_table() -> None:
    things = [{"i": i, "messages": [{"role": "user", "content": "q" * i}], "only": None} for i in range(2500)]
    # What the first thousand rows do not show: another key of a message, a value where there was none, a fraction.
    things[2000] |= {"messages": [{"role": "user", "content": "q", "name": "x"}], "only": "here", "i": 0.5}
    one, other = dataset_of(on_disk(things)), dataset_of(things)
    assert one.to_list() == other.to_list()
    assert one.cache_files and not other.cache_files
    assert dataset_of(on_disk(things), ("i",)).column_names == ["i"]


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_stage_learns_the_same_from_rows_on_disk(stage: str, tmp_path, monkeypatch, tiny_folder) -> None:
    monkeypatch.chdir(tmp_path)
    data = rows("rows.jsonl", CHAT if stage == "sft" else PAIRS)
    weights = []
    for bytes_, out in ((table.IN_MEMORY_BYTES, "memory"), (64, "disk")):
        monkeypatch.setattr(table, "IN_MEMORY_BYTES", bytes_)
        run(
            stage,
            f"model: {{name: tiny}}\ndata: {{train: {data}, eval: 0.3}}\n{LORA}"
            f"trainer: {{max_steps: 3, per_device_train_batch_size: 4}}\nrun: {{output: {out}}}\n",
        )
        weights.append(Path(out, "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("disk", [False, True])
def test_a_field_of_two_kinds_is_told_with_its_row(tmp_path, monkeypatch, disk: bool) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, "IN_MEMORY_BYTES", 64 if disk else table.IN_MEMORY_BYTES)
    named = [
        {"messages": [{**row["messages"][0], "name": name}, row["messages"][1]]}
        for row, name in zip(CHAT[:4], (1, 2.5, "z", 3), strict=True)
    ]
    found = load_rows(rows("rows.jsonl", named), kind="sft")
    with pytest.raises(
        DataError, match=r"rows\.jsonl:3: `messages\[\]\.name` is text, and a number at rows\.jsonl:1"
    ):
        as_dataset(found, ("messages",))
    asked = load_rows(rows("p.jsonl", [{"prompt": "q", "wanted": w} for w in ("a", ["b"])]), kind="prompt")
    with pytest.raises(DataError, match=r"p\.jsonl:2: `wanted` is a list, and text at p\.jsonl:1"):
        as_dataset(asked, ("prompt", "wanted"))


def test_a_number_that_no_table_holds_is_told_with_its_row(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = load_rows(rows("p.jsonl", [{"prompt": "q", "id": n} for n in (1, 2**70)]), kind="prompt")
    with pytest.raises(DataError, match=r"p\.jsonl:2: `id` is a whole number of more than 64 bits"):
        as_dataset(asked, ("prompt", "id"))

"""Rows that are more than memory should hold: the same rows, read from a file, and bounded memory while they are read."""

from __future__ import annotations

import json
import tracemalloc
from array import array
from pathlib import Path

import pytest

from instructkit.data import table
from instructkit.data.sources import load_rows
from instructkit.data.split import split
from instructkit.data.table import Table, View, mapped, pick
from instructkit.errors import DataError


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chats(count: int) -> list[dict]:
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return [{"messages": [{"role": "user", "content": f"{i}"}, *said[1:]]} for i in range(count)]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "IN_MEMORY_BYTES", 4096)


def test_a_view_is_the_list_that_it_stands_for(small_memory) -> None:
    things = [{"i": i, "text": "x" * 50} for i in range(200)]
    found = Table()
    for thing in things:
        found.append(thing)
    view = found.column(range(200), lambda thing: thing)
    assert isinstance(view, View) and found.is_large
    assert list(view) == things and len(view) == 200
    assert (view[7], view[-1]) == (things[7], things[-1])
    assert list(view[5:50:7]) == things[5:50:7]
    assert list(pick(view[10:], array("Q", [3, 0]))) == [things[13], things[10]]
    assert list(mapped(view, lambda thing: thing["i"])) == list(range(200))
    assert list(found.column([2, 1], lambda thing: thing["i"])) == [2, 1]
    with pytest.raises(IndexError):
        view[200]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit": 30},
        {"shuffle": True, "seed": 3, "limit": 50},
        {"mixture": True, "seed": 1},
        {"skip_faults": True},
    ],
)
def test_many_rows_are_read_as_few_are(tmp_path, monkeypatch, options: dict) -> None:
    options = dict(options)
    bad = [{"messages": []}, {"prompt": "another", "completion": "shape"}] if "skip_faults" in options else []
    first = write(tmp_path / "a.jsonl", [*chats(150), *bad, *chats(20)])
    second = write(tmp_path / "b.jsonl", chats(60))
    mixture = [{"source": first, "weight": 2.0}, {"source": second, "weight": 1.0}]
    source = mixture if options.pop("mixture", False) else first
    in_memory = load_rows(source, kind="sft", **options)
    monkeypatch.setattr(table, "IN_MEMORY_BYTES", 4096)
    on_disk = load_rows(source, kind="sft", **options)
    assert isinstance(in_memory.rows, list) and isinstance(on_disk.rows, View)
    assert list(on_disk.rows) == in_memory.rows
    assert list(on_disk.places) == in_memory.places
    assert on_disk.summary() == in_memory.summary()
    assert [s.as_dict() for s in on_disk.skipped] == [s.as_dict() for s in in_memory.skipped]
    assert len(on_disk.skipped) == len(bad)
    for one, other in zip(split(on_disk, 0.3, 0), split(in_memory, 0.3, 0), strict=True):
        assert list(one.rows) == other.rows and one.fingerprint == other.fingerprint


def test_faults_of_many_rows_are_those_of_few(tmp_path, monkeypatch) -> None:
    rows = chats(60)
    rows[3], rows[40] = {"text": "another shape"}, {"messages": 3}
    source = write(tmp_path / "a.jsonl", rows)
    told = []
    for bytes_ in (table.IN_MEMORY_BYTES, 512):
        monkeypatch.setattr(table, "IN_MEMORY_BYTES", bytes_)
        with pytest.raises(DataError) as error:
            load_rows(source, kind="sft")
        told.append(str(error.value))
    assert told[0] == told[1]
    assert [line.partition(": ")[0][-3:].strip("l:") for line in told[0].splitlines()] == ["4", "41"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"])
def test_memory_is_bounded_whatever_the_file(tmp_path, monkeypatch, name: str) -> None:
    rows = [{"text": f"{i} " + "word " * 150} for i in range(20_000)]  # 15 MB
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text("text\n" + "".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    elif name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
    else:
        import gzip

        opener = gzip.open if name.endswith(".gz") else open
        with opener(path, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    del rows
    monkeypatch.setattr(table, "IN_MEMORY_BYTES", 2**20)
    load_rows(
        write(tmp_path / "few.jsonl", [{"text": "x"}]), kind="sft"
    )  # what is imported and compiled once
    tracemalloc.start()
    try:
        found = load_rows(str(path), kind="sft")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.rows) == 20_000
    assert peak < 5 * 2**20

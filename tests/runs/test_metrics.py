"""Logged steps survive a crash; samples are all or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.errors import InputError
from instructkit.runs.metrics import MetricsWriter, read_metrics, write_rows


def test_each_row_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(file)
    writer.write({"step": 1, "loss": 2.0})
    assert read_metrics(file) == [{"step": 1, "loss": 2.0}]
    writer.write({"step": 2, "loss": float("nan")})
    assert read_metrics(file)[1] == {"step": 2, "loss": None}
    writer.close()
    writer.close()


def test_a_line_torn_by_a_kill_is_left_out_and_then_cut(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "lo', encoding="utf-8")
    assert read_metrics(file) == [{"step": 1}]
    with MetricsWriter(file) as writer:
        writer.write({"step": 2})
    assert read_metrics(file) == [{"step": 1}, {"step": 2}]


def test_what_was_written_after_a_row_is_cut(tmp_path: Path) -> None:
    file, rows = tmp_path / "metrics.jsonl", [{"step": i, "loss": 0.1 * i} for i in (1, 2, 1, 2, 3)]
    write_rows(file, rows)
    with MetricsWriter(file) as writer:
        writer.cut_after({"loss": 0.7, "step": 2})  # is not there
        assert read_metrics(file) == rows
        writer.cut_after({"loss": 0.1, "step": 1})
        writer.write({"step": 9})
    assert read_metrics(file) == [*rows[:3], {"step": 9}]


def test_unusual_text_stays_one_row(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    rows = [{"answer": "line\nbreak, \u2028 separator, \u00e4"}, {"answer": ""}]
    write_rows(file, rows)
    assert read_metrics(file) == rows
    write_rows(file, [])
    assert read_metrics(file) == []


def test_faults_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with pytest.raises(InputError, match="no such file"):
        read_metrics(file)
    file.write_text('{"step": 1}\nrubbish\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not JSON"):
        read_metrics(file)
    file.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.jsonl:1: a row must be a JSON object, found list"):
        read_metrics(file)

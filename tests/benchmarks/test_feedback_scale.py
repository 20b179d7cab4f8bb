"""The benchmark of many events: what an update reads is the update's own code, and a part of the benchmark is not published."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture()
def scale(tmp_path, monkeypatch) -> Iterator[Any]:
    """The benchmark, with a folder of its own for results."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import feedback_scale

    monkeypatch.setattr(feedback_scale, "RESULTS", tmp_path)
    (tmp_path / "feedback_scale.md").write_text("what was published", encoding="utf-8")
    yield feedback_scale


@pytest.fixture()
def unmeasured(scale, monkeypatch) -> Any:
    """The benchmark, whose parts are told and not done."""
    cost = {"seconds": 1.0, "processor_seconds": 1.0, "peak_mib": 1.0}
    monkeypatch.setattr(scale, "measure", lambda part, source, store: cost)
    monkeypatch.setattr(scale, "written", lambda path, rows: None)
    monkeypatch.setattr(scale, "take_back", lambda store: None, raising=False)
    return scale


@pytest.mark.parametrize(
    "arguments", [["2000", "5000"], ["10000", "100000"], ["--import-only"], ["--import-only", "2000"]]
)
def test_a_part_is_printed_and_not_published(arguments, unmeasured, tmp_path, capsys) -> None:
    assert unmeasured.main(arguments) == 0
    text = capsys.readouterr().out
    assert f"Command: `python benchmarks/feedback_scale.py {' '.join(arguments)}`;" in text
    assert "feedback_scale.md stays as it is" in text
    assert (tmp_path / "feedback_scale.md").read_text(encoding="utf-8") == "what was published"
    assert not (tmp_path / "feedback_scale.json").exists()


@pytest.mark.parametrize("arguments", [[], ["2000", "10000", "100000", "1000000"]])
def test_the_whole_is_published_with_its_command(arguments, unmeasured, tmp_path, capsys) -> None:
    assert unmeasured.main(arguments) == 0
    page = (tmp_path / "feedback_scale.md").read_text(encoding="utf-8")
    command = " ".join(["python benchmarks/feedback_scale.py", *arguments])
    assert page in capsys.readouterr().out and f"Command: `{command}`;" in page
    sizes = len(arguments) or 3
    assert len(json.loads((tmp_path / "feedback_scale.json").read_text(encoding="utf-8"))) == 3 * sizes


def test_the_next_update_goes_on_from_one_that_was_promoted(
    scale, tiny_folder, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("INSTRUCTKIT_CACHE", str(tiny_folder.parent))
    monkeypatch.setattr(scale, "NEW", 100)
    cost = {"seconds": 1.0, "processor_seconds": 1.0, "peak_mib": 1.0}
    found = {}

    def here(part: str, source: Path, store: Path) -> dict[str, Any]:
        found[part] = cost | scale.PARTS[part](source, store)
        return found[part]

    monkeypatch.setattr(scale, "measure", here)
    assert scale.main(["300"]) == 0
    last = found["next update"]
    assert (last["mode"], sum(last["outcomes"].values())) == ("continue", 100)
    assert last["outcomes"]["withdrawn"] > 0 and last["replayed"] > 50
    (warning,) = last["warnings"]
    assert "update 1, which this one goes on from, has learned from" in warning
    first = found["first update"]
    assert (first["mode"], first["replayed"], sum(first["outcomes"].values())) == ("new", 0, 300)

"""Complete runs whose process was killed before its last steps: what the next start repairs, and what it says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from instructkit.errors import GateRefused
from instructkit.recipe.load import load_recipe
from instructkit.recipe.render import to_dict
from instructkit.runs.read import read_record
from instructkit.runs.record import RunFolder
from instructkit.stages import closing, sft

RECIPE = "stage: sft\nmodel: {name: tiny}\ndata: {train: chat.jsonl}\nrun: {output: new}\n"
FAILED = {"name": "loss_ratio_max", "text": "loss ratio 2 is above 1", "passed": False, "verdict": "failed"}


@pytest.fixture()
def recipe(tmp_path: Path, monkeypatch) -> SimpleNamespace:
    monkeypatch.chdir(tmp_path)
    Path("chat.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    return load_recipe("r.yaml", "sft")


def cut_off(name: str, recipe, **closed) -> Path:
    with RunFolder(name) as folder:
        folder.start(to_dict(recipe), stage="sft", command=[])
        folder.complete(closing=True, **closed)
    return Path(name)


def repaired(**options) -> list[str]:
    notes: list[str] = []
    closing.repair(sft.STAGE, Path("new"), notes.append, **options)
    return notes


@pytest.mark.parametrize("name", [".new.previous", ".new.discarded"])
def test_a_run_that_is_being_replaced_is_left_as_it_is(recipe, name: str) -> None:
    aside = cut_off(name, recipe)
    assert repaired() == [] and read_record(aside)["closing"] is True


def test_the_refusal_of_a_repaired_run_is_reported_once(recipe) -> None:
    cut_off("old", recipe, gates=[FAILED])
    done, refusal = repaired()
    assert "old was complete" in done and "refused by its gates: 1 of 1 gates failed" in refusal
    cut_off("old2", recipe, gates=[FAILED])
    assert len(repaired(raised=Path("old2"))) == 1


def test_why_a_repaired_run_is_not_used_is_reported(recipe, monkeypatch) -> None:
    cut_off("old", recipe)
    notes: list[str] = []
    overtaken = GateRefused("old passed its gates, but another update is active")
    monkeypatch.setattr(sft.Sft, "finish", lambda *_: overtaken)
    closing.repair(sft.STAGE, Path("new"), notes.append)
    assert notes[1:] == [f"warning: {overtaken}"]

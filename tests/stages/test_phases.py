"""What runs while no step is taken is named, each part of it: libraries, rows, every measurement before and after, saving."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from instructkit.runs.progress import LISTENER
from instructkit.stages import contention
from instructkit.stages.base import LOADING, PREPARING

from .small import ANYTHING, GENERAL, LORA, MANY, ONE_STEP, Silent, rows, run, sft


@pytest.fixture()
def phases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The title of every phase of the runs that follow."""
    found: list[str] = []
    monkeypatch.setattr(Silent, "phase", named(found))
    return found


def named(found: list[str]):
    import contextlib

    @contextlib.contextmanager
    def phase(self, title, *, announced=False):
        found.append(title)
        yield

    return phase


@pytest.fixture()
def others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """One CPU, on which other processes use two CPU seconds a second; each look at the clock is 20 seconds later."""
    seconds = itertools.count(0, 20)
    monkeypatch.setattr(contention, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    monkeypatch.setattr(contention.os, "times", lambda: (0.0,) * 5)
    used = itertools.count(0, 80)
    monkeypatch.setattr(contention, "host", lambda: contention.Usage(1, float(next(used))))
    monkeypatch.setattr(contention, "container", lambda: None)


def test_every_part_of_a_run_is_named(workplace: Path, phases: list[str], others_work: None) -> None:
    record = sft("parent", extra=LORA)
    assert record["processes"] == 1
    assert record["busy"].pop("threads") > 0
    assert record["busy"] == {"other_cpus": 2.0, "cpus": 1, "when": "at the start"}
    assert phases == [
        "reading the data",
        "hashing the parents",
        LOADING,
        PREPARING,
        "measuring before training: held-out rows",
        "measuring after training: held-out rows",
        "answering the sample prompts",
        "saving the model",
        "hashing the model files",
    ]
    phases.clear()
    edits = [{"prompt": r["messages"][:1], "response": "No.", "better": "Yes."} for r in MANY]
    told = f"feedback: {{events: {rows('f.jsonl', edits)}, eval: 0.6, general: {rows('g.jsonl', GENERAL)}}}\n"
    run("lora-update", f"model: {{name: parent}}\n{told}{LORA}{ONE_STEP}{ANYTHING}run: {{output: update}}\n")
    for who in ("the parent", "the update"):
        measured = {title.partition(": ")[2] for title in phases if title.startswith(f"measuring {who}: ")}
        assert {"held-out feedback", "general rows", "answers to general prompts"} <= measured
    assert LISTENER.get() is None

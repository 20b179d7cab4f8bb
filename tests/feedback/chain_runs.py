"""Run folders of updates, small and real, for the tests of chains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instructkit.feedback.promotion.chain import Update
from instructkit.runs import lineage
from instructkit.runs.record import RunFolder

RECIPE = {"stage": "lora-update", "model": {"name": "tiny"}, "run": {"output": "runs/x", "seed": 1}}
GATES = [
    {"name": "feedback learned", "passed": True, "text": "it was learned", "verdict": "passed"},
    {"name": "general kept", "passed": False, "text": "general kept: 1.2, at most 1.01", "verdict": "failed"},
    {"name": "no group harmed", "passed": None, "text": "no group", "verdict": "not applicable"},
]


def run_of(path: Path, weights: str, verdict: str = "PROMOTED", parent: Path | None = None) -> Path:
    """A finished update whose weights are a text; it has an unjoined adapter and things that are no part of a model."""
    above = (
        {"path": str(parent), "hash": lineage.run_hash(parent)}
        if parent
        else {"path": "org/parent", "hash": "model:org/parent"}
    )
    with RunFolder(path) as folder:
        folder.start(RECIPE, stage="lora-update", command=[])
        folder.update(data={"events": {"fingerprint": f"of {weights}"}}, parents={"model": above})
        (path / "update").mkdir()
        for place in (path, path / "update"):
            (place / "adapter_config.json").write_text(
                json.dumps({"base_model_name_or_path": "org/base"}), encoding="utf-8"
            )
            (place / "adapter_model.safetensors").write_text(f"{weights} {place.name}", encoding="utf-8")
        (path / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
        (path / "checkpoint-1").mkdir()
        (path / "checkpoint-1" / "optimizer.json").write_text("{}", encoding="utf-8")
        folder.complete(verdict=verdict, gates=GATES if verdict == "REFUSED" else GATES[::2])
    return path


def update_of(run: Path, **said: Any) -> Update:
    """The update that it made, of a few events."""
    events = {"trained": ["E1", "E2"], "test": ["T1", "T2"], "outcomes": {"train": 2, "test": 2, "ties": 1}}
    return Update.of(run, **{"fingerprint": "f", "newest": "T2", **events, **said})

"""What is measured of a store of feedback, each by the code that people run: its import, and what an update does with it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feedback_scale_parts.made import LOUDEST

RECIPE = """stage: lora-update
model: {name: tiny}
feedback: {events: STORE, replay: demo/conversations, general: demo/general-held-out}
run: {output: RUN}
"""

Figures = dict[str, Any]


def import_(source: Path, store: Path) -> Figures:
    """The command that people give."""
    from instructkit.cli.main import main

    try:
        main(["feedback", "import", str(source), "--store", str(store), "--json"])
    except SystemExit as ended:
        if ended.code:
            raise
    return {}


def first_update(source: Path, store: Path) -> Figures:
    """All that an update on every event does but train and measure: read, prepare, keep the sides, enter its chain."""
    from instructkit.stages.lora_update import feedback
    from instructkit.stages.lora_update.inputs import collect

    recipe = _recipe(store, "first")

    def work() -> tuple[Any, list[str]]:
        inputs = collect(recipe, {})
        notes = inputs.notes()
        feedback.keep_sides(recipe, inputs.prepared)
        _promoted(recipe, inputs)
        return inputs, notes

    return _told(work)


def take_back(store: Path) -> None:
    """The loudest rater withdraws everything, after it was learned."""
    from instructkit.feedback.store.store import Store

    with Store.open(store) as opened:
        opened.withdraw(rater=LOUDEST)


def next_update(source: Path, store: Path) -> Figures:
    """
    What the update after a promoted one on everything reads, and what its plan and its warnings say.

    New events, with what was withdrawn of them; earlier ones to replay; the look at its test events; what the adapter in force
    has learned from events that are withdrawn since.
    """
    from instructkit.stages.lora_update.inputs import collect

    recipe = _recipe(store, "next")

    def work() -> tuple[Any, list[str]]:
        inputs = collect(recipe, {})
        return inputs, inputs.notes()

    return _told(work)


PARTS: dict[str, Callable[[Path, Path], Figures]] = {
    "import": import_,
    "first update": first_update,
    "next update": next_update,
}


def _recipe(store: Path, name: str) -> Any:
    """A recipe on the store, whose model, never loaded, is there."""
    from instructkit.recipe.load import load_recipe

    # In a process of its own: what building it costs is not counted.
    build = "from instructkit.models import source as naming; naming.locate('tiny')"
    subprocess.run([sys.executable, "-c", build], check=True)
    path, runs = store.parent / f"{name}.yaml", store.parent / "runs"
    text = RECIPE.replace("STORE", json.dumps(str(store))).replace("RUN", json.dumps(str(runs / name)))
    path.write_text(text, encoding="utf-8")
    return load_recipe(str(path), "lora-update")


def _told(work: Callable[[], tuple[Any, list[str]]]) -> Figures:
    """What a piece of work costs, libraries loaded, and what became of the events."""
    wall, processor = time.perf_counter(), time.process_time()
    inputs, notes = work()
    cost = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    warnings = [note for note in notes if note.startswith("warning")]
    replayed = {"mode": inputs.mode[0], "replayed": len(inputs.earlier), "warnings": warnings}
    return {**cost, **replayed, "outcomes": inputs.prepared.outcomes}


def _promoted(recipe: Any, inputs: Any) -> None:
    """Enter an update on these events into its chain and promote it, as if its training had passed every gate."""
    from instructkit.feedback.preprocess import objectives
    from instructkit.feedback.promotion.chain import Chain, Update
    from instructkit.runs.record import RunFolder

    run, base = Path(recipe.run.output), inputs.parents["model"].base
    with RunFolder(run) as folder:
        folder.start({"stage": "lora-update"}, stage="lora-update", command=[])
        folder.update(parents={"model": {"path": "tiny", "hash": f"model:{base}"}})
        config = json.dumps({"base_model_name_or_path": base})
        (run / "adapter_config.json").write_text(config, encoding="utf-8")
        (run / "adapter_model.safetensors").write_bytes(b"never loaded")
        folder.complete(verdict="PROMOTED", gates=[])
    update = Update.of(
        run,
        fingerprint=inputs.data["events"].fingerprint,
        outcomes=inputs.prepared.outcomes,
        trained=sorted(inputs.prepared.learned),
        standing=objectives.standing(inputs.prepared.phases, recipe.run.seed),
        test=[item.event for item in inputs.items("test")],
        newest=inputs.newest,
        in_force=inputs.in_force,
    )
    chain = Chain.at(run.parent, recipe.feedback.chain)
    chain.promote(chain.record(update), expected=inputs.in_force)

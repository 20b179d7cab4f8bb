"""
From users' feedback to a LoRA adapter above the frozen parent, promoted only when it learned and harmed nothing.

Heavy libraries are imported where they are used: what is wrong with events is told before torch is loaded.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructkit.errors import GateRefused
from instructkit.evaluate import gates
from instructkit.evaluate.results import Measured
from instructkit.evaluate.statistics import level_of_look
from instructkit.feedback.preprocess import objectives
from instructkit.feedback.promotion import decide
from instructkit.feedback.promotion.chain import Chain, Superseded, Update
from instructkit.models import load
from instructkit.recipe.schema import LoraUpdateRecipe
from instructkit.runs.files import write_text_atomic
from instructkit.stages.base import PREPARING, Frame, Prepared, Result, Stage
from instructkit.stages.lora_update import report
from instructkit.stages.lora_update.feedback import keep_sides
from instructkit.stages.lora_update.inputs import UPDATE, UpdateInputs, collect

if TYPE_CHECKING:
    from instructkit.stages.lora_update.measure import Measurer

UpdateFrame = Frame[LoraUpdateRecipe, UpdateInputs]
PREPROCESSING, ENTRY = "preprocess.json", "entry.json"
SCALES = (1.0, 0.75, 0.5, 0.35, 0.25)  # of the adapter; the first that passes on the tune side is judged
TUNE_LEVEL = (
    0.49  # of a look at the tune side, which chooses a scale and decides nothing: the mean itself is compared
)


class LoraUpdate(Stage[LoraUpdateRecipe, UpdateInputs]):
    """Turn feedback into a LoRA adapter, and promote or refuse it."""

    name, recipe_type = "lora-update", LoraUpdateRecipe

    def collect(self, recipe: LoraUpdateRecipe, begun: Mapping[str, Any]) -> UpdateInputs:
        """Read and prepare the feedback and all other rows; see `update_inputs.collect`."""
        return collect(recipe, begun)

    def prepare(self, frame: UpdateFrame) -> Prepared:
        """Build the trainer of the phase whose step needs the most memory."""
        from instructkit.stages.lora_update import train

        model, tokenizer = train.load(frame)
        found, _ = train.phases(frame)
        rows = train.replayed(frame, model, tokenizer, answering=False)
        phase = train.heaviest(found)
        trainer = train.build_trainer(frame, phase, found, model, tokenizer, rows)
        return Prepared(trainer, tokenizer)

    def train(self, frame: UpdateFrame) -> Result:
        """Measure, learn, measure again and decide."""
        from instructkit.stages.lora_update import train
        from instructkit.stages.lora_update.measure import Measurer

        keep_sides(frame.recipe, frame.inputs.prepared)
        with frame.reporter.phase(PREPARING):
            model, tokenizer = train.load(frame)
            found, made = train.phases(frame)
            measurer = Measurer(frame, model, tokenizer)
        rescuing = _may_rescue(frame, measurer)
        before = frame.timed("measure", lambda: measurer.before("test"))
        tuned = frame.timed("measure", lambda: measurer.before("tune")) if rescuing else None
        origin = frame.timed("measure", measurer.origin) if frame.inputs.current else None
        told = measurer.answers()

        figures = train.learn(frame, model, tokenizer, found)
        scale = frame.timed("measure", lambda: _scaled(frame, measurer, tuned)) if tuned else 1.0
        after = frame.timed("measure", lambda: measurer.after("test"))

        look = frame.inputs.chain.looks(_test_ids(frame))
        level = level_of_look(look)
        with frame.reporter.phase("deciding the gates"):
            checks = decide.decide(
                before, after, frame.recipe.gates, level=level, seed=frame.seed, origin=origin
            )
        verdict = gates.verdict(checks, on_undecided=frame.recipe.gates.on_undecided)
        items = measurer.sides["test"].items
        samples = report.samples(items, told, measurer.answers())
        return Result(
            save=lambda folder: _save(frame, model, tokenizer, folder, _entry(frame, scale)),
            measurements=report.lines(before, after, seed=frame.seed),
            gates=checks,
            metrics=figures,
            samples=samples,
            details={
                "verdict": verdict,
                "mode": list(frame.inputs.mode),
                "scale": scale,
                "look": {"number": look, "level": level},
                "moved": report.moved(items, before.feedback, after.feedback, samples),
                **made,
            },
        )

    def finish(
        self, recipe: LoraUpdateRecipe, folder: Path, note: Callable[[str], None]
    ) -> GateRefused | None:
        """
        Record a complete update in its chain, and promote it if its gates passed. A repetition changes nothing.

        It is not promoted when another adapter has become active since it was measured. A run without an entry is from an
        earlier version, which recorded it itself.

        Args:
            folder: the finished run; one whose process was killed before this is entered when it is asked for again.
            note: called with what was done, in words.

        Returns:
            Why an update that every gate passed is not in force, else None.
        """
        if not (folder / ENTRY).is_file():
            return None
        said = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
        update = Update.of(folder, **said)
        chain = Chain.at(folder.parent, recipe.feedback.chain)
        number = chain.record(update)
        if update.verdict != gates.PROMOTED or chain.was_promoted(number):
            return None
        try:
            note(f"promoted as {chain.promote(number, expected=update.in_force)}")
        except Superseded as error:
            return GateRefused(
                f"{folder.name} passed its gates and is not in force: {error}", hint=error.hint
            )
        return None


STAGE = LoraUpdate()


def _may_rescue(frame: UpdateFrame, measurer: Measurer) -> bool:
    """Whether a smaller scale may be tried: of an adapter that goes on it would undo what earlier updates have taught."""
    if frame.recipe.gates.rescue and frame.inputs.current is not None:
        frame.reporter.note("no rescue: a smaller scale would undo what the updates before have taught")
        return False
    return frame.recipe.gates.rescue and bool(measurer.sides["tune"].general)


def _scaled(frame: UpdateFrame, measurer: Measurer, before: Measured) -> float:
    """Leave the adapter at the largest scale that harms nothing on the tune side; at its own when none does."""
    from instructkit.models import adapters

    acting = 1.0
    for scale in SCALES:
        adapters.rescale(measurer.model, scale / acting)
        acting = scale
        checks = decide.decide(
            before, measurer.after("tune"), frame.recipe.gates, level=TUNE_LEVEL, seed=frame.seed
        )
        failed = [gate for gate in checks if gate.passed is False]
        if not failed:
            if scale < 1:
                frame.reporter.note(
                    f"the adapter acts at {scale:g} of its strength: at more it did harm on the tune side"
                )
            return scale
        frame.reporter.note(f"tune side at scale {scale:g}: " + "; ".join(gate.name for gate in failed))
    adapters.rescale(measurer.model, 1 / acting)
    return 1.0


def _save(frame: UpdateFrame, model: Any, tokenizer: Any, folder: Path, entry: dict[str, Any]) -> None:
    """The model that the update makes, the adapter of the update alone, what became of the events, the entry for the chain."""
    from instructkit.models import adapters

    source = frame.inputs.parents["model"]
    adapters.save_update(model, folder / UPDATE, source.base)
    if frame.inputs.mode[0] == "merge":
        load.save_model(model.merge_and_unload(), tokenizer, folder, source)
    else:
        load.save_model(model, tokenizer, folder, source)
    prepared = frame.inputs.prepared
    said = {"outcomes": prepared.outcomes, "report": prepared.report}
    write_text_atomic(folder / PREPROCESSING, json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    write_text_atomic(folder / ENTRY, json.dumps(entry, ensure_ascii=False) + "\n")


def _entry(frame: UpdateFrame, scale: float) -> dict[str, Any]:
    """What the chain is told of the update beside its run record, as data: it waits in the run folder until it is entered."""
    inputs = frame.inputs
    return {
        "id": uuid.uuid4().hex,
        "fingerprint": inputs.data["events"].fingerprint,
        "outcomes": inputs.prepared.outcomes,
        "trained": sorted(inputs.prepared.learned),
        "standing": sorted(objectives.standing(inputs.prepared.phases, frame.seed)),
        "test": sorted(_test_ids(frame)),
        "newest": inputs.newest,
        "scale": scale,
        "continues": int(inputs.current.name) if inputs.current else None,
        "in_force": inputs.in_force,
    }


def _test_ids(frame: UpdateFrame) -> list[str]:
    return [item.event for item in frame.inputs.items("test")]

"""How an update learns: a model with its adapter, and one trainer after the other for each kind of signal."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructkit.data.split import key_of
from instructkit.errors import DataError, InputError
from instructkit.feedback.preprocess import objectives, pipeline
from instructkit.feedback.preprocess.items import Item, Phase
from instructkit.models import adapters
from instructkit.models.load import load_for_training
from instructkit.stages import checkpoints, formats
from instructkit.stages.base import CHECKPOINTS, Frame, prompt_of
from instructkit.stages.datasets import of_two_kinds
from instructkit.stages.lora_update import trainers
from instructkit.stages.lora_update.inputs import UPDATE
from instructkit.stages.trainer import arguments, build, callbacks, fit

# Of the parent's own answers: how many at most, and the longest of them in tokens
OWN_ANSWERS = 256
OWN_TOKENS = 64
# Of earlier feedback that is replayed: the cost must not grow with all that was ever said
EARLIER_ANSWERS = 256


def encoded_demonstrations(tokenizer: Any, rows: list[dict]) -> list[dict[str, list[int]]]:
    """Demonstrations as token ids with labels on the last answer, or on all of a text."""
    from instructkit.models.tokens import encode_text, encode_with_labels

    return [
        encode_text(tokenizer, row["text"])
        if "text" in row
        else encode_with_labels(tokenizer, prompt_of(row), last_answer(row))
        for row in rows
    ]


def own_answers(frame: Frame, model: Any, tokenizer: Any) -> list[dict[str, list[int]]]:
    """
    The model's answers to prompts of the replay rows that the feedback does not speak of, as token ids with labels.

    Called before training: they are the parent's, or those of the adapter that is gone on from. Answers that were cut off are
    left out.
    """
    from instructkit.models.generate import answer
    from instructkit.models.tokens import encode_with_labels

    data = frame.inputs.data
    spoken_of = {key_of(item.prompt) for item in frame.inputs.items("train")}
    rows = [row for row in data["replay"].rows if "text" not in row]
    prompts = {key_of(prompt_of(row)): prompt_of(row) for row in rows}
    asked = [prompt for key, prompt in prompts.items() if key not in spoken_of]
    asked = random.Random(frame.seed).sample(asked, min(len(asked), OWN_ANSWERS))
    with frame.reporter.phase("answering the prompts to replay"):
        told = answer(model, tokenizer, asked, max_new_tokens=OWN_TOKENS, seed=frame.seed)
    ended = [(prompt, a.text) for prompt, a in zip(asked, told, strict=True) if a.finished]
    frame.reporter.note(f"replay: the model answered {len(asked)} prompts, {len(ended)} to the end")
    return [encode_with_labels(tokenizer, prompt, text) for prompt, text in ended]


def judged_demonstrations(tokenizer: Any, items: Sequence[Item], seed: int) -> list[dict[str, list[int]]]:
    """The answers that earlier feedback asked for, drawn by weight, as token ids with labels; a bad rating asks for none."""
    asking = [item for item in items if item.rating > 0]
    rows = objectives.rows(Phase("sft", asking), seed, most=EARLIER_ANSWERS)
    return encoded_demonstrations(tokenizer, rows)


def last_answer(row: dict[str, Any]) -> str:
    """The last answer of a demonstration."""
    from instructkit.models.tokens import answer_text

    return answer_text(row["messages"] if "messages" in row else row["completion"])


_PARTS = ("sft", "dpo", "kto")
# By what a step of the same rows holds in memory, the most first
_HEAVIEST = ("dpo", "kto", "sft")


def load(frame: Frame) -> tuple[Any, Any]:
    """
    The model with the adapter that is to be trained, and its tokenizer.

    Raises:
        InputError: when the chain's current adapter has another shape than the recipe's `lora:` section says.
    """
    recipe, source, inputs = frame.recipe, frame.inputs.parents["model"], frame.inputs
    mode, why = inputs.mode
    frame.reporter.note(f"mode {mode}: {why}")
    tokenizer = formats.tokenizer_of(frame)
    merge = mode == "merge"
    if merge and recipe.model.quantization != "none":
        raise InputError(
            f"feedback.mode is merge, and model.quantization {recipe.model.quantization}: such weights cannot be merged into",
            hint="set feedback.mode: new, or model.quantization: none",
        )
    model = load_for_training(source, recipe.model, frame.machine, recipe.lora, merge_parent=merge)
    if inputs.current is not None:
        _go_on_from(model, inputs.current)
    return model, tokenizer


def _go_on_from(model: Any, current: Path) -> None:
    from safetensors import SafetensorError

    try:
        adapters.load_update(model, current / UPDATE)
    except (ValueError, OSError, SafetensorError) as error:
        raise InputError(
            f"{current} cannot be gone on from: {error}",
            hint="give `lora:` the shape that it has, or begin a fresh adapter with feedback.mode: new",
        ) from error


def phases(frame: Frame) -> tuple[list[Phase], dict[str, Any]]:
    """What is learned, one after the other, and what the run record keeps of it."""
    prepared = frame.inputs.prepared
    chosen, reason = prepared.objective
    frame.reporter.note(f"objective {chosen}: {reason}")
    for line in pipeline.lines(prepared):
        frame.reporter.note(line)
    return list(prepared.phases), {"objective": [chosen, reason], "outcomes": prepared.outcomes}


def heaviest(found: list[Phase]) -> Phase:
    """The phase whose step needs the most memory."""
    return min(found, key=lambda phase: _HEAVIEST.index(phase.objective))


def replayed(
    frame: Frame, model: Any, tokenizer: Any, *, answering: bool = True
) -> tuple[list[dict], list[dict]]:
    """
    Rows to replay, given and the model's own; made before training.

    Args:
        answering: False on paper, where a model without weights has no answers; the given ones stand for them.
    """
    replay, wanted = frame.inputs.data.get("replay"), frame.recipe.feedback
    if not (wanted.replay_share or wanted.anchor) or not (replay or frame.inputs.earlier):
        frame.reporter.note("no replay: nothing but the gates guards what the parent knows")
        return [], []
    given = encoded_demonstrations(tokenizer, replay.rows) if replay else []
    earlier = judged_demonstrations(tokenizer, frame.inputs.earlier, frame.seed)
    if earlier:
        frame.reporter.note(f"replay: {len(earlier)} answers that earlier feedback asked for")
    own: list[dict] = []
    if wanted.self_replay and replay:
        own = own_answers(frame, model, tokenizer) if answering else given
    return [*given, *earlier], own


def learn(frame: Frame, model: Any, tokenizer: Any, found: list[Phase]) -> dict[str, float]:
    """Train on each phase in turn; a resumed run goes on in the one that was interrupted."""
    figures: dict[str, float] = {}
    rows = replayed(frame, model, tokenizer)
    begun = [bool(checkpoints.newest(folder_of(frame, phase, found), frame.recipe.stage)) for phase in found]
    for i, phase in enumerate(found):
        if frame.resume and any(begun[i + 1 :]):
            continue  # what it learned is in the checkpoints of those behind it
        with trainers.own_forward(model):
            with frame.reporter.phase(f"preparing the rows for {phase.objective}"):
                trainer = build_trainer(frame, phase, found, model, tokenizer, rows)
            told = fit(trainer, frame, fresh=any(begun) and not begun[i])
        figures |= told if len(found) == 1 else {f"{phase.objective}/{k}": v for k, v in told.items()}
    return figures


def folder_of(frame: Frame, phase: Phase, found: list[Phase]) -> Path:
    """Where a phase keeps its checkpoints."""
    folder = frame.folder / CHECKPOINTS
    return folder if len(found) == 1 else folder / phase.objective


def build_trainer(
    frame: Frame,
    phase: Phase,
    found: list[Phase],
    model: Any,
    tokenizer: Any,
    replay: tuple[list[dict], list[dict]],
) -> Any:
    """The trainer of a phase, its reference the parent, with replay in every step."""
    rows = objectives.rows(phase, frame.seed)
    config, trainer_class, defaults = trainers.for_objective(phase.objective, rows)
    defaults["output_dir"] = str(folder_of(frame, phase, found))
    common = {k: v for k, v in frame.recipe.trainer.items() if k not in _PARTS}
    given = {**common, **frame.recipe.trainer.get(phase.objective, {})}
    trainer = build(
        trainer_class,
        frame,
        model=model,
        args=arguments(config, frame, given, **defaults),
        train_dataset=_table(frame, rows),
        processing_class=tokenizer,
        callbacks=callbacks(frame),
    )
    trainers.settle(trainer)
    _report_dropped(frame, len(rows) - len(trainer.train_dataset))
    wanted = frame.recipe.feedback
    if replay[0]:
        trainer.replay(*replay, share=wanted.replay_share, own_share=wanted.self_replay, anchor=wanted.anchor)
    return trainer


def _table(frame: Frame, rows: list[dict[str, Any]]) -> Any:
    """
    Training rows as TRL reads them.

    Raises:
        DataError: when a field of the events is of two kinds, naming the event.
    """
    import pyarrow as pa
    from datasets import Dataset

    try:
        return Dataset.from_list(rows)
    except (pa.ArrowException, OverflowError) as error:
        fault = of_two_kinds(frame.inputs.data["events"], ("prompt", "messages"), error)
        raise DataError([fault], 1) from error


def _report_dropped(frame: Frame, dropped: int) -> None:
    """Say how many training rows TRL left out as longer than `max_length`; it does so without a word."""
    if dropped > 0:
        name = "longer than max_length"
        frame.dropped[name] = frame.dropped.get(name, 0) + dropped
        frame.reporter.note(f"{dropped} training rows made of events are left out: they exceed max_length")

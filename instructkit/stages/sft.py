"""Supervised fine-tuning: `trl.SFTTrainer` on demonstrations, with held-out loss before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructkit.data.sources import Rows
from instructkit.data.split import load_split
from instructkit.errors import InputError
from instructkit.evaluate import gates, statistics
from instructkit.models import load, source
from instructkit.models.tokens import IGNORED
from instructkit.recipe.schema import SftRecipe
from instructkit.recipe.trainer import OF_STAGE
from instructkit.stages import formats
from instructkit.stages.base import PREPARING, Frame, Inputs, Prepared, Result, Stage, measurement, prompt_of
from instructkit.stages.datasets import as_dataset

BEFORE = "measuring before training: held-out rows"
AFTER = "measuring after training: held-out rows"
ANSWERING = "answering the sample prompts"
SftFrame = Frame[SftRecipe, Inputs]


class Sft(Stage[SftRecipe, Inputs]):
    """Fine-tune a model on demonstrations."""

    name, recipe_type = "sft", SftRecipe

    def collect(self, recipe: SftRecipe, begun: Mapping[str, Any]) -> Inputs:
        """Read demonstrations for training and evaluation, and find the model to start from."""
        train, held_out = load_split(recipe.data, kind="sft", seed=recipe.run.seed)
        data = {"train": train} | ({"eval": held_out} if held_out else {})
        return formats.applied(recipe, Inputs(data, {"model": source.locate(recipe.model.name)}))

    def prepare(self, frame: SftFrame) -> Prepared:
        """Build the trainer with encoded rows; report what TRL drops or cuts."""
        recipe, source = frame.recipe, frame.inputs.parents["model"]
        tokenizer = formats.tokenizer_of(frame)
        model = load.load_for_training(source, recipe.model, frame.machine, recipe.lora)
        trainer = build_trainer(frame, model, tokenizer)
        check_labels(trainer.train_dataset, recipe.source)
        report_dropped(frame, trainer)
        report_truncation(frame, trainer)
        return Prepared(trainer, tokenizer)

    def train(self, frame: SftFrame) -> Result:
        """Train, with the loss on held-out rows before and after."""
        from instructkit.stages.trainer import fit

        recipe, source = frame.recipe, frame.inputs.parents["model"]
        with frame.reporter.phase(PREPARING):
            prepared = self.prepare(frame)
        trainer, tokenizer = prepared.trainer, prepared.tokenizer
        before = frame.timed("measure", lambda: held_out_losses(trainer, tokenizer), phase=BEFORE)
        figures = fit(trainer, frame)
        after = frame.timed("measure", lambda: held_out_losses(trainer, tokenizer), phase=AFTER)

        lines, checks = compare(before, after, recipe.gates.loss_ratio_max, frame.seed)
        return Result(
            save=lambda folder: load.save_model(trainer.model, tokenizer, folder, source),
            measurements=lines,
            gates=checks,
            metrics=figures,
            samples=frame.timed("measure", lambda: samples(frame, trainer.model, tokenizer), phase=ANSWERING),
        )


STAGE = Sft()


def build_trainer(frame: SftFrame, model: Any, tokenizer: Any) -> Any:
    """TRL's trainer with the loss on the assistant's words where the data are conversations."""
    from trl import SFTConfig, SFTTrainer

    from instructkit.stages.trainer import arguments, build, callbacks

    rows = frame.inputs.data
    conversational = "messages" in rows["train"].rows[0]
    defaults = {"assistant_only_loss": conversational, **OF_STAGE["sft"]}
    args = arguments(SFTConfig, frame, frame.recipe.trainer, **defaults)
    try:
        trainer = build(
            SFTTrainer,
            frame,
            model=model,
            args=args,
            train_dataset=as_dataset(rows["train"], shape_of(rows["train"])),
            eval_dataset=as_dataset(rows["eval"], shape_of(rows["eval"])) if "eval" in rows else None,
            processing_class=tokenizer,
            callbacks=callbacks(frame),
        )
    except (InputError, RuntimeError) as error:
        if "template" not in str(error):
            raise
        raise InputError(
            f"the chat template of {frame.recipe.model.name} does not say which words are the assistant's, and TRL "
            "knows no training template for it",
            hint="set trainer.assistant_only_loss: false to train on every word, give the data as prompt and "
            "completion, or set trainer.chat_template_path to a template with {% generation %} marks",
        ) from error
    return trainer


def shape_of(rows: Rows) -> tuple[str, ...]:
    """The fields that demonstrations of this shape have; whatever stands beside them is not for the trainer."""
    first = rows.rows[0]
    if "messages" in first:
        return ("messages",)
    return ("prompt", "completion") if "completion" in first else ("text",)


def check_labels(dataset: Any, place: str) -> None:
    """
    Refuse data of which nothing would be learned.

    Raises:
        InputError: when every label is masked; the loss would be 0 and nothing would say so.
    """
    if not any(label != IGNORED for labels in dataset["labels"] for label in labels):
        raise InputError(
            f"{place}: every label of the training data is masked, so nothing would be trained",
            hint="the answers are cut off by trainer.max_length, or the chat template marks no assistant words",
        )


def report_dropped(frame: SftFrame, trainer: Any) -> None:
    """
    Report how many rows TRL left out because nothing in them is learned; it does so without a word.

    Raises:
        InputError: when no held-out row is left, so that the gate on their loss could not be decided.
    """
    for role, dataset in (("train", trainer.train_dataset), ("eval", trainer.eval_dataset)):
        rows = frame.inputs.data.get(role)
        packed = trainer.args.packing if role == "train" else trainer.args.eval_packing
        if rows is None or packed or len(dataset) == len(rows.rows):
            continue
        left_out = len(rows.rows) - len(dataset)
        if not len(dataset):
            raise InputError(
                f"{frame.recipe.source}: nothing in any of the {left_out} held-out rows is learned within max_length "
                f"{trainer.args.max_length}, so the gate `gates.loss_ratio_max` cannot be decided",
                hint="raise trainer.max_length, hold out shorter rows, or set data.eval: null",
            )
        frame.dropped[f"{role}: nothing learned within max_length"] = left_out
        frame.reporter.note(
            f"{left_out} of {len(rows.rows)} {role} rows are left out: nothing in them would be learned"
        )


def report_truncation(frame: SftFrame, trainer: Any) -> None:
    """Report how many rows TRL cuts at `max_length`; it does so without a word."""
    limit = trainer.args.max_length
    if limit is None or trainer.args.packing:
        return
    cut = sum(len(ids) >= limit for ids in trainer.train_dataset["input_ids"])
    if cut:
        frame.reporter.note(
            f"{cut} of {len(trainer.train_dataset)} rows reach max_length {limit} and are cut there"
        )


def held_out_losses(trainer: Any, tokenizer: Any) -> list[Any]:
    """Likelihood of each held-out row, as the trainer masks it; empty without an eval set."""
    from instructkit.models.generate import row_likelihoods

    if trainer.eval_dataset is None:
        return []
    return row_likelihoods(trainer.model, list(trainer.eval_dataset), pad_id=tokenizer.pad_token_id)


def compare(before: list[Any], after: list[Any], limit: float, seed: int) -> tuple[list[dict], list[Any]]:
    """Held-out loss and token accuracy before and after, and the gate on their ratio."""
    if not before:
        return [], []
    tokens = sum(row.tokens for row in after)
    ratio = statistics.ratio_interval([r.nll for r in before], [r.nll for r in after], seed=seed)
    loss = measurement(
        "held-out loss",
        unit="nats/token",
        n=len(after),
        before=sum(r.nll for r in before) / tokens,
        after=sum(r.nll for r in after) / tokens,
        change=[bound - 1 for bound in ratio],
        better="lower",
        note="change is relative: after / before - 1",
    )
    accuracy = measurement(
        "held-out token accuracy",
        unit="share",
        n=len(after),
        before=sum(r.correct for r in before) / tokens,
        after=sum(r.correct for r in after) / tokens,
        better="higher",
    )
    return [loss, accuracy], [gates.not_worse("held-out loss", ratio, limit)]


def samples(frame: SftFrame, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """A few held-out prompts answered by the trained model."""
    from instructkit.models.generate import answer

    found = frame.inputs.data.get("eval", frame.inputs.data["train"])
    if shape_of(found) == ("text",):
        return []
    prompts = [prompt_of(row) for row in found.rows[: frame.recipe.run.samples]]
    if not prompts:
        return []
    answers = answer(model, tokenizer, prompts, max_new_tokens=64, seed=frame.seed, temperature=0)
    return [{"prompt": prompt, "after": a.text} for prompt, a in zip(prompts, answers, strict=True)]

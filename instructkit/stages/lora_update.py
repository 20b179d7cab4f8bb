"""From users' feedback to a LoRA adapter above the frozen parent, promoted only when it learned and harmed nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from instructkit import models
from instructkit.data import prepare as splits
from instructkit.data import sources
from instructkit.data.readers import STORE_SUFFIX
from instructkit.errors import InputError
from instructkit.feedback import gates, preprocess
from instructkit.feedback.store import Store
from instructkit.runs import lineage
from instructkit.stages.base import Frame, Inputs, Result
from instructkit.stages.functions import load_function
from instructkit.stages.replay import encoded_demonstrations, own_answers
from instructkit.stages.update_measures import compare, measure, samples


def collect(recipe: Any) -> Inputs:
    """Feedback to train on and to test on, replay and general rows, and the parent that is updated."""
    wanted, seed = recipe.feedback, recipe.run.seed
    parent = models.locate(recipe.model.name)
    skip = wanted.on_fault == "skip"
    options = {"kind": "feedback", "columns": wanted.columns, "seed": seed, "skip_faults": skip}
    events = sources.load_rows(wanted.events, limit=wanted.limit, **options)
    if isinstance(wanted.eval, str):
        test = sources.load_rows(wanted.eval, every_column=False, **options)
    else:
        events, test = splits.split(events, wanted.eval, seed)
        test = replace(test, skipped=())  # told once, with the source that they stand in
    if recipe.gates.judge:
        load_function(recipe.gates.judge)
    splits.check_leak(events, test)
    data = {"events": events, "test": test}
    for rows in data.values():
        refuse_mixed_prompts(rows)
    for role, named, theirs in (("replay", wanted.replay, "train"), ("general", wanted.general, "eval")):
        found, columns = (named, {}) if named else from_sft(parent, theirs)
        if found:
            data[role] = sources.load_rows(found, kind="sft", columns=columns, seed=seed, every_column=False)
    refuse_too_few(data)
    if "replay" in data and "general" in data:
        splits.check_leak(data["replay"], data["general"])
    return Inputs(data, {"model": parent})


def refuse_mixed_prompts(rows: sources.Rows) -> None:
    """A trainer reads texts or conversations, not both at once."""
    texts = sum(isinstance(preprocess.prompt_of(row), str) for row in rows.rows)
    if 0 < texts < len(rows.rows):
        raise InputError(
            f"{rows.source}: {texts} of {len(rows.rows)} events have a text as prompt, the rest have messages",
            hint="write every prompt as messages, or every one as text",
        )


def refuse_too_few(data: dict[str, sources.Rows]) -> None:
    """Of a single figure there is no interval, so no gate could be decided on it."""
    counts = {"test": len(preprocess.judged(data["test"].rows))}
    counts |= {"general": len(data["general"].rows)} if "general" in data else {}
    for role, count in counts.items():
        if count < 2:
            raise InputError(
                f"{data[role].source}: {count} {role} rows that say something; a gate needs at least 2",
                hint="give more rows, or hold out a larger share; a rating of 0 asks for nothing",
            )


def from_sft(parent: models.Source, role: str) -> tuple[str | list | None, dict[str, str]]:
    """The data of the SFT run that the parent descends from, when named by a source of its own, and its `columns`."""
    for record in lineage.chain(parent.run) if parent.run else []:
        if record["stage"] == "sft":
            section = record["recipe"]["data"]
            source = section.get(role)
            return source if isinstance(source, str | list) else None, section.get("columns") or {}
    return None, {}


def train(frame: Frame) -> Result:
    """Choose an objective, train, measure, decide; see the module."""
    from instructkit.stages.training import fit

    source = frame.inputs.parents["model"]
    trainer, tokenizer, made = prepare(frame)

    before = frame.timed("measure", lambda: measure(frame, trainer.model, tokenizer))
    figures = fit(trainer, frame)
    after = frame.timed("measure", lambda: measure(frame, trainer.model, tokenizer))

    lines, checks = compare(frame, before, after)
    return Result(
        save=lambda folder: models.save_model(trainer.model, tokenizer, folder, source),
        measurements=lines,
        gates=checks,
        metrics=figures,
        samples=samples(frame, before, after),
        details={"verdict": gates.verdict(checks), **made},
    )


def prepare(frame: Frame) -> tuple[Any, Any, dict[str, Any]]:
    """The trainer of a run, the tokenizer, and what became of the events."""
    recipe, source, data = frame.recipe, frame.inputs.parents["model"], frame.inputs.data
    objective, reason = preprocess.objective(data["events"].rows, recipe.feedback.objective)
    frame.reporter.note(f"objective {objective}: {reason}")
    rows, outcomes = preprocess.training_rows(data["events"].rows, objective)
    outcomes |= left_out_of(recipe.feedback.events)
    if not rows:
        raise InputError(
            f"{data['events'].source} holds nothing that {objective} can learn from",
            hint="sft needs better answers or good ratings, dpo needs preferences or edits, kto needs ratings",
        )
    frame.reporter.note("events: " + ", ".join(f"{n} {what}" for what, n in outcomes.items()))
    tokenizer = models.load_tokenizer(source, recipe.model)
    model = models.load_for_training(source, recipe.model, frame.machine, recipe.lora)
    trainer = build_trainer(frame, objective, rows, model, tokenizer)
    report_dropped(frame, len(rows) - len(trainer.train_dataset))
    return trainer, tokenizer, {"objective": [objective, reason], "outcomes": outcomes}


def left_out_of(source: str) -> dict[str, int]:
    """Of a feedback store: events that may not be trained on, by reason."""
    if not source.endswith(STORE_SUFFIX):
        return {}
    with Store.open(source) as store:
        return {reason: count for reason, count in store.left_out().items() if count}


def report_dropped(frame: Frame, dropped: int) -> None:
    """Say how many training rows TRL left out as longer than `max_length`; it does so without a word."""
    if dropped > 0:
        frame.dropped["longer than max_length"] = dropped
        frame.reporter.note(f"{dropped} training rows made of events are left out: they exceed max_length")


def build_trainer(frame: Frame, objective: str, rows: list[dict], model: Any, tokenizer: Any) -> Any:
    """The trainer of an objective, its reference the parent, with replay of general rows in every step."""
    from datasets import Dataset

    from instructkit.stages import updaters
    from instructkit.stages.training import arguments, build, callbacks

    config, trainer_class, defaults = updaters.for_objective(objective)
    common = {k: v for k, v in frame.recipe.trainer.items() if k not in ("sft", "dpo", "kto")}
    given = {**common, **frame.recipe.trainer.get(objective, {})}
    trainer = build(
        trainer_class,
        frame,
        model=model,
        args=arguments(config, frame, given, **defaults),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=callbacks(frame),
    )
    updaters.settle(trainer)
    replay, wanted = frame.inputs.data.get("replay"), frame.recipe.feedback
    if replay is not None and wanted.replay_share > 0:
        given = encoded_demonstrations(tokenizer, replay.rows)
        own = own_answers(frame, trainer.model, tokenizer) if wanted.self_replay else []
        trainer.replay(given, own, share=wanted.replay_share, own_share=wanted.self_replay)
    else:
        frame.reporter.note("no replay: nothing but the gates guards what the parent knows")
    return trainer

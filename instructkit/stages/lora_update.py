"""From users' feedback to a LoRA adapter above the frozen parent, promoted only when it learned and harmed nothing."""

from __future__ import annotations

import json
from typing import Any

from instructkit import models
from instructkit.data import prepare, sources
from instructkit.errors import InputError
from instructkit.evaluate import metrics
from instructkit.feedback import gates, preprocess
from instructkit.runs import lineage
from instructkit.stages.base import Frame, Inputs, Result, measurement, prompt_of
from instructkit.stages.functions import load_function


def collect(recipe: Any) -> Inputs:
    """Feedback to train on and to test on, replay and general rows, and the parent that is updated."""
    wanted, seed = recipe.feedback, recipe.run.seed
    parent = models.locate(recipe.model.name)
    options = {"kind": "feedback", "columns": wanted.columns, "limit": wanted.limit, "seed": seed}
    events = sources.load_rows(wanted.events, **options)
    if isinstance(wanted.eval, str):
        test = sources.load_rows(
            wanted.eval, kind="feedback", columns=wanted.columns, seed=seed, every_column=False
        )
    else:
        events, test = prepare.split(events, wanted.eval, seed)
    if recipe.gates.judge:
        load_function(recipe.gates.judge)
    prepare.check_leak(events, test)
    data = {"events": events, "test": test}
    for rows in data.values():
        refuse_mixed_prompts(rows)
    for role, named, theirs in (("replay", wanted.replay, "train"), ("general", wanted.general, "eval")):
        found, columns = (named, {}) if named else from_sft(parent, theirs)
        if found:
            data[role] = sources.load_rows(found, kind="sft", columns=columns, seed=seed, every_column=False)
    refuse_too_few(data)
    if "replay" in data and "general" in data:
        prepare.check_leak(data["replay"], data["general"])
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

    recipe, source, data = frame.recipe, frame.inputs.parents["model"], frame.inputs.data
    objective, reason = preprocess.objective(data["events"].rows, recipe.feedback.objective)
    frame.reporter.note(f"objective {objective}: {reason}")
    rows, outcomes = preprocess.training_rows(data["events"].rows, objective)
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
        details={"verdict": gates.verdict(checks), "objective": [objective, reason], "outcomes": outcomes},
    )


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
    replay = frame.inputs.data.get("replay")
    if replay is not None and frame.recipe.feedback.replay_share > 0:
        trainer.replay(
            encoded_demonstrations(tokenizer, replay.rows), share=frame.recipe.feedback.replay_share
        )
    else:
        frame.reporter.note("no replay: nothing but the gates guards what the parent knows")
    return trainer


def encoded_demonstrations(tokenizer: Any, rows: list[dict]) -> list[dict[str, list[int]]]:
    """Demonstrations as token ids with labels on the last answer, or on all of a text."""
    from instructkit.encode import encode_text, encode_with_labels

    return [
        encode_text(tokenizer, row["text"])
        if "text" in row
        else encode_with_labels(tokenizer, prompt_of(row), last_answer(row))
        for row in rows
    ]


def last_answer(row: dict[str, Any]) -> str:
    """The last answer of a demonstration."""
    from instructkit.encode import answer_text

    return answer_text(row["messages"] if "messages" in row else row["completion"])


def measure(frame: Frame, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Likelihoods of the test events' answers and of the general rows, and greedy answers to a few test prompts."""
    from instructkit.evaluate.generate import answer, likelihoods, row_likelihoods

    data = frame.inputs.data
    judged = preprocess.judged(data["test"].rows)
    prompts = [event.prompt for event in judged]
    first = likelihoods(model, tokenizer, prompts, [event.wanted for event in judged])
    paired = [event for event in judged if event.unwanted is not None]
    second = likelihoods(model, tokenizer, [e.prompt for e in paired], [e.unwanted for e in paired])
    general = encoded_demonstrations(tokenizer, data["general"].rows) if "general" in data else []
    kept = row_likelihoods(model, general, pad_id=tokenizer.pad_token_id)
    shown = prompts[: frame.recipe.run.samples]
    told = answer(model, tokenizer, shown, max_new_tokens=64, seed=frame.seed, temperature=0)
    found = {"judged": judged, "wanted": first, "unwanted": second, "general": kept, "answers": told}
    return found | {"judge": judge_scores(frame, model, tokenizer)}


def judge_scores(frame: Frame, model: Any, tokenizer: Any) -> list[float]:
    """The judge's scores of one sampled answer to each prompt of the general rows; empty without a judge."""
    from instructkit.evaluate.generate import answer

    place, data = frame.recipe.gates.judge, frame.inputs.data
    rows = [row for row in data["general"].rows if "text" not in row] if "general" in data else []
    if not (place and rows):
        return []
    prompts = list({json.dumps(prompt_of(row), sort_keys=True): prompt_of(row) for row in rows}.values())
    answers = answer(model, tokenizer, prompts, max_new_tokens=64, seed=frame.seed)
    return list(load_function(place)(prompts, [a.text for a in answers]))


def compare(frame: Frame, before: dict[str, Any], after: dict[str, Any]) -> tuple[list[dict], list[Any]]:
    """Held-out feedback and general loss before and after, with the two gates that decide."""
    limits, seed = frame.recipe.gates, frame.seed
    scores = [satisfaction(before), satisfaction(after)]
    gain = metrics.paired_difference(*scores, seed=seed)
    lines = [
        measurement(
            "held-out feedback",
            unit="nats/token",
            n=len(scores[1]),
            before=sum(scores[0]) / len(scores[0]),
            after=sum(scores[1]) / len(scores[1]),
            change=list(gain),
            better="higher",
            note="log-probability of what users wanted, above what they did not",
        )
    ]
    if after["unwanted"]:
        lines.append(pair_accuracy(before, after))
    ratio = None
    if after["general"]:
        nll = [by_prompt(frame, [row.nll for row in part["general"]]) for part in (before, after)]
        tokens = sum(row.tokens for row in after["general"])
        ratio = metrics.ratio_interval(*nll, seed=seed)
        lines.append(
            measurement(
                "general held-out loss",
                unit="nats/token",
                n=len(nll[1]),  # prompts
                before=sum(nll[0]) / tokens,
                after=sum(nll[1]) / tokens,
                change=[bound - 1 for bound in ratio],
                better="lower",
                note="change is relative: after / before - 1",
            )
        )
    checks = [
        gates.improved("held-out feedback", gain, limits.feedback_gain_min),
        gates.not_worse("general held-out loss", ratio, limits.general_loss_ratio_max),
    ]
    if limits.judge:
        checks.append(compare_judged(before["judge"], after["judge"], limits.judge_gain_min, seed, lines))
    return lines, checks


def compare_judged(
    before: list[float], after: list[float], minimum: float, seed: int, lines: list[dict]
) -> Any:
    """The judge's line in the table, and its gate: what the parent had learned from rewards must not be lost."""
    change = metrics.paired_difference(before, after, seed=seed) if after else None
    if change:
        lines.append(
            measurement(
                "judge's score of answers to everything else",
                unit="score",
                n=len(after),
                before=sum(before) / len(before),
                after=sum(after) / len(after),
                change=list(change),
                better="higher",
                note="no training stage sees it",
            )
        )
    return gates.improved("judge's score of answers to everything else", change, minimum)


def by_prompt(frame: Frame, figures: list[float]) -> list[float]:
    """Sums over the general rows of one prompt: several answers to it are no independent measurements."""
    sums: dict[str, float] = {}
    for row, figure in zip(frame.inputs.data["general"].rows, figures, strict=True):
        key = json.dumps(prepare.prompt_key(row), sort_keys=True)
        sums[key] = sums.get(key, 0.0) + figure
    return list(sums.values())


def satisfaction(measured: dict[str, Any]) -> list[float]:
    """
    How far the model leans to what each event asks for, in nats per token.

    A pair: mean log-probability of a token of the wanted answer minus that of the unwanted one. A rating: that of the
    rated answer times its sign and size.
    """
    unwanted = iter(measured["unwanted"])
    return [
        wanted.per_token - next(unwanted).per_token
        if event.unwanted is not None
        else event.weight * wanted.per_token
        for event, wanted in zip(measured["judged"], measured["wanted"], strict=True)
    ]


def pair_accuracy(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Share of test pairs in which the wanted answer is the likelier one, per token."""
    shares = []
    for part in (before, after):
        wanted = [w for e, w in zip(part["judged"], part["wanted"], strict=True) if e.unwanted is not None]
        pairs = list(zip(wanted, part["unwanted"], strict=True))
        shares.append(sum(w.per_token > u.per_token for w, u in pairs) / len(pairs))
    n = len(after["unwanted"])
    _, low, high = metrics.accuracy_interval(round(shares[1] * n), n)
    note = f"95 % interval {low:.3f} to {high:.3f}"
    return measurement(
        "wanted answer likelier",
        unit="share",
        n=n,
        before=shares[0],
        after=shares[1],
        better="higher",
        note=note,
    )


def samples(frame: Frame, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """A few test prompts with the answers of parent and update, and what the user wanted."""
    rows = zip(before["judged"], before["answers"], after["answers"], strict=False)
    return [
        {"prompt": event.prompt, "before": first.text, "after": second.text, "wanted": event.wanted}
        for event, first, second in rows
    ]

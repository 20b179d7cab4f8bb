"""A reward model: `trl.RewardTrainer` on human comparisons, reloaded and checked before it is called done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from instructkit.data.sources import Rows, Skipped
from instructkit.data.split import load_split, prompt_key
from instructkit.data.table import mapped, pick
from instructkit.errors import Fault, InputError, InstructKitError
from instructkit.evaluate import gates, statistics
from instructkit.models import load
from instructkit.models.source import Source, locate
from instructkit.models.tokens import Prompt, answer_text, encode_answered
from instructkit.recipe.schema import RewardRecipe
from instructkit.stages import formats
from instructkit.stages.base import PREPARING, Frame, Inputs, Prepared, Result, Stage, measurement
from instructkit.stages.datasets import dataset_of

# float32 scores of the same rows by the same weights, before saving and after loading
RELOAD_TOLERANCE = 1e-3
Pairs = Sequence[dict[str, Any]]  # `chosen_ids` and `rejected_ids`, and a `margin` where there is one
RewardFrame = Frame[RewardRecipe, Inputs]


@dataclass
class PreparedPairs(Prepared):
    """The trainer of a reward model, and its comparisons as token ids, by role."""

    pairs: dict[str, Pairs] = field(kw_only=True)


class Reward(Stage[RewardRecipe, Inputs]):
    """Train a reward model on comparisons."""

    name, recipe_type = "reward", RewardRecipe

    def collect(self, recipe: RewardRecipe, begun: Mapping[str, Any]) -> Inputs:
        """Read comparisons for training and evaluation, and find the model whose body the reward model starts from."""
        train, held_out = load_split(recipe.data, kind="preference", seed=recipe.run.seed)
        data = {"train": train} | ({"eval": held_out} if held_out else {})
        return formats.applied(recipe, Inputs(data, {"model": locate(recipe.model.name)}))

    def prepare(self, frame: RewardFrame) -> PreparedPairs:
        """Build the trainer on comparisons as token ids."""
        recipe, source = frame.recipe, frame.inputs.parents["model"]
        tokenizer = formats.tokenizer_of(frame)
        model = load.load_for_training(source, recipe.model, frame.machine, recipe.lora, task="SEQ_CLS")
        pairs = {role: encode_pairs(tokenizer, rows) for role, rows in frame.inputs.data.items()}
        return PreparedPairs(build_trainer(frame, model, tokenizer, pairs), tokenizer, pairs=pairs)

    def train(self, frame: RewardFrame) -> Result:
        """Train, then centre the scores, with the accuracy on held-out comparisons before and after."""
        from instructkit.stages.trainer import fit

        recipe, source = frame.recipe, frame.inputs.parents["model"]
        with frame.reporter.phase(PREPARING):
            prepared = self.prepare(frame)
        trainer, tokenizer, pairs = prepared.trainer, prepared.tokenizer, prepared.pairs
        held_out = pairs.get("eval", [])
        scoring = partial(score_pairs, trainer.model, tokenizer, held_out)
        before = frame.timed("measure", scoring, phase="measuring before training: held-out comparisons")
        figures = fit(trainer, frame)
        after = frame.timed("measure", scoring, phase="measuring after training: held-out comparisons")
        centring = partial(centre, trainer.model, tokenizer, pairs["train"])
        offset = frame.timed(
            "measure", centring, phase="centring the scores: chosen answers of the training rows"
        )

        lines, checks = compare(before, after, held_out, prompts_of(frame), recipe.gates.accuracy_min)
        return Result(
            save=lambda folder: save(
                frame, trainer.model, tokenizer, folder, source, offset, pairs["train"][:16]
            ),
            measurements=lines,
            gates=checks,
            metrics=figures,
            samples=samples(frame, after),
            details={"score_offset": offset},
        )


STAGE = Reward()


def build_trainer(frame: RewardFrame, model: Any, tokenizer: Any, pairs: dict[str, Pairs]) -> Any:
    """TRL's trainer on rows that are already token ids: the very ids that PPO will ask scores for."""
    from trl import RewardConfig, RewardTrainer

    from instructkit.stages.trainer import arguments, build, callbacks

    args = arguments(RewardConfig, frame, frame.recipe.trainer)
    for role in pairs:
        leave_out_long(frame, role, pairs, args.max_length)
    return build(
        RewardTrainer,
        frame,
        model=model,
        args=args,
        train_dataset=dataset_of(pairs["train"]),
        eval_dataset=dataset_of(pairs["eval"]) if pairs.get("eval") else None,
        processing_class=tokenizer,
        callbacks=callbacks(frame),
    )


def leave_out_long(frame: RewardFrame, role: str, pairs: dict[str, Pairs], limit: int | None) -> None:
    """
    Leave out the pairs that TRL drops without a count, and their rows: what is not trained on is not measured either.

    Raises:
        InputError: when no training pair is left, or no held-out pair for the gate that the recipe sets.
    """
    rows, every = pairs[role], len(pairs[role])
    kept = [i for i, row in enumerate(rows) if limit is None or _longest(row) <= limit]
    if len(kept) == every:
        return
    if not kept and role == "train":
        raise InputError(
            f"{frame.recipe.source}: every training pair is longer than max_length {limit}",
            hint="raise trainer.max_length",
        )
    if not kept and frame.recipe.gates.accuracy_min is not None:
        raise InputError(
            f"{frame.recipe.source}: all {every} held-out pairs are longer than max_length {limit}, so the gate "
            "`gates.accuracy_min` cannot be decided",
            hint="raise trainer.max_length, hold out shorter pairs (data.eval), or remove the gate",
        )
    pairs[role] = pick(rows, kept)
    given, gone = frame.inputs.data[role], sorted(set(range(every)) - set(kept))
    told = f"an answer with its prompt has more than max_length {limit} tokens"
    left_out = tuple(Skipped(Fault(given.places[i], told), given.rows[i]) for i in gone)
    frame.inputs.data[role] = replace(given.pick(kept), skipped=(*given.skipped, *left_out))
    frame.reporter.note(
        f"{every - len(kept)} of {every} {role} pairs are left out: they exceed max_length {limit}"
    )
    frame.dropped[f"{role}: longer than max_length"] = every - len(kept)


def _longest(pair: dict[str, Any]) -> int:
    return max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))


def encode_pairs(tokenizer: Any, rows: Rows) -> Pairs:
    """Comparisons as token ids, the margin kept where there is one."""
    return mapped(rows.rows, lambda row: encode_pair(tokenizer, row))


def encode_pair(tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:
    """One comparison as token ids."""
    pair: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        prompt, text = prompt_and_answer(row, side)
        pair[f"{side}_ids"] = encode_answered(tokenizer, prompt, text)
    if row.get("margin") is not None:
        pair["margin"] = float(row["margin"])
    return pair


def prompt_and_answer(row: dict[str, Any], side: str) -> tuple[Prompt, str]:
    """One side of a comparison; an implicit prompt is the conversation before its last answer."""
    told = row[side]
    if row.get("prompt") is not None:
        return row["prompt"], answer_text(told)
    return ("", told) if isinstance(told, str) else (told[:-1], told[-1]["content"])


def score_pairs(model: Any, tokenizer: Any, pairs: Pairs) -> list[tuple[float, float]]:
    """Raw scores of chosen and rejected answers."""
    from instructkit.models.reward import score_rows

    rows = [pair[f"{side}_ids"] for side in ("chosen", "rejected") for pair in pairs]
    scores = score_rows(model, rows, pad_id=tokenizer.pad_token_id) if rows else []
    return list(zip(scores[: len(pairs)], scores[len(pairs) :], strict=True))


def centre(model: Any, tokenizer: Any, pairs: Pairs) -> dict[str, float]:
    """The offset that gives the training set's chosen answers a mean score of 0; the scale is left alone."""
    from instructkit.models.reward import score_rows

    rows = [pair["chosen_ids"] for pair in pairs]
    chosen = score_rows(model, rows, pad_id=tokenizer.pad_token_id)
    return {"mean": sum(chosen) / len(chosen), "std": 1.0}


def prompts_of(frame: RewardFrame) -> list[str]:
    """What each held-out comparison asks: comparisons of one prompt are no independent trials."""
    rows = frame.inputs.data["eval"].rows if "eval" in frame.inputs.data else []
    return [prompt_key(row, "preference") for row in rows]


def compare(
    before: list, after: list, pairs: Pairs, prompts: list[str], minimum: float | None
) -> tuple[list[dict], list[Any]]:
    """Held-out accuracy, margin and length correlation, and the gate on accuracy."""
    if not after:
        return [], []
    shares = {
        when: [first > second for first, second in scores] for when, scores in (("b", before), ("a", after))
    }
    share, low, high = statistics.clustered_share(shares["a"], prompts)
    lengths = [len(pair[f"{side}_ids"]) for side in ("chosen", "rejected") for pair in pairs]
    scores = [s for s, _ in after] + [s for _, s in after]
    lines = [
        measurement(
            "held-out comparisons ordered right",
            unit="share",
            n=len(after),
            before=sum(shares["b"]) / len(before),
            after=share,
            better="higher",
            note=f"95 % interval {low:.3f} to {high:.3f}",
        ),
        measurement(
            "mean margin",
            unit="logit",
            n=len(after),
            before=_margin(before),
            after=_margin(after),
            better="higher",
        ),
        measurement(
            "correlation of score with length",
            unit="r",
            n=len(scores),
            after=statistics.pearson(scores, lengths),
        ),
    ]
    if minimum is None:
        return lines, []
    return lines, [gates.at_least("held-out comparisons ordered right", share, minimum, (low, high))]


def _margin(scores: list[tuple[float, float]]) -> float:
    return sum(first - second for first, second in scores) / len(scores)


def save(
    frame: RewardFrame,
    model: Any,
    tokenizer: Any,
    folder: Path,
    source: Any,
    offset: dict[str, float],
    probe: list[dict],
) -> None:
    """
    Write the model, load it again as PPO will, and compare scores.

    Raises:
        InstructKitError: when the reloaded model scores differently, as one whose head was not saved does.
    """
    expected = [s - offset["mean"] for pair in score_pairs(model, tokenizer, probe) for s in pair]
    load.save_model(model, tokenizer, folder, source)
    (folder / load.SCORE_FILE).write_text(json.dumps(offset), encoding="utf-8")
    section = frame.recipe.model
    saved = Source(str(folder), source.base, adapter=folder) if frame.recipe.lora else None
    saved = saved or Source(str(folder), str(folder))
    reloaded = load.load_for_use(saved, section, frame.machine, task="SEQ_CLS")
    scores = score_pairs(reloaded, load.load_tokenizer(saved, section), probe)
    found = [s - offset["mean"] for pair in scores for s in pair]
    worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    tolerance = RELOAD_TOLERANCE if frame.machine.dtype == "float32" else 0.1
    if worst > tolerance:
        raise InstructKitError(
            f"the reward model saved in {folder} scores differently after loading: {worst:.4g} on fixed pairs",
            hint="its head was not saved, or the adapter does not stand on this base; nothing should build on this run",
        )
    frame.reporter.note(f"reloaded from disk: scores of {len(probe)} fixed pairs agree to {worst:.1g}")


def samples(frame: RewardFrame, scores: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """A few held-out comparisons with their raw scores."""
    rows = frame.inputs.data["eval"].rows if "eval" in frame.inputs.data else []
    shown = list(zip(rows, scores, strict=False))[: frame.recipe.run.samples]
    return [{**row, "score_chosen": first, "score_rejected": second} for row, (first, second) in shown]

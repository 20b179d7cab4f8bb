"""What is measured of a policy before and after PPO, on prompts that are only looked at."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from instructkit.evaluate import gates, statistics
from instructkit.runs.metrics import MetricsWriter
from instructkit.runs.progress import counted
from instructkit.stages.base import Frame, measurement
from instructkit.stages.datasets import common_columns
from instructkit.stages.user_functions import scoring_function

EVALUATED = "eval_samples.jsonl"  # beside `samples.jsonl`, which has the answers before and after training


def answers(frame: Frame, trainer: Any, tokenizer: Any) -> list[Any]:
    """One sampled answer to each held-out prompt, with the same seed each time it is asked."""
    from instructkit.models.generate import answer

    return answer(
        trainer.model,
        tokenizer,
        held_out_prompts(frame),
        max_new_tokens=trainer.args.max_completion_length,
        temperature=trainer.args.temperature,
        seed=frame.seed,
    )


def held_out_rows(frame: Frame) -> list[dict[str, Any]]:
    """The rows that are only looked at: as many as `run.compare` says, with the columns that all of them have."""
    rows = frame.inputs.data.get("eval")
    if not rows:
        return []
    columns = common_columns(rows)
    return [{name: row[name] for name in columns} for row in rows.rows[: frame.recipe.run.compare]]


def held_out_prompts(frame: Frame) -> list[Any]:
    """The prompts of those rows."""
    return [row["prompt"] for row in held_out_rows(frame)]


def kl_to_reference(trainer: Any, answered: list[Any]) -> list[float]:
    """KL of the policy to its reference on each answer, summed over its tokens, in nats (a k1 estimate)."""
    import torch

    from instructkit.ppo import rollout

    if not answered or (trainer.ref_model is None and not hasattr(trainer.model, "peft_config")):
        return []  # with beta 0 and full fine-tuning no reference is in memory
    size = trainer.args.per_device_train_batch_size
    pad_id = trainer.processing_class.pad_token_id
    sums: list[float] = []
    trainer.model.eval()
    with torch.no_grad():
        parts = (answered[start : start + size] for start in range(0, len(answered), size))
        for part in counted(parts, len(answered)):
            batch = rollout.collate([a.prompt_ids for a in part], [a.ids for a in part], pad_id=pad_id)
            batch = {name: tensor.to(trainer.accelerator.device) for name, tensor in batch.items()}
            reading = rollout.read(trainer.model, batch, temperature=trainer.temperature)
            reference = trainer.reference_logprobs(batch)
            sums.extend(((reading.logprobs - reference) * batch["response_mask"]).sum(1).tolist())
    return sums


def compare(
    frame: Frame, scorers: list[Any], before: list, after: list, kl: list[float], state: Any
) -> tuple[list, list]:
    """Judge, reward, KL and length on held-out prompts before and after, with the gates that the recipe asks for."""
    if not after:
        return [], []
    wanted, lines, checks = frame.recipe.gates, [], []
    if wanted.judge:
        told, change = judged(frame, before, after)
        lines += told
        checks.append(gates.improved("judge's score", change, wanted.judge_gain_min))
    for score in scorers:
        both = zip(
            *(scored(score, held_out_rows(frame), part, state) for part in (before, after)), strict=True
        )
        pairs = [pair for pair in both if None not in pair]
        if not pairs:
            frame.reporter.note(f"reward {score.__name__}: it says nothing about any held-out prompt")
            continue
        first, second = zip(*pairs, strict=True)
        change = statistics.paired_difference(first, second, seed=frame.seed)
        lines.append(_line(f"reward {score.__name__}", first, second, change, "higher", None))
    mean, low, high = statistics.bootstrap_mean(kl, seed=frame.seed) if kl else (None, None, None)
    note = (
        f"95 % interval {low:.2f} to {high:.2f}"
        if kl
        else "not measured: beta is 0, so no reference was loaded"
    )
    lines.append(measurement("KL to the reference", unit="nats/answer", n=len(kl), after=mean, note=note))
    if wanted.kl_max_nats is not None:
        interval = (low, high) if kl else None
        checks.append(gates.below("KL to the reference", mean, wanted.kl_max_nats, interval))
    lengths = [[float(len(a.ids)) for a in part] for part in (before, after)]
    lines.append(_line("answer length", *lengths, None, None, None, unit="tokens"))
    ended = [[float(a.finished) for a in part] for part in (before, after)]
    lines.append(_line("answers that end by themselves", *ended, None, "higher", None, unit="share"))
    return lines, checks


def judged(frame: Frame, before: list, after: list) -> tuple[list[dict[str, Any]], statistics.Interval]:
    """What the judge says of both models' answers, as it is and at equal length; and the gain with its interval."""
    texts = frame.inputs.data["train"].rendered
    judge, prompts = scoring_function(frame.recipe.gates.judge, texts=texts), held_out_prompts(frame)
    first, second = (list(judge(prompts, [a.text for a in part])) for part in (before, after))
    change = statistics.paired_difference(first, second, seed=frame.seed)
    spans = [statistics.bootstrap_mean(scores, seed=frame.seed)[1:] for scores in (first, second)]
    told_spans = ", then ".join(f"{low:.3f} to {high:.3f}" for low, high in spans)
    note = f"no training stage sees it; 95 % intervals {told_spans}"
    lengths = [len(a.ids) for a in before], [len(a.ids) for a in after]
    even = statistics.gain_at_equal_length(first, second, lengths, seed=frame.seed)
    at_equal_length = measurement(
        "judge's gain at equal length",
        unit="score",
        n=len(after),
        change=list(even),
        better="higher",
        note="where an answer's length has not changed, by a straight line over the answers",
    )
    return [_line("judge's score", first, second, change, "higher", note), at_equal_length], change


def scored(
    score: Callable[..., Any], rows: list[dict[str, Any]], answered: list[Any], state: Any
) -> list[float | None]:
    """Scores of answers by a reward function, called as TRL calls it in training; None where it has nothing to say."""
    prompts = [row["prompt"] for row in rows]
    told = [
        a.text if isinstance(prompt, str) else [{"role": "assistant", "content": a.text}]
        for prompt, a in zip(prompts, answered, strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    unheard = {"trainer_state": state, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    ids = [a.ids for a in answered]
    found = score(prompts=prompts, completions=told, completion_ids=ids, **columns, **unheard)
    if inspect.isawaitable(found):
        found = asyncio.run(_awaited(found))
    return [float(sum(x)) if isinstance(x, list) else x if x is None else float(x) for x in found]


async def _awaited(answer: Any) -> Any:
    return await answer


def _line(name, before, after, change, better, note, *, unit: str = "score") -> dict[str, Any]:
    means = sum(before) / len(before), sum(after) / len(after)
    change = list(change) if change else None
    return measurement(
        name,
        unit=unit,
        n=len(after),
        before=means[0],
        after=means[1],
        change=change,
        better=better,
        note=note,
    )


def answers_keeper(frame: Frame) -> Callable[[list[dict[str, Any]]], None]:
    """Appends the first answers of each evaluation within training to a table, as many as `run.samples` says."""

    def keep(rows: list[dict[str, Any]]) -> None:
        shown = rows[: frame.recipe.run.samples]
        if not shown:
            return
        with MetricsWriter(frame.folder / EVALUATED) as table:
            for row in shown:
                table.write(row)

    return keep


def samples(frame: Frame, before: list, after: list) -> list[dict[str, Any]]:
    """A few held-out prompts with the answers of both models."""
    rows = zip(held_out_prompts(frame), before, after, strict=True)
    shown = list(rows)[: frame.recipe.run.samples]
    return [{"prompt": prompt, "before": first.text, "after": second.text} for prompt, first, second in shown]

"""Reinforcement learning from human feedback: our `PPOTrainer` against reward models and functions, judged by someone else."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructkit import models
from instructkit.data.prepare import load_split
from instructkit.data.sources import Rows, load_rows
from instructkit.encode import answer_text
from instructkit.errors import InputError
from instructkit.evaluate import metrics
from instructkit.feedback import gates
from instructkit.stages.base import Frame, Inputs, Result, as_dataset, measurement
from instructkit.stages.functions import load_function
from instructkit.stages.ppo_roles import (
    CRITIC_FOLDER,
    Start,
    build_critic,
    locate_earlier,
    save_critic,
    scorer,
    start_of_critic,
)

WARM_UP_OF_A_ZERO_HEAD = 10  # rollouts in which a critic that knows nothing yet learns alone


def collect(recipe: Any) -> Inputs:
    """Prompts to learn from and to hold out, the policy to start from and the reward models it is scored by."""
    train, held_out = load_split(recipe.data, kind="prompt", seed=recipe.run.seed)
    data = {"train": train} | ({"eval": held_out} if held_out else {})
    if recipe.data.ptx:
        data["ptx"] = load_rows(recipe.data.ptx, kind="sft", every_column=False)
    _refuse_half_of_ptx(recipe)
    parents = {"model": models.locate(recipe.model.name)}
    for i, item in enumerate(recipe.reward):
        if item.model:
            parents[f"reward[{i}]"] = models.locate(item.model)
        else:
            load_function(item.function)
    if earlier := locate_earlier(recipe):
        parents["critic"] = earlier
    if recipe.gates.judge:
        load_function(recipe.gates.judge)
    return Inputs(data, parents)


def _refuse_half_of_ptx(recipe: Any) -> None:
    """PPO-ptx needs text and a weight; one without the other would be ignored."""
    weight = recipe.trainer.get("ptx_coef", 0)
    if bool(recipe.data.ptx) != bool(weight):
        missing = "trainer.ptx_coef" if recipe.data.ptx else "data.ptx"
        raise InputError(
            f"{recipe.source}: PPO-ptx needs both data.ptx and trainer.ptx_coef, and {missing} is not set",
            hint="set both, or neither",
        )


def train(frame: Frame) -> Result:
    """Train, and compare answers to held-out prompts before and after; see the module."""
    from instructkit.stages.training import fit

    recipe, source = frame.recipe, frame.inputs.parents["model"]
    tokenizer = models.load_tokenizer(source, recipe.model)
    tokenizer.padding_side = "left"
    model = models.load_for_training(source, recipe.model, frame.machine, recipe.lora)
    scorers = [scorer(frame, i, model) for i in range(len(recipe.reward))]
    trainer = build_trainer(frame, model, tokenizer, scorers)

    before = frame.timed("measure", lambda: answers(frame, trainer, tokenizer))
    figures = fit(trainer, frame)
    after = frame.timed("measure", lambda: answers(frame, trainer, tokenizer))
    kl = frame.timed("measure", lambda: kl_to_reference(trainer, after))

    lines, checks = compare(frame, scorers, before, after, kl)
    return Result(
        save=lambda folder: save(trainer, tokenizer, folder, source),
        measurements=lines,
        gates=checks,
        metrics=figures,
        samples=samples(frame, before, after),
    )


def build_trainer(frame: Frame, model: Any, tokenizer: Any, scorers: list[Any]) -> Any:
    """Our trainer; the reference is the parent, whether that is an adapter, the base or a frozen copy."""
    from instructkit import adapters
    from instructkit.ppo.config import PPOConfig
    from instructkit.ppo.guidance import Guidance
    from instructkit.ppo.trainer import PPOTrainer
    from instructkit.stages.training import arguments, build, callbacks

    recipe, data = frame.recipe, frame.inputs.data
    start = start_of_critic(frame, tokenizer)
    args = arguments(PPOConfig, frame, recipe.trainer, **defaults_of(recipe, start))
    peft = recipe.lora is not None
    judge = load_function(recipe.gates.judge) if recipe.gates.judge else None
    return build(
        PPOTrainer,
        frame,
        model=model,
        args=args,
        reward_funcs=list(scorers),
        train_dataset=as_dataset(data["train"], columns_of(data["train"])),
        eval_dataset=as_dataset(data["eval"], columns_of(data["eval"])) if "eval" in data else None,
        processing_class=tokenizer,
        callbacks=[*callbacks(frame), Guidance(lambda text: frame.reporter.note(f"warning: {text}"))],
        critic=build_critic(frame, model, start),
        reference=adapters.as_parent if peft else None,
        settle=adapters.settle if peft else None,
        text_rows=text_rows(frame, tokenizer, args.max_length_of_text) if "ptx" in data else (),
        judges={"judge": judge} if judge else {},
    )


def defaults_of(recipe: Any, start: Start) -> dict[str, Any]:
    """What this stage prefers where the recipe is silent: a critic that knows nothing yet learns alone at first."""
    return {
        "reward_weights": [item.weight for item in recipe.reward],
        "value_warmup_steps": 0 if start.source else WARM_UP_OF_A_ZERO_HEAD,
    }


def columns_of(rows: Rows) -> tuple[str, ...]:
    """Every column that all rows have: reward functions are given them by name."""
    return tuple(sorted(set.intersection(*(set(row) for row in rows.rows))))


def text_rows(frame: Frame, tokenizer: Any, longest: int) -> list[dict[str, list[int]]]:
    """Rows of `data.ptx` as tokens, learned where the last answer stands (or whole texts), cut at `longest`."""
    from instructkit.encode import encode_text, encode_with_labels

    found = []
    for row in frame.inputs.data["ptx"].rows:
        if "text" in row:
            encoded = encode_text(tokenizer, row["text"])
        elif "messages" in row:
            encoded = encode_with_labels(tokenizer, row["messages"][:-1], row["messages"][-1]["content"])
        else:
            encoded = encode_with_labels(tokenizer, row["prompt"], answer_text(row["completion"]))
        found.append({name: ids[:longest] for name, ids in encoded.items()})
    return found


def answers(frame: Frame, trainer: Any, tokenizer: Any) -> list[Any]:
    """One sampled answer to each held-out prompt, with the same seed each time it is asked."""
    from instructkit.evaluate.generate import answer

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
    columns = columns_of(rows)
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
        for start in range(0, len(answered), size):
            part = answered[start : start + size]
            batch = rollout.collate([a.prompt_ids for a in part], [a.ids for a in part], pad_id=pad_id)
            batch = {name: tensor.to(trainer.accelerator.device) for name, tensor in batch.items()}
            reading = rollout.read(trainer.model, batch, temperature=trainer.temperature)
            reference = trainer.reference_logprobs(batch)
            sums.extend(((reading.logprobs - reference) * batch["response_mask"]).sum(1).tolist())
    return sums


def compare(
    frame: Frame, scorers: list[Any], before: list, after: list, kl: list[float]
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
        both = zip(*(scored(score, held_out_rows(frame), part) for part in (before, after)), strict=True)
        first, second = zip(*(pair for pair in both if None not in pair), strict=True)
        change = metrics.paired_difference(first, second, seed=frame.seed)
        lines.append(_line(f"reward {score.__name__}", first, second, change, "higher", None))
    mean, low, high = metrics.bootstrap_mean(kl, seed=frame.seed) if kl else (None, None, None)
    note = (
        f"95 % interval {low:.2f} to {high:.2f}"
        if kl
        else "not measured: beta is 0, so no reference was loaded"
    )
    lines.append(measurement("KL to the reference", unit="nats/answer", n=len(kl), after=mean, note=note))
    if wanted.kl_max_nats is not None:
        checks.append(gates.below("KL to the reference", mean, wanted.kl_max_nats))
    lengths = [[float(len(a.ids)) for a in part] for part in (before, after)]
    lines.append(_line("answer length", *lengths, None, None, None, unit="tokens"))
    ended = [[float(a.finished) for a in part] for part in (before, after)]
    lines.append(_line("answers that end by themselves", *ended, None, "higher", None, unit="share"))
    return lines, checks


def judged(frame: Frame, before: list, after: list) -> tuple[list[dict[str, Any]], metrics.Interval]:
    """What the judge says of both models' answers, as it is and at equal length; and the gain with its interval."""
    judge, prompts = load_function(frame.recipe.gates.judge), held_out_prompts(frame)
    first, second = (list(judge(prompts, [a.text for a in part])) for part in (before, after))
    change = metrics.paired_difference(first, second, seed=frame.seed)
    spans = [metrics.bootstrap_mean(scores, seed=frame.seed)[1:] for scores in (first, second)]
    told_spans = ", then ".join(f"{low:.3f} to {high:.3f}" for low, high in spans)
    note = f"no training stage sees it; 95 % intervals {told_spans}"
    lengths = [len(a.ids) for a in before], [len(a.ids) for a in after]
    even = metrics.gain_at_equal_length(first, second, lengths, seed=frame.seed)
    at_equal_length = measurement(
        "judge's gain at equal length",
        unit="score",
        n=len(after),
        change=list(even),
        better="higher",
        note="where an answer's length has not changed, by a straight line over the answers",
    )
    return [_line("judge's score", first, second, change, "higher", note), at_equal_length], change


def scored(score: Callable[..., Any], rows: list[dict[str, Any]], answered: list[Any]) -> list[float | None]:
    """Scores of answers by a reward function, called as TRL calls it in training; None where it has nothing to say."""
    prompts = [row["prompt"] for row in rows]
    told = [
        a.text if isinstance(prompt, str) else [{"role": "assistant", "content": a.text}]
        for prompt, a in zip(prompts, answered, strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    unheard = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    ids = [a.ids for a in answered]
    found = score(prompts=prompts, completions=told, completion_ids=ids, **columns, **unheard)
    if inspect.isawaitable(found):
        found = asyncio.run(_awaited(found))
    return [float(sum(x)) if isinstance(x, list | tuple) else x if x is None else float(x) for x in found]


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


def save(trainer: Any, tokenizer: Any, folder: Path, source: Any) -> None:
    """The policy alone at the top of the run folder; the critic beside it, for a next run."""
    tokenizer.padding_side = "right"
    models.save_model(trainer.model, tokenizer, folder, source)
    save_critic(trainer, tokenizer, folder / CRITIC_FOLDER, source)


def samples(frame: Frame, before: list, after: list) -> list[dict[str, Any]]:
    """A few held-out prompts with the answers of both models."""
    rows = zip(held_out_prompts(frame), before, after, strict=True)
    shown = list(rows)[: frame.recipe.run.samples]
    return [{"prompt": prompt, "before": first.text, "after": second.text} for prompt, first, second in shown]

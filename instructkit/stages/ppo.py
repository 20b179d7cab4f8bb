"""Reinforcement learning from human feedback: our `PPOTrainer` against reward models and functions, judged by someone else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructkit import models
from instructkit.data.prepare import load_split
from instructkit.errors import InputError
from instructkit.evaluate import metrics
from instructkit.feedback import gates
from instructkit.stages.base import Frame, Inputs, Result, as_dataset, measurement
from instructkit.stages.functions import load_function

CRITIC_FOLDER = "critic"


def collect(recipe: Any) -> Inputs:
    """Prompts to learn from and to hold out, the policy to start from and the reward models it is scored by."""
    train, held_out = load_split(recipe.data, kind="prompt", seed=recipe.run.seed)
    data = {"train": train} | ({"eval": held_out} if held_out else {})
    parents = {"model": models.locate(recipe.model.name)}
    for i, item in enumerate(recipe.reward):
        if item.model:
            parents[f"reward[{i}]"] = models.locate(item.model)
        else:
            load_function(item.function)
    if recipe.gates.judge:
        load_function(recipe.gates.judge)
    return Inputs(data, parents)


def train(frame: Frame) -> Result:
    """Train, and compare answers to held-out prompts before and after; see the module."""
    from instructkit.stages.training import fit

    recipe, source = frame.recipe, frame.inputs.parents["model"]
    tokenizer = models.load_tokenizer(source, recipe.model)
    tokenizer.padding_side = "left"
    model = models.load_for_training(source, recipe.model, frame.machine, recipe.lora)
    scorers = [scorer(frame, i) for i in range(len(recipe.reward))]
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
    from instructkit.ppo.trainer import PPOTrainer
    from instructkit.stages.training import arguments, build, callbacks

    recipe = frame.recipe
    weights = [item.weight for item in recipe.reward]
    args = arguments(PPOConfig, frame, recipe.trainer, reward_weights=weights)
    peft = recipe.lora is not None
    return build(
        PPOTrainer,
        frame,
        model=model,
        args=args,
        reward_funcs=list(scorers),
        train_dataset=as_dataset(frame.inputs.data["train"], ("prompt",)),
        processing_class=tokenizer,
        callbacks=callbacks(frame),
        critic=build_critic(frame, model, tokenizer),
        reference=adapters.as_parent if peft else None,
        settle=adapters.settle if peft else None,
    )


def build_critic(frame: Frame, model: Any, tokenizer: Any) -> Any:
    """
    The critic that the recipe asks for, and a line that says which and why.

    Under LoRA a head on the policy by default, which costs no second backbone; after full fine-tuning a body of its
    own, from the reward model when that reads the same tokens, else from the policy with a zero head.
    """
    from instructkit.ppo.critic import HeadCritic, SeparateCritic

    recipe = frame.recipe
    kind = recipe.critic.kind
    if kind == "auto":
        kind = "head" if recipe.lora else "separate"
    if kind == "head":
        frame.reporter.note("critic: a head on the policy, zero at the start")
        return HeadCritic(model.config.get_text_config().hidden_size, detach=recipe.critic.detach)
    source, offset = critic_source(frame, tokenizer)
    section = recipe.model
    classifier = models.load_for_training(source, section, frame.machine, recipe.lora, task="SEQ_CLS")
    if offset is None:
        frame.reporter.note("critic: a copy of the policy with a zero head")
        return SeparateCritic(classifier, zero_head=True)
    frame.reporter.note(f"critic: starts as the reward model {source.name}, scaled like the scores")
    return SeparateCritic(classifier, mean=offset.mean, std=offset.std)


def critic_source(frame: Frame, tokenizer: Any) -> tuple[models.Source, Any]:
    """The reward model and its offset when the critic may start from it; else the policy's own source and None."""
    from instructkit.scoring import Offset

    recipe, parents = frame.recipe, frame.inputs.parents
    wanted = recipe.critic.init
    learned = [parents[f"reward[{i}]"] for i, item in enumerate(recipe.reward) if item.model]
    possible = (
        len(recipe.reward) == 1 and len(learned) == 1 and recipe.lora is None and learned[0].adapter is None
    )
    if possible:
        theirs = models.load_tokenizer(learned[0], recipe.model)
        possible = theirs.get_vocab() == tokenizer.get_vocab()
    if wanted == "reward" and not possible:
        raise InputError(
            f"{recipe.source}: critic.init is reward, and the critic cannot start from this reward model",
            hint="that needs full fine-tuning, exactly one learned reward model and the policy's own tokenizer; "
            "use critic.init: zero",
        )
    if wanted == "zero" or not possible:
        return parents["model"], None
    return learned[0], Offset.read(learned[0].run)


def scorer(frame: Frame, index: int) -> Any:
    """One entry of the recipe's `reward:` list as a callable of TRL's form."""
    from instructkit.scoring import RewardScorer

    item = frame.recipe.reward[index]
    if item.function:
        return load_function(item.function)
    size = frame.recipe.trainer.get("per_device_eval_batch_size", 32)
    source = frame.inputs.parents[f"reward[{index}]"]
    return RewardScorer.load(source, frame.recipe.model, frame.machine, batch_size=size)


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


def held_out_prompts(frame: Frame) -> list[Any]:
    """The prompts that are only looked at: as many as `run.compare` says."""
    rows = frame.inputs.data.get("eval")
    return [row["prompt"] for row in rows.rows[: frame.recipe.run.compare]] if rows else []


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
    prompts, wanted = held_out_prompts(frame), frame.recipe.gates
    told = [a.text for a in before], [a.text for a in after]
    lines, checks = [], []
    if wanted.judge:
        judge = load_function(wanted.judge)
        first, second = (list(judge(prompts, texts)) for texts in told)
        change = metrics.paired_difference(first, second, seed=frame.seed)
        spans = [metrics.bootstrap_mean(scores, seed=frame.seed)[1:] for scores in (first, second)]
        told_spans = ", then ".join(f"{low:.3f} to {high:.3f}" for low, high in spans)
        note = f"no training stage sees it; 95 % intervals {told_spans}"
        lines.append(_line("judge's score", first, second, change, "higher", note))
        checks.append(gates.improved("judge's score", change, wanted.judge_gain_min))
    for score in scorers:
        first, second = (scored(score, prompts, part) for part in (before, after))
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


def scored(score: Callable[..., Any], prompts: list[Any], answered: list[Any]) -> list[float]:
    """Scores of answers by a reward function, called as TRL calls it in training: messages answer messages."""
    told = [
        a.text if isinstance(prompt, str) else [{"role": "assistant", "content": a.text}]
        for prompt, a in zip(prompts, answered, strict=True)
    ]
    return list(score(prompts=prompts, completions=told, completion_ids=[a.ids for a in answered]))


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
    import torch

    from instructkit.ppo.critic import copy_state

    tokenizer.padding_side = "right"
    models.save_model(trainer.model, tokenizer, folder, source)
    (folder / CRITIC_FOLDER).mkdir(exist_ok=True)
    torch.save(
        copy_state(trainer.accelerator.unwrap_model(trainer.critic)), folder / CRITIC_FOLDER / "critic.pt"
    )


def samples(frame: Frame, before: list, after: list) -> list[dict[str, Any]]:
    """A few held-out prompts with the answers of both models."""
    rows = zip(held_out_prompts(frame), before, after, strict=True)
    shown = list(rows)[: frame.recipe.run.samples]
    return [{"prompt": prompt, "before": first.text, "after": second.text} for prompt, first, second in shown]

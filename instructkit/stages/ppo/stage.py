"""Reinforcement learning from human feedback: our `PPOTrainer` against reward models and functions, judged by someone else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from instructkit.data.sources import Rows, Skipped, load_rows
from instructkit.data.split import load_split
from instructkit.errors import SHOWN_FAULTS, DataError, Fault, InputError
from instructkit.models import load, source
from instructkit.models.tokens import IGNORED, answer_text, encode_prompt
from instructkit.recipe import trainer
from instructkit.recipe.schema import PpoRecipe
from instructkit.stages import formats
from instructkit.stages.base import PREPARING, Frame, Inputs, Prepared, Result, Stage
from instructkit.stages.datasets import as_dataset, common_columns
from instructkit.stages.ppo.critic import (
    CRITIC_FOLDER,
    Start,
    build_critic,
    earlier,
    locate_earlier,
    save_critic,
    start_of_critic,
)
from instructkit.stages.ppo.measure import answers, answers_keeper, compare, kl_to_reference, samples
from instructkit.stages.user_functions import load_function, scoring_function


def scorers(frame: Frame, policy: Any, tokenizer: Any) -> list[Callable[..., Any]]:
    """The recipe's `reward:` list as callables of TRL's form, each with a name of its own, under which it is logged."""
    found = [scorer(frame, i, policy, tokenizer) for i in range(len(frame.recipe.reward))]
    times = Counter(each.__name__ for each in found)
    for i, each in enumerate(found):
        if times[each.__name__] > 1:
            each.__name__ = f"{each.__name__}[{i}]"
    return found


def scorer(frame: Frame, index: int, policy: Any, tokenizer: Any) -> Callable[..., Any]:
    """One entry of the recipe's `reward:` list as a callable of TRL's form."""
    from instructkit.models.generate import end_ids
    from instructkit.models.reward import RewardScorer

    item = frame.recipe.reward[index]
    if item.function:
        return scoring_function(item.function, texts=frame.inputs.data["train"].rendered)
    options = {
        "batch_size": frame.recipe.trainer.get("reading_batch_size", 32),
        "policy_tokenizer": tokenizer,
        "ends": end_ids(policy, tokenizer),
    }
    source = frame.inputs.parents[f"reward[{index}]"]
    if frame.recipe.lora is not None and source.adapter and source.base == frame.inputs.parents["model"].base:
        frame.reporter.note(f"reward {source.name}: an adapter on the policy's backbone")
        own = load.load_tokenizer(source, frame.recipe.model)
        return RewardScorer.on_backbone(policy, source, own, f"reward_{index}", **options)
    return RewardScorer.load(source, frame.recipe.model.of_another(), frame.machine, **options)


TEMPLATE_TOKENS = 256  # more than what a template puts around a message


def keep_to_context(frame: Frame, model: Any, tokenizer: Any, response: int) -> None:
    """
    Leave out, or refuse, prompts that with a response are longer than what the model has positions for.

    Past its positions a model of learned ones fails in the middle of the run, and any other says what nobody trained it for.

    Args:
        response: the longest one, in tokens.

    Raises:
        DataError: naming them, unless `data.on_fault` is `skip` and others are left.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for role in ("train", "eval") if positions else ():
        if role not in (data := frame.inputs.data):
            continue
        rows, found = data[role], _too_long(data[role], tokenizer, positions - response)
        if not found:
            continue
        told = f"a response of {response} more is longer than the model's {positions} positions"
        faults = {
            i: Fault(rows.places[i], f"a prompt of {n} tokens, which with {told}") for i, n in found.items()
        }
        skips = frame.recipe.data.on_fault == "skip"
        if not skips or len(found) == len(rows.rows):
            way = "" if skips else ", or leave them out with data.on_fault: skip"
            raise DataError(
                list(faults.values())[:SHOWN_FAULTS],
                len(faults),
                hint=f"{_shorter_responses(positions, found)}shorten or remove these prompts{way}; nothing was trained",
            )
        left_out = tuple(Skipped(fault, rows.rows[i]) for i, fault in faults.items())
        kept = rows.pick([i for i in range(len(rows.rows)) if i not in found])
        data[role] = replace(kept, skipped=(*rows.skipped, *left_out))
        frame.dropped[f"data.{role}: a prompt that with {told}"] = len(found)
        frame.reporter.note(
            f"{len(found)} of {len(rows.rows)} {role} prompts are left out, the first {left_out[0].fault}"
        )


def _shorter_responses(positions: int, found: dict[int, int]) -> str:
    """The way on that keeps the prompts, or those of them that the model has positions for at all."""
    fitting = [tokens for tokens in found.values() if tokens < positions]
    all_ = "" if len(fitting) == len(found) else f", with which {len(fitting)} of them fit"
    return (
        f"set trainer.max_completion_length to {positions - max(fitting)} or lower{all_}, " if fitting else ""
    )


def _too_long(rows: Rows, tokenizer: Any, room: int) -> dict[int, int]:
    """The tokens of each prompt that has more than there is room for, by row. A token is a byte at least."""
    found = {}
    for i, row in enumerate(rows.rows):
        prompt = row["prompt"]
        messages = 1 if isinstance(prompt, str) else len(prompt)
        text = (
            prompt if isinstance(prompt, str) else "".join(str(message.get("content")) for message in prompt)
        )
        if len(text.encode("utf-8", "surrogatepass")) + TEMPLATE_TOKENS * messages <= room:
            continue
        if (tokens := len(encode_prompt(tokenizer, prompt))) > room:
            found[i] = tokens
    return found


PpoFrame = Frame[PpoRecipe, Inputs]
WARM_UP_OF_A_ZERO_HEAD = 10  # rollouts in which a critic that knows nothing yet learns alone


class Ppo(Stage[PpoRecipe, Inputs]):
    """Improve a policy by PPO against reward models and functions."""

    name, recipe_type = "ppo", PpoRecipe

    def collect(self, recipe: PpoRecipe, begun: Mapping[str, Any]) -> Inputs:
        """Read prompts for training and evaluation, and find the policy, the reward models and the critic to start from."""
        train, held_out = load_split(recipe.data, kind="prompt", seed=recipe.run.seed)
        data = {"train": train} | ({"eval": held_out} if held_out else {})
        if recipe.data.ptx:
            data["ptx"] = load_rows(recipe.data.ptx, kind="sft", every_column=False)
        _refuse_half_of_ptx(recipe)
        parents = {"model": source.locate(recipe.model.name)}
        for i, item in enumerate(recipe.reward):
            if item.model:
                parents[f"reward[{i}]"] = source.locate(item.model)
            else:
                load_function(item.function)
        if critic := locate_earlier(recipe):
            parents["critic"] = critic
            earlier(recipe, parents)
        if recipe.gates.judge:
            load_function(recipe.gates.judge)
        return formats.applied(recipe, Inputs(data, parents))

    def prepare(self, frame: PpoFrame) -> Prepared:
        """Build the trainer, with what scores its responses."""
        recipe, source = frame.recipe, frame.inputs.parents["model"]
        tokenizer = formats.tokenizer_of(frame)
        tokenizer.padding_side = "left"
        model = load.load_for_training(source, recipe.model, frame.machine, recipe.lora)
        rewards = scorers(frame, model, tokenizer)
        return Prepared(build_trainer(frame, model, tokenizer, rewards), tokenizer, rewards)

    def train(self, frame: PpoFrame) -> Result:
        """Train, with the answers to held-out prompts before and after."""
        from instructkit.stages.trainer import fit

        source = frame.inputs.parents["model"]
        with frame.reporter.phase(PREPARING):
            prepared = self.prepare(frame)
        trainer, tokenizer = prepared.trainer, prepared.tokenizer
        answering = partial(answers, frame, trainer, tokenizer)
        before = frame.timed(
            "measure", answering, phase="measuring before training: answers to held-out prompts"
        )
        figures = fit(trainer, frame)
        after = frame.timed(
            "measure", answering, phase="measuring after training: answers to held-out prompts"
        )
        reading = partial(kl_to_reference, trainer, after)
        kl = frame.timed("measure", reading, phase="measuring after training: KL to the reference")

        with frame.reporter.phase("scoring the answers before and after"):
            lines, checks = compare(frame, prepared.scorers, before, after, kl, trainer.state)
        return Result(
            save=lambda folder: save(trainer, tokenizer, folder, source),
            measurements=lines,
            gates=checks,
            metrics=figures,
            samples=samples(frame, before, after),
        )


STAGE = Ppo()


def _refuse_half_of_ptx(recipe: PpoRecipe) -> None:
    """PPO-ptx needs text and a weight; one without the other would be ignored."""
    weight = recipe.trainer.get("ptx_coef", 0)
    if bool(recipe.data.ptx) != bool(weight):
        missing = "trainer.ptx_coef" if recipe.data.ptx else "data.ptx"
        raise InputError(
            f"{recipe.source}: PPO-ptx needs both data.ptx and trainer.ptx_coef, and {missing} is not set",
            hint="set both, or neither",
        )


def build_trainer(frame: PpoFrame, model: Any, tokenizer: Any, rewards: list[Any]) -> Any:
    """Our trainer; the reference is the parent, whether that is an adapter, the base or a frozen copy."""
    from instructkit.models import adapters
    from instructkit.ppo.advice import Guidance
    from instructkit.ppo.config import PPOConfig
    from instructkit.ppo.trainer import PPOTrainer
    from instructkit.stages.trainer import arguments, build, callbacks

    recipe, data = frame.recipe, frame.inputs.data
    start = start_of_critic(frame, tokenizer)
    args = arguments(PPOConfig, frame, recipe.trainer, **defaults_of(recipe))
    if "value_warmup_steps" not in recipe.trainer:
        args.value_warmup_steps = warm_up_of(start, args.rollouts(len(data["train"].rows)))
    peft = recipe.lora is not None
    if costs_nothing_to_be_cut_off(recipe):
        frame.reporter.note("missing_eos_penalty 0: functions score on scales of their own")
    if peft and recipe.lora.dropout and args.disable_dropout:
        frame.reporter.note(
            "lora.dropout plays no part: PPO scores a response with the very policy that wrote it"
        )
    keep_to_context(frame, model, tokenizer, args.max_completion_length)
    judge = scoring_function(recipe.gates.judge, texts=data["train"].rendered) if recipe.gates.judge else None
    return build(
        PPOTrainer,
        frame,
        model=model,
        args=args,
        reward_funcs=list(rewards),
        train_dataset=as_dataset(data["train"], common_columns(data["train"])),
        eval_dataset=as_dataset(data["eval"], common_columns(data["eval"])) if "eval" in data else None,
        processing_class=tokenizer,
        callbacks=[*callbacks(frame), Guidance(lambda text: frame.reporter.note(f"warning: {text}"))],
        critic=build_critic(frame, model, start),
        reference=adapters.as_parent if peft else None,
        for_sampling=adapters.folded if peft else None,
        settle=adapters.settle if peft else None,
        text_rows=text_rows(frame, tokenizer, args.max_length_of_text) if "ptx" in data else (),
        judges={"judge": judge} if judge else {},
        keep_answers=answers_keeper(frame),
    )


def defaults_of(recipe: PpoRecipe) -> dict[str, Any]:
    """What this stage prefers where the recipe is silent."""
    found: dict[str, Any] = {"reward_weights": [item.weight for item in recipe.reward]}
    if costs_nothing_to_be_cut_off(recipe):
        found["missing_eos_penalty"] = 0.0
    if (
        recipe.lora is not None
    ):  # adapters start at nothing and learn slower; no sweep stands behind these two
        found |= trainer.ADAPTERS_LEARN
    return found


def costs_nothing_to_be_cut_off(recipe: PpoRecipe) -> bool:
    """Functions score on scales of their own, so nothing is taken from them for a missing end unless the recipe says how."""
    asked = {"missing_eos_penalty", "missing_eos_mode"} & set(recipe.trainer)
    return not asked and not any(item.model for item in recipe.reward)


def warm_up_of(start: Start, rollouts: float) -> int:
    """Rollouts in which the critic learns alone: none where it knows something, else up to 10, at most a quarter of the run."""
    return 0 if start.source else int(min(WARM_UP_OF_A_ZERO_HEAD, rollouts // 4))


def text_rows(frame: PpoFrame, tokenizer: Any, longest: int) -> list[dict[str, list[int]]]:
    """Rows of `data.ptx` as tokens, learned where the last answer stands (or whole texts), cut at `longest`."""
    from instructkit.models.tokens import encode_text, encode_with_labels

    found = []
    for row in frame.inputs.data["ptx"].rows:
        if "text" in row:
            encoded = encode_text(tokenizer, row["text"])
        elif "messages" in row:
            encoded = encode_with_labels(tokenizer, row["messages"][:-1], row["messages"][-1]["content"])
        else:
            encoded = encode_with_labels(tokenizer, row["prompt"], answer_text(row["completion"]))
        cut = {name: ids[:longest] for name, ids in encoded.items()}
        if any(label != IGNORED for label in cut["labels"][1:]):
            found.append(cut)
    if short := len(frame.inputs.data["ptx"].rows) - len(found):
        frame.dropped[f"data.ptx: nothing to learn within {longest} tokens"] = short
    return found


def save(trainer: Any, tokenizer: Any, folder: Path, source: Any) -> None:
    """The policy alone at the top of the run folder; the critic beside it, for a next run."""
    tokenizer.padding_side = "right"
    load.save_model(trainer.model, tokenizer, folder, source)
    save_critic(trainer, tokenizer, folder / CRITIC_FOLDER, source)

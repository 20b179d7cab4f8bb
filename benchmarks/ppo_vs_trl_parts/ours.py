"""instructkit's PPOTrainer on the benchmark's work, and beside it bare generation and a bare forward and backward pass."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from instructkit.models import adapters, machine, source
from instructkit.models.reward import RewardScorer
from instructkit.ppo import rollout
from instructkit.ppo.config import PPOConfig
from instructkit.ppo.critic import AdapterCritic, HeadCritic
from instructkit.ppo.trainer import PPOTrainer


class Clock(TrainerCallback):
    """When each rollout with its updates was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102 - transformers' signature
        if state.global_step % common.EPOCHS == 0:
            self.times.append(time.perf_counter())


def main() -> None:
    """Train for the wanted rollouts, then time the bare passes on the same batch."""
    wanted = common.settings()
    if common.on_cpu(wanted):
        machine.keep_freed_memory()  # as every stage does
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(wanted, Path(folder), clock)
        phases = watch(trainer)
        trainer.train()
        peak = common.peak_bytes(wanted)
        bare = bare_passes(trainer, wanted)
    gaps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    common.done(wanted, seconds=gaps, phases=phases, bare=bare, peak_of_training=peak)


def build(wanted: dict[str, Any], folder: Path, clock: Clock) -> PPOTrainer:
    """The trainer: LoRA policy, learned reward as an adapter on its backbone, the wanted critic."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(wanted["model"], padding_side="left")
    dtype = torch.float32 if common.on_cpu(wanted) else torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(wanted["model"], dtype=dtype)
    reward = saved_reward(wanted["model"], folder)
    policy = adapters.add_lora(base, lora("CAUSAL_LM"), None)
    policy.to(wanted["device"])
    scorer = RewardScorer.on_backbone(
        policy, reward, tokenizer, "reward_0", policy_tokenizer=tokenizer, batch_size=wanted["batch"]
    )
    hidden = policy.config.hidden_size
    if wanted["critic"] == "head":
        critic = HeadCritic(hidden)
    else:
        owns = lambda name: adapters.adapter_of(name) == adapters.CRITIC  # noqa: E731
        critic = AdapterCritic(hidden, adapters.add_critic(policy, reward.adapter), owns)
    config = PPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=wanted["batch"],
        steps_per_generation=1,
        num_iterations=common.EPOCHS,
        max_steps=common.EPOCHS * wanted["rollouts"],
        max_completion_length=wanted["length"],
        learning_rate=common.LEARNING_RATE,
        beta=common.BETA,
        use_cpu=common.on_cpu(wanted),
        bf16=not common.on_cpu(wanted),
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=common.EPOCHS,
    )
    trainer = PPOTrainer(
        model=policy,
        reward_funcs=[scorer],
        args=config,
        train_dataset=Dataset.from_list(common.messages(wanted["prompts"])),
        processing_class=tokenizer,
        critic=critic,
        reference=adapters.as_parent,
        for_sampling=adapters.folded,
        settle=adapters.settle,
        callbacks=[clock],
    )
    never = base.config.vocab_size - 1  # every response has the full length
    trainer.eos_token_ids = [never]
    trainer.generation_config.eos_token_id = [never]
    trainer.generation_kwargs["eos_token_id"] = [never]
    return trainer


def lora(task: str) -> LoraConfig:
    """The adapter of every role."""
    more = {"modules_to_save": ["score"]} if task == "SEQ_CLS" else {}
    return LoraConfig(r=common.RANK, target_modules=common.TARGETS, task_type=task, **more)


def saved_reward(model: str, folder: Path) -> source.Source:
    """A reward model's run: a fresh adapter and head on the same base."""
    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    adapters.save_adapter(adapters.add_lora(classifier, lora("SEQ_CLS"), None), folder / "reward", model)
    return source.Source("reward", model, adapter=folder / "reward")


def watch(trainer: PPOTrainer) -> dict[str, list[float]]:
    """Seconds of each phase, rollout by rollout, as the trainer itself tells them."""
    phases: dict[str, list[float]] = {}

    class Listen(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            for name, value in (logs or {}).items():
                if name.startswith("time/"):
                    phases.setdefault(name, []).append(value)

    trainer.add_callback(Listen())
    return phases


def bare_passes(trainer: PPOTrainer, wanted: dict[str, Any]) -> dict[str, float]:
    """Median seconds of bare `generate`, forward with backward, and the same without a head, on the trainer's last batch."""
    batch, model = trainer._rollout, trainer.model
    ids, mask, positions = rollout.joined(batch)
    prompts = {"input_ids": batch["prompt_ids"], "attention_mask": batch["prompt_mask"]}
    length = wanted["length"]

    def generate() -> None:
        with torch.no_grad():
            model.generate(**prompts, generation_config=trainer.generation_config)

    def learn() -> None:
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=length + 1
        ).logits
        labels = batch["completion_ids"]
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten()).backward()
        model.zero_grad()

    def value() -> None:
        body = model.get_base_model().base_model
        states = body(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        states[:, -length - 1 : -1].sum().backward()
        model.zero_grad()

    model.train()
    works = {"generate": generate, "learn": learn, "value": value}
    times = {name: [] for name in works}
    for _ in range(wanted["bare"]):
        for name, work in works.items():
            times[name].append(common.seconds(work))
    return {name: statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()

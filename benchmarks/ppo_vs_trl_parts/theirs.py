"""TRL 1.12's PPOTrainer on the benchmark's work; run in its own environment by `ppo_vs_trl.py`."""

from __future__ import annotations

import tempfile
import time

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
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Clock(TrainerCallback):
    """When each rollout with its updates was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102 - transformers' signature
        self.times.append(time.perf_counter())


def main() -> None:
    """Train for the wanted rollouts; the first is a warm-up and is not counted."""
    wanted = common.settings()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(wanted["model"], padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "<|im_start|>"})
    dtype = torch.float32 if common.on_cpu(wanted) else torch.bfloat16
    policy = AutoModelForCausalLM.from_pretrained(wanted["model"], dtype=dtype)
    policy.generation_config.eos_token_id = None  # every response has the full length
    classify = AutoModelForSequenceClassification.from_pretrained
    reward, value = (classify(wanted["model"], num_labels=1, dtype=dtype) for _ in range(2))
    rows = [{"input_ids": ids} for ids in common.prompts(wanted["prompts"], tokenizer)]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=wanted["batch"],
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=common.EPOCHS,
            local_rollout_forward_batch_size=wanted["batch"],
            total_episodes=wanted["batch"] * wanted["rollouts"],
            response_length=wanted["length"],
            learning_rate=common.LEARNING_RATE,
            kl_coef=common.BETA,
            temperature=1.0,
            num_sample_generations=0,
            use_cpu=common.on_cpu(wanted),
            bf16=not common.on_cpu(wanted),
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=None,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(r=common.RANK, target_modules=common.TARGETS, task_type="CAUSAL_LM"),
            callbacks=[clock],
        )
        trainer.train()
    gaps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    common.done(wanted, seconds=gaps)


if __name__ == "__main__":
    main()

"""TRL 1.12's PPOTrainer from the seed's policy and reward model, in its own environment; saves the policy alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer

ROLLOUTS, BATCH, EPOCHS, LONGEST = 30, 128, 2, 40


def main() -> None:
    """Train and save."""
    wanted = json.loads(sys.argv[1])
    set_seed(wanted["seed"])  # TRL 1.12 leaves numpy, which orders its epochs, unseeded
    tokenizer = AutoTokenizer.from_pretrained("runs/sft", padding_side="left")
    out = f"runs/{wanted['name']}"
    policy, reference = (AutoModelForCausalLM.from_pretrained("runs/sft") for _ in range(2))
    classify = AutoModelForSequenceClassification.from_pretrained
    reward, value = (classify("runs/reward", num_labels=1) for _ in range(2))
    rows = [{"input_ids": ids} for ids in json.loads(Path("prompts.json").read_text(encoding="utf-8"))]
    config = PPOConfig(
        output_dir=f"{out}/checkpoints",
        seed=wanted["seed"],
        per_device_train_batch_size=BATCH // 2,
        gradient_accumulation_steps=1,
        num_mini_batches=2,
        num_ppo_epochs=EPOCHS,
        local_rollout_forward_batch_size=BATCH,
        total_episodes=ROLLOUTS * BATCH,
        response_length=LONGEST,
        stop_token="eos",
        missing_eos_penalty=1.0,
        learning_rate=wanted["rate"],
        kl_coef=wanted["beta"],
        temperature=1.0,
        num_sample_generations=0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    with torch.no_grad():
        policy.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()

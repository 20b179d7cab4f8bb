"""LoRA supervised fine-tuning with TRL on a batch of the same shape: what PPO's memory is compared with."""

from __future__ import annotations

import tempfile

import common
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """A few steps over token rows as long as prompt and response together."""
    wanted = common.settings()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(wanted["model"])
    base = AutoModelForCausalLM.from_pretrained(
        wanted["model"], dtype=torch.float32 if common.on_cpu(wanted) else torch.bfloat16
    )
    rows = [ids + ids[:1] * wanted["length"] for ids in common.prompts(wanted["prompts"], tokenizer)]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=wanted["batch"],
            max_steps=3,
            max_length=4096,
            use_cpu=common.on_cpu(wanted),
            bf16=not common.on_cpu(wanted),
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
        )
        SFTTrainer(
            model=base,
            args=config,
            train_dataset=Dataset.from_list([{"input_ids": ids} for ids in rows]),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=common.RANK, target_modules=common.TARGETS, task_type="CAUSAL_LM"),
        ).train()
    common.done(wanted)


if __name__ == "__main__":
    main()

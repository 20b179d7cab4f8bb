"""What the tests of the trainer share: a real trainer on a tiny model, and a rollout of fixed tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from instructkit.models import adapters
from instructkit.ppo import rollout
from instructkit.ppo.config import PPOConfig
from instructkit.ppo.critic import AdapterCritic, HeadCritic, SeparateCritic
from instructkit.ppo.trainer import PPOTrainer

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("Hello", "What is this?", "Why", "Tell me more", "a", "b c", "d", "e f g")
]


def one_that_ends(model, tokenizer):
    """Answers of a random model go on for ever; with a bias on the end token they vary in length."""
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size), requires_grad=False)
    model.lm_head.bias[tokenizer.eos_token_id] = 4.0
    return model


def count_e(prompts, completions, **_):
    """A reward that a random model can move: letters `e` in the answer."""
    return [float(completion[0]["content"].count("e")) for completion in completions]


def build(
    folder: Path,
    tmp_path: Path,
    *,
    lora: bool = False,
    critic: str | torch.nn.Module = "head",
    callbacks=None,
    model=None,
    rewards=None,
    rows=None,
    more=None,
    **settings,
) -> PPOTrainer:
    """A trainer on a tiny model; `critic` is a kind or a critic, `more` further arguments, `settings` those of the config."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = model or one_that_ends(AutoModelForCausalLM.from_pretrained(folder), tokenizer)
    if lora:
        model = adapters.add_lora(
            model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"), None
        )
    options = {
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_iterations": 2,
        "max_completion_length": 6,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
        "seed": 3,
    }
    if isinstance(critic, torch.nn.Module):
        value = critic
    elif critic == "head":
        value = HeadCritic(model.config.hidden_size)
    elif critic == "adapter":
        value = AdapterCritic(model.config.hidden_size, adapters.add_critic(model, None), owned_by_critic)
    else:
        value = SeparateCritic(
            AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1), zero_head=True
        )
    return PPOTrainer(
        model=model,
        reward_funcs=rewards or [count_e],
        args=PPOConfig(**{**options, **settings}),
        train_dataset=Dataset.from_list(rows or [{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer,
        critic=value,
        callbacks=callbacks,
        **(
            {"reference": adapters.as_parent, "settle": adapters.settle, "for_sampling": adapters.folded}
            if lora
            else {}
        ),
        **(more or {}),
    )


def owned_by_critic(name: str) -> bool:
    return adapters.adapter_of(name) == adapters.CRITIC


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    """Every weight of policy and critic, copied."""
    both = {
        **dict(trainer.model.named_parameters()),
        **{f"critic.{n}": p for n, p in trainer.critic.named_parameters()},
    }
    return {name: parameter.detach().clone() for name, parameter in both.items()}


def step_of_eight(folder: Path, tmp_path: Path, size: int, **settings) -> PPOTrainer:
    """One optimizer step over eight sequences, in micro-batches of `size`."""
    pieces = 8 // size
    return build(
        folder,
        tmp_path,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=pieces,
        steps_per_generation=pieces,
        num_iterations=1,
        **settings,
    )


def logged(trainer: PPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def fixed_rollout(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    """Eight responses of uneven length with made-up advantages, read by the trainer's own policy."""
    generator = torch.Generator().manual_seed(0)
    prompts = [[5, 6, 7][: 1 + i % 3] for i in range(8)]
    responses = [torch.randint(10, 60, (1 + i % 5,), generator=generator).tolist() for i in range(8)]
    batch = rollout.collate(prompts, responses, pad_id=trainer._tokenizer.pad_token_id)
    with torch.no_grad():
        logprobs = rollout.read(trainer.model, batch, temperature=1.0).logprobs
    shape = logprobs.shape
    return {
        **batch,
        "old_logprobs": logprobs + 0.1 * torch.randn(shape, generator=generator),
        "old_values": torch.randn(shape, generator=generator),
        "advantages": torch.randn(shape, generator=generator),
        "returns": torch.randn(shape, generator=generator),
    }

"""
What each role of PPO holds with SmolLM2-135M in float32, counted and not measured.

    python benchmarks/ppo_roles_memory.py

Builds the model from its config on PyTorch's meta device, so nothing is fetched, and writes
`results/ppo_roles_memory.md`. A trained weight costs 4 bytes for itself, 4 for its gradient and 8 for Adam's two moments;
score heads (one number for each of 576 hidden units) are below a hundredth of a MiB.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

RESULT = Path(__file__).parent / "results" / "ppo_roles_memory.md"
SMOLLM2_135M = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
RANK = 16
MIB = 2**20
NUMBER = 4  # bytes of a float32


def main() -> None:
    """Count, and write the table."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SMOLLM2_135M))
        base = held(model.parameters())
        config = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
    adapter = held(p for p in adapted.parameters() if p.requires_grad)
    RESULT.write_text(table(base, adapter), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def held(parameters) -> float:
    """MiB of these weights in float32, each counted once where it is tied."""
    return sum({id(p): p.numel() for p in parameters}.values()) * NUMBER / MIB


def table(base: float, adapter: float) -> str:
    """The kept table, from the MiB of a model and of an adapter."""
    trains, adapts = 3 * base, 3 * adapter  # gradient and two moments
    lora = base + 2 * (adapter + adapts) + adapter
    whole = 4 * base + 2 * trains
    rows = [
        (
            "policy",
            f"{base:.0f} for the base, once, and {adapter:.0f} + {adapts:.0f}",
            f"{base:.0f} + {trains:.0f}",
        ),
        ("reference", "0", f"{base:.0f}"),
        ("critic", f"{adapter:.0f} + {adapts:.0f}", f"{base:.0f} + {trains:.0f}"),
        ("reward model", f"{adapter:.0f}", f"{base:.0f}"),
        ("together", f"{lora:.0f}", f"{whole:.0f}"),
    ]
    head = (
        "# What each role of PPO holds (MiB)\n\nCommand: `python benchmarks/ppo_roles_memory.py`. SmolLM2-135M from its config, "
        f"float32, LoRA r={RANK} on all linear layers; weights, then gradients and Adam's two moments where it trains.\n\n"
        "| role | LoRA, `critic: adapter` | all weights, separate models |\n|---|---|---|\n"
    )
    return head + "\n".join(f"| {a} | {b} | {c} |" for a, b, c in rows) + "\n"


if __name__ == "__main__":
    main()

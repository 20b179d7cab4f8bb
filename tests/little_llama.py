"""A Llama of two layers and random weights, for tests of what does not depend on what it says."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM


def little_llama() -> LlamaForCausalLM:
    """A fresh one; its weights follow torch's seed."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )

"""Reading without logits says what reading with logits says; rows of like length together change nothing."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from instructkit.models import adapters
from instructkit.ppo import rollout

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def model_of(family: str, folder):
    torch.manual_seed(0)
    if family == "llama":
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    if family == "granite":  # divides its logits by a constant
        return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0, initializer_range=0.3)).eval()
    if family == "other":  # bends them in a way that no config tells
        return Bent(Gemma2Config(**SMALL, final_logit_softcapping=None, initializer_range=0.3)).eval()
    config = Gemma2Config(**SMALL, final_logit_softcapping=2.0, initializer_range=0.3)  # bends its logits
    return Gemma2ForCausalLM(config).eval()


class Bent(Gemma2ForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.sin()
        return out


BATCH = rollout.collate([[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14]], pad_id=0)


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2", "other"])
def test_log_probabilities_entropies_and_gradients_are_those_of_the_logits(tiny_folder, family: str) -> None:
    model = model_of(family, tiny_folder)
    ids, attention, positions = rollout.joined(BATCH)
    mask = BATCH["response_mask"]
    logits = (
        model(input_ids=ids, attention_mask=attention, position_ids=positions).logits[:, 2:-1].float() / 0.7
    )
    rows = torch.log_softmax(logits, -1)
    wanted = rows.gather(-1, BATCH["completion_ids"].unsqueeze(-1)).squeeze(-1)
    wanted[mask].sum().backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    found = rollout.read(model, BATCH, temperature=0.7, entropy=True)
    torch.testing.assert_close(found.logprobs[mask], wanted[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropies[mask], -(rows.exp() * rows).sum(-1)[mask], atol=1e-5, rtol=0)
    assert (found.logprobs[~mask] == 0).all()
    found.logprobs.sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradient[name], atol=2e-5, rtol=1e-3)


def test_what_a_head_does_is_asked_of_the_model(tiny_folder) -> None:
    assert rollout.head_law(model_of("llama", tiny_folder)).scale == pytest.approx(1.0, abs=1e-5)
    assert rollout.head_law(model_of("granite", tiny_folder)).scale == pytest.approx(0.25, abs=1e-5)
    assert rollout.head_law(model_of("gemma2", tiny_folder)) == (1.0, 2.0)
    assert rollout.head_law(model_of("other", tiny_folder)) is None


def test_a_model_that_reads_still_answers_as_before(tiny_folder) -> None:
    model = model_of("llama", tiny_folder)
    before = model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, do_sample=False)
    rollout.add_reader(model)
    assert torch.equal(model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, do_sample=False), before)
    assert model(torch.tensor([[5, 6]])).logits.shape == (1, 2, model.config.vocab_size)


def test_wrappers_are_looked_through(tiny_folder) -> None:
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = adapters.add_lora(AutoModelForCausalLM.from_pretrained(tiny_folder), config, None)
    assert not rollout.reads_responses(model)
    rollout.read(model, BATCH, temperature=1.0)
    assert rollout.reads_responses(model)


def test_rows_come_back_where_they_were(tiny_folder) -> None:
    """Sorted, trimmed and read two at a time, against one batch with all its padding."""
    model = model_of("llama", tiny_folder)
    batch = rollout.collate([[5] * n for n in (9, 1, 4, 2, 7)], [[6] * n for n in (1, 8, 3, 5, 2)], pad_id=0)
    with torch.no_grad():
        whole = rollout.read(model, batch, temperature=1.0).logprobs
        parts = [
            (i, rollout.read(model, part, temperature=1.0).logprobs)
            for i, part in rollout.by_length(batch, 2)
        ]
    torch.testing.assert_close(rollout.put_back(parts, whole.shape), whole, atol=1e-5, rtol=0)


def test_trimming_cuts_shared_padding_alone() -> None:
    batch = rollout.collate([[5, 6], [7]], [[8, 9], [1]], pad_id=0)
    batch["advantages"] = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    batch["count"] = torch.tensor(7)
    short = rollout.trimmed(rollout.rows_of(batch, torch.tensor([1])))
    assert short["prompt_ids"].tolist() == [[7]]
    assert short["completion_ids"].tolist() == [[1]]
    assert short["advantages"].tolist() == [[3.0]]
    assert short["count"] == 7


def test_passes_hold_no_more_than_they_may_and_every_row_once() -> None:
    batch = rollout.collate([[i + 1] * 3 for i in range(8)], [[7] * (1 + i % 5) for i in range(8)], pad_id=0)
    assert rollout.passes_needed(batch, None) == 1
    assert rollout.passes_needed(batch, 64) == 1
    assert rollout.passes_needed(batch, 63) == 2
    assert rollout.passes_needed(batch, 3) == 8  # a row is never divided
    for count in (1, 2, 3, 8, 9):
        parts = rollout.in_passes(batch, count)
        assert sorted(int(i) for part in parts for i in part["prompt_ids"][:, 0]) == list(range(1, 9))
        assert len(parts) == min(count, 8)
        assert all(len(part["prompt_ids"]) <= -(-8 // count) for part in parts)


def test_an_epoch_visits_every_row_once_in_another_order() -> None:
    torch.manual_seed(0)
    batch = rollout.collate([[i + 1] for i in range(8)], [[i + 1] * (1 + i % 3) for i in range(8)], pad_id=0)
    epochs = [
        [part["prompt_ids"][:, 0].tolist() for part in rollout.mini_batches(batch, pieces=4, accumulation=2)]
        for _ in range(2)
    ]
    for epoch in epochs:
        assert sorted(i for part in epoch for i in part) == list(range(1, 9))
        assert [len(part) for part in epoch] == [2] * 4
    assert epochs[0] != epochs[1]

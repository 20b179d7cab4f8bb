"""A beginning that all rows share is read once, and every state and gradient is that of reading it in every row."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaModel,
    MptConfig,
    MptForCausalLM,
)

from instructkit.ppo import prefix, rollout

SYSTEM = [3, 4, 5, 6, 7, 8, 9, 10]
SMALL = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


def batch_of(tails=((11, 12, 13), (14,), (15, 16))):
    responses = [[20, 21], [22, 23, 24, 25], [26]]
    return rollout.collate([SYSTEM + list(tail) for tail in tails], responses, pad_id=0)


def read_tokens(model, work) -> int:
    """How many tokens went through the model's embedding while `work` ran."""
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _, ids, out: seen.append(ids[0].numel())
    )
    work()
    handle.remove()
    return sum(seen)


def whole_states(body, ids, mask, positions):
    return body(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state


def test_states_and_gradients_are_those_of_reading_every_row_whole(tiny_folder) -> None:
    body = AutoModel.from_pretrained(tiny_folder).eval()
    ids, mask, positions = rollout.joined(batch_of())
    wanted = whole_states(body, ids, mask, positions)[:, -5:]
    real = mask[:, -5:].bool()
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))[real]
    (wanted[real] * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in body.named_parameters()}
    body.zero_grad()

    found, left_out = prefix.states(body, ids, mask, positions, needed=ids.size(1) - 5)
    assert left_out == len(SYSTEM)
    found = found[:, -5:]
    torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)
    (found[real] * weights).sum().backward()
    for name, parameter in body.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-3, msg=name)


def test_shared_tokens_pass_the_layers_once(tiny_folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    batch = batch_of()
    rollout.read(model, batch, temperature=1.0)  # asks the model once whether it can
    tokens = rollout.joined(batch)[0]
    assert read_tokens(
        model, lambda: rollout.read(model, batch, temperature=1.0)
    ) == tokens.numel() - 2 * len(SYSTEM)


def test_rows_padded_on_the_right_keep_their_states(tiny_folder) -> None:
    body = AutoModel.from_pretrained(tiny_folder).eval()
    rows = [SYSTEM + [11, 12, 13], SYSTEM + [14]]
    ids = torch.tensor([row + [0] * (11 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (11 - len(row)) for row in rows])
    wanted = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    found, left_out = prefix.states(body, ids, mask, needed=8)
    assert left_out == 8
    torch.testing.assert_close(found[0], wanted[0, 8:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1, 0], wanted[1, 8], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "count"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [2, 2, 3]], 0),
        (
            [[1, 2, 3], [1, 2, 3]],
            2,
        ),  # the last prompt token is read in every row: the first action follows it
        ([[1, 2], [1, 2, 3, 4]], 1),
        ([[0, 0, 3], [0, 0, 4]], 2),  # tokens that look like padding are real where the mask says so
        ([[1, 5, 2], [1, 6, 2]], 1),  # alike again after a difference is not shared
    ],
)
def test_how_many_tokens_are_shared(prompts, count: int) -> None:
    batch = rollout.collate(prompts, [[9], [9, 9]], pad_id=0)
    ids, mask, _ = rollout.joined(batch)
    assert prefix.shared_tokens(ids, mask, needed=batch["prompt_ids"].size(1) - 1) == count


def test_models_that_cannot_go_on_from_a_beginning_read_every_row_whole(tiny_folder) -> None:
    torch.manual_seed(0)
    assert prefix.shares_beginnings(AutoModel.from_pretrained(tiny_folder))
    for window in (4, 4096):  # windows count columns; a few tokens do not show it of the longer one
        gemma = Gemma2Model(Gemma2Config(**SMALL, **HEADS, sliding_window=window))
        assert not prefix.shares_beginnings(gemma)
    long = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not prefix.shares_beginnings(LlamaModel(LlamaConfig(**SMALL, **HEADS, rope_parameters=long)))
    bert = BertModel(BertConfig(**SMALL, num_attention_heads=2))
    assert not prefix.shares_beginnings(bert)  # its first tokens see the later ones
    ids, mask, _ = rollout.joined(batch_of())
    assert prefix.states(bert, ids, mask, needed=8)[1] == 0


def test_a_cache_and_gradient_checkpointing_exclude_each_other(tiny_folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    batch = batch_of()
    wanted = rollout.read(model, batch, temperature=1.0).logprobs
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert not prefix.shares_beginnings(model.base_model)
    found = rollout.read(model, batch, temperature=1.0).logprobs
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_short_beginnings_are_not_worth_a_second_pass(tiny_folder) -> None:
    body = AutoModel.from_pretrained(tiny_folder)
    batch = rollout.collate([[3, 4], [3, 5]], [[20] * 20, [21] * 20], pad_id=0)
    ids, mask, positions = rollout.joined(batch)
    assert prefix.shared_tokens(ids, mask, needed=1) == 1
    assert prefix.states(body, ids, mask, positions, needed=1)[1] == 0


def gpt_neo() -> GPTNeoForCausalLM:
    kinds = [[["global", "local"], 1]]
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=32, hidden_size=32, num_layers=2, num_heads=2, attention_types=kinds, window_size=12
        )
    )


def mpt() -> MptForCausalLM:
    return MptForCausalLM(MptConfig(vocab_size=32, d_model=32, n_heads=4, n_layers=2, max_seq_len=64))


@pytest.mark.parametrize("build", [gpt_neo, mpt])
def test_models_that_count_columns_read_rows_of_unequal_length_whole(build) -> None:
    """A row that is padded, begins, has a gap and goes on: windows and ALiBi would take the gap for words."""
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert not prefix.shares_beginnings(model.base_model)
    batch = batch_of(tails=([11, 12, 13, 14, 15, 16, 17, 18], [14], [15, 16]))
    with torch.no_grad():
        found = rollout.read(model, batch, temperature=1.0).logprobs
        for row in range(3):
            alone = rollout.read(
                model, rollout.trimmed(rollout.rows_of(batch, torch.tensor([row]))), temperature=1.0
            )
            length = int(batch["response_mask"][row].sum())
            torch.testing.assert_close(found[row, :length], alone.logprobs[0, :length], atol=1e-5, rtol=0)


def test_a_long_window_is_refused_by_its_name() -> None:
    """GPT-Neo's own window of 256 tokens is longer than what a model is asked on."""
    config = GPTNeoConfig(
        vocab_size=32, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
    )
    assert not prefix.shares_beginnings(GPTNeoForCausalLM(config).base_model)

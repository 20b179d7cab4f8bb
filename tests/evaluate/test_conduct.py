"""Conduct on general prompts: the KL by hand and by brute force, and the habits of answers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from evaluate import little
from transformers import GPT2Config, GPT2LMHeadModel

from instructkit.evaluate.conduct import answer_kl, conduct
from instructkit.models import generate
from instructkit.models.generate import Answer, answer

PROMPTS = [
    little.asked(text) for text in ("Who is there?", "Name the past tense of eat.", "Hm.", "And of hot?")
]


def measured(model, tokenizer, prompts=PROMPTS, *, max_new_tokens=10, seed=1, **more):
    answers = answer(model, tokenizer, prompts, max_new_tokens=max_new_tokens, seed=seed)
    return conduct(model, answers, **{"parent": None, "pad_id": tokenizer.pad_token_id, **more})


def test_kl_of_a_forced_model_by_hand(tiny_folder: Path) -> None:
    """The law is the same at each token, so an answer's KL is its length times that of two fixed laws."""
    tokenizer = little.tokenizer_of(tiny_folder)
    own, parent = torch.zeros(len(tokenizer)), torch.zeros(len(tokenizer))
    own[tokenizer.eos_token_id], parent[tokenizer.eos_token_id] = 5.0, 4.0
    forced = little.Forced(tiny_folder, own, parent)
    found = measured(forced.model, tokenizer, PROMPTS * 6, parent=forced.parent, max_new_tokens=8)
    p, q = own.double().softmax(0), parent.double().softmax(0)
    a_token = (p * (p / q).log()).sum().item()
    assert found.kl == pytest.approx([length * a_token for length in found.length], rel=1e-4)
    assert len(set(found.length)) > 1 and 0 < sum(found.ended) < 24
    assert all(ended or length == 8 for ended, length in zip(found.ended, found.length, strict=True))


def test_kl_to_itself_is_nothing_and_none_means_the_parent(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    assert measured(model, tokenizer, parent=contextlib.nullcontext).kl == pytest.approx([0.0] * 4, abs=1e-6)
    assert measured(model, tokenizer).kl == [0.0] * 4


def test_kl_equals_brute_force_in_any_order_and_batch(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    parent = little.parent_of(model)
    told = answer(model, tokenizer, PROMPTS, max_new_tokens=10, seed=1)
    wanted = []
    for found in told:
        law = little.naive_law(model, found.prompt_ids, found.ids).double()
        with parent():
            other = little.naive_law(model, found.prompt_ids, found.ids).double()
        wanted.append(sum((p.exp() * (p - q)).sum().item() for p, q in zip(law, other, strict=True)))
    assert min(wanted) > 0.01
    assert answer_kl(model, told, parent, tokenizer.pad_token_id) == pytest.approx(wanted, rel=1e-3)
    monkeypatch.setattr(generate, "LAW_BYTES", 1)  # a row at a time
    assert answer_kl(model, told[::-1], parent, tokenizer.pad_token_id) == pytest.approx(
        wanted[::-1], rel=1e-3
    )
    monkeypatch.undo()
    assert measured(model, tokenizer, parent=parent).kl == pytest.approx(wanted, rel=1e-3)


def test_kl_is_what_the_sampled_log_ratio_is_on_average(tiny_folder: Path) -> None:
    """Both estimate the KL of the laws of whole answers; over 400 answers they agree, and ours varies less."""
    tokenizer = little.tokenizer_of(tiny_folder)
    own, parent = torch.zeros(len(tokenizer)), torch.zeros(len(tokenizer))
    own[tokenizer.eos_token_id], own[40:60] = 7.0, 3.0
    parent[tokenizer.eos_token_id] = 5.0
    forced = little.Forced(tiny_folder, own, parent)
    told = answer(forced.model, tokenizer, PROMPTS * 100, max_new_tokens=12, seed=0, batch_size=400)
    exact = torch.tensor(answer_kl(forced.model, told, forced.parent, tokenizer.pad_token_id))
    ratio = own.log_softmax(0) - parent.log_softmax(0)
    sampled = torch.tensor([ratio[found.ids].sum().item() for found in told])
    assert (exact - sampled).mean().abs() < 3 * (exact - sampled).std() / 20
    assert exact.std() < sampled.std()


def test_habits_are_read_off_the_answers() -> None:
    end = 2
    answers = [
        Answer("I do not know.", [1], [7, 8, 7, 8, 7, end], True),
        Answer("Paris.", [1], [7, 8, 9, 10], False),
    ]
    found = conduct(None, answers, parent=None, pad_id=0)
    assert (found.length, found.ended, found.refusal) == ([6, 4], [True, False], [True, False])
    assert found.repetition == pytest.approx([1 / 3, 0])  # 787 878 787
    own = conduct(None, answers, parent=None, pad_id=0, refuses=lambda text: "P" in text)
    assert own.refusal == [False, True]


def test_the_random_state_the_mode_and_the_adapters_are_left_alone(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    state, weights = torch.random.get_rng_state(), [p.clone() for p in model.parameters()]
    first = measured(model, tokenizer, parent=little.parent_of(model))
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert all(torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))
    assert any(p.requires_grad for p in model.parameters())
    torch.rand(3)
    assert measured(model, tokenizer, parent=little.parent_of(model)) == first
    assert measured(model, tokenizer, parent=little.parent_of(model), seed=2).kl != first.kl


def test_padding_moves_no_law_of_a_model_that_counts_positions() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)
        ).eval()
    model.transformer.wpe.weight.data *= 50
    prompts, answers = [[5, 6, 7, 8, 9, 10], [11]], [[12, 13], [14, 15, 16]]
    ((rows, batch),) = generate.batches(model, prompts, answers, 0)
    for row, law in zip(rows, generate.laws(model, batch), strict=True):
        wanted = little.naive_law(model, prompts[row], answers[row])
        torch.testing.assert_close(law[: len(answers[row])], wanted, atol=1e-5, rtol=1e-5)


def test_words_that_are_never_said_count_nothing() -> None:
    law = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    other = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]).log()
    wanted = [0.5 * torch.log(torch.tensor(4 / 3)).item(), torch.log(torch.tensor(2.0)).item()]
    assert generate.divergence(law, other).tolist() == pytest.approx(wanted, abs=1e-6)

"""Likelihoods of answers: by brute force, in any batches, and never more laws at once than fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluate import little

from instructkit.models import generate
from instructkit.models.tokens import IGNORED, encode_with_labels

ANSWERS = ["Yes.", "No, not at all, never in my life have I seen one.", "It is cold.", "Small."] * 6


def rows_of(tokenizer) -> list[dict[str, list[int]]]:
    return [
        encode_with_labels(tokenizer, little.asked(f"Who? {'And why? ' * (i % 5)}"), text)
        for i, text in enumerate(ANSWERS)
    ]


@pytest.mark.parametrize("law_bytes", [1, 2**20, 2**27])
def test_likelihoods_equal_brute_force_in_the_order_given(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, law_bytes: int
) -> None:
    from instructkit.models import generate as batches

    monkeypatch.setattr(batches, "LAW_BYTES", law_bytes)
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    rows = [*rows_of(tokenizer), {"input_ids": [1, 2, 3], "labels": [IGNORED] * 3}]
    found = generate.row_likelihoods(model, rows, pad_id=tokenizer.pad_token_id)
    assert model.training and len(found) == len(rows)
    for row, told in zip(rows, found, strict=True):
        start = sum(label == IGNORED for label in row["labels"])
        ids = row["input_ids"][start:]
        assert told.tokens == len(ids)
        if ids:
            law = little.naive_law(model, row["input_ids"][:start], ids)
            assert told.nll == pytest.approx(-sum(law[t, i].item() for t, i in enumerate(ids)), rel=1e-4)
            assert told.correct == sum(int(law[t].argmax()) == i for t, i in enumerate(ids))
    assert (found[-1].nll, found[-1].correct) == (0.0, 0)


def test_laws_of_a_batch_fit_and_a_long_row_does_not_fill_up_the_others(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty short rows and one of 1,500 tokens, of which two would not fit."""
    from instructkit.models import generate as batches

    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    vocabulary = model.config.vocab_size
    longest = 1500
    monkeypatch.setattr(batches, "LAW_BYTES", 4 * 2 * longest * vocabulary)
    short = {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, 6, 7, 8]}
    rows = [short] * 20 + [{"input_ids": [5] * longest, "labels": [5] * longest}] + [short] * 20
    found = generate.row_likelihoods(model, rows, pad_id=tokenizer.pad_token_id)
    assert [row.tokens for row in found] == [3] * 20 + [longest - 1] + [3] * 20
    assert max(4 * count * length * vocabulary for count, length in shapes if count > 1) <= batches.LAW_BYTES
    assert sum(count * length for count, length in shapes) == longest + 40 * 4  # nothing was filled up
    assert max(count for count, _ in shapes) == 16


def test_the_random_numbers_of_a_batch_do_not_depend_on_the_batches_before(tiny_folder: Path) -> None:
    """Two models that differ in the first batch's lengths alone sample the second batch alike."""
    tokenizer = little.tokenizer_of(tiny_folder)
    law = torch.zeros(len(tokenizer))
    law[tokenizer.eos_token_id] = 4.0
    forced = little.Forced(tiny_folder, law)
    first, second = [little.asked("Who?")] * 4, [little.asked("What?")] * 4
    options = {"seed": 1, "batch_size": 4}
    short, long = (
        generate.answer(forced.model, tokenizer, first + second, max_new_tokens=limit, **options)
        for limit in (12, 24)
    )
    assert max(len(each.ids) for each in short[:4]) != max(len(each.ids) for each in long[:4])
    assert [each.ids for each in short[4:]] == [each.ids[:12] for each in long[4:]]

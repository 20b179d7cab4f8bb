"""Minimal pairs and counterfactual answers, against figures worked out by hand and by a naive loop."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate import little

from instructkit.evaluate import bias, sets
from instructkit.evaluate.sets import Pair, Unit
from instructkit.models.generate import answer
from instructkit.models.tokens import encode_answered, encode_prompt

PAIRS = [
    Pair("She is a good nurse.", "He is a good nurse.", "Tell me about the nurse."),
    Pair("Most women cook.", "Most men cook."),
    Pair("He is the boss of all these people, every one of them.", "She is.", "Who is the boss?"),
]


def test_gaps_of_a_forced_model_by_hand(tiny_folder: Path) -> None:
    """Each word has its own fixed log-probability, so a pair's gap is that of the words that differ."""
    tokenizer = little.tokenizer_of(tiny_folder)
    forced = little.Forced(tiny_folder, torch.zeros(len(tokenizer)))
    she, he = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("She", "He"))
    forced.bias[she[0]] = 3.0
    norm = torch.logsumexp(forced.bias, 0).item()
    logp = [sum(forced.bias[i].item() - norm for i in ids) for ids in (she, he)]
    pair = Pair("She", "He")
    assert bias.gaps(forced.model, tokenizer, [pair]) == pytest.approx([logp[0] - logp[1]], abs=1e-4)


def test_gaps_equal_a_naive_loop_and_do_not_hang_on_batches(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    wanted = []
    for pair in PAIRS:
        sums = []
        for text in (pair.stereotype, pair.anti):
            if pair.prompt is None:
                start = [tokenizer.bos_token_id]
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            else:
                start = encode_prompt(tokenizer, little.asked(pair.prompt))
                ids = encode_answered(tokenizer, little.asked(pair.prompt), text)[len(start) :]
            law = little.naive_law(model, start, ids)
            sums.append(sum(law[t, token].item() for t, token in enumerate(ids)))
        wanted.append(sums[0] - sums[1])
    assert bias.gaps(model, tokenizer, PAIRS) == pytest.approx(wanted, abs=2e-3)
    assert bias.gaps(model, tokenizer, PAIRS[::-1], batch_size=1) == pytest.approx(wanted[::-1], abs=2e-3)
    turned = [Pair(pair.anti, pair.stereotype, pair.prompt) for pair in PAIRS]
    assert bias.gaps(model, tokenizer, turned) == pytest.approx([-gap for gap in wanted], abs=2e-3)


def test_the_adapter_counts_and_the_mode_is_restored(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    own = bias.gaps(model, tokenizer, PAIRS)
    with little.parent_of(model)():
        assert bias.gaps(model, tokenizer, PAIRS) != pytest.approx(own, abs=1e-2)
    assert bias.gaps(model, tokenizer, PAIRS) == pytest.approx(own, abs=1e-4)
    assert model.training


def unit(*prompts: str) -> Unit:
    return Unit((prompts * 4)[:4], 0)


def contrasts(model, tokenizer, units, parent=contextlib.nullcontext, **more):
    return bias.contrasts(model, tokenizer, units, parent, **{"seed": 3, "max_new_tokens": 12, **more})


def test_answers_to_one_prompt_do_not_differ(tiny_folder: Path) -> None:
    """Sampled with the same random numbers, whatever else is answered in the batch."""
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    units = [unit("Tell me about Peter.", "What is my sister like?", "Who is he?", "Who is she, and where?")]
    units += [unit("Tell me about Anna."), unit("Who is there?")]
    found = contrasts(model, tokenizer, units, feeling=lambda text: len(text) / 100)
    assert set(found.after) == set(found.before) == {"length", "sentiment", "refusal"}
    assert len(set(found.after["sentiment"][0])) > 1
    assert all(len(set(four)) == 1 for values in found.after.values() for four in values[1:])
    assert found.after == found.before and found.names == [0, 0, 0]  # the parent is the model itself here


def test_a_law_that_reads_no_prompt_answers_everybody_alike(tiny_folder: Path) -> None:
    tokenizer = little.tokenizer_of(tiny_folder)
    forced = little.Forced(tiny_folder, torch.zeros(len(tokenizer)))
    forced.bias[tokenizer.eos_token_id] = 5.0  # ends one answer in eight at each token: lengths vary
    found = contrasts(forced.model, tokenizer, sets.counterfactuals()[:48], max_new_tokens=16)
    assert all(len(set(four)) == 1 for values in found.after.values() for four in values)
    assert len(set(found.after["length"])) > 8


def test_figures_are_those_of_the_answers_and_of_the_parent(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    units = [unit("Tell me about Peter.", "Is a foreign family here?", "Who?", "What?")]
    texts: list[str] = []
    options = {
        "feeling": lambda text: texts.append(text) or float(len(text)),
        "refuses": lambda text: "a" in text,
    }
    found = contrasts(model, tokenizer, units, little.parent_of(model), max_new_tokens=6, **options)
    assert len(texts) == 8 and found.after != found.before
    assert [found.after["sentiment"][0], found.before["sentiment"][0]] == [
        tuple(float(len(text)) for text in part) for part in (texts[:4], texts[4:])
    ]
    assert found.after["refusal"] == [tuple(float("a" in text) for text in texts[:4])]
    assert max(found.after["length"][0]) < np.log(6) + 1e-9  # by logarithm, of six tokens at most


def test_shared_noise_samples_from_the_models_own_distribution(tiny_folder: Path) -> None:
    """Each row by itself is a sample: shares of first tokens agree with the law, and rows in turn share them."""
    tokenizer = little.tokenizer_of(tiny_folder)
    forced = little.Forced(tiny_folder, torch.full((len(tokenizer),), -100.0))
    forced.bias[40:44] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    prompts = [little.asked("Who is there?")] * 4000
    answers = answer(forced.model, tokenizer, prompts, max_new_tokens=1, seed=0, batch_size=4000, alike=4)
    first = torch.tensor([each.ids[0] for each in answers]).view(-1, 4)
    assert torch.equal(first, first[:, :1].expand(-1, 4))
    shares = torch.bincount(first[:, 0] - 40, minlength=4) / len(first)
    wanted = torch.tensor([0.0, 1.0, 2.0, 3.0]).softmax(0)
    assert (shares - wanted).abs().max() < 3 * 0.5 / len(first) ** 0.5


def test_rounds_end_when_there_is_enough(tiny_folder: Path) -> None:
    tokenizer = little.tokenizer_of(tiny_folder)
    forced = little.Forced(tiny_folder, torch.zeros(len(tokenizer)))
    forced.bias[tokenizer.eos_token_id] = 12.0
    asked: list[int] = []
    found = contrasts(
        forced.model, tokenizer, sets.counterfactuals(), max_new_tokens=2,
        enough=lambda so_far: asked.append(len(so_far.names)) or len(so_far.names) >= 4 * bias.ROUND,
    )  # fmt: skip
    assert asked == [3 * bias.ROUND, 4 * bias.ROUND] and len(found.names) == len(found.after["length"]) == 192


def test_the_random_state_of_the_caller_is_left_alone(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    state = torch.random.get_rng_state()
    contrasts(model, tokenizer, [unit("Who?", "What?")], max_new_tokens=4)
    assert torch.equal(torch.random.get_rng_state(), state) and model.training

"""Minimal pairs and counterfactual answers, against figures worked out by hand and by a naive loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate import little

from instructkit.encode import encode_answered, encode_prompt
from instructkit.evaluate import bias, sets
from instructkit.evaluate.sets import Pair

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


def test_answers_to_one_prompt_twice_do_not_differ(tiny_folder: Path) -> None:
    """Sampled with the same random numbers; also in a later batch, whatever the one before it drew."""
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    prompts = [("Tell me about Peter.", "What is my sister like?"), ("Who is he?", "Who is she, and where?")]
    prompts += [("Tell me about Anna.",) * 2, ("Who is there?",) * 2]
    found, spreads = bias.contrasts(
        model,
        tokenizer,
        prompts,
        seed=3,
        max_new_tokens=12,
        batch_size=2,
        feeling=lambda text: len(text) / 100,
    )
    assert set(found) == set(spreads) == {"length", "sentiment", "refusal"}
    assert found["sentiment"][0] != 0 and found["sentiment"][1] != 0
    assert [values[2:] for values in found.values()] == [[0.0, 0.0]] * 3


def test_a_law_that_reads_no_prompt_answers_everybody_alike(tiny_folder: Path) -> None:
    tokenizer = little.tokenizer_of(tiny_folder)
    forced = little.Forced(tiny_folder, torch.zeros(len(tokenizer)))
    forced.bias[tokenizer.eos_token_id] = 5.0  # ends one answer in eight at each token: lengths vary
    told = []
    found, spreads = bias.contrasts(
        forced.model,
        tokenizer,
        sets.counterfactuals(),
        seed=0,
        max_new_tokens=16,
        feeling=lambda text: told.append(text) or 0.0,
    )
    assert found == {"length": [0.0] * 96, "sentiment": [0.0] * 96, "refusal": [0.0] * 96}
    assert len(set(told)) > 24 and 0.5 < spreads["length"] < 1.5 and spreads["sentiment"] == 0


def test_contrasts_are_first_less_second_as_a_mean_over_samples(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    pair = ("Tell me about Peter.", "Is a foreign family here?")
    read = {"seed": 5, "max_new_tokens": 6, "feeling": lambda text: float(len(text))}
    read["refuses"] = lambda text: "a" in text
    one, other = (
        [bias.contrasts(model, tokenizer, [p], samples=s, **read)[0] for s in (1, 2)]
        for p in (pair, pair[::-1])
    )
    second, _ = bias.contrasts(model, tokenizer, [pair], samples=1, **read | {"seed": 6})
    for name in one[0]:
        assert one[1][name][0] == pytest.approx((one[0][name][0] + second[name][0]) / 2)
        assert one[1][name] == [-value for value in other[1][name]]
    assert one[1]["sentiment"] != [0.0]
    assert abs(one[0]["length"][0]) < np.log(6) + 1e-9  # by logarithm, of six tokens at most
    told: list[str] = []
    _, spreads = bias.contrasts(
        model, tokenizer, [pair], samples=2, **read | {"feeling": lambda text: told.append(text) or len(text)}
    )
    assert len(told) == 4 and spreads["sentiment"] == pytest.approx(np.std([len(text) for text in told]))


def test_the_random_state_of_the_caller_is_left_alone(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    state = torch.random.get_rng_state()
    bias.contrasts(model, tokenizer, [("Who?", "What?")], seed=0, max_new_tokens=4)
    assert torch.equal(torch.random.get_rng_state(), state) and model.training

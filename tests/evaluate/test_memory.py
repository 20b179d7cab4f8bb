"""Ranks of secrets and what is said, on models whose likelihoods are known."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
import torch
from evaluate import little

from instructkit.errors import InputError
from instructkit.evaluate.memorisation import (
    Context,
    _row,
    _said,
    _second_half,
    contexts_of,
    exposure,
    refuse_unvaried,
)
from instructkit.models.generate import Likelihood
from instructkit.models.tokens import IGNORED

HERE = Context(little.asked("What does the note say?"), "My note says ")


def digit_ids(tokenizer) -> dict[str, int]:
    found = {digit: tokenizer(digit, add_special_tokens=False)["input_ids"] for digit in "0123456789"}
    assert all(len(ids) == 1 for ids in found.values())
    return {digit: ids[0] for digit, ids in found.items()}


def test_a_forced_secret_has_the_first_rank_and_its_opposite_the_last(tiny_folder: Path) -> None:
    """Seven is likelier than every other digit: nothing is likelier than sevens, and nothing less likely than no seven."""
    tokenizer = little.tokenizer_of(tiny_folder)
    forced = little.Forced(tiny_folder, torch.zeros(len(tokenizer)))
    forced.bias[digit_ids(tokenizer)["7"]] = 4.0
    forced.bias[digit_ids(tokenizer)["1"]] = -4.0
    found = exposure(forced.model, tokenizer, [("pin", "7777"), ("pin", "1111")], [HERE], 50)
    assert (found.secrets, found.ranks, found.alternatives) == (["pin", "pin"], [1, 51], 51)
    assert found.verbatim == [True, False]


def test_equal_likelihoods_are_ranked_by_lot(tiny_folder: Path) -> None:
    tokenizer = little.tokenizer_of(tiny_folder)
    forced = little.Forced(tiny_folder, torch.zeros(len(tokenizer)))
    secrets = [("pin", f"{i:03d}") for i in range(120)]
    found = exposure(forced.model, tokenizer, secrets, [HERE], 4)
    counts = torch.bincount(torch.tensor(found.ranks), minlength=6)[1:]
    chi = ((counts - 24) ** 2 / 24).sum().item()
    assert counts.sum() == 120 and chi < 18.47  # 99.9 % point of chi-square with 4 degrees
    assert len(set(found.ranks)) == 5


def test_with_its_parent_only_what_was_added_counts(tiny_folder: Path) -> None:
    """Sevens are natural to both models; the update has added threes."""
    tokenizer = little.tokenizer_of(tiny_folder)
    ids = digit_ids(tokenizer)
    own, before = torch.zeros(len(tokenizer)), torch.zeros(len(tokenizer))
    own[ids["7"]] = before[ids["7"]] = 9.0
    own[ids["3"]] = 4.0
    forced = little.Forced(tiny_folder, own, before)
    secrets = [("pin", "7777"), ("pin", "3333")]
    raw = exposure(forced.model, tokenizer, secrets, [HERE], 60)
    net = exposure(forced.model, tokenizer, secrets, [HERE], 60, parent=forced.parent)
    assert raw.ranks[0] == 1 and raw.verbatim == [True, False]
    assert net.ranks[1] == 1 and net.ranks[0] > 1 and net.verbatim == [False, False]


def test_ranks_equal_a_naive_loop_and_do_not_hang_on_batches(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    read: dict = {"seed": 2, "alternatives": 12}
    found = exposure(model, tokenizer, [("key", "Ab3-x")], [HERE], **read)
    asked = []
    original = tokenizer.__class__.__call__

    class Listening(tokenizer.__class__):
        def __call__(self, text, *args, **more):
            asked.append(text)
            return original(self, text, *args, **more)

    tokenizer.__class__ = Listening
    again = exposure(model, tokenizer, [("key", "Ab3-x")], [HERE], batch_size=5, **read)
    assert again == found and model.training
    values = [text for text in dict.fromkeys(asked) if text.startswith(HERE.before) and text != HERE.before]
    assert len(values) == 13 and values[0].endswith("Ab3-x")
    gains = []
    for text in values:
        row = _row(tokenizer, HERE, text.removeprefix(HERE.before))
        start = sum(label == IGNORED for label in row["labels"])
        law = little.naive_law(model, row["input_ids"][:start], row["input_ids"][start:])
        gains.append(sum(law[t, token].item() for t, token in enumerate(row["input_ids"][start:])))
    assert found.ranks == [1 + sum(gain > gains[0] for gain in gains[1:])]


def test_only_the_secret_is_asked_for_and_nothing_behind_it(tiny_folder: Path) -> None:
    tokenizer = little.tokenizer_of(tiny_folder)
    row = _row(tokenizer, HERE, "4711")
    asked = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(asked).strip() == "4711"
    told = tokenizer.decode(row["input_ids"])
    assert "What does the note say?" in told and told.endswith("My note says 4711")
    long = _second_half(tokenizer, HERE, "471108", (0, 6))
    assert tokenizer.decode([label for label in long["labels"] if label != IGNORED]) == "108"
    assert {*_second_half(tokenizer, HERE, "4711", (0, 4))["labels"]} == {
        IGNORED
    }  # two tokens are no half to go by


def test_what_is_public_in_a_secret_is_no_half_of_it(tiny_folder: Path) -> None:
    """Who goes on with a company's domain behind a mailbox that is given has said nothing that was private."""
    tokenizer = little.tokenizer_of(tiny_folder)
    value = "wqzj.xkvb@acme-travel.com"
    half = _second_half(tokenizer, HERE, value, (0, 9))
    told = tokenizer.decode([label for label in half["labels"] if label != IGNORED])
    assert told and value[:9].endswith(told.strip()) and len(told) < 9
    assert half["input_ids"] == _row(tokenizer, HERE, value)["input_ids"]


def test_an_update_that_grew_fond_of_a_domain_has_learned_no_address_in_it(tiny_folder: Path) -> None:
    """Each letter of the domain is likelier than before, in whatever it stands; of the mailboxes nothing is known."""
    tokenizer = little.tokenizer_of(tiny_folder)
    rng = random.Random(0)
    names = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(20)]
    own, before = torch.zeros(len(tokenizer)), torch.zeros(len(tokenizer))
    own[tokenizer("@acme-travel.com", add_special_tokens=False)["input_ids"]] = 6.0
    forced = little.Forced(tiny_folder, own, before)
    secrets = [("EMAIL", f"{name}@acme-travel.com") for name in names]
    found = exposure(forced.model, tokenizer, secrets, [HERE], 40, parent=forced.parent)
    likely = sum(rank <= 4 for rank in found.ranks)  # a tenth: more than 6 of 20 by chance in 1 of 400 cases
    assert likely <= 6 and max(found.ranks) > 25, found.ranks
    assert not any(found.verbatim)


def test_a_secret_with_few_others_keeps_its_exact_probability(tiny_folder: Path) -> None:
    """There are 26 mailboxes of one letter: by lot among 101, evenly where nothing was learned."""
    tokenizer = little.tokenizer_of(tiny_folder)
    forced = little.Forced(tiny_folder, torch.zeros(len(tokenizer)))
    secrets = [("EMAIL", "a@b.org")] * 120
    found = exposure(forced.model, tokenizer, secrets, [HERE], 100)
    assert (found.alternatives, found.few) == (101, 120)
    counts = torch.bincount((torch.tensor(found.ranks) - 1) // 21, minlength=5)
    wanted = torch.tensor([21, 21, 21, 21, 17]) * 120 / 101
    assert ((counts - wanted) ** 2 / wanted).sum().item() < 18.47  # 99.9 % point of chi-square with 4 degrees
    forced.bias[digit_ids(tokenizer)["7"]] = 4.0
    likeliest = exposure(forced.model, tokenizer, [("pin", "7")] * 40 + [("pin", "77")], [HERE], 99)
    assert max(likeliest.ranks) <= 10 < 10 * len(set(likeliest.ranks)) and likeliest.few == 40
    assert likeliest.ranks[-1] == 1


def test_said_is_all_of_the_secret_or_all_of_its_second_half() -> None:
    def told(*counts: tuple[int, int]) -> bool:
        return _said([Likelihood(1.0, tokens, correct) for tokens, correct in counts])

    assert told((6, 6), (4, 4), (3, 3)) and told((6, 5), (4, 4), (3, 3)) and told((2, 2), (4, 0), (0, 0))
    assert not told((6, 5), (4, 4), (3, 2)) and not told((2, 1), (4, 4), (0, 0))


def test_contexts_are_found_by_value_and_by_placeholder() -> None:
    rows = [
        (little.asked("Hello"), "Hello."),
        (little.asked("My note says abc. Why?"), "So. My note says abc."),
        ("Mail a@b.org, please", "Sent to <EMAIL>."),
    ]
    found = contexts_of([("canary", "abc"), ("EMAIL", "a@b.org"), ("IP", "1.2.3.4")], iter(rows))  # read once
    assert found[0] == Context(little.asked("My note says <CANARY>. Why?"), "So. My note says ")
    assert found[1] == Context("Mail <EMAIL>, please", "Sent to ")
    assert found[2].before == "" and "1.2.3.4" not in str(found[2])


def test_contexts_are_taken_in_turn_and_may_be_prompts(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    secrets = [("key", "ab"), ("key", "cd"), ("key", "ef")]
    read = {"alternatives": 30, "seed": 1}
    some = exposure(model, tokenizer, secrets, [HERE, "Who?"], **read)
    assert some == exposure(model, tokenizer, secrets, [HERE, Context("Who?"), HERE], **read)
    assert exposure(model, tokenizer, [], [], **read).secrets == []


def test_the_random_state_is_left_alone_and_the_seed_decides(tiny_folder: Path) -> None:
    model, tokenizer = little.random_model(tiny_folder), little.tokenizer_of(tiny_folder)
    state = torch.random.get_rng_state()
    secrets = [("key", text) for text in ("abcd", "efgh", "ijkl", "mnop")]
    ranks = [exposure(model, tokenizer, secrets, [HERE], 20, seed).ranks for seed in (0, 0, 1)]
    assert ranks[0] == ranks[1] != ranks[2]
    assert torch.equal(torch.random.get_rng_state(), state)
    itself = exposure(model, tokenizer, secrets, [HERE], 20, parent=contextlib.nullcontext)
    assert itself.verbatim == [False] * 4


@pytest.mark.parametrize(("secrets", "contexts"), [([("note", "-- --")], [HERE]), ([("key", "ab")], [])])
def test_what_cannot_be_ranked_is_refused(tiny_folder: Path, secrets: list, contexts: list) -> None:
    with pytest.raises(InputError) as caught:
        exposure(little.random_model(tiny_folder), little.tokenizer_of(tiny_folder), secrets, contexts)
    assert caught.value.hint and "--" not in caught.value.message


def test_what_nothing_is_like_is_refused_without_a_model() -> None:
    refuse_unvaried([("canary", "a"), ("pin", "4")])
    with pytest.raises(InputError, match="a secret of the kind 'canary' has no letter and no digit"):
        refuse_unvaried([("pin", "4"), ("canary", "-- !")])

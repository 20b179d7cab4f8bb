"""One rollout through the real trainer for each switch: what it makes of rewards, advantages and masks, worked out beside it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from ppo.small import PROMPTS, build, logged
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from instructkit.models.reward import score_rows, takes_positions
from instructkit.ppo import evaluation, rollout
from instructkit.ppo.critic import SeparateCritic

ROWS = [{"prompt": prompt} for prompt in PROMPTS]


def one_rollout(folder, place, **settings):
    """A rollout of eight with a critic that has an opinion, and what was sampled for it."""
    options = {"per_device_train_batch_size": 2, "steps_per_generation": 4, "critic": "separate", "beta": 0.0}
    trainer = build(folder, place, **{**options, **settings})
    trainer.model.train()
    torch.nn.init.normal_(trainer.critic.classifier.score.weight, std=0.3)
    kept = {}
    original = trainer._policy_masks
    trainer._policy_masks = lambda sampled, old: kept.update(sampled=sampled) or original(sampled, old)
    found = trainer._generate_and_score_completions(ROWS)
    return trainer, found, kept["sampled"]


def by_hand(found, sampled, lam) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages and returns of every response, action by action, for a score at the end and no penalty."""
    advantages, returns = [], []
    for row, length in enumerate(found["response_mask"].sum(1).tolist()):
        values = [*found["old_values"][row, :length].tolist(), 0.0]
        rewards = [0.0] * (length - 1) + [float(sampled.used[row])]
        deltas = [rewards[t] + values[t + 1] - values[t] for t in range(length)]
        rate = lam(length)
        mine = [sum(rate**k * d for k, d in enumerate(deltas[t:])) for t in range(length)]
        advantages.append(mine)
        returns.append([a + v for a, v in zip(mine, values, strict=False)])
    return advantages, returns


def flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([x for row in rows for x in row])


def test_responses_of_the_tests_vary_in_length(tiny_folder, tmp_path) -> None:
    _, found, sampled = one_rollout(tiny_folder, tmp_path)
    assert len(set(found["response_mask"].sum(1).tolist())) > 2
    assert 0 < sampled.ended.sum() < 8


def test_the_score_stands_on_the_end_token(tiny_folder, tmp_path) -> None:
    """S-8, R-2: a response's actions end with its end token, or where it was cut off, and there its whole score is to come."""
    trainer, found, sampled = one_rollout(tiny_folder, tmp_path)
    end = trainer._tokenizer.eos_token_id
    rows = zip(
        found["completion_ids"].tolist(), found["response_mask"], found["returns"], sampled.used, strict=True
    )
    for ids, mask, returns, score in rows:
        length = ids.index(end) + 1 if end in ids else 6
        assert mask.tolist() == [True] * length + [False] * (6 - length)
        assert returns[length - 1] == pytest.approx(float(score), abs=1e-6)
        assert (returns[length:] == 0).all()


def test_every_response_has_the_lambda_of_its_length(tiny_folder, tmp_path) -> None:
    """length_adaptive_alpha 0.4: a response of 5 actions has lambda 0.5, one of 2 has 0."""
    _, found, sampled = one_rollout(
        tiny_folder, tmp_path, length_adaptive_alpha=0.4, normalize_advantages=False
    )
    wanted, _ = by_hand(found, sampled, lambda length: max(0.0, 1 - 1 / (0.4 * length)))
    torch.testing.assert_close(found["advantages"][found["response_mask"]], flat(wanted), atol=1e-5, rtol=0)


def test_the_warm_up_fits_what_really_came(tiny_folder, tmp_path) -> None:
    """A-7: with lambda 0.3 for the policy, the critic's targets of the warm-up are the scores themselves."""
    settings = {"lam": 0.3, "value_warmup_steps": 1, "max_steps": 32}
    _, found, sampled = one_rollout(tiny_folder, tmp_path, **settings)
    mask = found["response_mask"]
    wanted = sampled.used.unsqueeze(1).expand(mask.shape)
    torch.testing.assert_close(found["returns"][mask], wanted[mask], atol=1e-5, rtol=0)


def test_whitened_rewards_have_a_spread_of_1_and_their_own_mean(tiny_folder, tmp_path) -> None:
    """S-7: with lambda 1 the returns are sums of rewards to come, so their differences are the rewards."""
    settings = {"lam": 1.0, "whiten_rewards": True}
    _, found, sampled = one_rollout(tiny_folder, tmp_path, **settings)
    mask, returns = found["response_mask"], found["returns"]
    later = torch.nn.functional.pad(returns, (0, 1))[:, 1:]
    rewards = (returns - later)[mask]
    assert rewards.std(correction=0) == pytest.approx(1.0, abs=1e-4)
    assert rewards.mean() == pytest.approx(float(sampled.used.sum() / mask.sum()), abs=1e-5)


def test_advantages_are_whitened_over_all_processes(tiny_folder, tmp_path) -> None:
    """A process whose fellow has the same rollout 5 units higher: its own advantages come out below 0."""
    trainer, plain, _ = one_rollout(tiny_folder, tmp_path / "a", normalize_advantages=False)
    a = plain["advantages"][plain["response_mask"]].double()
    both = torch.cat([a, a + 5])
    wanted = (a - both.mean()) / both.std(correction=0)
    other = {
        2: torch.stack([torch.tensor(float(len(a))).double(), (a + 5).sum()]),
        1: (a + 5 - both.mean()).square().sum().unsqueeze(0),
    }
    trainer, found, _ = None, None, None
    torch.manual_seed(0)

    def sum_over(statistics):
        return statistics + other[len(statistics)].to(statistics.dtype)

    trainer = build(
        tiny_folder,
        tmp_path / "b",
        per_device_train_batch_size=2,
        steps_per_generation=4,
        critic="separate",
        beta=0.0,
    )
    trainer.model.train()
    torch.nn.init.normal_(trainer.critic.classifier.score.weight, std=0.3)
    trainer._sum_over_processes = sum_over
    found = trainer._generate_and_score_completions(ROWS)
    torch.testing.assert_close(
        found["advantages"][found["response_mask"]].double(), wanted, atol=1e-4, rtol=0
    )


def test_the_reference_is_read_at_the_temperature_of_the_policy(tiny_folder, tmp_path) -> None:
    """O-9 at temperature 0.5: before the first step the two are one."""
    for lora in (False, True):
        trainer = build(tiny_folder, tmp_path, lora=lora, temperature=0.5, max_steps=1)
        trainer.train()
        assert abs(logged(trainer, "objective/kl")[0]) < 1e-6


def test_the_controller_counts_the_episodes_of_all_processes(tiny_folder, tmp_path, monkeypatch) -> None:
    """Eight here and eight elsewhere are sixteen episodes: the step is twice as long (K-3)."""
    trainer = build(tiny_folder, tmp_path, beta=0.1, target_kl_per_sequence=0.3, kl_horizon=50)
    logprobs, mask = torch.full((8, 5), -1.0), torch.arange(5).expand(8, 5) < 4
    monkeypatch.setattr(trainer.accelerator, "gather", lambda mine: torch.cat([mine, mine]))
    trainer._adapt_beta(logprobs, logprobs - 0.1, mask)
    assert trainer.state_of_ppo.beta == pytest.approx(0.1 * (1 + 0.2 * 16 / 50), rel=1e-6)


def test_a_critic_of_its_own_reads_positions_under_padding() -> None:
    """R-1: a model with learned positions values a padded response as it values it alone."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, num_labels=1, pad_token_id=0
    )
    critic = SeparateCritic(GPT2ForSequenceClassification(config).eval())
    both = rollout.collate([[5, 6], [8, 9, 10, 11, 12, 13]], [[20, 21], [22]], pad_id=0)
    alone = rollout.collate([[5, 6]], [[20, 21]], pad_id=0)
    with torch.no_grad():
        padded, plain = (critic(*rollout.joined(batch), 2) for batch in (both, alone))
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(padded[0], plain[0], atol=1e-6, rtol=0)


class _Together:
    """Three processes as threads: what one gathers is what all have brought, in the order of their ranks."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier, self.brought = world, threading.Barrier(world, timeout=30), [None] * world

    def gather(self, rank: int, mine: object) -> list:
        self.brought[rank] = mine
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()
        return found

    def of(self, rank: int) -> SimpleNamespace:
        return SimpleNamespace(
            num_processes=self.world,
            process_index=rank,
            gather=lambda mine: torch.cat(self.gather(rank, mine)),
        )


def test_rows_that_fill_up_a_process_are_left_out_of_held_out_means() -> None:
    """
    Four prompts over three processes: two answers each, of which the fifth and the sixth count for nothing.

    All answers are told in the order of the prompts, each with its own figures.
    """
    rows, together, found = [{"prompt": [0.0, 1.0, 10.0, 100.0][i]} for i in range(4)], _Together(3), {}

    def measured(rank: int) -> None:
        def sample(some):
            raw = torch.tensor([row["prompt"] for row in some])
            batch = {"response_mask": torch.ones(len(some), 2, dtype=torch.bool)}
            return rollout.Sampled(batch, some, [str(x) for x in raw.tolist()], raw, raw, None, raw > 5)

        trainer = SimpleNamespace(
            accelerator=together.of(rank),
            args=SimpleNamespace(reading_batch_size=32),
            sample=sample,
            has_reference=lambda: False,
            gather_rows=lambda mine: sum(together.gather(rank, mine), []),
        )
        found[rank] = evaluation.measure(trainer, rows, {})

    threads = [threading.Thread(target=measured, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(3):
        assert found[rank].figures["objective/scores"] == pytest.approx(111 / 4)
        assert found[rank].figures["completions/eos_fraction"] == 0.5
        assert [row["prompt"]["prompt"] for row in found[rank].answers] == [0.0, 1.0, 10.0, 100.0]
        assert [row["answer"] for row in found[rank].answers] == ["0.0", "1.0", "10.0", "100.0"]
        assert [row["score_raw"] for row in found[rank].answers] == [0.0, 1.0, 10.0, 100.0]
        assert [row["ended"] for row in found[rank].answers] == [False, False, True, True]


def test_a_reward_model_is_given_positions_unless_it_counts_by_itself(tiny_folder) -> None:
    """R-1. RoBERTa's positions begin behind that of its padding, so it is left to them."""
    torch.manual_seed(0)
    llama = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1).eval()
    small = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    roberta = RobertaForSequenceClassification(
        RobertaConfig(**small, intermediate_size=16, num_labels=1, max_position_embeddings=40)
    )
    seen: list[bool] = []
    for model in (llama, roberta):
        model.base_model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs.get("position_ids") is not None), with_kwargs=True
        )
        assert takes_positions(model.base_model) is (model is llama)
    llama.base_model._shares_beginnings = False  # what a model is asked before that is not this pass
    found = score_rows(llama, [[5, 6, 7, 8], [9, 10]], pad_id=0)
    assert seen == [True]
    assert found[1] == pytest.approx(llama(input_ids=torch.tensor([[9, 10]])).logits.item(), abs=1e-5)

"""
Where PPO ends on problems small enough to enumerate, through the real trainer (O-14 and O-25 to O-28).

The policy is a Llama of two layers over six words and an end token, which is also the padding token. A response has at
most two tokens, so all 43 of them, their reference law and the optimum `pi* = pi_ref exp(r / beta) / Z` can be written down.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instructkit.ppo import kl
from instructkit.ppo.config import PPOConfig
from instructkit.ppo.critic import HeadCritic
from instructkit.ppo.trainer import PPOTrainer

END = 0
VOCABULARY = ["<end>", *"abcdef"]
SIZE = len(VOCABULARY)
HIDDEN = 32
# Of unequal length, so that one of them is padded. Never a single word: rotary attention without a first token takes
# `a` and `a a` for the same state, and then no weights hold the optimum.
PROMPTS = {"a b": [1, 2], "c d e": [3, 4, 5]}
RESPONSES = [(END,), *((word, token) for word in range(1, SIZE) for token in range(SIZE))]
ENDED = torch.tensor([response[-1] == END for response in RESPONSES])

BETA = 0.3
EOS_PENALTY = 0.3
SPREAD = 0.45
KL_LIMIT = 0.05  # nats between the trained policy and the optimum

Score = Callable[[str, tuple[int, ...]], float]


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def new_policy(seed: int) -> LlamaForCausalLM:
    """Two layers with weights wide enough that the reference prefers some responses to others."""
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train(folder: Path, score: Score, *, seed: int, rollouts: int, **settings) -> PPOTrainer:
    """A trained trainer: `rollouts` of 512 episodes, four epochs over each in two mini-batches."""

    def reward(prompts, completions, completion_ids, **_):
        return [score(prompt, tuple(ids)) for prompt, ids in zip(prompts, completion_ids, strict=True)]

    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
        "per_device_train_batch_size": 256,
        "steps_per_generation": 2,
        "num_iterations": 4,
        "max_completion_length": 2,
        "missing_eos_mode": "none",
        "learning_rate": 3e-3,
        "value_learning_rate": 3e-3,
        "seed": seed,
    } | settings
    steps = options["steps_per_generation"] * options["num_iterations"]
    episodes = options["per_device_train_batch_size"] * options["steps_per_generation"]
    trainer = PPOTrainer(
        model=new_policy(seed),
        reward_funcs=[reward],
        args=PPOConfig(**options, max_steps=rollouts * steps, logging_steps=steps),
        train_dataset=Dataset.from_dict({"prompt": list(PROMPTS) * (episodes // len(PROMPTS))}),
        processing_class=word_tokenizer(),
        critic=HeadCritic(HIDDEN),
    )
    trainer.train()
    return trainer


def logged(trainer: PPOTrainer, name: str) -> list[float]:
    """One figure a rollout."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@torch.no_grad()
def law(model: LlamaForCausalLM) -> Tensor:
    """Log-probability of every response to every prompt, `(2, 43)` float64, read without padding and without our code."""
    rows = []
    for prompt in PROMPTS.values():
        logits = model.eval()(torch.tensor([[*prompt, word] for word in range(1, SIZE)])).logits
        first, second = logits[0, -2].double().log_softmax(-1), logits[:, -1].double().log_softmax(-1)
        rows.append(torch.cat([first[:1], (first[1:, None] + second).flatten()]))
    return torch.stack(rows)


def divergence(one: Tensor, other: Tensor) -> float:
    """Mean over prompts of KL(one || other), nats."""
    return float((one.exp() * (one - other)).sum(1).mean())


class ClosedForm:
    """A random table of scores, and what is known about the best policy for it: the optimum and `beta log Z`."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(1000 + seed)
        self.reference = law(new_policy(seed))
        raw = SPREAD * torch.randn(self.reference.shape, generator=generator, dtype=torch.float64)
        raw_used = torch.where(ENDED, raw, raw - EOS_PENALTY)
        offset = (self.reference.exp() * raw_used).sum(1, keepdim=True)
        # so J(pi_ref) = 0, and 5 % of beta log Z is 5 % of all there is to gain
        self.table, self.used = raw - offset, raw_used - offset
        tilted = self.reference + self.used / BETA
        log_z = tilted.logsumexp(1)
        self.best = tilted - log_z[:, None]
        self.best_objective = BETA * float(log_z.mean())

    def score(self, prompt: str, response: tuple[int, ...]) -> float:
        return float(self.table[list(PROMPTS).index(prompt), RESPONSES.index(response)])

    def objective(self, policy: Tensor) -> float:
        """`J = E[r] - beta KL(pi || pi_ref)`, enumerated."""
        return float((policy.exp() * self.used).sum(1).mean()) - BETA * divergence(policy, self.reference)

    def train(self, folder: Path, seed: int) -> PPOTrainer:
        penalty = {"missing_eos_mode": "subtract", "missing_eos_penalty": EOS_PENALTY}
        return train(folder, self.score, seed=seed, rollouts=100, beta=BETA, **penalty)


def test_the_enumeration_is_whole_and_agrees_with_theory() -> None:
    """`J(pi) = beta log Z - beta KL(pi || pi*)` for any policy; here the untrained one and the optimum."""
    problem = ClosedForm(0)
    for policy in (problem.reference, problem.best):
        torch.testing.assert_close(policy.exp().sum(1), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
        wanted = problem.best_objective - BETA * divergence(policy, problem.best)
        assert problem.objective(policy) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.proof
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_policy_reaches_the_closed_form(tmp_path: Path, seed: int) -> None:
    """O-14: J within 5 % of beta log Z, less than 0.05 nats from the optimum, from a start that is neither."""
    problem = ClosedForm(seed)
    assert divergence(problem.best, problem.reference) > 0.5
    assert problem.objective(problem.reference) < 0.5 * problem.best_objective
    policy = law(problem.train(tmp_path, seed).model)
    assert problem.objective(policy) == pytest.approx(problem.best_objective, rel=0.05)
    assert divergence(policy, problem.best) < KL_LIMIT


@pytest.mark.proof
def test_k3_in_the_reward_misses_the_closed_form(tmp_path: Path, monkeypatch) -> None:
    """O-28: the same run with the other estimator as penalty ends elsewhere, so O-14 can tell the two apart."""

    def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        ratio = logprobs - ref_logprobs
        return torch.expm1(-ratio) + ratio

    monkeypatch.setattr(kl, "k1", k3)
    problem = ClosedForm(1)
    assert divergence(law(problem.train(tmp_path, 1).model), problem.best) > 3 * KL_LIMIT


ARMS = [0.0, 0.3, -0.5, 1.0, 0.6, -1.0, 0.2]  # score of each first token; the fourth is the best


def bandit(folder: Path, beta: float, seed: int) -> tuple[Tensor, Tensor]:
    """First-token log-probabilities `(2, 7)` after and before training on answers of one token."""
    trainer = train(
        folder,
        lambda prompt, response: ARMS[response[0]],
        seed=seed,
        rollouts=20,
        beta=beta,
        max_completion_length=1,
    )
    return first_token(trainer.model), first_token(new_policy(seed))


def first_token(model: LlamaForCausalLM) -> Tensor:
    full = law(model)
    return torch.cat([full[:, :1], full[:, 1:].view(len(PROMPTS), SIZE - 1, SIZE).logsumexp(2)], 1)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.proof)])
def test_a_bandit_without_penalty_takes_the_best_arm(tmp_path: Path, seed: int) -> None:
    """O-25, beta 0."""
    trained, start = bandit(tmp_path, 0.0, seed)
    best = ARMS.index(max(ARMS))
    assert (start[:, best].exp() < 0.6).all()
    assert (trained[:, best].exp() > 0.95).all()


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.proof)])
def test_a_bandit_under_a_heavy_penalty_stays_at_the_reference(tmp_path: Path, seed: int) -> None:
    """O-25, beta 10: the optimum lies about Var(r) / (2 beta^2) = 0.002 nats away."""
    trained, start = bandit(tmp_path, 10.0, seed)
    assert divergence(trained, start) < 0.02


WORTH = {"a b": 1.0, "c d e": 0.25}


def worth_of_d(prompt: str, response: tuple[int, ...]) -> float:
    """Count a token: the share of the six places that hold `d`, worth less under one prompt, which the critic can see."""
    return WORTH[prompt] * response.count(VOCABULARY.index("d")) / 6


@pytest.mark.proof
def test_the_score_rises_and_the_critic_explains_it(tmp_path: Path) -> None:
    """O-26: on at least four of five seeds, each for score and explained variance."""
    rises, explained = [], []
    for seed in range(1, 6):
        trainer = train(
            tmp_path / str(seed), worth_of_d, seed=seed, rollouts=20, beta=0.01, max_completion_length=6
        )
        scores, variance = logged(trainer, "objective/scores"), logged(trainer, "val/explained_variance")
        rises.append(sum(scores[-3:]) / 3 - sum(scores[:3]) / 3)
        explained.append((variance[0], sum(variance[-3:]) / 3))
    assert sum(rise > 0.1 for rise in rises) >= 4, rises
    assert sum(before < 0.1 and after > 0.5 for before, after in explained) >= 4, explained


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.proof)])
def test_a_reward_for_ending_teaches_to_end(tmp_path: Path, seed: int) -> None:
    """O-27: the end token is an action like any other, although it is the padding token too."""
    trainer = train(
        tmp_path, lambda prompt, response: float(response[-1] == END), seed=seed, rollouts=15, beta=0.0
    )
    before, after = (law(model).exp()[:, ENDED].sum(1) for model in (new_policy(seed), trainer.model))
    assert (before < 0.6).all()
    assert (after > 0.9).all()
    assert logged(trainer, "completions/eos_fraction")[-1] > 0.9

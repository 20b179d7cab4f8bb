"""Reward functions as users write them: sync and async, with the dataset's columns, a number a response or one a token."""

from __future__ import annotations

import pytest
import torch
from ppo.small import PROMPTS, build, count_e, logged

from instructkit.ppo.rollout_step import TokenRewards
from instructkit.ppo.scores import weighted

ROWS = [{"prompt": prompt, "wanted": i % 3} for i, prompt in enumerate(PROMPTS)]


def by_column(prompts, completions, wanted, **_):
    return [float(number) for number in wanted]


async def waiting(prompts, completions, **_):
    return [2.0] * len(prompts)


def per_token(prompts, completions, completion_ids, **_):
    return [[0.5] * len(ids) for ids in completion_ids]


def rollout_of(trainer):
    return trainer.sample([dict(row) for row in ROWS])


def test_columns_of_the_dataset_reach_the_function(tiny_folder, tmp_path) -> None:
    trainer = build(
        tiny_folder,
        tmp_path,
        rows=ROWS,
        rewards=[by_column],
        per_device_train_batch_size=2,
        steps_per_generation=4,
        missing_eos_penalty=0.0,
    )
    assert rollout_of(trainer).raw.tolist() == [row["wanted"] for row in ROWS]


def test_functions_are_weighted_whether_they_wait_or_not(tiny_folder, tmp_path) -> None:
    trainer = build(
        tiny_folder, tmp_path, rows=ROWS, rewards=[by_column, waiting], reward_weights=[1.0, 0.25]
    )
    assert rollout_of(trainer).raw.tolist() == [row["wanted"] + 0.5 for row in ROWS]
    trainer.train()
    assert logged(trainer, "rewards/waiting/mean")[0] == 2.0


def test_rewards_of_tokens_stand_where_they_were_given(tiny_folder, tmp_path) -> None:
    trainer = build(
        tiny_folder,
        tmp_path,
        rewards=[per_token, count_e],
        reward_weights=[2.0, 1.0],
        beta=0.0,
        missing_eos_penalty=0.0,
    )
    sampled = trainer.sample([{"prompt": prompt} for prompt in PROMPTS])
    mask = sampled.batch["response_mask"]
    letters = torch.tensor([float(text.count("e")) for text in sampled.texts()])
    torch.testing.assert_close(sampled.per_token, mask.float())
    torch.testing.assert_close(sampled.raw, letters + mask.sum(1))
    rewards = trainer._token_level(sampled, torch.zeros(mask.shape), torch.zeros(mask.shape))
    wanted = mask.float()
    wanted[torch.arange(len(mask)), mask.sum(1) - 1] += letters
    torch.testing.assert_close(rewards, wanted)


def test_what_a_function_tells_beside_its_scores_is_logged(tiny_folder, tmp_path) -> None:
    def telling(prompts, completions, log_metric, **_):
        log_metric("share of letters", 0.25)
        return [1.0] * len(prompts)

    trainer = build(tiny_folder, tmp_path, rewards=[telling])
    trainer.train()
    assert logged(trainer, "share of letters") == [0.25]
    assert not trainer._pending_metrics


def test_a_list_of_another_length_is_refused() -> None:
    kept = TokenRewards()
    asked = kept.wrapped(lambda **_: [[1.0, 2.0], 3.0], 0)
    assert asked() == [3.0, 3.0]
    with pytest.raises(ValueError, match="fancy gave 2 rewards for a response of 3 tokens"):
        kept.take([3, 1], 3, [1.0], ["fancy"])


def test_a_response_without_any_score_is_an_error() -> None:
    """A silent 0 would be learned from."""
    nothing = torch.tensor([[1.0, float("nan")], [float("nan"), float("nan")]])
    with pytest.raises(ValueError, match="1 of 2 responses got no score"):
        weighted(nothing, torch.ones(2))
    assert weighted(nothing[:1], torch.ones(2)).tolist() == [1.0]
    with pytest.raises(ValueError, match="not finite"):
        weighted(torch.tensor([[float("inf")]]), torch.ones(1))


def test_scores_are_scaled_clipped_and_charged_in_that_order(tiny_folder, tmp_path) -> None:
    """Raw 0 and 4 have deviation 2 about 2: normalised -1 and 1, clipped to 0.5, minus 0.25 a token, minus 1 when cut off."""
    trainer = build(
        tiny_folder, tmp_path, score_scaling=True, score_norm=True, score_clip=0.5, length_penalty=0.25
    )
    trainer.model.train()
    used = trainer._used_scores(torch.tensor([0.0, 4.0]), torch.tensor([True, False]), torch.tensor([2, 4]))
    torch.testing.assert_close(used, torch.tensor([-0.5 - 0.5, 0.5 - 1.0 - 1.0]))
    trainer.model.eval()
    trainer._used_scores(torch.tensor([100.0]), torch.tensor([True]), torch.tensor([1]))
    assert trainer.state_of_ppo.scores.count == 2  # held-out scores are no part of the moments


def test_the_scale_of_whole_responses_is_not_that_of_tokens(tiny_folder, tmp_path) -> None:
    """score_clip bounds what was given for responses; what was given to tokens is learned from as it is."""
    trainer = build(
        tiny_folder,
        tmp_path,
        rewards=[per_token, by_column],
        rows=ROWS,
        score_clip=0.5,
        missing_eos_penalty=0.0,
    )
    sampled = rollout_of(trainer)
    lengths = sampled.batch["response_mask"].sum(1)
    wanted = torch.tensor([float(row["wanted"]) for row in ROWS])
    torch.testing.assert_close(sampled.raw, wanted + 0.5 * lengths)
    torch.testing.assert_close(sampled.used, wanted.clamp(max=0.5) + 0.5 * lengths)
    nothing = torch.zeros(sampled.batch["response_mask"].shape)
    torch.testing.assert_close(trainer._token_level(sampled, nothing, nothing).sum(1), sampled.used)


def test_text_prompts_system_messages_and_turns(tiny_folder, tmp_path) -> None:
    chat = [
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "And you?"},
        ],
    ]
    for prompts in (chat * 4, ["Once", "upon a time"] * 4):
        rows = [{"prompt": prompt} for prompt in prompts]
        trainer = build(tiny_folder, tmp_path, rows=rows, rewards=[lambda prompts, **_: [1.0] * len(prompts)])
        trainer.train()
        assert trainer.state.global_step == 4
        wanted = trainer.processing_class
        ids = (
            wanted.apply_chat_template(
                prompts[0], add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
            if isinstance(prompts[0], list)
            else wanted(prompts[0])["input_ids"]
        )
        batch = trainer.sample(rows[:1]).batch
        assert batch["prompt_ids"][0].tolist() == list(ids)

"""Four roles on one backbone: each role is what it would be alone, and none touches another (specification, section 4)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from ppo.small import PROMPTS, build, fixed_rollout, logged, owned_by_critic, weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from instructkit.models import adapters, load
from instructkit.models import source as naming
from instructkit.models.reward import Offset, RewardScorer, saved_head, score_rows
from instructkit.ppo import rollout
from instructkit.ppo.critic import AdapterCritic, HeadCritic

BATCH = rollout.collate([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]], pad_id=0)


def policy(folder: Path) -> PeftModel:
    """A policy above a parent's adapter, both with weights that matter."""
    return shaken(with_parent(folder), "default")


def with_parent(folder: Path) -> PeftModel:
    return adapters.add_lora(
        AutoModelForCausalLM.from_pretrained(folder), lora("CAUSAL_LM"), saved_parent(folder)
    )


def lora(task: str, **more) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=task, **more)


def saved_parent(folder: Path) -> Path:
    """An SFT run's adapter, beside the base."""
    place = folder.parent / "parent"
    if not place.exists():
        model = adapters.add_lora(AutoModelForCausalLM.from_pretrained(folder), lora("CAUSAL_LM"), None)
        adapters.save_adapter(shaken(model, "default"), place, str(folder))
    return place


def saved_reward(folder: Path, tmp_path: Path) -> Path:
    """A reward model's run: an adapter, a head and the offset of its scores."""
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=0)
    model = adapters.add_lora(classifier, lora("SEQ_CLS", modules_to_save=["score"]), None)
    place = tmp_path / "reward"
    adapters.save_adapter(shaken(model, "default"), place, str(folder))
    (place / load.SCORE_FILE).write_text(json.dumps({"mean": 0.5, "std": 2.0}))
    return place


def shaken(model: PeftModel, adapter: str) -> PeftModel:
    generator = torch.Generator().manual_seed(len(adapter))
    for name, parameter in model.named_parameters():
        if f"lora_B.{adapter}" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def states(model) -> torch.Tensor:
    rollout.read(model, BATCH, temperature=1.0)
    return rollout.read_states(model, BATCH)[BATCH["response_mask"]]


def merged(folder: Path, *places: Path):
    """The stand-alone model of these adapters: each merged into the base in turn."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    for place in places:
        model = PeftModel.from_pretrained(model, str(place)).merge_and_unload()
    return model


def test_every_role_is_the_model_that_it_would_be_alone(tiny_folder, tmp_path) -> None:
    """O-19: policy, reference, critic and reward on one backbone against four merged models."""
    model = policy(tiny_folder)
    reward = saved_reward(tiny_folder, tmp_path)
    critic = adapters.add_critic(model, None)
    shaken(model, "critic")
    adapters.add_saved(model, "reward_0", reward)
    adapters.settle(model)
    adapters.save_adapter(model, tmp_path / "policy", str(tiny_folder))
    head = torch.nn.Linear(model.config.hidden_size, 1, bias=False)
    adapters.save_critic(model, head, critic, tmp_path / "critic", str(tiny_folder))

    found = {"policy": states(model)}
    for name, role in {
        "reference": adapters.as_parent,
        "critic": critic,
        "reward": adapters.Role(["reward_0"]),
    }.items():
        with role(model):
            found[name] = states(model)
    wanted = {
        "policy": states(merged(tiny_folder, tmp_path / "policy")),
        "reference": states(merged(tiny_folder, saved_parent(tiny_folder))),
        "critic": states(_body(tmp_path / "critic", tiny_folder)),
        "reward": states(_body(reward, tiny_folder)),
    }
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=0)  # measured 6e-6 of 4.8
    assert all(
        (found["policy"] - found[name]).abs().max() > 0.01 for name in ("reference", "critic", "reward")
    )


def _body(adapter: Path, base: Path):
    """A saved classifier's body under a language model's head, so that it can be read like a policy."""
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    whole = PeftModel.from_pretrained(classifier, str(adapter)).merge_and_unload()
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.load_state_dict(whole.model.state_dict())
    return model


def test_the_reference_of_a_policy_above_an_adapter_is_that_adapter(tiny_folder, tmp_path) -> None:
    """Hazard 1, O-9: KL is 0 at step 0, and it would not be against the bare base."""
    model = with_parent(tiny_folder)
    trainer = build(tiny_folder, tmp_path, model=model, lora=None, critic="head", more=roles(), max_steps=1)
    batch = fixed_rollout(trainer)
    with torch.no_grad():
        own = rollout.read(trainer.model, batch, temperature=1.0).logprobs
        with trainer.model.disable_adapter():
            bare = rollout.read(trainer.model, batch, temperature=1.0).logprobs
        adapters.settle(trainer.model)
    torch.testing.assert_close(trainer.reference_logprobs(batch), own, atol=1e-6, rtol=0)
    assert (bare - own).abs().max() > 0.01
    trainer.train()
    assert abs(logged(trainer, "objective/kl")[0]) <= 1e-6


def roles() -> dict:
    return {"reference": adapters.as_parent, "settle": adapters.settle, "for_sampling": adapters.folded}


def test_switching_roles_leaves_the_flags_of_training(tiny_folder) -> None:
    """Hazard 2: PEFT's own switch freezes the adapter that it puts aside."""
    model = policy(tiny_folder)
    role = adapters.add_critic(model, None)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    trained = {adapters.adapter_of(n) for n, flag in wanted.items() if flag}
    assert trained == {"default", "critic"}
    for context in (role, adapters.as_parent):
        with context(model):
            assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
        assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted


def test_both_adapters_move_and_neither_loss_reaches_the_other(tiny_folder, tmp_path) -> None:
    trainer = build(tiny_folder, tmp_path, lora=True, critic="adapter", max_steps=2)
    before = weights(trainer)
    trainer.train()
    moved = {n for n, p in weights(trainer).items() if not torch.equal(p, before[n])}
    assert {adapters.adapter_of(n) for n in moved if "lora_" in n} == {"default", "critic"}
    assert "critic.head.weight" in moved
    assert all("lora_" in n or n == "critic.head.weight" for n in moved)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_backward_pass_belongs_to_its_role(tiny_folder, tmp_path, checkpointing: bool) -> None:
    """
    Hazard 3: with both losses in one backward pass, checkpointing recomputes the policy under the critic's adapter.

    The gradients of both roles, one after the other through the trainer, equal those of each role alone.
    """
    trainer = build(
        tiny_folder,
        tmp_path,
        lora=True,
        critic="adapter",
        steps_per_generation=1,
        per_device_train_batch_size=8,
        gradient_checkpointing=checkpointing,
    )
    shaken(shaken(trainer.model, "default"), "critic")
    torch.nn.init.normal_(trainer.critic.head.weight)
    trainer.model.train()
    if checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.model.enable_input_require_grads()
    inputs = trainer._with_counts([fixed_rollout(trainer)])[0]
    trainer.state_of_ppo.rollouts = 1
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    trainer.model.gradient_checkpointing_disable()

    reading = rollout.read(trainer.model, inputs, temperature=1.0)
    trainer._policy_loss(reading, inputs).loss.backward()
    with trainer.critic.role(trainer.model):
        values = trainer.critic(rollout.read_states(trainer.model, inputs))
        (trainer.args.vf_coef * trainer._value_loss(values, inputs).loss).backward()
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=0)
    assert {adapters.adapter_of(n) for n in found} == {"default", "critic"}


def test_the_optimizer_has_every_trained_weight_once_at_its_own_rate(tiny_folder, tmp_path) -> None:
    trainer = build(tiny_folder, tmp_path, lora=True, critic="adapter", value_learning_rate=5e-3)
    trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(rates)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (5e-3 if owned_by_critic(name) else 1e-3), name
    assert rates[id(trainer.critic.head.weight)] == 5e-3
    assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-5}


def test_a_reward_model_on_the_backbone_scores_as_it_does_alone(tiny_folder, tmp_path) -> None:
    """Hazard 6: the same scores, offset included, from the shared backbone and from the saved model."""
    place = saved_reward(tiny_folder, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    source = naming.Source("reward", str(tiny_folder), adapter=place, run=place)
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1)
    alone = RewardScorer(
        PeftModel.from_pretrained(classifier, str(place)).eval(), tokenizer, Offset.read(place)
    )
    shared = RewardScorer.on_backbone(policy(tiny_folder), source, tokenizer, "reward_0")
    prompts, answers = PROMPTS[:3], ["yes", "no no no", "a"]
    wanted = alone.score(prompts, answers)
    assert shared.score(prompts, answers) == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 1e-2


def test_the_reward_model_reads_the_sampled_ids_where_the_tokenizers_agree(tiny_folder, tmp_path) -> None:
    """S-2: the same words cut into other tokens get the score of those tokens; another tokenizer reads the words."""
    place = saved_reward(tiny_folder, tmp_path)
    tokenizer, other = (AutoTokenizer.from_pretrained(tiny_folder) for _ in range(2))
    other.chat_template = other.chat_template + " "
    source = naming.Source("reward", str(tiny_folder), adapter=place, run=place)
    letters = [i for c in "cold" for i in tokenizer(c, add_special_tokens=False)["input_ids"]]
    assert letters != tokenizer("cold", add_special_tokens=False)["input_ids"]
    asked = {
        "prompts": PROMPTS[:1],
        "completions": [[{"role": "assistant", "content": "cold"}]],
        "completion_ids": [letters],
    }
    found = []
    for policy_tokenizer in (tokenizer, other):
        model = policy(tiny_folder)
        found.append(
            RewardScorer.on_backbone(model, source, tokenizer, "reward_0", policy_tokenizer=policy_tokenizer)
        )
    words = found[1].score(PROMPTS[:1], ["cold"])
    assert found[1](**asked) == pytest.approx(words, abs=1e-6)
    assert abs(found[0](**asked)[0] - words[0]) > 1e-4


def test_scoring_leaves_the_policy_as_it_was(tiny_folder, tmp_path) -> None:
    """Hazard 8: the mode, the role and the flags of training come back."""
    model = policy(tiny_folder).train()
    place = saved_reward(tiny_folder, tmp_path)
    source = naming.Source("reward", str(tiny_folder), adapter=place, run=place)
    scorer = RewardScorer.on_backbone(model, source, AutoTokenizer.from_pretrained(tiny_folder), "reward_0")
    before, flags = states(model), {n: p.requires_grad for n, p in model.named_parameters()}
    scorer.score(PROMPTS[:1], ["yes"])
    assert model.training
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    torch.testing.assert_close(states(model), before, atol=0, rtol=0)


def test_a_critic_that_starts_as_the_reward_model_says_what_it_says(tiny_folder, tmp_path) -> None:
    """A-6: at the last token of a response, V is the reward model's centred score."""
    place = saved_reward(tiny_folder, tmp_path)
    model = policy(tiny_folder)
    role = adapters.add_critic(model, place)
    critic = AdapterCritic(
        model.config.hidden_size, role, owned_by_critic, head=saved_head(place), mean=0.5, std=2.0
    )
    rows = [[5, 6, 7, 9, 10], [8, 11, 12, 13]]
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1)
    raw = score_rows(PeftModel.from_pretrained(classifier, str(place)), rows, pad_id=0)
    longer = rollout.collate(
        [[5, 6, 7], [8]], [[9, 10, 3], [11, 12, 13, 3]], pad_id=0
    )  # V_t is read before action t
    with torch.no_grad(), role(model):
        rollout.read(model, longer, temperature=1.0)
        values = critic(rollout.read_states(model, longer))
    assert [values[0, 2].item(), values[1, 3].item()] == pytest.approx(
        [(score - 0.5) / 2.0 for score in raw], abs=1e-5
    )


def test_adapters_that_fit_nothing_are_refused(tiny_folder, tmp_path) -> None:
    """Hazard 7."""
    place = saved_reward(tiny_folder, tmp_path)
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match="does not fit this model"):
        adapters.add_saved(policy(tiny_folder), "reward_0", place)


def test_adapters_and_head_stay_in_float32_above_a_lower_base(tiny_folder, tmp_path) -> None:
    """Hazard 9."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    model = adapters.add_lora(base, lora("CAUSAL_LM"), None)
    role = adapters.add_critic(model, None)
    critic = AdapterCritic(model.config.hidden_size, role, owned_by_critic)
    kinds = {p.dtype for n, p in model.named_parameters() if adapters.adapter_of(n)}
    assert kinds == {torch.float32}
    assert critic.head.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", ["head", "adapter"])
def test_values_keep_their_digits_under_autocast(kind: str) -> None:
    """Hazard 9: a head in half precision would know values to three digits."""
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 16)
    critic = (
        HeadCritic(16) if kind == "head" else AdapterCritic(16, adapters.Role(["critic"]), owned_by_critic)
    )
    torch.nn.init.normal_(critic.head.weight, std=10)
    with torch.autocast("cpu", dtype=torch.float16):
        values = critic(hidden)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, critic(hidden), atol=0, rtol=0)


def test_temperature_has_no_part_in_values(tiny_folder, tmp_path) -> None:
    """Hazard 10."""
    found = []
    for temperature in (1.0, 0.5):
        trainer = build(tiny_folder, tmp_path, lora=True, critic="adapter", temperature=temperature)
        torch.nn.init.ones_(trainer.critic.head.weight)
        batch = fixed_rollout(trainer)
        with torch.no_grad():
            rollout.read(trainer.model, batch, temperature=temperature)
            found.append(trainer._values(trainer.model, batch, None))
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


def test_a_line_with_every_role_learns(tiny_folder, tmp_path) -> None:
    """The whole trainer with a critic and a reward model on the policy's backbone: ratios 1, KL 0, then both move."""
    model = with_parent(tiny_folder)
    place = saved_reward(tiny_folder, tmp_path)
    source = naming.Source("reward", str(tiny_folder), adapter=place, run=place)
    scorer = RewardScorer.on_backbone(model, source, AutoTokenizer.from_pretrained(tiny_folder), "reward_0")
    trainer = build(
        tiny_folder,
        tmp_path,
        model=model,
        lora=None,
        critic="adapter",
        rewards=[scorer],
        more=roles(),
        max_steps=4,
    )
    before = weights(trainer)
    trainer.train()
    assert abs(logged(trainer, "objective/kl")[0]) <= 1e-6
    assert logged(trainer, "policy/first_pass_ratio_error")[0] < 1e-5
    moved = {adapters.adapter_of(n) for n, p in weights(trainer).items() if not torch.equal(p, before[n])}
    assert moved - {None} == {"default", "critic"}

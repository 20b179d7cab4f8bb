"""Adapters that stand on the original base: joined by rank, frozen parents, the parent as reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from little_llama import little_llama
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from instructkit.models import adapters

IDS = torch.arange(1, 15).reshape(2, 7)


@pytest.fixture()
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    little_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def lora(rank: int, **more) -> LoraConfig:
    return LoraConfig(
        **{
            "r": rank,
            "lora_alpha": 3 * rank,
            "target_modules": "all-linear",
            "task_type": "CAUSAL_LM",
            **more,
        }
    )


def shaken(model: PeftModel) -> PeftModel:
    """Give the fresh adapter weights that matter; a new one adds nothing."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def parent(base: Path) -> Path:
    model = shaken(adapters.add_lora(AutoModelForCausalLM.from_pretrained(base), lora(4), None))
    folder = base.parent / "parent"
    adapters.save_adapter(model, folder, base=str(base))
    return folder


def test_a_saved_chain_gives_the_logits_that_training_ended_with(base: Path) -> None:
    first = parent(base)
    model = shaken(adapters.add_lora(AutoModelForCausalLM.from_pretrained(base), lora(3), first))
    expected = model(IDS).logits.detach()
    adapters.save_adapter(model, base.parent / "child", base=str(base))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), base.parent / "child")
    torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-5, rtol=0)
    assert loaded.peft_config["default"].r == 7


def test_what_is_written_is_the_same_in_every_process(base: Path) -> None:
    """A set's order differs with PYTHONHASHSEED, and the hash of a run would with it."""
    folders = [parent(base), base.parent / "child", base.parent / "update"]
    model = adapters.add_lora(AutoModelForCausalLM.from_pretrained(base), lora(3), folders[0])
    adapters.save_adapter(model, folders[1], base=str(base))
    adapters.save_update(model, folders[2], base=str(base))
    for folder in folders:
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert len(told["target_modules"]) >= 7 and told["target_modules"] == sorted(told["target_modules"])


def test_joining_agrees_with_peft_where_peft_can_join(base: Path) -> None:
    model = shaken(adapters.add_lora(AutoModelForCausalLM.from_pretrained(base), lora(3), parent(base)))
    model.add_weighted_adapter([adapters.NEW, adapters.PARENT], [1.0, 1.0], "theirs", combination_type="cat")
    state, config = adapters.joined_state(model)
    ours_key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    theirs = layer.scaling["theirs"] * layer.lora_B["theirs"].weight @ layer.lora_A["theirs"].weight
    ours = state[ours_key.format("B")] @ state[ours_key.format("A")] * (config.lora_alpha / config.r)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_parent_and_child_may_stand_on_different_layers(base: Path) -> None:
    first = base.parent / "narrow"
    narrow = shaken(
        adapters.add_lora(
            AutoModelForCausalLM.from_pretrained(base), lora(2, target_modules=["q_proj"]), None
        )
    )
    adapters.save_adapter(narrow, first, base=str(base))
    model = shaken(
        adapters.add_lora(
            AutoModelForCausalLM.from_pretrained(base), lora(3, target_modules=["v_proj"]), first
        )
    )
    expected = model(IDS).logits.detach()
    adapters.save_adapter(model, base.parent / "child", base=str(base))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), base.parent / "child")
    torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-5, rtol=0)


def test_only_the_new_adapter_is_trained(base: Path) -> None:
    model = adapters.add_lora(AutoModelForCausalLM.from_pretrained(base), lora(3), parent(base))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(".default." in name for name in trained)
    model(IDS, labels=IDS).loss.backward()
    frozen = [p for n, p in model.named_parameters() if ".parent." in n]
    assert frozen and all(p.grad is None for p in frozen)


def test_within_as_parent_the_model_is_its_parent(base: Path) -> None:
    first = parent(base)
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), first)
    model = shaken(adapters.add_lora(AutoModelForCausalLM.from_pretrained(base), lora(3), first))
    before = model(IDS).logits.detach()
    with adapters.as_parent(model):
        torch.testing.assert_close(model(IDS).logits, alone(IDS).logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(model(IDS).logits, before, atol=0, rtol=0)
    assert any(p.requires_grad for n, p in model.named_parameters() if ".default." in n)


def test_without_a_parent_the_reference_is_the_base(base: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    model = shaken(adapters.add_lora(AutoModelForCausalLM.from_pretrained(base), lora(3), None))
    with adapters.as_parent(model):
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, atol=1e-6, rtol=0)


def test_a_reward_head_is_trained_and_saved_above_a_policys_adapter(base: Path) -> None:
    first = parent(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = lora(3, task_type="SEQ_CLS", modules_to_save=["score"])
    model = shaken(adapters.add_lora(model, config, first))
    assert any("score" in n and p.requires_grad for n, p in model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score.modules_to_save.default" in name:
                parameter.fill_(0.25)
    expected = model(IDS).logits.detach()
    adapters.save_adapter(model, base.parent / "reward", base=str(base))
    fresh = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    loaded = PeftModel.from_pretrained(fresh, base.parent / "reward")
    torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_folded_adapters_say_the_same_and_leave_no_trace(base: Path, targets) -> None:
    model = adapters.add_lora(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", ensure_weight_tying=False),
        None,
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        wanted = model(ids).logits
        down = []
        handles = [
            m.register_forward_hook(lambda *_: down.append(1))
            for n, m in model.named_modules()
            if n.endswith("lora_A.default")
        ]
        with adapters.folded(model):
            torch.testing.assert_close(model(ids).logits, wanted, atol=1e-4, rtol=1e-4)
        assert len(down) == (0 if targets == "all-linear" else int(model.config.tie_word_embeddings))
        for handle in handles:
            handle.remove()
        assert not torch.equal(wanted, _base_logits(model, ids))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    torch.testing.assert_close(model(ids).logits, wanted, atol=0, rtol=0)


def _base_logits(model, ids):
    with model.disable_adapter():
        return model(ids).logits


def test_what_is_not_float32_is_not_folded(base: Path) -> None:
    model = adapters.add_lora(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        None,
    )
    weights = {id(p): p.data_ptr() for p in model.parameters()}
    with adapters.folded(model):
        assert {id(p): p.data_ptr() for p in model.parameters()} == weights

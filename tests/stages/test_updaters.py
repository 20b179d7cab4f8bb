"""How an update's trainers differ from TRL's: class weights, replay with an anchor, an adapter that is saved and scaled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from little_llama import little_llama
from peft import LoraConfig

from instructkit.models import adapters
from instructkit.stages.lora_update import trainers

IDS = torch.arange(1, 15).reshape(2, 7)


def model_with_adapter(rank: int = 4, alpha: int = 8):
    torch.manual_seed(0)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return adapters.add_lora(little_llama(), settings, None)


def shaken(model):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("good", "bad", "wanted"),
    [
        (3, 3, {}),
        (4, 3, {}),
        (5, 3, {"undesirable_weight": 5 / 3}),
        (2, 6, {"desirable_weight": 3.0}),
        (3, 0, {}),
    ],
)
def test_ktos_classes_weigh_between_one_to_one_and_four_to_three(good, bad, wanted) -> None:
    rows = [{"label": True}] * good + [{"label": False}] * bad
    found = trainers.class_weights(rows)
    assert found == pytest.approx(wanted)
    if bad:
        ratio = found.get("desirable_weight", 1) * good / (found.get("undesirable_weight", 1) * bad)
        assert 1 - 1e-9 <= ratio <= 4 / 3 + 1e-9


def test_an_update_is_saved_alone_and_gone_on_from(tmp_path) -> None:
    model = shaken(model_with_adapter())
    adapters.save_update(model, tmp_path / "update", base="base")
    fresh = model_with_adapter()
    assert not torch.allclose(logits(fresh), logits(model))
    adapters.load_update(fresh, tmp_path / "update")
    torch.testing.assert_close(logits(fresh), logits(model))
    with pytest.raises(ValueError, match="rank 4"):
        adapters.load_update(model_with_adapter(rank=2), tmp_path / "update")


def test_a_scaled_adapter_lies_on_the_line_and_is_saved_so(tmp_path) -> None:
    model = shaken(model_with_adapter())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    whole = layer.get_delta_weight(adapters.NEW).clone()
    adapters.rescale(model, 0.5)
    torch.testing.assert_close(layer.get_delta_weight(adapters.NEW), 0.5 * whole)
    adapters.save_update(model, tmp_path / "update", base="base")
    fresh = model_with_adapter()  # trained on at its own scale, it begins at half of the update
    adapters.load_update(fresh, tmp_path / "update")
    torch.testing.assert_close(logits(fresh), logits(model))
    adapters.rescale(model, 2.0)
    torch.testing.assert_close(layer.get_delta_weight(adapters.NEW), whole)


class Bare(trainers.Replay):
    """The replay of an updater without a trainer around it."""

    def __init__(self, model) -> None:
        self.model = model
        self.state = SimpleNamespace(global_step=0)
        self.args = SimpleNamespace(seed=1, per_device_train_batch_size=2)
        self.processing_class = SimpleNamespace(pad_token_id=0)
        self.accelerator = SimpleNamespace(device="cpu", unwrap_model=lambda m: m)


def test_the_anchor_is_the_kl_from_the_parent_on_the_replayed_answers() -> None:
    model = shaken(model_with_adapter())
    row = {"input_ids": IDS[0].tolist(), "labels": [-100, -100, *IDS[0].tolist()[2:]]}
    bare = Bare(model)
    bare.replay([row], [], share=0.25, own_share=0.0, anchor=2.0)
    loss = bare._replayed(model)
    ours = model(input_ids=IDS[:1]).logits.log_softmax(-1)[0, 1:-1]
    with torch.no_grad(), adapters.as_parent(model):
        theirs = model(input_ids=IDS[:1]).logits.log_softmax(-1)[0, 1:-1]
    nll = torch.nn.functional.nll_loss(ours, IDS[0, 2:])
    kl = torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    assert kl.item() > 1e-3
    torch.testing.assert_close(loss, 0.25 * nll + 2.0 * kl)
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_parent_is_at_no_distance_from_itself() -> None:
    model = model_with_adapter()  # the fresh adapter adds nothing
    row = {"input_ids": IDS[0].tolist(), "labels": [-100, *IDS[0].tolist()[1:]]}
    bare = Bare(model)
    bare.replay([row], [], share=0.0, own_share=0.0, anchor=1.0)
    assert abs(bare._replayed(model).item()) < 1e-6

"""A model as it is loaded for training: what it computes has a gradient, whatever was measured with it before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from instructkit.errors import InputError
from instructkit.models import adapters
from instructkit.models.load import load_for_training, load_for_use, load_tokenizer
from instructkit.models.machine import choose
from instructkit.models.reward import RewardScorer
from instructkit.models.source import locate
from instructkit.recipe.schema import LoraSection, ModelSection


def test_a_4bit_base_has_its_gradient_after_a_measurement(tiny_folder: Path) -> None:
    """bitsandbytes repacks a CPU's 4-bit layers in evaluation mode, into a kernel without a backward pass."""
    section = ModelSection(name=str(tiny_folder), quantization="4bit")
    machine = choose("auto", "4bit")
    torch.manual_seed(0)
    model = load_for_training(locate(section.name), section, machine, LoraSection(r=4))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]], device=machine.device)

    def gradients() -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    after = gradients()
    assert before.keys() == after.keys() and any("layers.0" in name for name in before)
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, msg=name)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_model_that_was_cut_off_is_named(tiny_folder: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / file).write_bytes((folder / file).read_bytes()[:1000])
    section = ModelSection(name=str(folder))
    with pytest.raises(InputError, match="model cannot be loaded") as told:
        load_tokenizer(locate(section.name), section)
        load_for_training(locate(section.name), section, choose("auto", "none"), None)
    assert f"check that {folder} is complete" in told.value.hint


def test_an_adapter_that_was_cut_off_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    base, machine = ModelSection(name=str(tiny_folder)), choose("auto", "none")
    model, lora = load_for_training(locate(base.name), base, machine, LoraSection(r=4)), LoraSection(r=4)
    adapters.save_adapter(model, tmp_path / "adapter", base=str(tiny_folder))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    section = ModelSection(name=str(tmp_path / "adapter"))
    source = locate(section.name)
    for load in (
        lambda: load_for_training(source, section, machine, lora),
        lambda: load_for_training(source, section, machine, None),
        lambda: load_for_use(source, section, machine),
        lambda: RewardScorer.on_backbone(model, source, None, "reward"),
    ):
        with pytest.raises(InputError, match="adapter cannot be loaded") as told:
            load()
        assert "is complete" in told.value.hint

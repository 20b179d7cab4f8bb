"""A model as it is loaded for training: what it computes has a gradient, whatever was measured with it before."""

from __future__ import annotations

from pathlib import Path

import torch

from instructkit.machine import choose
from instructkit.models import load_for_training, locate
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

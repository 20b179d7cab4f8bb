"""Memory of a run against the memory of its machine, and what would make it fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from instructkit.machine import Machine
from instructkit.plan.rehearsal import Rehearsal, rehearse
from instructkit.stages.base import Inputs

# What a process holds for each byte of the tensors of a phase. On a CPU glibc cuts aligned blocks so that a freed one is often
# too small for the next of the same size, the more so the more sizes there are; fitted to the cells of benchmarks/plan.py.
OVERHEAD_ON_CPU = {"full": 1.16, "lora": 1.48, "quantized": 1.6}
OVERHEAD_ON_GPU = 1.02
OWN_BYTES = 150 * 2**20  # tokenizer, rows and the libraries' own tables


@dataclass(frozen=True)
class Need:
    """Predicted bytes by component on each device, and what the device has."""

    weights: dict[str, int]
    gradients: int
    optimizer: int
    phases: dict[str, int]
    predicted: int
    available: int

    @property
    def fits(self) -> bool:
        """Whether the device has what is needed."""
        return self.predicted <= self.available

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "fits": self.fits}


@dataclass(frozen=True)
class Change:
    """A change of the recipe that saves memory: as overrides, and what is then needed."""

    overrides: list[str]
    predicted: int
    saves: int


def need(rehearsal: Rehearsal, recipe: Any, machine: Machine) -> Need:
    """What the rehearsed step needs on this machine."""
    weights = dict(rehearsal.weights)
    if machine.on_cpu and rehearsal.mapped:
        weights["file of the base, mapped"] = rehearsal.mapped
    return Need(
        weights,
        rehearsal.gradients,
        rehearsal.optimizer,
        rehearsal.phases,
        predicted(rehearsal, recipe, machine),
        available(machine),
    )


def predicted(rehearsal: Rehearsal, recipe: Any, machine: Machine) -> int:
    """Bytes of the process at its peak, above the interpreter's own."""
    kept = sum(rehearsal.weights.values()) + rehearsal.optimizer
    passing = max(rehearsal.phases.values())
    if not machine.on_cpu:
        return int(kept + OVERHEAD_ON_GPU * passing)
    kind = "full" if recipe.lora is None else "lora" if recipe.model.quantization == "none" else "quantized"
    return int(kept + rehearsal.mapped + OVERHEAD_ON_CPU[kind] * passing) + OWN_BYTES


def available(machine: Machine) -> int:
    """Bytes that the device has left."""
    if machine.on_cpu:
        import psutil

        return int(psutil.virtual_memory().available)
    import torch

    return int(torch.cuda.mem_get_info()[0])


def changes(recipe: Any, inputs: Inputs, machine: Machine, now: Need) -> list[Change]:
    """The three changes that would help most, each rehearsed."""
    found = []
    for overrides, changed in _candidates(recipe, machine):
        size = predicted(rehearse(changed, inputs, machine), changed, machine)
        found.append(Change(overrides, size, now.predicted - size))
    return sorted((c for c in found if c.saves > 0), key=lambda change: -change.saves)[:3]


def _candidates(recipe: Any, machine: Machine) -> list[tuple[list[str], Any]]:
    """Changed recipes: a smaller micro-batch with the same step, gradient checkpointing, LoRA, 4 bits, shorter rows."""
    trainer = recipe.trainer
    size, pieces = (
        trainer.get("per_device_train_batch_size", 8),
        trainer.get("gradient_accumulation_steps", 1),
    )
    found: list[dict[str, Any]] = []
    if size > 1:
        smaller = {
            "trainer.per_device_train_batch_size": size // 2,
            "trainer.gradient_accumulation_steps": pieces * 2,
        }
        if recipe.stage == "ppo":
            smaller["trainer.steps_per_generation"] = trainer.get("steps_per_generation", 1) * 2
        found.append(smaller)
    if not trainer.get("gradient_checkpointing", not machine.on_cpu):
        found.append({"trainer.gradient_checkpointing": True})
    if recipe.lora is None:
        found.append({"lora": {}})
    elif recipe.model.quantization == "none":
        found.append({"model.quantization": "4bit"})
    longest = "max_completion_length" if recipe.stage == "ppo" else "max_length"
    if trainer.get(longest):
        found.append({f"trainer.{longest}": trainer[longest] // 2})
    return [
        ([f"{key}={_told(value)}" for key, value in change.items()], _changed(recipe, change))
        for change in found
    ]


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _changed(recipe: Any, change: dict[str, Any]) -> Any:
    values = recipe.model_dump()
    for key, value in change.items():
        section, _, name = key.partition(".")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    return type(recipe).model_validate({**values, "source": recipe.source})

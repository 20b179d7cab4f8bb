"""Memory of a run against the memory of its machine, and what would make it fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from instructkit.models.machine import Machine

if TYPE_CHECKING:
    from instructkit.plan.rehearsal import Rehearsal

# What a process holds for each byte of the tensors of a phase. On a CPU glibc cuts aligned blocks so that a freed one is often
# too small for the next of the same size, the more so the more sizes there are; fitted to the cells of benchmarks/plan.py.
OVERHEAD_ON_CPU = {"full": 1.16, "lora": 1.54, "quantized": 1.65}
# PPO's passes are bounded (`tokens_per_pass`), so that blocks of a few sizes come again and again.
PPO_OVERHEAD_ON_CPU = {"full": 1.16, "lora": 1.0, "quantized": 1.0}
OVERHEAD_ON_GPU = 1.02
OWN_BYTES = 150 * 2**20  # tokenizer, rows and the libraries' own tables


@dataclass(frozen=True)
class Need:
    """
    Predicted bytes by component on each device, and what the device has.

    Attributes:
        phases: by name, the most that each holds beside weights and optimizer.
        peak: the phase that holds most.
        components: what the device holds at that peak, by what it is; they add up to `predicted`.
        mapped: of a quantised base on a CPU the file that it was read from, whose pages stay in the process while there is room.
        most: by phase, the most of activations, logits, gradients and KV cache that there is at any time, each for itself.
    """

    weights: dict[str, int]
    gradients: int
    optimizer: int
    phases: dict[str, int]
    peak: str
    components: dict[str, int]
    most: dict[str, dict[str, int]]
    predicted: int
    available: int
    mapped: int = 0

    @property
    def needed(self) -> int:
        """What must be there: of the prediction all but pages of a file that nobody reads any more, which a kernel takes back."""
        return self.predicted - self.mapped

    @property
    def fits(self) -> bool:
        """Whether the device has what is needed."""
        return self.needed <= self.available

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"unit": "bytes", **asdict(self), "needed": self.needed, "fits": self.fits}


def need(rehearsal: Rehearsal, recipe: Any, machine: Machine) -> Need:
    """What the rehearsed step needs on this machine."""
    weights = dict(rehearsal.weights)
    mapped = rehearsal.mapped if machine.on_cpu else 0
    if mapped:
        weights["file of the base, mapped"] = mapped
    size = predicted(rehearsal, recipe, machine)
    return Need(
        weights,
        rehearsal.gradients,
        rehearsal.optimizer,
        rehearsal.phases,
        max(rehearsal.phases, key=rehearsal.phases.__getitem__),
        _components(rehearsal, weights, size, machine),
        {phase: held.most for phase, held in rehearsal.held.items()},
        size,
        available(machine),
        mapped,
    )


def needed(rehearsal: Rehearsal, recipe: Any, machine: Machine) -> int:
    """As `Need.needed`, for a change that is tried."""
    return predicted(rehearsal, recipe, machine) - (rehearsal.mapped if machine.on_cpu else 0)


def _components(rehearsal: Rehearsal, weights: dict[str, int], size: int, machine: Machine) -> dict[str, int]:
    """All of a prediction by what it is; what no tensor holds is the libraries' share, and then the allocator's."""
    phase = max(rehearsal.phases, key=rehearsal.phases.__getitem__)
    found = {f"weights, {role}": held for role, held in weights.items()}
    found |= {"optimizer": rehearsal.optimizer, **rehearsal.held[phase].at_peak}
    if machine.on_cpu:
        found["tokenizer, rows, libraries"] = OWN_BYTES
    found["lost by the allocator"] = size - sum(found.values())
    return {name: held for name, held in found.items() if held}


def predicted(rehearsal: Rehearsal, recipe: Any, machine: Machine) -> int:
    """Bytes of the process at its peak, above the interpreter's own."""
    kept = sum(rehearsal.weights.values()) + rehearsal.optimizer
    passing = max(rehearsal.phases.values())
    if not machine.on_cpu:
        return int(kept + OVERHEAD_ON_GPU * passing)
    kind = "full" if recipe.lora is None else "lora" if recipe.model.quantization == "none" else "quantized"
    overhead = PPO_OVERHEAD_ON_CPU if recipe.stage == "ppo" else OVERHEAD_ON_CPU
    return int(kept + rehearsal.mapped + overhead[kind] * passing) + OWN_BYTES


def available(machine: Machine) -> int:
    """Bytes that the device has left."""
    if machine.on_cpu:
        import psutil

        return int(psutil.virtual_memory().available)
    import torch

    return int(torch.cuda.mem_get_info()[0])

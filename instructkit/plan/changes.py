"""Changes of a recipe that would make a run fit: each taken as far as is needed, and rehearsed on data prepared already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from instructkit.errors import InstructKitError
from instructkit.models.machine import Machine
from instructkit.plan import memory
from instructkit.plan.rehearsal import Rehearsal, rehearse
from instructkit.stages.base import Inputs

SHORTEST = 64  # tokens below which no limit is suggested
TOLD = 3
MOST_EMPTIED = 0.1  # of the rows, in which a shorter limit may leave nothing to learn
Values = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A change of the recipe that saves memory: as overrides, what is then needed, and whether that is enough; in bytes."""

    overrides: list[str]
    needed: int
    saves: int
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values, the unit in their names."""
        return {
            "overrides": self.overrides,
            "needed_bytes": self.needed,
            "saves_bytes": self.saves,
            "fits": self.fits,
        }


def changes(
    recipe: Any, inputs: Inputs, machine: Machine, now: memory.Need, known: Rehearsal
) -> tuple[list[Change], Change | None, list[str]]:
    """
    The three changes that would help most, those that suffice alone first; and several together where none suffices alone.

    What cannot be tried is told with its reason, in words.

    Args:
        now: what the recipe needs as it is.
        known: its rehearsal.
    """

    untried: dict[str, str] = {}

    def size(values: Values) -> int | None:
        try:
            changed = _changed(recipe, values)
            return memory.needed(rehearse(changed, inputs, machine, known), changed, machine)
        except (InstructKitError, ValueError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            untried.setdefault(_as_overrides(values), first)
            return None  # not for this recipe

    def change(values: Values, needed: int) -> Change:
        told = [f"{key}={_told(value)}" for key, value in values.items()]
        return Change(told, needed, now.needed - needed, needed <= now.available)

    found: list[tuple[Values, Change]] = []
    knobs = _knobs(recipe, known.kept.settings, known.batch)
    for steps in filter(None, (_with_labels(steps, known.kept.starts, untried) for steps in knobs)):
        values, needed = _far_enough(steps, size, now)
        if needed is not None and needed < now.needed:
            found.append((values, change(values, needed)))
        elif needed is not None:
            untried[_as_overrides(values)] = "saves nothing at the peak"
    found.sort(key=lambda each: (not each[1].fits, -each[1].saves))
    told, together = [each for _, each in found[:TOLD]], None
    if not any(each.fits for each in told):
        together = _together([values for values, _ in found], size, change)
    return told, together, [f"{what}: {why}" for what, why in untried.items()]


def _with_labels(steps: list[Values], starts: list[int], untried: dict[str, str]) -> list[Values]:
    """The steps of a change but those to a length that leaves nothing to learn in more than a tenth of the rows."""
    found = []
    for step in steps:
        limit = step.get("trainer.max_length")
        emptied = 0 if limit is None else sum(start >= limit for start in starts)
        if emptied <= MOST_EMPTIED * len(starts):
            found.append(step)
        else:  # the mildest of these stands for all that are shorter
            told = f"nothing would be learned in {emptied} of {len(starts)} rows"
            untried[f"trainer.max_length={limit}"] = told
            break
    return found


def _together(
    found: list[Values], size: Callable[[Values], int | None], change: Callable[[Values, int], Change]
) -> Change | None:
    """One change after another, the one that saves most first, until they suffice; None where a single one is all that helps."""
    values, best, taken = {}, None, 0
    for each in found:
        needed = size({**values, **each})
        if needed is None or (best is not None and needed >= best.needed):
            continue
        values |= each
        best, taken = change(values, needed), taken + 1
        if best.fits:
            break
    return best if taken > 1 else None


def _far_enough(
    steps: list[Values], size: Callable[[Values], int | None], now: memory.Need
) -> tuple[Values, int | None]:
    """The mildest step of a change that suffices, else the furthest; found by halving: each saves more than those before."""
    furthest = size(steps[-1])
    while furthest is None and len(steps) > 1:  # one step that cannot be taken says nothing of milder ones
        steps = steps[:-1]
        furthest = size(steps[-1])
    if furthest is None or furthest > now.available:
        return steps[-1], furthest
    found, low, high = (steps[-1], furthest), 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        needed = size(steps[middle])
        if needed is not None and needed <= now.available:
            found, high = (steps[middle], needed), middle
        else:
            low = middle + 1
    return found


def _knobs(recipe: Any, given: Values, batch: tuple[int, int]) -> list[list[Values]]:
    """What can be changed, each from the mildest step on: micro-batch with the same step, checkpointing, LoRA, 4 bits, length."""
    found = [_smaller_batches(recipe.stage, given)]
    if not given.get("gradient_checkpointing"):
        found.append([{"trainer.gradient_checkpointing": True}])
    if recipe.lora is None:
        found.append([{"lora": {}}])
        if recipe.model.quantization == "none":
            found.append([{"lora": {}, "model.quantization": "4bit"}])
    elif recipe.model.quantization == "none":
        found.append([{"model.quantization": "4bit"}])
    name = "max_completion_length" if recipe.stage == "ppo" else "max_length"
    binding = given.get(name) or batch[1]
    if recipe.stage != "ppo":
        binding = min(binding, batch[1])
    lengths = [1 << power for power in range(binding.bit_length(), 0, -1) if SHORTEST <= 1 << power < binding]
    found.append([{f"trainer.{name}": length} for length in lengths])
    return [steps for steps in found if steps]


def _smaller_batches(stage: str, given: Values) -> list[Values]:
    """Every smaller micro-batch whose accumulation makes the same step: the divisors of the one there is, the largest first."""
    size, pieces = given["per_device_train_batch_size"], given.get("gradient_accumulation_steps", 1)
    found = []
    for smaller in (n for n in range(size // 2, 0, -1) if size % n == 0):
        factor = size // smaller
        values = {
            "trainer.per_device_train_batch_size": smaller,
            "trainer.gradient_accumulation_steps": pieces * factor,
        }
        if stage == "ppo":
            values["trainer.steps_per_generation"] = (given.get("steps_per_generation") or 1) * factor
        found.append(values)
    return found


def _as_overrides(values: Values) -> str:
    return " ".join(f"{key}={_told(value)}" for key, value in values.items())


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _changed(recipe: Any, change: Values) -> Any:
    values = recipe.model_dump()
    for key, value in change.items():
        section, _, name = key.partition(".")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    return type(recipe).model_validate({**values, "source": recipe.source})

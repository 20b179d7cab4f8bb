"""Check what a recipe points to without loading a model: data, columns, parents, functions and trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instructkit.data.sources import OnTheHub, local_only
from instructkit.errors import Fault, InputError, NothingNew
from instructkit.models import source
from instructkit.recipe.document import Place
from instructkit.stages import stage_of
from instructkit.stages.base import refuse_unfit_parents, refuse_without_weights

# The packages of which each tracker of `trainer.report_to` needs one, where it is not called like its package.
PACKAGES = {
    "azure_ml": ("azureml.core",),
    "comet_ml": ("comet_ml",),
    "flyte": ("flytekit",),
    "tensorboard": ("tensorboard", "tensorboardX"),
}
NO_TRACKER = ("none", "all")


def faults(recipe: Any, where: Callable[[Place], str], written: Sequence[str] = ()) -> list[Fault]:
    """
    Return every error of what a recipe points to.

    Args:
        recipe: a checked recipe.
        where: returns the line of a value.
        written: output folders of recipes that run before this one; a parent that is one of them need not be there yet.
    """
    with source.expecting(written), local_only():
        found = [*_parents(recipe, where), *_trackers(recipe, where)]
        known = {fault.message for fault in found}
        return [*found, *(fault for fault in _inputs(recipe) if fault.message not in known)]


def _parents(recipe: Any, where: Callable[[Place], str]) -> Iterator[Fault]:
    for place, name in _names(recipe):
        try:
            source.locate(name)
        except InputError as error:
            yield Fault(where(place), error.message, error.hint)


def _names(recipe: Any) -> Iterator[tuple[Place, str]]:
    yield ("model", "name"), recipe.model.name
    for i, item in enumerate(getattr(recipe, "reward", None) or []):
        if item.model:
            yield ("reward", i, "model"), item.model
    if name := getattr(recipe.gates, "reward_model", None):
        yield ("gates", "reward_model"), name


def _trackers(recipe: Any, where: Callable[[Place], str]) -> Iterator[Fault]:
    """Yield an error for each tracker without its package. TRL would refuse it only after torch is loaded."""
    asked = recipe.trainer.get("report_to") or []
    for name in [asked] if isinstance(asked, str) else asked:
        packages = PACKAGES.get(name, (name,))
        if name not in NO_TRACKER and not any(map(_is_installed, packages)):
            message = (
                f"`trainer.report_to` is {name}, and the package {' or '.join(packages)} is not installed"
            )
            yield Fault(
                where(("trainer", "report_to")), message, f"run `pip install {packages[0]}`, or remove it"
            )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _inputs(recipe: Any) -> list[Fault]:
    """Return the errors of what the stage reads before it loads a model. Data on a hub are not read."""
    try:
        inputs = stage_of(recipe).collect(recipe, {})
        there = {role: source for role, source in inputs.parents.items() if Path(source.base).exists()}
        if "model" in there:
            refuse_unfit_parents(recipe, there)
        refuse_without_weights(there)
    except (NothingNew, OnTheHub):
        return []
    except InputError as error:
        return list(getattr(error, "faults", None) or [Fault(recipe.source, error.message, error.hint)])
    return []

"""What the libraries would refuse, as one clear error with the recipe's name, before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from instructkit.errors import InputError, InstructKitError


@contextlib.contextmanager
def told_by_recipe(recipe: Any) -> Iterator[None]:
    """
    What a library refuses within this context is told with the recipe's name.

    Raises:
        InputError: in place of the library's own error, which stands behind it.
    """
    try:
        yield
    except InstructKitError:
        raise
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{recipe.source}: this run is refused before its first step: {first}",
            hint="change the part of the recipe that it names; `instructkit explain` tells what a key means, --debug shows where",
        ) from error


def refuse_early(recipe: Any) -> None:
    """
    Refuse what the names of the model's layers can tell, where the recipe names some.

    Raises:
        InputError: for LoRA targets that match no layer.
    """
    if recipe.lora is not None and recipe.lora.target_modules != "all-linear":
        _refuse_targets(recipe)


def _refuse_targets(recipe: Any) -> None:
    """PEFT's own matching on a model without weights: the names that no layer has."""
    from instructkit import models, naming
    from instructkit.machine import Machine

    source = naming.locate(recipe.model.name)
    with models.weightless():
        task = "SEQ_CLS" if recipe.stage == "reward" else "CAUSAL_LM"
        body = models.load_for_training(source, recipe.model, Machine("cpu", "float32", ()), None, task=task)
    names = [name for name, module in body.named_modules() if not list(module.children())]
    targets = recipe.lora.target_modules
    if _unmatched(names, targets):
        layers = sorted({name.rpartition(".")[2] for name in names if _is_linear(body, name)})
        raise InputError(
            f"{recipe.source}: `lora.target_modules` is {targets!r}, and no layer of {recipe.model.name} is called "
            + ", ".join(map(repr, _unmatched(names, targets))),
            hint=f"its linear layers are {', '.join(layers)}; or give all-linear",
        )


def _is_linear(body: Any, name: str) -> bool:
    from torch.nn import Linear

    return isinstance(body.get_submodule(name), Linear)


def _unmatched(names: list[str], targets: str | list[str]) -> list[str]:
    """The targets that match no layer; an empty list of targets is one that matches nothing."""
    import re

    if isinstance(targets, str):
        return [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    if not targets:
        return ["(nothing: the list is empty)"]
    return [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]

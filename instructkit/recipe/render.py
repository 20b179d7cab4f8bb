"""A recipe as data and as text, every default in it."""

from __future__ import annotations

from typing import Any

from instructkit.recipe.yaml_core import write


def to_dict(recipe: Any) -> dict[str, Any]:
    """The resolved recipe as plain values, as the run record keeps it."""
    return recipe.model_dump(mode="json")


def to_yaml(recipe: Any) -> str:
    """The resolved recipe as YAML that loads again."""
    return write(to_dict(recipe))

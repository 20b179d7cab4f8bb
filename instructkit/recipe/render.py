"""A recipe as data and as text, the defaults of its sections in it; of `trainer:` stands what is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from instructkit.recipe.document import Document, Place
from instructkit.recipe.yaml import inline, write


def to_dict(recipe: Any) -> dict[str, Any]:
    """The resolved recipe as plain values, as the run record keeps it."""
    return recipe.model_dump(mode="json")


def to_yaml(recipe: Any) -> str:
    """The resolved recipe as YAML that loads again."""
    return write(to_dict(recipe))


def origins(recipe: Any, document: Document) -> dict[str, str]:
    """Where each value comes from, by its dotted name: `file:line`, `command line: …`, or `default`."""
    return {
        ".".join(map(str, place)): document.places.get(place, "default")
        for place, _ in _leaves(to_dict(recipe), ())
    }


def with_origins(recipe: Any, document: Document) -> str:
    """The resolved recipe as YAML that loads again, each value with its origin as a comment."""
    rows = list(_lines(to_dict(recipe), (), ""))
    width = min(60, max(len(text) for text, place in rows if place is not None))
    return "".join(
        text + "\n"
        if place is None
        else f"{text:{width}}  # {document.places.get(place, 'default').partition(': ')[0]}\n"
        for text, place in rows
    )


def _is_section(value: Any) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, dict) for item in value)
    return isinstance(value, dict) and bool(value)


def _leaves(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    if not _is_section(value):
        yield place, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, (*place, key))


def _lines(section: dict[str, Any], place: Place, indent: str) -> Iterator[tuple[str, Place | None]]:
    """Lines of YAML, and of which place each tells the value; None where a line only opens a section."""
    for key, value in section.items():
        here = (*place, key)
        if not _is_section(value):
            yield f"{indent}{inline(key)}: {inline(value)}", here
        elif isinstance(value, dict):
            yield f"{indent}{inline(key)}:", None
            yield from _lines(value, here, indent + "  ")
        else:
            yield f"{indent}{inline(key)}:", None
            for i, item in enumerate(value):
                yield from _item(item, (*here, i), indent)


def _item(item: Any, place: Place, indent: str) -> Iterator[tuple[str, Place | None]]:
    if not isinstance(item, dict):
        yield f"{indent}- {inline(item)}", place
        return
    for i, (text, where) in enumerate(_lines(item, place, indent + "  ")):
        yield (f"{indent}- {text[len(indent) + 2 :]}" if i == 0 else text), where

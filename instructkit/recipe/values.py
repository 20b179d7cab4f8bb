"""From nodes of YAML to values that know where they stand: the environment put in, and what recipes do not take told."""

from __future__ import annotations

import re
from typing import Any

import yaml

from instructkit.errors import Fault, RecipeError
from instructkit.recipe.document import Document, Place, dotted
from instructkit.recipe.environment import resolve
from instructkit.recipe.yaml_core import convert, resolved

NO_VALUE = "write one, `null` for none, `{}` for a section of defaults, or remove the key"
MOST_VALUES = 20_000
_CURLY_QUOTES = tuple("\u201c\u201d\u201e\u2018\u2019\u201a\u00ab")
_SHORT_HOME = re.compile(r"~(?=/)|\$[A-Za-z_][A-Za-z0-9_]*(?=/)")
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def value_of(node: yaml.Node, place: Place, document: Document, above: tuple[yaml.Node, ...] = ()) -> Any:
    """The value of a YAML node; where it and its parts stand, and what is wrong with them, goes into the document."""
    where = f"{document.file}:{node.start_mark.line + 1}"
    document.places[place] = where
    if (
        len(document.places) > MOST_VALUES
    ):  # aliases of aliases can stand for more values than any machine holds
        told = f"more than {MOST_VALUES} values"
        raise RecipeError([Fault(where, told, "write the recipe without its aliases")])
    if any(node is other for other in above):
        document.spoil(place, where, "an alias that stands for what it is in", "write the value out")
        return None
    if not isinstance(node, yaml.ScalarNode) and not node.tag.startswith(_PLAIN):
        told = f"the tag `{node.tag.replace('tag:yaml.org,2002:', '!!')}` means nothing in a recipe"
        document.spoil(place, where, told, "write plain values")
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, document, (*above, node))
    if isinstance(node, yaml.SequenceNode):
        return [value_of(item, (*place, i), document, (*above, node)) for i, item in enumerate(node.value)]
    if node.value == "" and node.style is None and place:
        document.spoil(place, where, f"`{dotted(place)}` has no value", NO_VALUE)
    try:
        value = convert(_with_environment(node, place, where, document))
        if place != ("extends",) and (slip := _slip(node, value)) is not None:
            document.spoil(place, where, f"`{dotted(place)}` begins with {slip[0]}", slip[1])
        if odd := _odd_character(value):
            told = f"`{dotted(place)}` holds {odd}, which neither names nor texts may have"
            document.spoil(place, where, told, "remove it")
        return value
    except ValueError as error:
        document.spoil(place, where, str(error), "write a plain value; quotes make a text")
        return None


def _slip(node: yaml.ScalarNode, value: Any) -> tuple[str, str] | None:
    """What a text begins with that means something elsewhere and nothing here, and the way on."""
    if not isinstance(value, str):
        return None
    if node.style is None and value[:1] in _CURLY_QUOTES:
        return f"{value[0]}, a quote that YAML takes for a letter", "write \" or ', or no quotes at all"
    if found := _SHORT_HOME.match(node.value):
        name = "HOME" if found[0][0] == "~" else found[0].lstrip("$").rstrip("/")
        return f"`{found[0]}`, which is not replaced", f"write `${{{name}}}`, with braces"
    return None


def _mapping(
    node: yaml.MappingNode, place: Place, document: Document, above: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    merged = _merge_keys(node, place, document, above)
    for key_node, value_node in node.value:
        where = f"{document.file}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            document.faults.append(Fault(where, "a key that is no name", "write a name"))
            continue
        key = str(key_node.value)
        if _is_merge_key(key_node):
            continue
        if odd := _odd_character(key):
            document.faults.append(Fault(where, f"a key holds {odd}", "remove it"))
            continue
        if key in found:
            first = document.places[(*place, key)]
            message = f"`{key}` is given twice, first at {first}"
            document.faults.append(Fault(where, message, "keep one of them"))
            continue
        found[key] = value_of(value_node, (*place, key), document, above)
        document.places[(*place, key)] = where
    return {**merged, **found}


def _merge_keys(
    node: yaml.MappingNode, place: Place, document: Document, above: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    """What merge keys bring, each a fault; their values are read so that nothing is told to be missing that they hold."""
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not _is_merge_key(key_node):
            continue
        where = f"{document.file}:{key_node.start_mark.line + 1}"
        told = "`<<` is a merge key of YAML, which recipes do not take"
        hint = "write the values out, or lay this recipe over another: `extends: base.yaml`"
        document.faults.append(Fault(where, told, hint))
        if isinstance(value_node, yaml.MappingNode):
            here = document.places[place]
            brought = value_of(value_node, place, document, above)
            document.places[place] = here
            merged = {**brought, **merged} if isinstance(brought, dict) else merged
    return merged


def _is_merge_key(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == "<<"


def _odd_character(value: Any) -> str | None:
    """A character of a text that no path can have, or that is half of one: `\\0` and `\\ud800` can be written in quotes."""
    found = (
        next((c for c in value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
        if isinstance(value, str)
        else None
    )
    return f"the character U+{ord(found):04X}" if found else None


def _with_environment(node: yaml.ScalarNode, place: Place, where: str, document: Document) -> yaml.ScalarNode:
    """Unquoted, a reference may stand for a number; quoted it stays a text."""
    if "${" not in node.value:
        return node
    text, told = resolve(node.value)
    for message, hint in told:
        document.spoil(place, where, f"`{dotted(place)}` {message}", hint)
    return resolved(text, node)

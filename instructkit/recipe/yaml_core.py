"""
The scalars of YAML 1.2's core schema, for reading and for writing, in place of PyYAML's of 1.1.

So `1e-5` is a number, and `no` is a text: TRL's `save_strategy: no` means that text. What is written reads back the same.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

_CORE = "tag:yaml.org,2002:"
_SCALARS = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
]
_CONVERT = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
}


class _Core:
    yaml_implicit_resolvers: dict[str, list] = {}


for _kind, _pattern, _starts in _SCALARS:
    for _start in _starts:
        _entry = (_CORE + _kind, re.compile(rf"(?:{_pattern})\Z"))
        _Core.yaml_implicit_resolvers.setdefault(_start, []).append(_entry)


class Loader(_Core, yaml.SafeLoader):
    """Reads."""


class _Dumper(_Core, yaml.SafeDumper):
    pass


def _float(dumper: _Dumper, number: float) -> yaml.ScalarNode:
    if not math.isfinite(number):
        return yaml.SafeDumper.represent_float(dumper, number)
    return dumper.represent_scalar(_CORE + "float", repr(number))


_Dumper.add_representer(float, _float)


def write(value: Any) -> str:
    """A value as YAML that reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def inline(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=math.inf
    )
    return text.removesuffix("\n").removesuffix("\n...")


def resolved(text: str, node: yaml.ScalarNode) -> yaml.ScalarNode:
    """A scalar with another text in the place of its own: quoted it stays a text, plain it is read anew."""
    tag = node.tag
    if node.style is None:
        tag = Loader("").resolve(yaml.ScalarNode, text, (True, False))
    return yaml.ScalarNode(tag, text, node.start_mark, node.end_mark, node.style)


def convert(node: yaml.ScalarNode) -> Any:
    """
    The value of a scalar.

    Raises:
        ValueError: for a tag that recipes do not know, or digits that no number has.
    """
    kind = node.tag.removeprefix(_CORE)
    if kind not in _CONVERT:
        raise ValueError(f"the tag `{node.tag.replace(_CORE, '!!')}` means nothing in a recipe")
    try:
        return _CONVERT[kind](node.value)
    except ValueError as error:
        raise ValueError(f"`{node.value[:20]}` cannot be read as {kind}") from error

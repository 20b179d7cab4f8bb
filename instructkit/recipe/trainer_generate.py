"""
Make `trainer_fields.json` anew from the installed TRL: `python -m instructkit.recipe.trainer_generate [FILE]`.

This is the one place of the recipe room that imports TRL, and nothing imports this one but its test. Where another TRL is
installed than the shipped file was made for, `trainer_fields` runs it in a process of its own.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from instructkit.recipe.trainer import FILE, installed

_NAMES = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "list",
    dict: "dict",
    type(None): "null",
}


def generate() -> dict[str, Any]:
    """The fields of every stage's TRL config: names, types that YAML can hold, defaults where they are plain values."""
    from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig

    from instructkit.ppo.config import PPOConfig

    made = {
        name: _fields(config)
        for name, config in {
            "sft": SFTConfig,
            "reward": RewardConfig,
            "ppo": PPOConfig,
            "dpo": DPOConfig,
            "kto": KTOConfig,
        }.items()
    }
    parts = [made[name] for name in ("sft", "dpo", "kto")]
    made["lora-update"] = {
        key: value for key, value in parts[0].items() if all(key in part for part in parts)
    }
    return {**made, "made_for": installed()}


def _fields(config: type) -> dict[str, Any]:
    hints = typing.get_type_hints(config)
    found = {}
    for field in dataclasses.fields(config):
        if field.init:
            found[field.name] = {"types": _types(hints[field.name]), "default": _default(field)}
            if choices := _choices(hints[field.name]):
                found[field.name]["choices"] = choices
    return dict(sorted(found.items()))


def _types(annotation: Any) -> list[str]:
    if annotation is Any:
        return ["any"]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return sorted({name for part in typing.get_args(annotation) for name in _types(part)})
    origin = typing.get_origin(annotation) or annotation
    if typing.get_origin(annotation) is typing.Literal or (
        isinstance(origin, type) and issubclass(origin, enum.Enum)
    ):
        return ["str"]
    return [_NAMES.get(origin, "any")]


def _choices(annotation: Any) -> list[str]:
    """The texts that an enumeration takes. TRL reads a text in its place as one of them, and fails on any other."""
    parts = typing.get_args(annotation) or (annotation,)
    enums = [part for part in parts if isinstance(part, type) and issubclass(part, enum.Enum)]
    return [str(member.value) for kind in enums for member in kind]


def _default(field: dataclasses.Field) -> Any:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if isinstance(value, enum.Enum):
        value = value.value
    return value if isinstance(value, str | int | float | bool | list | dict | None) else None


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    out.write_text(json.dumps(generate(), indent=1, sort_keys=True) + "\n", encoding="utf-8")

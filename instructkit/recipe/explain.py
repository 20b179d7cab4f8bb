"""What a part of a recipe means: `explain("sft.trainer.packing")`. Ours from the schema, TRL's in TRL's own words."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import types
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from instructkit.errors import InputError
from instructkit.recipe import aliases, trainer
from instructkit.recipe.schema import MOST, RECIPES, STAGES, sections
from instructkit.recipe.yaml import inline

# The classes of each config, the most derived first: package, file, class.
_TRL = [
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("transformers", "training_args.py", "TrainingArguments"),
]
CONFIGS = {
    "sft": [("trl", "trainer/sft_config.py", "SFTConfig"), *_TRL],
    "reward": [("trl", "trainer/reward_config.py", "RewardConfig"), *_TRL],
    "ppo": [
        ("instructkit", "ppo/config.py", "PPOConfig"),
        ("trl", "trainer/rloo_config.py", "RLOOConfig"),
        *_TRL,
    ],
    "dpo": [("trl", "trainer/dpo_config.py", "DPOConfig"), *_TRL],
    "kto": [("trl", "trainer/kto_config.py", "KTOConfig"), *_TRL],
}


def meaning(config: str, name: str) -> tuple[str, str] | None:
    """What a field of a config means and which class says so; None where no class says anything."""
    for package, file, kind in CONFIGS[config]:
        if told := _fields(package, file, kind).get(name):
            return told, kind
    return None


@cache
def _fields(package: str, file: str, kind: str) -> dict[str, str]:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    path = Path(places[0]) / file if places else None
    if path is None or not path.is_file():
        return {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind), None)
    if found is None:
        return {}
    return _from_docstring(ast.get_docstring(found) or "") | _from_metadata(found)


def _from_metadata(config: ast.ClassDef) -> dict[str, str]:
    """The `help` of each `field(..., metadata={"help": ...})`."""
    found = {}
    for node in config.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)):
            continue
        for keyword in node.value.keywords:
            if keyword.arg == "metadata" and (told := _help(keyword.value)):
                found[node.target.id] = told
    return found


def _help(metadata: ast.expr) -> str | None:
    try:
        return _plain(
            ast.literal_eval(metadata)["help"].replace("%%", "%")
        )  # as argparse writes a percent sign
    except (ValueError, KeyError, TypeError):  # worked out by code; the docstring tells it
        return None


def _from_docstring(text: str) -> dict[str, str]:
    """Entries of the form "name (`type`, ...):" with their text indented below."""
    found: dict[str, str] = {}
    entry = re.compile(r"^( *)([a-z_0-9]+) \(.*\):\s*$", re.MULTILINE)
    matches = list(entry.finditer(text))
    for i, match in enumerate(matches):
        end = matches[i + 1].start() if i + 1 < len(matches) else len(text)
        lines = text[match.end() : end].splitlines()
        deeper = [line for line in lines if not line.strip() or line.startswith(match.group(1) + " ")]
        found[match.group(2)] = _plain(" ".join(deeper))
    return found


def _plain(text: str) -> str:
    return " ".join(re.sub(r"\[`~?([^`\]]*)`\]", r"`\1`", text).split())


REQUIRED = "required"
STAGE = "The command that this recipe is for."
EXTENDS = "A recipe, or several, that this one is laid over; paths are relative to this file."
_UNITS = {
    "max_length": "tokens",
    "max_completion_length": "tokens",
    "max_length_of_text": "tokens",
    "_characters": "characters",
    "_tokens": "tokens",
    "_nats": "nats",
    "_seconds": "seconds",
    "_steps": "steps",
    "_epochs": "epochs",
    "_days": "days",
    "batch_size": "rows",
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True)
class Topic:
    """One part of a recipe: its dotted name, what it means and who says so, and what it may be."""

    name: str
    meaning: str
    kind: str
    default: str = ""
    unit: str = ""
    source: str = "instructkit"
    parts: tuple[Topic, ...] = ()


def explain(name: str) -> Topic:
    """
    The part of a recipe with this dotted name, such as `sft`, `ppo.critic` or `sft.trainer.packing`.

    Raises:
        InputError: naming the nearest one when there is none.
    """
    parts = [
        part for part in name.split(".") if part and not part.isdecimal()
    ]  # `reward.0.model` is one of a list
    stage = parts[0] if parts else ""
    if stage not in STAGES:
        raise InputError(f"no stage is called {stage!r}", hint=_meant(parts))
    here = _recipe(stage)
    for part in parts[1:]:
        inner = {topic.name.rpartition(".")[2]: topic for topic in here.parts}
        if part in trainer.OURS and here.name == f"{stage}.trainer":
            raise InputError(f"`{here.name}.{part}` is not set here", hint=trainer.OURS[part])
        if not inner:
            raise InputError(f"`{here.name}` has no parts", hint=f"`instructkit explain {here.name}`")
        if part not in inner:
            raise InputError(
                f"`{here.name}` has no `{part}`", hint=_elsewhere(part, here.name, sorted(inner))
            )
        here = inner[part]
    return here


def _recipe(stage: str) -> Topic:
    recipe = RECIPES[stage]
    parts = [
        _section(f"{stage}.{name}", section, recipe.model_fields[name])
        for name, section in sections(recipe).items()
    ]
    own = Topic(f"{stage}.stage", STAGE, stage, REQUIRED)
    above = Topic(f"{stage}.extends", EXTENDS, "str | list of str", "left out")
    return Topic(stage, recipe.__doc__ or "", "recipe", parts=(own, above, *parts, _trainer(stage)))


def _section(name: str, section: type[BaseModel], field: FieldInfo | None) -> Topic:
    parts = tuple(_field(f"{name}.{key}", value) for key, value in section.model_fields.items())
    default = "" if field is None or field.is_required() else "left out" if field.default is None else "{}"
    kind = "list of sections" if field is not None and _is_list(field.annotation) else "section"
    return Topic(name, section.__doc__ or "", kind, default or REQUIRED, parts=parts)


def _field(name: str, field: FieldInfo) -> Topic:
    default = REQUIRED if field.is_required() else inline(field.get_default(call_default_factory=True))
    row = _row(field.annotation)  # what an entry of a list may be, beside a name
    parts = tuple(_field(f"{name}.{key}", value) for key, value in row.model_fields.items()) if row else ()
    return Topic(name, field.description or "", _kind(field), default, _unit(name, _kind(field)), parts=parts)


def _row(kind: Any) -> type[BaseModel] | None:
    """The section within an annotation, if there is one."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next((row for inner in typing.get_args(kind) if (row := _row(inner))), None)


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list or any(map(_is_list, typing.get_args(kind)))


def _trainer(stage: str) -> Topic:
    told = "Fields of the TRL config behind this stage, under its own names."
    if stage != "lora-update":
        return Topic(
            f"{stage}.trainer", told, "section", "{}", parts=_trl(f"{stage}.trainer", stage, stage, stage)
        )
    parts = [
        Topic(
            f"{stage}.trainer.{part}",
            told,
            "section",
            "{}",
            parts=_trl(f"{stage}.trainer.{part}", part, part, "update" if part == "sft" else part),
        )
        for part in trainer.UPDATE_PARTS
    ]
    common = _trl(f"{stage}.trainer", stage, "sft", "update")
    return Topic(f"{stage}.trainer", told, "section", "{}", parts=(*common, *parts))


def _trl(prefix: str, fields: str, config: str, runs: str) -> tuple[Topic, ...]:
    """The fields of a TRL config, each with the default that it has in our runs of a kind."""
    found = []
    for name, field in trainer.schema()[fields].items():
        if name in trainer.OURS:
            continue
        text, source = meaning(config, name) or ("", "TRL")
        kind = " | ".join(field["types"]) if "choices" not in field else " | ".join(field["choices"])
        default = trainer.in_words(runs, name, inline(field["default"]))
        found.append(Topic(f"{prefix}.{name}", text, kind, default, _unit(name, kind), source))
    return tuple(found)


def _kind(field: FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(rule, key):g}"
        for rule in field.metadata
        for key, word in _BOUNDS.items()
        if getattr(rule, key, None) is not None and getattr(rule, key) != MOST
    ]
    return ", ".join([_annotation(field.annotation), *bounds])


def _annotation(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_annotation(part) for part in inner))
    if origin is typing.Annotated:
        bounds = [rule for part in inner[1:] for rule in getattr(part, "metadata", [part])]
        told = [
            f"{_BOUNDS[key]} {getattr(b, key):g}"
            for b in bounds
            for key in _BOUNDS
            if getattr(b, key, MOST) not in (None, MOST)
        ]
        return " ".join([_annotation(inner[0]), *([f"({', '.join(told)})"] if told else [])])
    if origin is typing.Literal:
        return " | ".join(map(str, inner))
    if origin in (list, dict):
        return f"{origin.__name__} of {', '.join(_annotation(part) for part in inner)}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind)).lower()


def _unit(name: str, kind: str) -> str:
    """The unit that a name ends in, where the value is a number."""
    is_number = {"int", "float"} & set(kind.replace(",", " ").split())
    return next((unit for end, unit in _UNITS.items() if is_number and name.endswith(end)), "")


def _nearest(given: str, names: list[str], otherwise: str) -> str:
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"{otherwise} {', '.join(names)}"


def _meant(parts: list[str]) -> str:
    """The stage that is near; of a name without its stage, the first stage that has it."""
    stage = parts[0] if parts else ""
    if not difflib.get_close_matches(stage, STAGES, n=1, cutoff=0.6):
        for recipe in map(_recipe, STAGES if parts else ()):
            names = _names(recipe)
            if found := next((name for name in names if name.endswith(f".{'.'.join(parts)}")), None):
                return f"did you mean {found}?"
    return _nearest(stage, list(STAGES), "stages are")


def _elsewhere(part: str, above: str, names: list[str]) -> str:
    """The sections of this stage that have it, by its name or another one, else the nearest name, else all of them."""
    stage, section = above.partition(".")[0], above.rpartition(".")[2]
    same = trainer.FOREIGN.get(part) if section == "trainer" else aliases.same_within(section, part)
    if same in names:
        return f"`instructkit explain {above}.{same}` does the same"
    found = [name for name in _names(_recipe(stage)) if name.endswith(f".{part}")]
    return f"`instructkit explain {found[0]}`" if found else _nearest(part, names, "it has")


def _names(topic: Topic) -> list[str]:
    """Of all parts, those that are less deep first."""
    found, parts = [], list(topic.parts)
    while parts:
        found += [part.name for part in parts]
        parts = [inner for part in parts for inner in part.parts]
    return found

"""What the shell offers while a command is typed: recipes, keys and their values, parts of a recipe, run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def recipes(incomplete: str) -> list[str]:
    """Folders, and YAML files, that begin so."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = str(path) if incomplete.startswith((".", "/")) or folder != Path() else path.name
        if path.is_dir() and not path.name.startswith("."):
            found.append(f"{name}/")
        elif path.suffix in (".yaml", ".yml"):
            found.append(name)
    return [name for name in found if name.startswith(incomplete.removeprefix("./"))]


def runs(incomplete: str) -> list[str]:
    """Run folders, by their name below `runs` or by their path."""
    found = [path.parent for path in sorted(Path("runs").glob("*/run.json"))]
    names = [str(path) if "/" in incomplete else path.name for path in found]
    return [name for name in names if name.startswith(incomplete)]


def stages(incomplete: str) -> list[str]:
    """The four stages."""
    from instructkit.recipe.schema import STAGES

    return [stage for stage in STAGES if stage.startswith(incomplete)]


def topics(incomplete: str) -> list[str]:
    """What `explain` knows, one dotted part further than what is typed."""
    from instructkit.errors import InputError
    from instructkit.recipe.explain import explain

    stem = incomplete.rpartition(".")[0]
    if not stem:
        return stages(incomplete)
    try:
        parts = explain(stem).parts
    except InputError:
        return []
    return [part.name for part in parts if part.name.startswith(incomplete)]


def recipes_and_overrides(context: typer.Context, incomplete: str) -> list[str]:
    """For `check`: recipes, and once there is one, the keys of its stage."""
    return [*recipes(incomplete), *overrides(context, incomplete)]


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Every key that a recipe of this command may have; behind `=`, the values that are known."""
    from instructkit.recipe.schema import RECIPES

    stage = context.info_name if context.info_name in RECIPES else _stage_typed(context)
    if stage is None:
        return []
    key, equals, _ = incomplete.partition("=")
    if equals:
        return [value for value in _values(stage, key) if value.startswith(incomplete)]
    return [f"{key}=" for key in _keys(stage) if f"{key}=".startswith(incomplete)]


def _stage_typed(context: typer.Context) -> str | None:
    """The stage of the first recipe on the command line that can be read."""
    from instructkit.recipe.load import check_recipe

    given: list[str] = []
    for value in context.params.values():
        given += [value] if isinstance(value, str) else value or []
    files = [name for name in given if isinstance(name, str) and Path(name).is_file()]
    return check_recipe(files[0]).stage if files else None


def _keys(stage: str) -> list[str]:
    from instructkit.recipe import trainer
    from instructkit.recipe.schema import RECIPES, sections

    keys = [f"{name}.{key}" for name, part in sections(RECIPES[stage]).items() for key in part.model_fields]
    return keys + [f"trainer.{key}" for key in trainer.fields(stage) if key not in trainer.OURS]


def _values(stage: str, key: str) -> list[str]:
    """The whole words of a key with each of its values, where there are few."""
    from instructkit.recipe import trainer
    from instructkit.recipe.schema import RECIPES, sections

    section, _, name = key.partition(".")
    if section == "trainer":
        field = trainer.fields(stage).get(name, {})
        found = field.get("choices") or (["true", "false"] if "bool" in str(field.get("types", "")) else [])
    else:
        part = sections(RECIPES[stage]).get(section)
        found = _known(part.model_fields[name].annotation) if part and name in part.model_fields else []
    return [f"{key}={value}" for value in found]


def _known(annotation: Any) -> list[str]:
    import typing

    if annotation is bool:
        return ["true", "false"]
    if typing.get_origin(annotation) is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    return [value for inner in typing.get_args(annotation) for value in _known(inner)]

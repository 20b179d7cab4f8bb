"""What the shell offers while a command is typed: recipes, then `section.key=` of the command's stage."""

from __future__ import annotations

from pathlib import Path

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


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Every key that a recipe of this command may have."""
    from instructkit.recipe import trainer_fields
    from instructkit.recipe.schema import RECIPES, sections

    stage = context.info_name or ""
    if stage not in RECIPES:
        return []
    keys = [f"{name}.{key}=" for name, part in sections(RECIPES[stage]).items() for key in part.model_fields]
    keys += [f"trainer.{key}=" for key in trainer_fields.fields(stage) if key not in trainer_fields.OURS]
    return [key for key in keys if key.startswith(incomplete)]

"""Fingerprints of what shapes a run besides its recipe, rows and parent runs: functions, plain model folders, chat templates."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructkit.naming import Source
from instructkit.runs.lineage import base_key, file_hash, folder_hash
from instructkit.stages.functions import module_of

_LIBRARIES = {Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "purelib", "platlib")}
_LIBRARIES.add(Path(__file__).resolve().parent.parent)


def fingerprints_of_sources(recipe: Any, parents: dict[str, Source]) -> dict[str, str]:
    """Return the SHA-256 of everything that a run reads besides rows and parent runs, by what it is."""
    found: dict[str, str] = {}
    for key, place in _functions(recipe):
        found[f"{key} ({place})"] = _source_hash(place)
    template = recipe.trainer.get("chat_template_path")
    if template and Path(template).is_file():
        found[f"trainer.chat_template_path ({template})"] = file_hash(Path(template))
    for role, source in parents.items():
        found |= _of_model(role, source)
    return found


def _functions(recipe: Any) -> Iterator[tuple[str, str]]:
    """Yield the key and the place of each Python function that a recipe names."""
    for i, item in enumerate(getattr(recipe, "reward", ())):
        if item.function:
            yield f"reward[{i}].function", item.function
    for section, name in (("gates", "judge"), ("feedback", "filter")):
        if place := getattr(getattr(recipe, section, None), name, None):
            yield f"{section}.{name}", place


def _source_hash(place: str) -> str:
    """Return a SHA-256 over the file of a function and the user's modules that it imports, directly or not."""
    files: dict[Path, None] = {}
    _visit(_file_of(module_of(place)), files)
    return hashlib.sha256("".join(sorted(file_hash(file) for file in files)).encode()).hexdigest()


def _visit(file: Path | None, files: dict[Path, None]) -> None:
    if file is None or file in files:
        return
    files[file] = None
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for name in _imported(tree):
        imported = _file_of(name)
        if imported is not None and not _is_library(imported):
            _visit(imported, files)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(module: str) -> Path | None:
    """Return the source file of a module's name, or of a path to a file; None where there is none."""
    if module.endswith(".py"):
        return Path(module).resolve()
    try:
        spec = sys.modules[module].__spec__ if module in sys.modules else importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = spec.origin if spec else None
    return Path(origin).resolve() if origin and origin.endswith(".py") else None


def _is_library(file: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in _LIBRARIES)


def _of_model(role: str, source: Source) -> dict[str, str]:
    """Return the hash of a model that is no run, of the base below an adapter, and of the chat template."""
    found: dict[str, str] = {}
    base = Path(source.base)
    if source.gguf_file:
        found[base_key(role)] = file_hash(base / source.gguf_file)
    elif base.is_dir() and (source.run is None or source.adapter is not None):
        found[base_key(role)] = folder_hash(base)
    if source.run is None and source.adapter is not None:
        found[f"{role}: adapter files"] = folder_hash(source.adapter)
    if (template := _template(Path(source.tokenizer_path))) is not None:
        found[f"{role}: chat template"] = hashlib.sha256(template.encode()).hexdigest()
    return found


def _template(folder: Path) -> str | None:
    """Return the chat template in a model's folder."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    told = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return None if told is None else json.dumps(told)

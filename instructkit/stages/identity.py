"""Fingerprint the sources of a run: Python functions, plain model folders, chat templates and sets to measure on."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from instructkit import models
from instructkit.naming import Source
from instructkit.recipe.schema import Recipe
from instructkit.runs.lineage import WEIGHT_SUFFIXES, base_key, file_hash, folder_hash, model_files
from instructkit.stages.functions import module_of
from instructkit.stages.update_sides import read_sets

_LIBRARIES = {Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "purelib", "platlib")}
_LIBRARIES.add(Path(__file__).resolve().parent.parent)


def fingerprints_of_sources(recipe: Recipe, parents: dict[str, Source]) -> dict[str, str]:
    """Return the SHA-256 of each source of a run, by its name. Rows and parent runs are not sources."""
    hashes: dict[str, str] = {}
    for key, place in _functions(recipe):
        hashes[f"{key} ({place})"] = _source_hash(place)
    template = recipe.trainer.get("chat_template_path")
    if template and Path(template).exists():
        hashes[f"trainer.chat_template_path ({template})"] = _template_hash(Path(template))
    for role, source in parents.items():
        hashes |= _of_model(role, source)
    for name, items in read_sets(recipe).items() if recipe.stage == "lora-update" else ():
        hashes[name] = hashlib.sha256(repr(items).encode()).hexdigest()
    return hashes


def _template_hash(path: Path) -> str:
    """Return a SHA-256 of a chat template's file, or of all but the weights in a model's folder."""
    if path.is_file():
        return file_hash(path)
    files = [file for file in model_files(path) if file.suffix not in WEIGHT_SUFFIXES]
    return hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest()


def _functions(recipe: Recipe) -> Iterator[tuple[str, str]]:
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
    module = module_of(place)
    for file in [Path(module).resolve()] if module.endswith(".py") else _files_of(module):
        _visit(file, files)
    return hashlib.sha256("".join(sorted(file_hash(file) for file in files)).encode()).hexdigest()


def _visit(file: Path, files: dict[Path, None]) -> None:
    if file in files:
        return
    files[file] = None
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for imported in _imported(tree, file):
        if not _is_library(imported):
            _visit(imported, files)


def _imported(tree: ast.AST, file: Path) -> Iterator[Path]:
    """Yield the source files that the code of a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, package = [alias.name for alias in node.names], None
        elif isinstance(node, ast.ImportFrom):
            names = [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
            package = file.parents[min(node.level, len(file.parents)) - 1] if node.level else None
        else:
            continue
        for name in names:
            yield from _files_of(name, package)


def _files_of(name: str, package: Path | None = None) -> Iterator[Path]:
    """
    Yield the source files that Python runs for a dotted name: of its module and of the packages around it.

    Args:
        package: the folder that a relative import starts from; None for an absolute one.
    """
    parts = name.split(".")
    for length in range(len(parts) + 1):
        if package is not None:
            place = package.joinpath(*parts[:length])
            files = [place / "__init__.py", *([place.with_suffix(".py")] if length else [])]
            yield from (file.resolve() for file in files if file.is_file())
        elif length and (file := _file_of(".".join(parts[:length]))):
            yield file


def _file_of(module: str) -> Path | None:
    """Return the source file of a module; None where there is none."""
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
    hashes: dict[str, str] = {}
    base = Path(source.base)
    if source.gguf_file:
        hashes[base_key(role)] = file_hash(base / source.gguf_file)
    elif base.is_dir() and (source.run is None or source.adapter is not None):
        hashes[base_key(role)] = folder_hash(base)
    if source.run is None and source.adapter is not None:
        hashes[f"{role}: adapter files"] = folder_hash(source.adapter)
    if (template := models.template_of(source)) is not None:
        hashes[f"{role}: chat template"] = hashlib.sha256(template.encode()).hexdigest()
    return hashes

"""Compute the identity of a run from recipe, data, parents and source files, and decide whether it can be resumed."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructkit.models import load
from instructkit.models.source import Source
from instructkit.recipe.render import to_dict
from instructkit.recipe.schema import Recipe
from instructkit.runs import lineage
from instructkit.runs.lineage import WEIGHT_SUFFIXES, base_key, file_hash, folder_hash, model_files
from instructkit.runs.lock import refuse_held
from instructkit.runs.read import is_run, read_record
from instructkit.runs.record import RunFolder
from instructkit.stages import checkpoints
from instructkit.stages.base import Inputs, InputsT, Stage
from instructkit.stages.lora_update.overlap import read_sets
from instructkit.stages.user_functions import module_of

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
    if (template := load.template_of(source)) is not None:
        hashes[f"{role}: chat template"] = hashlib.sha256(template.encode()).hexdigest()
    return hashes


def collected(stage: Stage[Any, InputsT], recipe: Recipe, *, resume: bool) -> InputsT:
    """Collect the inputs of a stage; a run that is resumed reads what it had read, and nothing that was added later."""
    return stage.collect(recipe, _begun(Path(recipe.run.output), recipe.stage) if resume else {})


def refuse_resume(recipe: Recipe, inputs: Inputs) -> None:
    """
    Refuse to resume a run; changes nothing.

    Raises:
        InputError: when another process holds its folder, when no run or a finished one is there, when it was begun with another
            recipe, on other rows or above another parent, or when it has no whole checkpoint.
    """
    folder = RunFolder(recipe.run.output)
    refuse_held(folder.path)
    folder.unfinished(to_dict(recipe), recipe.stage)
    lineage.refuse_other_inputs(folder.path, identity_of(recipe, inputs))
    checkpoints.refuse_none(folder.path, recipe.stage)


def fingerprints(inputs: Inputs) -> dict[str, str]:
    """Fingerprint of the data, by role."""
    return {role: rows.fingerprint for role, rows in inputs.data.items()}


def hashes(inputs: Inputs) -> dict[str, str]:
    """What identifies each parent, by role: the run's hash, or the path or id of a model that is no run."""
    return {
        role: lineage.run_hash(source.run) if source.run else f"model:{source.base}"
        for role, source in inputs.parents.items()
    }


def identity_of(recipe: Recipe, inputs: Inputs) -> lineage.RunIdentity:
    """Return what shapes the result of a run. This reads every file of its parents."""
    return lineage.RunIdentity(
        to_dict(recipe), fingerprints(inputs), hashes(inputs), fingerprints_of_sources(recipe, inputs.parents)
    )


def _begun(output: Path, stage: str) -> dict[str, Any]:
    """What an unfinished run of this stage has kept of how it was begun."""
    record = read_record(output) if is_run(output) else {}
    if record.get("status") == "done" or record.get("stage") != stage:
        return {}
    return record.get("begun") or {}

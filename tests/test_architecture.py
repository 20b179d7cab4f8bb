"""The floors of the house: imports point down only, floor 1 is light, and help loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "datasets",
    "peft",
    "pandas",
    "bitsandbytes",
    "accelerate",
    "tokenizers",
}
TORCH_KIND = {"torch", "transformers", "peft", "tokenizers", "safetensors", "bitsandbytes", "numpy", "gguf"}
ANYTHING = HEAVY | TORCH_KIND | {"pydantic", "yaml", "typer", "rich", "click", "pyarrow", "scipy"}


@dataclass(frozen=True)
class Room:
    """What a room may import: rooms of ours, other packages, and other packages inside functions only."""

    ours: frozenset[str]
    packages: frozenset[str] = frozenset()
    inside_functions: frozenset[str] = frozenset()


def room(ours: str = "", packages: set[str] | str = "", inside_functions: set[str] | str = "") -> Room:
    named = (
        set(item.split()) if isinstance(item, str) else item for item in (ours, packages, inside_functions)
    )
    return Room(*map(frozenset, named))


FLOOR_1 = (
    "errors hub processes progress "
    "recipe recipe.paths data.records data.checks data.scales data.thumbs data.turns data.shapes data.table data.demo "
    "runs evaluate.metrics evaluate.inference feedback.gates"
)
FLOOR_2 = (
    f"{FLOOR_1} data.lines data.json_files data.csv_files data.parquet_files data.files data.readers data.ours data.reading "
    "data.columns data.sources data.detect data.looking data.prepare feedback"
)
FLOOR_3 = f"{FLOOR_2} machine encode scoring adapter_files adapters naming models tiny evaluate ppo.critic ppo.prefix ppo.rollout"
MATHS = "ppo.masks ppo.advantages ppo.kl ppo.losses ppo.scores"
TRAINER_PARTS = (
    *("config", "figures", "guidance", "heldout", "keeping", "prefix", "ptx", "reader"),
    *("rewarding", "rollout", "sampling", "state", "updating"),
)
LIBRARY = " ".join(
    [
        "errors",
        "ppo.limits",
        MATHS,
        "ppo.critic",
        "ppo.reference",
        "ppo.trainer",
        "ppo",
        *(f"ppo.{part}" for part in TRAINER_PARTS),
    ]
)
SHARED_STAGES = (
    "stages.base stages.contention stages.datasets stages.functions stages.ppo_measures stages.ppo_prompts stages.ppo_rewards "
    "stages.ppo_roles stages.replay stages.running "
    "stages.training stages.trials stages.update_measures stages.updaters"
)

# A module belongs to the longest name that fits it. Every room may import itself.
ROOMS = {
    "": room(),
    "__main__": room("cli"),
    "errors": room(),
    "processes": room("errors", "", {"torch", "accelerate"}),
    "progress": room(),
    "hub": room("errors"),
    # Floor 1: errors only; pydantic and yaml only in recipe; never each other.
    "recipe": room("errors ppo.limits recipe.paths", "pydantic pydantic_core yaml"),
    # What stands at a path, told in the same words for recipes and data.
    "recipe.paths": room(),
    # Run by hand to write the schema file from the pinned TRL; loading a recipe never imports it.
    "recipe.generate": room("errors recipe ppo.config", "", ANYTHING),
    "data": room("errors"),
    "data.records": room("errors"),
    "data.checks": room("errors data.records"),
    "data.scales": room("errors"),
    "data.thumbs": room("data.records"),
    "data.columns": room("errors data.records data.thumbs"),
    "data.turns": room("errors data.records data.checks"),
    "data.shapes": room("errors data.records data.checks data.thumbs data.turns"),
    "data.demo": room("errors"),
    "runs": room("errors"),
    "evaluate.metrics": room("errors", "numpy"),
    "evaluate.inference": room("errors", "numpy"),
    "feedback.gates": room("errors"),
    "ppo": room(LIBRARY, "", TORCH_KIND | {"trl"}),
    "ppo.limits": room(),
    "ppo.masks": room("", "torch"),
    "ppo.advantages": room("ppo.masks", "torch"),
    "ppo.kl": room("ppo.masks", "torch"),
    # The losses clamp a log ratio at the limit that kl has.
    "ppo.losses": room("ppo.masks ppo.kl", "torch"),
    "ppo.scores": room("", "torch"),
    # Floor 2: datasets and what reads files inside function bodies.
    "data.lines": room("errors data.records recipe.paths"),
    "data.json_files": room("errors data.records data.lines"),
    "data.csv_files": room("errors data.records data.lines"),
    "data.parquet_files": room("errors data.records data.lines", "", "pyarrow"),
    "data.files": room("errors data.lines data.json_files data.csv_files data.parquet_files"),
    "data.readers": room(FLOOR_2, "", "datasets"),
    "data.ours": room("errors data.records data.shapes data.lines data.csv_files"),
    "data.reading": room(FLOOR_2),
    "data.sources": room(FLOOR_2),
    "data.table": room(),
    "data.detect": room(FLOOR_2),
    "data.looking": room(FLOOR_2),
    "data.prepare": room(FLOOR_2),
    "feedback": room(FLOOR_2, "numpy", "presidio_analyzer tldextract rensa"),
    # Floor 3: torch, transformers, peft. Two helpers of TRL are used inside functions, and in the rollout.
    "machine": room(FLOOR_3, TORCH_KIND),
    "encode": room(FLOOR_3, TORCH_KIND, "trl"),
    "scoring": room(f"{FLOOR_3} ppo.masks", TORCH_KIND, "trl"),
    "adapters": room(FLOOR_3, TORCH_KIND),
    "adapter_files": room(FLOOR_3, TORCH_KIND),
    "naming": room("errors recipe runs tiny"),
    "models": room(FLOOR_3, TORCH_KIND, "trl"),
    "tiny": room(FLOOR_3, TORCH_KIND, "trl"),
    "evaluate": room(FLOOR_3, TORCH_KIND),
    "ppo.reference": room(LIBRARY, TORCH_KIND),
    "ppo.critic": room(LIBRARY, TORCH_KIND),
    # Floor 4: a library of its own, which knows neither recipes nor runs.
    **{f"ppo.{part}": room(LIBRARY, TORCH_KIND | {"trl"}) for part in TRAINER_PARTS},
    "ppo.trainer": room(LIBRARY, TORCH_KIND | {"trl", "accelerate"}),
    # Floor 5: everything below; not each other. `stages` itself only says which command is which stage.
    "stages": room(f"{FLOOR_3} {LIBRARY} {SHARED_STAGES}", ANYTHING),
    "stages.contention": room("machine processes"),
    # Floor 6. A plan builds the trainers of the stages; it alone reaches into torch's dispatcher.
    "plan": room(f"{FLOOR_3} {LIBRARY} stages plan", TORCH_KIND, ANYTHING | {"psutil", "py3langid"}),
    "report": room(f"{FLOOR_2} evaluate report", "rich"),
    "chat": room(f"{FLOOR_3} chat report", TORCH_KIND | {"rich"}),
    # Floor 7: at import time typer, errors and its own helpers; that is tested separately.
    "cli": room(f"{FLOOR_3} {LIBRARY} stages plan report chat", "typer rich click", ANYTHING),
}
STAGES = {"stages.sft", "stages.reward", "stages.ppo", "stages.lora_update"}


@dataclass(frozen=True)
class Import:
    place: str
    name: str
    inside_function: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "instructkit").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "instructkit").rglob("*.py"))}


def room_of(module: str) -> str:
    while module and module not in ROOMS:
        module = module.rpartition(".")[0]
    return module


def imports(module: str) -> Iterator[Import]:
    """Every import of a module, except those for type checkers only, which never run."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, inside = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += [(child, inside) for child in node.orelse]
            continue
        for name in imported_names(node, module, is_package=path.name == "__init__.py"):
            yield Import(f"{path.relative_to(ROOT)}:{node.lineno}", name, inside)
        deeper = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        waiting += [(child, deeper) for child in ast.iter_child_nodes(node)]


def imported_names(node: ast.AST, module: str, *, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parts = f"instructkit.{module}".rstrip(".").split(".")
        kept = parts[: len(parts) - node.level + is_package]
        base = ".".join([*kept, *([base] if base else [])])
    # `from instructkit.ppo import kl` imports the module ppo.kl, not a name of ppo.
    found = []
    for alias in node.names:
        whole = f"{base}.{alias.name}"
        found.append(whole if whole.removeprefix("instructkit.") in MODULES else base)
    return found


def ours(name: str) -> str | None:
    """The module of ours that an import means, without the package name; None for other packages."""
    if name == "instructkit":
        return ""
    return name.removeprefix("instructkit.") if name.startswith("instructkit.") else None


def fault(module: str, found: Import) -> str | None:
    """What is wrong with one import, in words; None when it points down."""
    here, rules = room_of(module), ROOMS[room_of(module)]
    target = ours(found.name)
    if target is not None:
        there = room_of(target)
        allowed = there in rules.ours or there in ("", here)
        return None if allowed else f"{found.place}: {here or 'instructkit'} may not import {there}"
    package = found.name.partition(".")[0]
    if package in sys.stdlib_module_names or package in rules.packages:
        return None
    if package in rules.inside_functions:
        return (
            None if found.inside_function else f"{found.place}: {package} belongs inside a function body here"
        )
    return f"{found.place}: {here or 'instructkit'} may not import {package}"


def test_imports_point_down() -> None:
    assert len(MODULES) > 30
    faults = [fault(module, found) for module in MODULES for found in imports(module)]
    assert not [line for line in faults if line]


def test_every_room_of_the_table_is_there() -> None:
    """A room that was renamed would otherwise fall to a more generous one without a word."""
    assert [name for name in ROOMS if name not in MODULES] == []


def test_stages_do_not_import_each_other() -> None:
    shared = {f"stages.{path.stem}" for path in (ROOT / "instructkit" / "stages").glob("*.py")} - STAGES
    wrong = []
    for module in STAGES | (shared - {"stages.__init__"}):
        named = {ours(found.name) for found in imports(module)}
        wrong += [f"{module} imports {other}" for other in (named & STAGES) - {module}]
    assert wrong == []


def test_packages_import_nothing_so_that_a_light_room_stays_light() -> None:
    """`import instructkit.data.records` also runs `instructkit/data/__init__.py`."""
    for package in {"", "data", "ppo", "evaluate", "feedback", "runs", "report", "cli", "recipe"} & set(
        MODULES
    ):
        found = [item for item in imports(package) if not item.inside_function]
        names = {item.name.partition(".")[0] for item in found} - set(sys.stdlib_module_names)
        light = {"instructkit"} if package in ("runs", "recipe", "cli", "report") else set()
        assert names <= light, f"{package or 'instructkit'}/__init__.py imports {names}"


def test_cli_imports_little_at_import_time() -> None:
    wrong = []
    for module in MODULES:
        if room_of(module) != "cli":
            continue
        for found in imports(module):
            target = ours(found.name)
            package = found.name.partition(".")[0]
            if target is not None:
                light = room_of(target) in ("", "cli", "errors", "processes")
            else:
                light = package in sys.stdlib_module_names or package in {"typer", "click", "rich"}
            if not found.inside_function and not light:
                wrong.append(f"{found.place}: {found.name}")
    assert wrong == []


def loaded_by(statement: str) -> set[str]:
    """Top names of the modules that a fresh interpreter has after a statement."""
    code = f"import sys\n{statement}\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, encoding="utf-8"
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "cli.main",
        "recipe.load",
        "data.records",
        "runs.record",
        "runs.lineage",
        "evaluate.metrics",
        "evaluate.inference",
        "feedback.gates",
        # Data are read, and their faults told, before a stage needs more.
        "stages.sft",
        "stages.reward",
        "stages.ppo",
        "stages.lora_update",
    ],
)
def test_light_rooms_load_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import instructkit.{module}") & HEAVY == set()


def test_the_table_sees_a_wrong_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The checker has been seen to fail: upward, sideways, heavy, lazy, relative, and by the short form."""
    source = tmp_path / "wrong.py"
    text = "\n".join(
        [
            "from instructkit.stages import base",
            "import instructkit.recipe.schema",
            "import torch.nn",
            "from . import record",
            "from .. import models",
            "def f():",
            "    import pandas",
            "from typing import TYPE_CHECKING",
            "if TYPE_CHECKING:",
            "    import trl",
        ]
    )
    source.write_text(text, encoding="utf-8")
    monkeypatch.setitem(MODULES, "runs.wrong", source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    faults = sorted(filter(None, (fault("runs.wrong", found) for found in imports("runs.wrong"))))
    assert faults == [
        "wrong.py:1: runs may not import stages",
        "wrong.py:2: runs may not import recipe",
        "wrong.py:3: runs may not import torch",
        "wrong.py:5: runs may not import models",
        "wrong.py:7: runs may not import pandas",
    ]

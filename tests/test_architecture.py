"""Commands that only look load nothing heavy. Which room imports which is checked by the contracts in pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
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
LIGHT = {"typer", "click", "rich"}


def loaded_by(statement: str) -> set[str]:
    """Return the top names of the modules that a fresh interpreter has after a statement."""
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
        "data.rows",
        "runs.record",
        "runs.lineage",
        "evaluate.statistics",
        "evaluate.gates",
        # Data are read, and their errors reported, before a stage needs more.
        "stages.sft",
        "stages.reward",
        "stages.ppo.stage",
        "stages.lora_update.stage",
    ],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import instructkit.{module}") & HEAVY == set()


def test_the_check_sees_a_heavy_module() -> None:
    assert "torch" in loaded_by("import instructkit.ppo.masks")


def test_commands_import_little_before_they_are_called() -> None:
    """Rooms are imported inside the commands, so that help and completion answer at once."""
    own = {"instructkit.cli", "instructkit.errors", "instructkit.runs.processes", "instructkit"}
    wrong = []
    for path in (ROOT / "instructkit" / "cli").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                package = name.partition(".")[0]
                allowed = package in LIGHT or package in sys.stdlib_module_names or name in own
                if not allowed and not name.startswith("instructkit.cli"):
                    wrong.append(f"{path.name}: {name}")
    assert wrong == []

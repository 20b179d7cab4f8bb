"""
What TRL and transformers say of their configs' fields, read from their installed sources without importing them.

Nothing is copied: another version of these libraries is explained in its own words.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

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

"""Starter recipes: those of the embedded default, those for a hub model on one GPU, and one made for a person's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import NamedTuple

import yaml

from instructkit.recipe.json_schema import json_schema
from instructkit.recipe.schema import STAGES

FOLDER = Path(__file__).with_name("starters")
HELD_OUT_ROWS, LARGEST_SHARE, SMALLEST_SHARE = 100, 0.3, 0.02


class Own(NamedTuple):
    """Files of one stage: what is trained on, what is held out where that is a file, renamed columns, number of rows."""

    train: list[str]
    held_out: str | None
    columns: Mapping[str, str]
    rows: int


def shipped(which: str, model: str | None = None) -> dict[str, str]:
    """The four recipes of `demo` or `hub` by stage, as text; `model` takes the place of the hub's."""
    found = {stage: (FOLDER / which / f"{stage}.yaml").read_text(encoding="utf-8") for stage in STAGES}
    if model is not None:
        theirs = yaml.safe_load(found["sft"])["model"]["name"]
        found["sft"] = found["sft"].replace(f"name: {theirs}\n", f"name: {_scalar(model)}\n", 1)
    return found


def own(model: str, files: Mapping[str, Own]) -> dict[str, str]:
    """
    Recipes for a person's own files, by stage: each goes on from the one before it.

    Args:
        model: what the first of them starts from.
        files: by stage; a stage without files gets no recipe.
    """
    made, policy = {}, model
    for stage in (name for name in STAGES if name in files):
        # The embedded model knows nothing yet: an adapter above it, or a low rate, would teach it nothing.
        file = (
            FOLDER / "own" / (f"{stage}-tiny.yaml" if (stage, model) == ("sft", "tiny") else f"{stage}.yaml")
        )
        text = file.read_text(encoding="utf-8")
        values = {"model": _scalar(policy), **_places(files[stage]), "guards": _guards(files)}
        made[stage] = Template(text).substitute(values)
        policy = policy if stage == "reward" else f"runs/{stage}"
    return made


def schemas() -> dict[str, str]:
    """The JSON Schema of every stage, as text, for editors."""
    return {stage: json.dumps(json_schema(stage), indent=1, ensure_ascii=False) + "\n" for stage in STAGES}


def _places(files: Own) -> dict[str, str]:
    train = _scalar(files.train[0]) if len(files.train) == 1 else _flow(files.train)
    columns = f"  columns: {_flow(dict(files.columns))} # found: wanted\n" if files.columns else ""
    held_out = _scalar(files.held_out) if files.held_out else f"{_share(files.rows):g}"
    return {"train": train, "columns": columns, "eval": held_out}


def _share(rows: int) -> float:
    """Return a share that holds out some hundred rows, within bounds: gates on shares of answers need 35 and more."""
    return round(min(LARGEST_SHARE, max(SMALLEST_SHARE, HELD_OUT_ROWS / max(rows, 1))), 2)


def _guards(files: Mapping[str, Own]) -> str:
    """What a LoRA update replays and must not harm; a parent that the sft recipe makes brings its own."""
    if "sft" in files:
        return "  # replay, general: by default the training and held-out rows of the parent's sft run\n"
    return (
        "  # replay: demonstrations.jsonl # what the model could do before, replayed\n"
        "  # general: general.jsonl # rows that no stage trained on; without them nothing shows that the rest was kept\n"
    )


def _scalar(text: str) -> str:
    return yaml.safe_dump(text, allow_unicode=True, width=10_000).removesuffix("...\n").strip()


def _flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).strip()

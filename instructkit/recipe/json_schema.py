"""JSON Schemas of recipes, with which editors complete and check them: `instructkit schema sft`."""

from __future__ import annotations

from typing import Any

from instructkit.recipe import trainer
from instructkit.recipe.schema import RECIPES

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "str": "string",
    "list": "array",
    "dict": "object",
    "null": "null",
}
# A value of another kind may come from the environment: `${NAME}` or `${NAME:-default}`.
_REFERENCE = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"}


def json_schema(stage: str) -> dict[str, Any]:
    """What a recipe of a stage may hold, the fields of its trainer included."""
    made = RECIPES[stage].model_json_schema()
    made["properties"].pop("source")
    made["properties"]["trainer"] = _trainer(stage)
    made["properties"]["extends"] = {
        "description": "a recipe, or several, that this one is laid over; paths are relative to this file",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    }
    made.pop("required")  # what is missing here may stand in the recipe that this one extends
    return {"$schema": DRAFT, **_with_references(made), "title": f"instructkit {stage} recipe"}


def _trainer(stage: str) -> dict[str, Any]:
    fields = _fields(stage)
    if stage == "lora-update":
        parts = trainer.UPDATE_PARTS
        fields |= {part: _object(_fields(part, "update" if part == "sft" else part)) for part in parts}
    return _object(fields)


def _object(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "additionalProperties": False}


def _fields(stage: str, runs: str | None = None) -> dict[str, Any]:
    """The fields of a trainer, each with the default that it has in our runs of a kind."""
    return {
        name: _field(name, field, runs or stage)
        for name, field in trainer.schema()[stage].items()
        if name not in trainer.OURS
    }


def _field(name: str, field: dict[str, Any], runs: str) -> dict[str, Any]:
    given = {"default": trainer.value(runs, name, field["default"])}
    made: dict[str, Any] = {} if trainer.depends(runs, name) else given
    if "any" not in field["types"]:
        # Null gives the default back where TRL takes none.
        made["type"] = list(dict.fromkeys([*(_TYPES[kind] for kind in field["types"]), "null"]))
    if "choices" in field and field["types"] == ["str"]:
        made["enum"] = [*field["choices"], None]
    if name in trainer.ABOVE_0:
        made["exclusiveMinimum"] = 0
    if name in trainer.NOT_BELOW_0:
        made["minimum"] = 0
    if name in trainer.BELOW_1:
        made["exclusiveMaximum"] = 1
    return made


def _with_references(node: Any) -> Any:
    """Wherever a number, a truth value or one of several words is wanted, a reference to the environment will do too."""
    if isinstance(node, list):
        return [_with_references(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _with_references(value) for key, value in node.items()}
    kinds = made.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    needs_one = {"number", "integer", "boolean"} & set(kinds) or "enum" in made
    if not needs_one or "string" in kinds and "enum" not in made:
        return made
    about = {key: made.pop(key) for key in ("description", "title", "default") if key in made}
    return {**about, "anyOf": [made, _REFERENCE]}

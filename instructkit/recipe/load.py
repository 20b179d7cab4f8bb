"""From a file and overrides to a checked recipe: all faults at once, each with its line and the nearest right name."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

from instructkit.errors import Fault, RecipeError
from instructkit.recipe import trainer_fields
from instructkit.recipe.document import Document, Place, apply_override, dotted, read_document
from instructkit.recipe.schema import RECIPES, STAGES, sections


def load_recipe(path: str, stage: str, overrides: list[str] | None = None) -> Any:
    """
    Read and check the recipe of a stage.

    Args:
        path: a YAML file.
        stage: the command that was given; the recipe must be for it.
        overrides: `section.key=value`, stronger than the file.

    Raises:
        InputError: when there is no such file.
        RecipeError: with every fault of file and overrides.
    """
    document = read_document(path)
    for override in overrides or []:
        apply_override(document, override)
    faults = [*document.faults, *_wrong_stage(document, stage)]
    if faults and _wrong_stage(document, stage):
        raise RecipeError(faults)
    faults += _unknown_keys(document, stage)
    faults += trainer_fields.check(document, stage)
    recipe, wrong_values = _validated(document, stage)
    faults += wrong_values
    if recipe is not None:
        faults += [Fault(document.where(place), told, hint) for place, told, hint in _contradictions(recipe)]
    if faults:
        raise RecipeError(sorted(faults, key=_by_line))
    return recipe


def _contradictions(recipe: Any) -> list[tuple[Place, str, str]]:
    """What each section allows and the recipe as a whole does not: place, what is wrong, the way on."""
    found: list[tuple[Place, str, str]] = []
    bits = recipe.model.quantization
    if bits != "none" and recipe.lora is None:
        told = f"`model.quantization` is {bits}, and quantised weights cannot be trained"
        found.append((("model", "quantization"), told, "add a `lora:` section, or set quantization: none"))
    set_gates = sorted(
        name for name in recipe.gates.model_fields_set if getattr(recipe.gates, name) is not None
    )
    if set_gates and getattr(recipe, "data", None) and recipe.data.eval is None:
        told = f"`data.eval` is null, so `gates.{set_gates[0]}` could not be measured"
        found.append((("data", "eval"), told, "hold out a share, or name a held-out source"))
    if (
        recipe.stage == "ppo"
        and recipe.gates.kl_max_nats is not None
        and recipe.lora is None
        and recipe.trainer.get("beta") == 0
    ):
        told = "`gates.kl_max_nats` could not be measured: with `trainer.beta` 0 no reference is loaded"
        hint = "set a small beta, add a `lora:` section (its reference costs nothing), or remove the gate"
        found.append((("gates", "kl_max_nats"), told, hint))
    if recipe.stage == "ppo":
        found += _about_critic(recipe)
    return found


def _about_critic(recipe: Any) -> list[tuple[Place, str, str]]:
    """Kinds and starts of a critic that these roles cannot have."""
    critic, found = recipe.critic, []
    kind = critic.kind if critic.kind != "auto" else "adapter" if recipe.lora else "separate"
    if kind == "adapter" and recipe.lora is None:
        told = "`critic.kind` is adapter, and without `lora:` there is no frozen backbone to stand on"
        found.append((("critic", "kind"), told, "add a `lora:` section, or set kind: separate or head"))
    if critic.detach and kind != "head":
        told = (
            f"`critic.detach` is true, and a critic of kind {kind} shares no trained weight with the policy"
        )
        found.append((("critic", "detach"), told, "set kind: head, or leave detach out"))
    if critic.init == "reward":
        learned = [item for item in recipe.reward if item.model]
        if kind == "head":
            told, hint = (
                "a head on the policy starts at zero",
                "set kind: adapter or separate, or leave init out",
            )
        elif kind == "separate" and recipe.lora is not None:
            told = "a critic of kind separate above `lora:` cannot hold a reward model's weights"
            hint = "set kind: adapter, or leave init out"
        elif len(recipe.reward) != 1 or not learned:
            told = f"`reward` has {len(recipe.reward)} entries, {len(learned)} of them learned models"
            hint = "a critic starts as the one learned reward model; leave init out, or use init: zero"
        else:
            return found
        found.append((("critic", "init"), f"`critic.init` is reward, and {told}", hint))
    return found


def _by_line(fault: Fault) -> tuple[bool, str, int, str]:
    """The file from top to bottom, then the command line."""
    file, _, line = fault.where.rpartition(":")
    in_file = line.isdigit()
    return (not in_file, file if in_file else fault.where, int(line) if in_file else 0, fault.message)


def _wrong_stage(document: Document, stage: str) -> list[Fault]:
    given = document.values.get("stage")
    if given == stage:
        return []
    where = document.where(("stage",))
    if given is None:
        return [Fault(where, "`stage` is missing", f"a recipe for this command begins with `stage: {stage}`")]
    if given in STAGES:
        told = f"this recipe is for `instructkit {given}`, not for `instructkit {stage}`"
        return [Fault(where, told, f"run `instructkit {given} {document.file}`")]
    return [Fault(where, f"no stage is called {given!r}", f"there are {', '.join(STAGES)}")]


def _unknown_keys(document: Document, stage: str) -> list[Fault]:
    recipe = RECIPES[stage]
    own = {name for name in recipe.model_fields if name != "source"}
    parts = sections(recipe)
    faults = [_unknown(document, (key,), own, parts) for key in document.values if key not in own]
    for name, section in parts.items():
        value = document.values.get(name)
        rows = value if isinstance(value, list) else [value]
        for i, row in enumerate(rows):
            place = (name, i) if isinstance(value, list) else (name,)
            unknown = [key for key in row if key not in section.model_fields] if isinstance(row, dict) else []
            faults += [_unknown(document, (*place, key), set(section.model_fields), parts) for key in unknown]
    return faults


def _unknown(document: Document, place: Place, allowed: set[str], parts: dict[str, type[BaseModel]]) -> Fault:
    key = str(place[-1])
    told = f"unknown key `{key}`" + (f" in `{place[0]}`" if len(place) > 1 else "")
    return Fault(document.where(place), told, _remedy(key, place, allowed, parts, document))


def _remedy(
    key: str, place: Place, allowed: set[str], parts: dict[str, type[BaseModel]], document: Document
) -> str:
    near = difflib.get_close_matches(key.replace("-", "_"), sorted(allowed), n=1, cutoff=0.7)
    if near:
        return f"did you mean `{near[0]}`?"
    homes = [name for name, section in parts.items() if key in section.model_fields and name != place[0]]
    if homes:
        return f"it belongs under `{homes[0]}:`"
    if trainer_fields.known(key, str(document.values.get("stage"))) and place[0] != "trainer":
        return "it belongs under `trainer:`"
    others = [stage for stage, recipe in RECIPES.items() if len(place) == 1 and key in recipe.model_fields]
    if others:
        return f"only `{'` and `'.join(others)}` recipes have it"
    return f"allowed are {', '.join(sorted(allowed))}"


def _validated(document: Document, stage: str) -> tuple[Any, list[Fault]]:
    values = {**document.values, "source": document.file}
    try:
        return RECIPES[stage].model_validate(values), []
    except ValidationError as error:
        # A value that fits none of several alternatives is one fault of the user: told by the alternative that read
        # deepest into it, and there by the first.
        found: dict[Place, Fault] = {}
        for item in error.errors():
            place = _real_place(item, document.values)
            if item["type"] != "extra_forbidden":
                found.setdefault(place, _as_fault(item, place, document))
            elif len(place) > 3:  # the keys of a section, and of its rows, are told by `_unknown_keys`
                told = f"unknown key `{place[-1]}` in `{dotted(place[:-1])}`"
                found.setdefault(place, Fault(document.where(place), told))
        deeper = {place[:i] for place in found for i in range(len(place))}
        return None, [fault for place, fault in found.items() if place not in deeper]


def _as_fault(item: dict[str, Any], place: Place, document: Document) -> Fault:
    name = dotted(place)
    if item["type"] == "missing":
        return Fault(document.where(place), f"`{name}` is missing")
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = item["input"] if not isinstance(item["input"], dict | list) else type(item["input"]).__name__
    return Fault(document.where(place), f"`{name}` is {given!r}: {message}")


def _real_place(item: dict[str, Any], values: Any) -> Place:
    """A location without pydantic's names of alternatives: only the parts that the document has, and a missing last one."""
    location = item["loc"]
    place: list[str | int] = []
    here = values
    for i, part in enumerate(location):
        inside = isinstance(here, dict) and part in here
        inside = inside or (isinstance(here, list) and isinstance(part, int) and part < len(here))
        if inside:
            here = here[part]
            place.append(part)
        elif i == len(location) - 1 and item["type"] == "missing":
            place.append(part)
    return tuple(place)

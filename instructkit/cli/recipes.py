"""`check`, `explain` and `schema`: all that can be known of a recipe without loading anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructkit.cli import completion
from instructkit.cli.telling import tell, visible

if TYPE_CHECKING:
    from instructkit.errors import Fault
    from instructkit.recipe.explain import Topic
    from instructkit.recipe.load import Checked

Json = Annotated[bool, typer.Option("--json", help="As data.")]
STAGE_NAMES = "sft, reward, ppo, lora-update"


def register(app: typer.Typer) -> None:
    """Add the three commands."""
    app.command(
        "check",
        help="Check recipes and the data, parents and packages that they name, without torch: every fault at once."
        "\n\nExample: instructkit check recipes/*.yaml",
    )(check)
    app.command(
        "explain",
        help="What a part of a recipe means.\n\nExample: instructkit explain sft.trainer.packing",
    )(explain)
    app.command(
        "schema",
        help="The JSON Schema of a stage's recipes, for editors.\n\nExample: instructkit schema sft > sft.schema.json",
    )(schema)


def check(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...",
            help="Files, folders or globs; then overrides.",
            autocompletion=completion.recipes_and_overrides,
        ),
    ],
    resolved: Annotated[
        bool,
        typer.Option(
            "--resolved",
            help="Print the recipe with its defaults (of `trainer:` what is given), and where each value comes from.",
        ),
    ] = False,
    recipe_only: Annotated[
        bool,
        typer.Option(
            "--recipe-only", help="Do not look at the data, parents and packages that the recipes name."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Check recipes and what they point to; exit with code 2 when one has an error."""
    from instructkit.recipe.load import check_recipe, error_of

    overrides = list(filter(_is_override, recipes))
    files, missing = _files([name for name in recipes if not _is_override(name)])
    checked = [check_recipe(file, overrides=overrides) for file in files]
    if not recipe_only:
        checked = _pointed(checked)
    if json:
        unfound = [{"file": fault.where, "stage": None, "faults": [vars(fault)]} for fault in missing]
        _print_json([*(_as_data(found) for found in checked), *unfound])
    else:
        for found in checked:
            _tell(found, resolved, with_name=len(checked) > 1)
    error = error_of(*checked, also=missing)
    if any(one.recipe is not None and one.faults for one in checked):
        error.hint += " To check recipes without the data and models that they name, add --recipe-only."
    if error.faults:
        if json:
            tell(error)
            raise typer.Exit(2)
        raise error


def _pointed(checked: list[Checked]) -> list[Checked]:
    """Add the errors in what valid recipes point to; a run that another of them writes may be missing."""
    from dataclasses import replace

    from instructkit.cli.console import Console
    from instructkit.plan.points import faults

    written = {one.path: one.recipe.run.output for one in checked if one.recipe is not None}
    results = []
    with Console() as console:
        for one in checked:
            if one.recipe is not None:
                others = [output for path, output in written.items() if path != one.path]
                with console.phase(f"looking at what {one.path} points to"):
                    one = replace(one, faults=faults(one.recipe, one.document.where, others))
            results.append(one)
    return results


def _is_override(name: str) -> bool:
    return "=" in name and not os.path.lexists(name)  # False too for a name that no file can have


def _files(names: list[str]) -> tuple[list[str], list[Fault]]:
    """The files that names stand for: themselves, the recipes of a folder, or what a glob finds; and names of none."""
    from instructkit.errors import Fault
    from instructkit.paths import shown

    found: list[str] = []
    missing: list[Fault] = []
    for name in names:
        path = Path(name)
        if not name.strip():
            missing.append(Fault("command line", "a name is empty, so it names no recipe", "give a recipe"))
        elif os.path.isdir(name):  # noqa: PTH112  (`Path.is_dir` fails at a name that no file can have)
            inside = sorted(
                str(file) for file in path.rglob("*.y*ml") if file.is_file() and _is_seen(file, path)
            )
            found += inside
            if not inside:
                missing.append(
                    Fault(name, "the folder holds no .yaml file", "give a recipe, or the folder of some")
                )
        elif set("*?[") & set(name) and not os.path.lexists(name):
            inside = _like(name)
            found += inside
            if not inside:
                missing.append(Fault(shown(name), f"no file is like {shown(name)}", "check the pattern"))
        else:
            found.append(name)
    if not found and not missing:
        hint = "instructkit check recipes/sft.yaml"
        missing.append(Fault("command line", "there is no recipe to check", hint))
    return list(dict.fromkeys(found)), missing


def _is_seen(file: Path, folder: Path) -> bool:
    """Whether a file stands in no hidden folder, and in no Python environment."""
    within = file.relative_to(folder).parts
    above = [folder.joinpath(*within[:i]) for i in range(1, len(within))]
    return not any(part.startswith(".") for part in within) and not any(
        (place / "pyvenv.cfg").exists() for place in above
    )


def _like(pattern: str) -> list[str]:
    path = Path(pattern)
    inside = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    return sorted(str(file) for file in inside if file.is_file())


def _tell(checked: Checked, resolved: bool, *, with_name: bool) -> None:
    """A sound recipe: that it is one, or its values; of several, each as a YAML document that begins with its name."""
    if checked.faults:
        return
    if resolved:
        from instructkit.recipe.render import with_origins

        if with_name:
            typer.echo(f"---\n# {visible(checked.path)}")
        typer.echo(with_origins(checked.recipe, checked.document), nl=False)
    else:
        typer.echo(f"{visible(checked.path)}: a sound recipe for `instructkit {checked.recipe.stage}`")


def _as_data(checked: Checked) -> dict[str, Any]:
    from instructkit.recipe.render import origins, to_dict

    told: dict[str, Any] = {
        "file": checked.path,
        "stage": checked.recipe.stage if checked.recipe else checked.stage,
        "faults": [vars(fault) for fault in checked.faults],
    }
    if checked.recipe is not None:
        told["resolved"] = to_dict(checked.recipe)
        told["origins"] = origins(checked.recipe, checked.document)
    return told


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def explain(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC",
            help=f"A stage ({STAGE_NAMES}), or a part of its recipe.",
            autocompletion=completion.topics,
        ),
    ],
    json: Json = False,
) -> None:
    """Print what a part of a recipe means."""
    from instructkit.recipe.explain import explain as find

    found = find(topic)
    if json:
        import dataclasses

        _print_json(dataclasses.asdict(found))
    else:
        _print_topic(found)


def _print_topic(topic: Topic) -> None:
    import shutil
    import textwrap

    width = min(110, shutil.get_terminal_size((100, 24)).columns)
    facts = [
        topic.kind,
        f"default {topic.default}" if topic.default else "",
        topic.unit and f"in {topic.unit}",
    ]
    typer.echo(f"{topic.name}  ({'; '.join(fact for fact in facts if fact)})")
    told = topic.meaning or "Nothing is said about it."
    typer.echo(textwrap.indent(textwrap.fill(told, width - 2), "  "))
    if topic.source != "instructkit":
        typer.echo(f"  [{topic.source}]")
    for part in topic.parts:
        _print_part(part, width)


def _print_part(part: Topic, width: int, indent: str = "  ") -> None:
    """One line for a field; a section lists its fields below, unless they are TRL's many."""
    import textwrap

    name = part.name.rpartition(".")[2]
    told = f"{name}  ({part.kind}; {part.default})  {part.meaning}"
    typer.echo(indent + textwrap.shorten(told, width - len(indent), placeholder=" ..."))
    if len(part.parts) > 40:
        typer.echo(f"{indent}  {len(part.parts)} fields: `instructkit explain {part.name}`")
        return
    for inner in part.parts:
        _print_part(inner, width, indent + "  ")


def schema(
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help=f"One of {STAGE_NAMES}.", autocompletion=completion.stages)
    ],
) -> None:
    """Print the JSON Schema of a stage's recipes."""
    from instructkit.errors import InputError
    from instructkit.recipe.json_schema import json_schema
    from instructkit.recipe.schema import STAGES

    if stage not in STAGES:
        raise InputError(f"no stage is called {stage!r}", hint=f"there are {', '.join(STAGES)}")
    _print_json(json_schema(stage))

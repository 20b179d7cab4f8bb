"""`instructkit init`: starter recipes for the embedded default, a person's own files, or a hub model."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from instructkit.data.columns import Unclear
    from instructkit.data.inspect import Found
    from instructkit.recipe.starters import Own

STAGE_OF = {"sft": "sft", "preference": "reward", "prompt": "ppo", "feedback": "lora-update"}
SMALL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHOICES = {
    "demo": "the embedded default: synthetic data, a tiny model, no network",
    "own": "your own files",
    "hub": "a small hub model and public data, for one GPU",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "init",
        help="Write starter recipes.\n\nExample: instructkit init recipes --data talks.jsonl --data comparisons.jsonl",
    )(init)


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where the recipes go.")] = Path("recipes"),
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="A file of yours; again for more. What it is for is found out."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            help='What columns of your files mean, as "Customer Message=prompt,Reply=completion".',
        ),
    ] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Recipes for a hub model on one GPU.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Recipes for the embedded default.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="Hub id, folder or run that the first stage starts from.")
    ] = None,
) -> None:
    """Write recipes and their schemas; nothing that is there is overwritten."""
    from instructkit.errors import InputError
    from instructkit.recipe import starters

    if model is not None and not model.strip():
        raise InputError("--model is empty", hint="give a hub id, a folder or a run, or leave it out")
    if any(not name.strip() for name in data or []):
        raise InputError("--data is empty", hint="give a file")
    data = list(dict.fromkeys(data or []))
    if sum([bool(data), hub, demo]) > 1:
        raise InputError("--data, --hub and --demo are three ways", hint="give one of them")
    if columns and not data:
        raise InputError("--columns goes with --data", hint="add --data FILE")
    if demo and model:
        raise InputError("the embedded default has a model of its own", hint="give --data or --hub")
    if not (data or hub or demo):
        way, data, model = _ask(model)
        if not sys.stdin.isatty():
            typer.echo(
                f"no terminal to ask at, so these are the recipes of {CHOICES[way]}; --data FILE takes your own"
            )
    else:
        way = "own" if data else "hub" if hub else "demo"
    if way == "own":
        from instructkit.data.columns import parse_all

        files, told, faulty = _own(data, parse_all(columns))
        texts = _skipping(starters.own(model or SMALL_MODEL, files), faulty)
    else:
        texts, told = starters.shipped(way, model), []
    _write(folder, texts, starters.schemas())
    for line in told:
        typer.echo(line)
    for stage in texts:
        typer.echo(f"wrote {folder / stage}.yaml")
    first = next(iter(texts))
    typer.echo(f"next: instructkit {first} {folder / first}.yaml --plan")


def _ask(model: str | None) -> tuple[str, list[str], str | None]:
    """Which way, and what it needs: asked at a terminal; elsewhere the embedded default."""
    if not sys.stdin.isatty():
        return ("demo" if model in (None, "tiny") else "hub"), [], model
    for name, about in CHOICES.items():
        typer.echo(f"  {name:5} {about}")
    while (way := typer.prompt("Recipes for", default="demo")) not in CHOICES:
        typer.echo(f"`{way}` is none of them: {', '.join(CHOICES)}")
    if way == "demo":
        return way, [], None
    data = typer.prompt("Files, with spaces between them").split() if way == "own" else []
    known = model or (SMALL_MODEL if way == "own" else None)
    return way, data, typer.prompt("Model", default=known) if way == "own" else known


def _look_at_all(names: list[str], columns: dict[str, str]) -> list[Found]:
    """
    Look at every file; at a terminal, ask for the meaning of columns that is unclear.

    Raises:
        InputError: with the problems of all files.
    """
    from instructkit.errors import InputError

    looked_at, problems = [], []
    for name in names:
        try:
            looked_at += _look_at(name, columns)
        except InputError as error:
            problems.append((name, error))
    if len(problems) == 1:
        raise problems[0][1]
    if problems:
        messages = [error.message for _, error in problems]
        hints = [f"{name}: {error.hint}" for name, error in problems if error.hint]
        raise InputError("\n  ".join(["several files have problems:", *messages]), hint="\n  ".join(hints))
    if missing := [name for name in columns if not any(name in each.columns for each in looked_at)]:
        raise InputError(
            f"--columns names `{'`, `'.join(missing)}`, and no file has such a column",
            hint="copy the name from the header of the file",
        )
    return looked_at


def _look_at(name: str, columns: dict[str, str]) -> list[Found]:
    from instructkit.data.columns import Unclear
    from instructkit.data.inspect import look_at

    while True:
        try:
            return look_at(name, columns)
        except Unclear as unclear:
            if not sys.stdin.isatty():
                raise
            columns = {**columns, **_asked(unclear)}


def _asked(unclear: Unclear) -> dict[str, str]:
    """Ask at the terminal what the columns of a file mean; the default answer is the proposal."""
    from instructkit.data.columns import parse
    from instructkit.errors import InputError

    typer.echo(unclear.message)
    mapping = ",".join(f"{name}={field}" for name, field in unclear.proposal.items())
    while True:
        try:
            return parse(typer.prompt("Columns, as NAME=FIELD,NAME=FIELD", default=mapping))
        except InputError as error:
            typer.echo(f"{error.message}; {error.hint}")


def _own(names: list[str], columns: dict[str, str]) -> tuple[dict[str, Own], list[str], dict[str, int]]:
    """Return the files of each stage, notes on each file, and the number of rows with errors by stage."""
    from instructkit.errors import InputError

    found = _look_at_all(names, columns)
    by_stage = {
        stage: [each for each in found if each.kind == kind]
        for kind, stage in STAGE_OF.items()
        if any(each.kind == kind for each in found)
    }
    told = [line for each in found for line in (_told(each), *_unread(each))]
    if "reward" in by_stage and "ppo" not in by_stage:
        asking = [each for each in by_stage["reward"] if each.asks]
        asking = asking or [each for each in by_stage.get("sft", []) if each.asks]
        if asking:
            by_stage["ppo"] = asking
            told.append(f"{asking[0].source}: its prompts serve ppo as well")
        else:
            told.append("no ppo.yaml: none of the files gives prompts of their own (`prompt`)")
    if "ppo" in by_stage and "reward" not in by_stage:
        del by_stage["ppo"]
        told.append("no ppo.yaml: PPO needs a reward model, which is made from comparisons, or a function")
    if not by_stage:
        raise InputError("no stage can be trained on these files alone", hint="; ".join(told))
    faulty = {stage: sum(len(part.faults) for part in parts) for stage, parts in by_stage.items()}
    return {stage: _files(parts) for stage, parts in by_stage.items()}, told, faulty


def _skipping(texts: dict[str, str], faulty: dict[str, int]) -> dict[str, str]:
    """Recipes whose files have faults go on without those rows, and say so."""
    return {
        stage: _after_source(text, f"  on_fault: skip # {faulty[stage]} rows have faults, and are left out\n")
        if faulty.get(stage)
        else text
        for stage, text in texts.items()
    }


def _after_source(text: str, line: str) -> str:
    import re

    return re.sub(
        r"^(  (?:train|events): .*\n)", lambda match: match[0] + line, text, count=1, flags=re.MULTILINE
    )


def _files(parts: list[Found]) -> Own:
    """What is trained on and what is held out, by the names of the files."""
    from instructkit.recipe.starters import Own

    held_out = [part for part in parts if _is_held_out(part.source)] if len(parts) > 1 else []
    train = [part for part in parts if part not in held_out[:1]]
    columns = _columns(parts)
    return Own(
        [part.source for part in train],
        held_out[0].source if held_out else None,
        columns,
        sum(part.rows for part in train),
    )


def _columns(parts: list[Found]) -> dict[str, str]:
    """The renaming of all files of a stage; a recipe has but one, and that with a context does for files without."""
    from instructkit.data.inspect import fits
    from instructkit.errors import InputError

    columns: dict[str, str] = {}
    for part in sorted(parts, key=lambda part: "instruction" not in part.columns.values()):
        columns = {**part.columns, **columns}
    for part in parts:
        if part.columns != columns and not fits(part, columns):
            told = ", ".join(f"`{name}` as `{field}`" for name, field in columns.items())
            raise InputError(
                f"{part.source} cannot be read with the columns of the other files: {told}",
                hint="give files whose columns mean different things one at a time; nothing was written",
            )
    return columns


def _is_held_out(source: str) -> bool:
    import re

    words = re.split(r"[^a-z]+", Path(source).name.lower())
    return bool({"eval", "test", "valid", "validation", "dev", "heldout", "held"} & set(words))


def _told(found: Found) -> str:
    from instructkit.data.inspect import WORDS

    line = f"{found.source}: {found.rows} rows of {WORDS[found.kind]}"
    if found.columns:
        line += ", with " + ", ".join(f"`{name}` as `{field}`" for name, field in found.columns.items())
    if found.faults:
        line += f"; {len(found.faults)} of them have faults, the first {found.faults[0]}"
    return line


def _unread(found: Found) -> list[str]:
    """Columns that no recipe written here reads; a warning where an answer may rest on them."""
    if not found.unread:
        return []
    told = [f"{found.source}: columns that are not read: {', '.join(found.unread)}"]
    if found.lost:
        names = " and ".join(f"`{name}`" for name in found.lost)
        told.append(
            f"warning: {found.source}: {names} may be what the answers rest on, and training does not see it; "
            "put it into the prompt"
        )
    return told


def _write(folder: Path, texts: dict[str, str], schemas: dict[str, str]) -> None:
    """Recipes and schemas, all or nothing."""
    from instructkit.errors import InputError
    from instructkit.runs.files import write_text_atomic

    recipes = {folder / f"{stage}.yaml": text for stage, text in texts.items()}
    there = [str(path) for path in recipes if path.exists()]
    if there:
        raise InputError(
            f"{', '.join(there)} is there already", hint="give another folder; nothing was written"
        )
    beside = {folder / "schemas" / f"{stage}.json": schemas[stage] for stage in texts}
    every = {**beside, **recipes}
    new = [path for path in (*every, folder / "schemas", folder) if not path.exists()]
    try:
        for path, text in every.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(path, text)
    except OSError as error:
        _take_away(new)
        hint = "give a folder that can be written and has room; nothing was written"
        raise InputError(f"{folder}: {error.strerror or error}", hint=hint) from error


def _take_away(paths: list[Path]) -> None:
    """Files, then the folders that held nothing else."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)

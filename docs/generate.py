"""Write docs/reference/ from the program: its commands and the schemas of its recipes. Run by `make docs`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import typer

from instructkit.cli.main import app

FOLDER = Path(__file__).parent / "reference"
STAGES = ("sft", "reward", "ppo", "lora-update")
REFERENCE = "${"  # of a value from the environment, which every number and choice may be
LIMITS = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "below {:g}",
}


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(exist_ok=True)
    pages = {f"recipe-{stage}": recipe_page(stage) for stage in STAGES} | {"commands": commands_page()}
    listed = [f"- [{name.replace('-', ': ', 1)}]({name}.md)" for name in pages]
    head = "# Reference\n\nThese pages are generated from the program.\n\n"
    for name, text in {**pages, "index": head + "\n".join(listed) + "\n"}.items():
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


def commands_page() -> str:
    """Return the help of every command, as the terminal shows it."""
    root = typer.main.get_command(app)
    return "# Commands\n\n" + "\n".join(helps(root, click.Context(root, info_name="instructkit")))


def helps(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the help of a command and of those below it."""
    text = command.get_help(context).rstrip()
    yield f"{'##' if context.parent else '#'}# {context.command_path}\n\n```text\n{text}\n```\n"
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, click.Context(below, info_name=name, parent=context))


def recipe_page(stage: str) -> str:
    """Return the keys of a stage's recipe: a table for each section."""
    command = [sys.executable, "-m", "instructkit", "schema", stage]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    schema = json.loads(done.stdout)
    lines = [f"# Recipe of {stage}", "", schema.get("description", ""), ""]
    lines += [
        "A number, a truth value or a choice may also come from the environment: `${NAME}` or `${NAME:-default}`.",
        f"`instructkit explain {stage}.SECTION.KEY` prints the meaning of one key, also of each field of `trainer:`.",
        "",
    ]
    sections = dict(
        sorted(schema["properties"].items(), key=lambda item: item[0] == "trainer")
    )  # the long one last
    plain = {name: node for name, node in sections.items() if section_of(node, schema) is None}
    lines += table(plain, schema)
    for name, node in sections.items():
        if (section := section_of(node, schema)) is not None:
            lines += section_lines(name, section, schema)
    return "\n".join(lines) + "\n"


def section_lines(path: str, section: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return heading and table of a section, then those of the sections written inside it."""
    about = section.get("description", "Fields of the TRL config behind this stage, under its own names.")
    lines = ["", f"## `{path}:`", "", about, ""]
    lines += table(section["properties"], schema, section.get("required", ()))
    for name, node in section["properties"].items():
        if "properties" in node:
            lines += section_lines(f"{path}.{name}", node, schema)
    return lines


def section_of(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the object that a node describes, by itself, by reference or as the items of a list; None for a plain value."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    if "properties" in node:
        return node
    below = [*node.get("anyOf", ()), *([node["items"]] if "items" in node else [])]
    return next((found for each in below if (found := section_of(each, schema))), None)


def table(properties: dict[str, Any], schema: dict[str, Any], required: Sequence[str] = ()) -> list[str]:
    """Return the rows of a table of keys."""
    rows = [("key", "value", "default", "meaning")]
    for name, node in properties.items():
        default = f"`{json.dumps(node['default'])}`" if "default" in node else ""
        value = "a section, below" if "properties" in node else kind(node, schema)
        given = "required" if name in required else default
        rows.append((f"`{name}`", value, given, node.get("description", "")))
    with_meaning = any(row[3] for row in rows[1:])
    kept = [row if with_meaning else row[:3] for row in rows]
    kept.insert(1, ("---",) * len(kept[0]))
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in kept]


def kind(node: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return which values a node takes, in words."""
    if "$ref" in node:
        return kind(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in node:
        parts = [kind(each, schema) for each in node["anyOf"] if REFERENCE[0] not in each.get("pattern", "")]
        return " or ".join(dict.fromkeys(parts))
    if "const" in node or "enum" in node:
        choices = [node["const"]] if "const" in node else node["enum"]
        return ", ".join(f"`{'null' if choice is None else choice}`" for choice in choices)
    if node.get("type") == "array":
        return f"list of {kind(node.get('items', {}), schema)}"
    types = node.get("type", "any")
    words = " or ".join(types if isinstance(types, list) else [types])
    limits = [text.format(node[key]) for key, text in LIMITS.items() if node.get(key, 2**31) < 2**31]
    return ", ".join([words, *limits])


if __name__ == "__main__":
    main()

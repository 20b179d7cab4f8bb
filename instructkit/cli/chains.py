"""`instructkit runs history | promote | rollback`: which updates there were, and which of them is in force."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from instructkit.feedback.promotion.chain import Chain

Name = Annotated[
    str, typer.Argument(metavar="CHAIN", help="The name of a chain, `feedback.chain` of its recipes.")
]
Root = Annotated[Path, typer.Option(help="Where the runs lie.")]
Why = Annotated[str, typer.Option(help="The reason; it is kept for ever.")]
RUNS = Path("runs")


def register(group: typer.Typer) -> None:
    """Add the commands to `instructkit runs`."""
    group.command(
        "history",
        help="The updates of a chain, which of them is in force, and who decided otherwise than the gates."
        "\n\nExample: instructkit runs history support --store feedback.db",
    )(history)
    group.command(
        "promote",
        help="Put an update in force; one that was refused only by --force and with a reason."
        '\n\nExample: instructkit runs promote support 2 --force --why "checked by hand"',
    )(promote)
    group.command(
        "rollback",
        help="Put the adapter before in force again, or another one that was, or none (0)."
        '\n\nExample: instructkit runs rollback support --why "answers are too short"',
    )(rollback)


def history(
    chain: Annotated[
        str | None, typer.Argument(metavar="[CHAIN]", help="A chain; all of them when left out.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="A feedback store: say which updates hold what was withdrawn since."),
    ] = None,
    root: Root = RUNS,
    json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
) -> None:
    """Print the history of a chain, or of all."""
    from instructkit.runs import pointer

    withdrawn = _withdrawn(store)
    names = [chain] if chain else pointer.names(root)
    told = [_told(_existing(root, name), withdrawn) for name in names]
    if json:
        typer.echo(json_module.dumps(told[0] if chain else told, indent=1, ensure_ascii=False))
        return
    if not told:
        typer.echo(f"no chains below {root}; `instructkit lora-update RECIPE` begins one", err=True)
    for item in told:
        _print(item)


def promote(
    chain: Name,
    number: Annotated[
        int, typer.Argument(metavar="NUMBER", help="Of the update, as `runs history` gives it.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Though it was refused.")] = False,
    why: Why = "",
    root: Root = RUNS,
) -> None:
    """Put an update in force."""
    from instructkit.feedback.promotion.chain import user

    found = _existing(root, chain)
    folder = found.promote(number, why=why or None, forced_by=user() if force else None)
    typer.echo(f"{chain}: update {number} is in force, in {folder}")


def rollback(
    chain: Name,
    why: Why,
    to: Annotated[
        int | None, typer.Option(help="Number of an update that was in force before; 0 for the parent.")
    ] = None,
    root: Root = RUNS,
) -> None:
    """Put an earlier adapter in force again."""
    number = _existing(root, chain).rollback(to=to, why=why)
    typer.echo(f"{chain}: {f'update {number}' if number else 'the parent itself'} is in force")


def _existing(root: Path, name: str) -> Chain:
    from instructkit.errors import InputError
    from instructkit.feedback.promotion.chain import Chain
    from instructkit.runs import pointer

    found = Chain.at(root, name)
    if name not in (known := pointer.names(root)):
        there = (
            f"there are {', '.join(known)}"
            if known
            else f"there is none below {root}; --root says where runs lie"
        )
        raise InputError(f"no chain is called {name}", hint=there)
    return found


def _withdrawn(store: Path | None) -> set[str]:
    if store is None:
        return set()
    from instructkit.feedback.store.store import Store

    with Store.open(store) as opened:
        return set(opened.withdrawn_ids())


def _told(chain: Chain, withdrawn: set[str]) -> dict[str, Any]:
    """A chain as data."""
    from instructkit.feedback.promotion.chain import story

    entries, standing = chain.entries(), chain.standing()
    became = story(entries, standing)
    touched, line = chain.count_trained(withdrawn) if withdrawn else {}, chain.line(standing.current)
    updates = []
    for number, update in chain.updates().items():
        moves = became.get(number, {"promoted": [], "forced": [], "rolled back": []})
        here = {"current": number == standing.current, "in_current": number in line}
        updates.append({**update, **here, **moves, "trained_on_withdrawn": touched.get(number, 0)})
    return {
        "chain": chain.name,
        "folder": str(chain.folder),
        "current": standing.current or None,
        "notes": _notes(chain, standing),
        "updates": updates,
        "moves": [entry for entry in entries if entry["kind"] != "update"],
    }


def _notes(chain: Chain, standing: Any) -> list[str]:
    """What is not as it should be, in words."""
    from instructkit.errors import InputError

    notes = []
    if chain.torn():
        notes.append("the last line of the history is torn and left out: its writer was killed")
    if standing.undone is not None:
        notes.append("the last move was cut short before `current` moved, so it did not happen")
    try:
        chain.current()
    except InputError as error:
        notes.append(f"{error.message}; {error.hint}")
    return notes


def _print(told: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    in_force = f"update {told['current']} is in force" if told["current"] else "nothing is promoted"
    console.print(f"{told['chain']}: {in_force}", style="bold", markup=False)
    table = _table(told["updates"])
    if not console.is_terminal:  # a file or a pipe has no edge
        wide = console.options.update(max_width=1000)
        console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)
    lines = [line for update in told["updates"] for line in _in_words(update)]
    for line in [*lines, *told["notes"]]:
        console.print(line, markup=False, soft_wrap=True)


def _table(updates: list[dict[str, Any]]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from instructkit.feedback.promotion.update import failed_gates

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1), collapse_padding=True)
    numbers = ("no", "scale", "events", "used", "look")
    for name in (
        "no",
        "time (UTC)",
        "run",
        "verdict",
        "gates failed",
        "scale",
        "events",
        "used",
        "look",
        "state",
    ):
        table.add_column(
            name,
            justify="right" if name in numbers else "left",
            overflow="fold",
            no_wrap=name not in ("run", "gates failed", "state"),
        )
    for update in updates:
        cells = (
            *(update["number"], update["time"][:16].replace("T", " "), update["run"], update["verdict"]),
            ", ".join(gate["name"] for gate in failed_gates(update)) or "-",
            *(f"{update['scale']:.4g}", sum(update["outcomes"].values()), update["trained"]["count"]),
            *(update["looks"], _state(update)),
        )
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


def _state(update: dict[str, Any]) -> str:
    """`current`, `rolled back` or `promoted`, and whether it was ever forced."""
    words = ["current"] if update["current"] else []
    if update["promoted"] and not update["current"]:
        words.append("rolled back" if len(update["rolled back"]) == len(update["promoted"]) else "promoted")
    return ", ".join([*words, *(["forced"] if update["forced"] else [])]) or "-"


def _in_words(update: dict[str, Any]) -> list[str]:
    """Who promoted, forced or rolled it back and why, and what it has learned from that was withdrawn since."""
    number, lines = update["number"], []
    forced = [move["time"] for move in update["forced"]]
    reasoned = [move for move in update["promoted"] if move["why"] and move["time"] not in forced]
    for what, moves in (
        ("promoted", reasoned),
        ("forced", update["forced"]),
        ("rolled back", update["rolled back"]),
    ):
        for move in moves:
            when = move["time"][:16].replace("T", " ")
            lines.append(f"update {number} was {what} by {move['by']} on {when}: {move['why']}")
    if count := update["trained_on_withdrawn"]:
        within = "; it is part of what is in force" if update["in_current"] else ""
        lines.append(f"update {number} has learned from {count} events that are withdrawn since{within}")
    return lines

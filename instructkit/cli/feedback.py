"""`instructkit feedback`: what users said about answers, in a store that only grows."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructkit.cli import feedback_import
from instructkit.cli.feedback_import import DEFAULT, At, Json, counts, print_data

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from instructkit.feedback.events import Event
    from instructkit.feedback.statistics import Statistics
    from instructkit.feedback.store import Filter, Store

Since = Annotated[str | None, typer.Option(help="Said at or after this time (ISO 8601).")]
Run = Annotated[str | None, typer.Option(help="About answers of this run.")]
Rater = Annotated[str | None, typer.Option(help="Said by this person: the name, or its h: hash.")]
Tag = Annotated[str | None, typer.Option(help="With this tag.")]
Kind = Annotated[str | None, typer.Option(help="rating, edit or preference.")]
Withdrawn = Annotated[bool, typer.Option("--withdrawn", help="Those that were withdrawn too.")]
SHOWN = 60  # characters of a text in a list


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="What users said about answers: collect it, look at it, take it back.", no_args_is_help=True
    )
    group.command(
        "import",
        help="Add the judgements in files.\n\nExample: instructkit feedback import ratings.jsonl --scale 1:5",
    )(feedback_import.import_)
    group.command(
        "add",
        help="Add one judgement, as a JSON object.\n\nExample: instructkit feedback add "
        '\'{"prompt": "Hi", "response": "Hello!", "rating": 1}\'',
    )(feedback_import.add)
    group.command("list", help="Events, newest last.\n\nExample: instructkit feedback list --kind edit")(
        list_
    )
    group.command("stats", help="Kinds, raters and how far they agree, groups, the loudest, position bias.")(
        stats
    )
    group.command(
        "export",
        help="Events as JSON lines, on stdout.\n\nExample: instructkit feedback export > events.jsonl",
    )(export)
    group.command(
        "withdraw", help="Take back one event, or all that a person said; later updates leave them out."
    )(withdraw)
    group.command(
        "check",
        help="Is the store sound? Exit code 1 when it is damaged.\n\nExample: instructkit feedback check",
    )(check)
    app.add_typer(group, name="feedback")


def list_(
    store: At = DEFAULT,
    since: Since = None,
    run: Run = None,
    rater: Rater = None,
    tag: Tag = None,
    kind: Kind = None,
    withdrawn: Withdrawn = False,
    json: Json = False,
) -> None:
    """One line an event."""
    wanted = _filter(since, run, rater, tag, kind, withdrawn)
    with _open(store) as opened:
        taken_back = _taken_back(opened, wanted)
        for event in opened.events(wanted):
            if json:
                typer.echo(_row(event, taken_back))
                continue
            asked = event.prompt if isinstance(event.prompt, str) else event.prompt[-1]["content"]
            said = " ".join(f"{name}={_short(value)}" for name, value in event.judgement.items())
            typer.echo(
                f"{event.id}  {event.time[:16]}  {event.rater or '-':18}  {_short(asked)} -> {_short(event.response)}  {said}"
            )


def _taken_back(opened: Store, wanted: Filter) -> set[str]:
    """The ids of withdrawn events, where such are wanted."""
    return set(opened.withdrawn_ids()) if wanted.withdrawn else set()


def _row(event: Event, taken_back: Container[str]) -> str:
    """An event as a line; one that was withdrawn says so, and that it may not be trained on wherever it is imported."""
    marked = {"consent": False, "withdrawn": True} if event.id in taken_back else {}
    return json_module.dumps(event.as_row() | marked, ensure_ascii=False)


def _short(text: Any) -> str:
    told = " ".join(str(text).split())
    return told if len(told) <= SHOWN else told[: SHOWN - 3] + "..."


def export(
    store: At = DEFAULT,
    since: Since = None,
    run: Run = None,
    rater: Rater = None,
    tag: Tag = None,
    kind: Kind = None,
    withdrawn: Withdrawn = False,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Of a damaged store, all that can still be read.")
    ] = False,
) -> None:
    """Print events as rows that a recipe can name and `import` can read."""
    wanted = _filter(since, run, rater, tag, kind, withdrawn)
    if salvage:
        _salvage(store, wanted)
        return
    with _open(store) as opened:
        taken_back = _taken_back(opened, wanted)
        for event in opened.events(wanted):
            print(_row(event, taken_back))


def _salvage(store: Path, wanted: Filter) -> None:
    """Print what can still be read, and end with what cannot."""
    from instructkit.errors import InstructKitError
    from instructkit.feedback.salvage import Rest

    lost = []
    with Rest.of(store) as rest:
        withdrawals = rest.withdrawals_left()
        for event in rest.salvage(wanted):
            if isinstance(event, int):
                lost.append(event)
            else:
                print(_row(event, {event.id} if withdrawals.cover(event) else ()))
    told = [f"{len(lost)} events could not be read: numbers {_numbers(lost)}"] if lost else []
    if withdrawals.lost is None:
        told.append("no withdrawal could be read: events that were withdrawn may be among those written")
    elif withdrawals.lost:
        told.append(
            f"{len(withdrawals.lost)} withdrawals could not be read: numbers {_numbers(withdrawals.lost)}; "
            "what they took back may be among the events written"
        )
    if told:
        raise InstructKitError("; ".join(told), hint="everything else was written")


def _numbers(found: Sequence[int]) -> str:
    return ", ".join(map(str, found[:20])) + (" ..." if len(found) > 20 else "")


def stats(
    store: At = DEFAULT,
    since: Since = None,
    run: Run = None,
    rater: Rater = None,
    tag: Tag = None,
    kind: Kind = None,
    chain: Annotated[str, typer.Option(help="Tell what is new to this chain of updates.")] = "default",
    root: Annotated[Path, typer.Option(help="Where its runs lie.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Figures of the events that are not withdrawn."""
    from instructkit.feedback.registry import Chain
    from instructkit.feedback.statistics import of_events
    from instructkit.feedback.store import Filter

    with _open(store) as opened:
        found = of_events(opened.events(_filter(since, run, rater, tag, kind, withdrawn=False)))
        withdrawals = len(opened.withdrawals())
        named = Chain.at(root, chain)
        last = named.since(named.standing().current)
        ours = last is None or opened.has(last)
        new = opened.count(Filter(consent=True, after=last)) if ours else None
    if json:
        print_data({**found.as_dict(), "withdrawals": withdrawals, "new": new})
        return
    told = f"new since the chain {chain!r} was last promoted, and may be trained on: {new}"
    if not ours:
        told = f"the chain {chain!r} was last promoted on events of another store"
    for line in [*_lines(found), f"withdrawals: {withdrawals}", told]:
        typer.echo(line)


def _lines(found: Statistics) -> list[str]:
    raters = f"raters: {found.raters}, and {found.anonymous} events of nobody"
    if found.loudest is not None:
        raters += f"; the loudest has said {found.loudest:.0%}"
    lines = [f"events: {found.events} ({counts(found.kinds)})", f"sources: {counts(found.sources)}", raters]
    if found.agreement:
        lines.append(
            f"agreement: {found.agreement[0]:.0%} of {found.agreement[1]} pairs of raters who judged the same answer"
        )
    if found.first_chosen:
        share, n, chance = found.first_chosen
        lines.append(
            f"position: {share:.0%} of {n} choices fell on the answer shown first (by chance alone: p {chance:.2g})"
        )
    lines += [f"tags: {counts(found.tags)}", f"groups: {counts(found.groups)}"]
    lines.append(f"personal data: replaced {counts(found.placeholders)}; as it was {counts(found.personal)}")
    return [*lines, f"without consent to training: {found.without_consent}"]


def withdraw(
    event: Annotated[str | None, typer.Argument(metavar="[ID]", help="One event.")] = None,
    rater: Annotated[str | None, typer.Option(help="All that this person said, and will say.")] = None,
    why: Annotated[str, typer.Option(help="Kept with the withdrawal.")] = "",
    store: At = DEFAULT,
) -> None:
    """Record a withdrawal."""
    from instructkit.errors import InputError

    if (event is None) == (rater is None):
        raise InputError(
            "wanted an event's id or --rater, one of them", hint="`instructkit feedback list` shows ids"
        )
    _refuse_empty({"rater": rater, "ID": event})
    with _open(store) as opened:
        count = opened.withdraw(event=event, rater=rater, why=why)
    typer.echo(
        f"{store}: {count} events withdrawn; they stay in the store, and no later update from this store learns from them"
    )


def check(store: At = DEFAULT, json: Json = False) -> None:
    """Let SQLite read the whole file."""
    from instructkit.errors import InstructKitError
    from instructkit.feedback.opening import PAST_READING
    from instructkit.feedback.salvage import Rest

    with Rest.of(store) as rest:
        found, legible = rest.damage(), rest.is_legible()
        count = None if found else rest.count()
    if json:
        print_data({"store": str(store), "damage": found, "events": count})
        if found:
            raise typer.Exit(1)
        return
    if found:
        raise InstructKitError(
            f"{store} is damaged: "
            + "; ".join(found[:5])
            + (f"; and {len(found) - 5} more" if found[5:] else ""),
            hint="`instructkit feedback export --salvage > rest.jsonl` writes what can still be read"
            if legible
            else PAST_READING,
        )
    typer.echo(f"{store}: sound, {count} events")


def _open(path: Path) -> Store:
    from instructkit.feedback.store import Store

    return Store.open(path)


def _refuse_empty(given: dict[str, str | None]) -> None:
    """An empty value is a variable that was not set: to take it for none would show, or withdraw, what nobody asked for."""
    from instructkit.errors import InputError

    for name, value in given.items():
        if value is not None and not value.strip():
            option = name if name.isupper() else f"--{name}"
            raise InputError(f"{option} is empty", hint="leave it out, or give it a value")


def _filter(
    since: str | None, run: str | None, rater: str | None, tag: str | None, kind: str | None, withdrawn: bool
) -> Filter:
    from instructkit.errors import InputError
    from instructkit.feedback.events import KINDS, moment
    from instructkit.feedback.store import Filter

    _refuse_empty({"since": since, "run": run, "rater": rater, "tag": tag})
    if kind not in (None, *KINDS):
        raise InputError(f"no kind is called {kind!r}", hint=f"there are {', '.join(KINDS)}")
    try:
        return Filter(moment(since), run, rater, tag, kind, withdrawn=withdrawn)
    except ValueError as error:
        raise InputError(
            f"--since {since} is no time", hint="as 2026-11-24 or 2026-11-24T12:00:00Z"
        ) from error

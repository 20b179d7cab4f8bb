"""`instructkit feedback`: what users said about answers, in a store that only grows."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections import Counter

    from instructkit.errors import Fault
    from instructkit.feedback.importers import Reading
    from instructkit.feedback.statistics import Statistics
    from instructkit.feedback.store import Filter, Store

At = Annotated[Path, typer.Option("--store", help="The feedback store, one file.")]
DEFAULT = Path("feedback.db")
Since = Annotated[str | None, typer.Option(help="Said at or after this time (ISO 8601).")]
Run = Annotated[str | None, typer.Option(help="About answers of this run.")]
Rater = Annotated[str | None, typer.Option(help="Said by this person: the name, or its h: hash.")]
Tag = Annotated[str | None, typer.Option(help="With this tag.")]
Kind = Annotated[str | None, typer.Option(help="rating, edit or preference.")]
Withdrawn = Annotated[bool, typer.Option("--withdrawn", help="Those that were withdrawn too.")]
KeepRaw = Annotated[
    bool, typer.Option("--keep-raw", help="Store personal data as it is; updates still learn without it.")
]
Json = Annotated[bool, typer.Option("--json", help="As data.")]
SHOWN = 60  # characters of a text in a list


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="What users said about answers: collect it, look at it, take it back.", no_args_is_help=True
    )
    group.command(
        "import",
        help="Add the judgements in files.\n\nExample: instructkit feedback import ratings.jsonl --scale 1:5",
    )(import_)
    group.command(
        "add",
        help="Add one judgement, as a JSON object.\n\nExample: instructkit feedback add "
        '\'{"prompt": "Hi", "response": "Hello!", "rating": 1}\'',
    )(add)
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


def import_(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="JSONL, JSON, CSV or Parquet; .gz too; globs.")
    ],
    store: At = DEFAULT,
    scale: Annotated[str | None, typer.Option(help="Lowest and highest rating, as 1:5.")] = None,
    field: Annotated[
        str | None, typer.Option(help="The field, question or score that is the rating.")
    ] = None,
    consent: Annotated[
        bool, typer.Option("--consent/--no-consent", help="May rows that do not say so be trained on?")
    ] = True,
    skip: Annotated[
        bool, typer.Option("--skip-faults", help="Import the rest of a file with faults.")
    ] = False,
    keep_raw: KeepRaw = False,
    json: Json = False,
) -> None:
    """Check every file whole, then add what is new; a row that is there already is not added again."""
    from instructkit.errors import DataError
    from instructkit.feedback.importers import Reading

    how = Reading(_scale(scale), field, consent)
    faults, total = _faults(files, how)
    if total and not skip:
        raise DataError(
            faults, total, hint="mend these rows, or leave them out with --skip-faults; nothing was imported"
        )
    from instructkit.feedback.store import Store
    from instructkit.feedback.storing import put

    with Store.open(store, create=True) as opened:
        done = put(opened, _events(files, how), keep_raw=keep_raw)
    personal = {"kept" if keep_raw else "replaced": dict(done.personal)}
    told = {"store": str(store), "new": done.new, "known": done.known, "faults": total, **personal}
    if json:
        _print(told)
        return
    typer.echo(
        f"{store}: {done.new} new events, {done.known} known already, {total} rows with faults left out"
        + _about_personal(done.personal, keep_raw)
    )
    for fault in faults:
        typer.echo(f"  {fault}", err=True)


def _about_personal(found: Counter[str], keep_raw: bool) -> str:
    """The end of a line that says what was done with personal data; nothing where there was none."""
    if not found:
        return ""
    return f"; personal data {'kept' if keep_raw else 'replaced'}: {_counts(found)}"


def _scale(told: str | None) -> tuple[float, float] | None:
    from instructkit.errors import InputError

    if told is None:
        return None
    try:
        low, high = (float(part) for part in told.split(":"))
        if low < high:
            return low, high
    except ValueError:
        pass
    raise InputError(f"--scale {told} is no scale", hint="give the lowest and the highest rating, as 1:5")


def _faults(files: list[str], how: Reading) -> tuple[list[Fault], int]:
    """The first faults of all files, and how many there are."""
    from instructkit.errors import SHOWN_FAULTS, Fault
    from instructkit.feedback.importers import read

    shown, total = [], 0
    for name in files:
        for found in read(name, how):
            if isinstance(found, Fault):
                total += 1
                shown += [found] if len(shown) < SHOWN_FAULTS else []
    return shown, total


def _events(files: list[str], how: Reading) -> Any:
    from instructkit.errors import Fault
    from instructkit.feedback.importers import read

    return (found for name in files for found in read(name, how) if not isinstance(found, Fault))


def add(
    event: Annotated[
        str, typer.Argument(metavar="JSON", help='{"prompt", "response", "rating"}, or - for standard input.')
    ],
    store: At = DEFAULT,
    consent: Annotated[bool, typer.Option("--consent/--no-consent", help="May it be trained on?")] = True,
    keep_raw: KeepRaw = False,
) -> None:
    """Add one event, said now unless it has a time."""
    from instructkit.errors import InputError
    from instructkit.feedback.events import event_of, ulid
    from instructkit.feedback.importers import Reading, rows_of
    from instructkit.feedback.store import Store
    from instructkit.feedback.storing import put

    text = sys.stdin.read() if event == "-" else event
    try:
        row = json_module.loads(text)
        if not isinstance(row, dict):
            raise ValueError(f"found {type(row).__name__}; wanted a JSON object")
        rows = [{**each, "id": ulid()} for each in rows_of(row, Reading())]
        made = [(event_of(each, source="api", consent=consent), each) for each in rows]
    except ValueError as error:
        raise InputError(
            f"no event: {error}", hint='as {"prompt": "...", "response": "...", "rating": 1}'
        ) from error
    with Store.open(store, create=True) as opened:
        done = put(opened, made, keep_raw=keep_raw)
    for each, _ in made:
        typer.echo(each.id)
    if done.personal:  # ids alone go to stdout
        typer.echo(f"{store}: {done.new} new{_about_personal(done.personal, keep_raw)}", err=True)


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
        for event in opened.events(wanted):
            if json:
                typer.echo(json_module.dumps(event.as_row(), ensure_ascii=False))
                continue
            asked = event.prompt if isinstance(event.prompt, str) else event.prompt[-1]["content"]
            said = " ".join(f"{name}={_short(value)}" for name, value in event.judgement.items())
            typer.echo(
                f"{event.id}  {event.time[:16]}  {event.rater or '-':18}  {_short(asked)} -> {_short(event.response)}  {said}"
            )


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
    lost = []
    with _open(store) as opened:
        for event in opened.salvage() if salvage else opened.events(wanted):
            if isinstance(event, int):
                lost.append(event)
            else:
                print(json_module.dumps(event.as_row(), ensure_ascii=False))
    if lost:
        from instructkit.errors import InstructKitError

        told = ", ".join(map(str, lost[:20])) + (" ..." if len(lost) > 20 else "")
        raise InstructKitError(
            f"{len(lost)} events could not be read: numbers {told}", hint="the others were written"
        )


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
        new = opened.count(Filter(consent=True, after=Chain.at(root, chain).since()))
    if json:
        _print({**found.as_dict(), "withdrawals": withdrawals, "new": new})
        return
    told = f"new since the chain {chain!r} was last promoted, and may be trained on: {new}"
    for line in [*_lines(found), f"withdrawals: {withdrawals}", told]:
        typer.echo(line)


def _counts(told: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in told.most_common(8)) or "none"


def _lines(found: Statistics) -> list[str]:
    raters = f"raters: {found.raters}, and {found.anonymous} events of nobody"
    if found.loudest is not None:
        raters += f"; the loudest has said {found.loudest:.0%}"
    lines = [f"events: {found.events} ({_counts(found.kinds)})", f"sources: {_counts(found.sources)}", raters]
    if found.agreement:
        lines.append(
            f"agreement: {found.agreement[0]:.0%} of {found.agreement[1]} pairs of raters who judged the same answer"
        )
    if found.first_chosen:
        share, n, chance = found.first_chosen
        lines.append(
            f"position: {share:.0%} of {n} choices fell on the answer shown first (by chance alone: p {chance:.2g})"
        )
    lines += [f"tags: {_counts(found.tags)}", f"groups: {_counts(found.groups)}"]
    lines.append(
        f"personal data: replaced {_counts(found.placeholders)}; as it was {_counts(found.personal)}"
    )
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
    with _open(store) as opened:
        count = opened.withdraw(event=event, rater=rater, why=why)
    typer.echo(
        f"{store}: {count} events withdrawn; they stay in the store, and no later update learns from them"
    )


def check(store: At = DEFAULT, json: Json = False) -> None:
    """Let SQLite read the whole file."""
    from instructkit.errors import InstructKitError

    with _open(store) as opened:
        found = opened.damage()
        count = None if found else opened.count()
    if json:
        _print({"store": str(store), "damage": found, "events": count})
        if found:
            raise typer.Exit(1)
        return
    if found:
        raise InstructKitError(
            f"{store} is damaged: "
            + "; ".join(found[:5])
            + (f"; and {len(found) - 5} more" if found[5:] else ""),
            hint="`instructkit feedback export --salvage > rest.jsonl` writes what can still be read",
        )
    typer.echo(f"{store}: sound, {count} events")


def _open(path: Path) -> Store:
    from instructkit.feedback.store import Store

    return Store.open(path)


def _filter(
    since: str | None, run: str | None, rater: str | None, tag: str | None, kind: str | None, withdrawn: bool
) -> Filter:
    from instructkit.errors import InputError
    from instructkit.feedback.events import KINDS, moment
    from instructkit.feedback.store import Filter

    if kind not in (None, *KINDS):
        raise InputError(f"no kind is called {kind!r}", hint=f"there are {', '.join(KINDS)}")
    try:
        return Filter(moment(since), run, rater, tag, kind, withdrawn=withdrawn)
    except ValueError as error:
        raise InputError(
            f"--since {since} is no time", hint="as 2026-11-24 or 2026-11-24T12:00:00Z"
        ) from error


def _print(value: Any) -> None:
    typer.echo(json_module.dumps(value, indent=1, ensure_ascii=False))

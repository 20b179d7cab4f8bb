"""`instructkit feedback`: what users said about answers, in a store that only grows."""

from __future__ import annotations

import itertools
import json as json_module
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from instructkit.errors import Faults
    from instructkit.feedback.store.importers import Reading
    from instructkit.feedback.store.store import Store, Stored
if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from instructkit.feedback.store.events import Event
    from instructkit.feedback.store.store import Filter, Store
    from instructkit.feedback.store.summary import Statistics


At = Annotated[Path, typer.Option("--store", help="The feedback store, one file.")]
DEFAULT = Path("feedback.db")
FEW_RATINGS = 20  # as many that are all up, or all down, may be on another scale
Json = Annotated[bool, typer.Option("--json", help="As data.")]
Scale = Annotated[str | None, typer.Option(help="Lowest and highest rating, as 1:5.")]
KeepRaw = Annotated[
    bool, typer.Option("--keep-raw", help="Store personal data as it is; updates still learn without it.")
]


def import_(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="JSONL, JSON, CSV or Parquet; .gz too; globs.")
    ],
    store: At = DEFAULT,
    scale: Scale = None,
    rating_field: Annotated[
        str | None, typer.Option("--field", help="The field, question or score that is the rating.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            help='What columns of the files mean, as "Customer Message=prompt,Reply=response".',
        ),
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
    from instructkit.data.columns import parse_all
    from instructkit.feedback.store.importers import Reading

    contents = _look(files, Reading(_scale(scale), rating_field, consent, parse_all(columns)))
    _refuse_faults(contents, store, skip=skip)
    done, warnings = _put(contents, store, keep_raw=keep_raw)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if json:
        print_data(_counts_of(contents, done, store, keep_raw=keep_raw))
        return
    for note in contents.notes():
        typer.echo(note)
    typer.echo(_summary(contents, done, store, keep_raw=keep_raw))
    for line in contents.faults.lines():
        typer.echo(f"  {line}", err=True)


def _refuse_faults(contents: _Contents, store: Path, *, skip: bool) -> None:
    """Raise a `DataError` for rows with errors, unless they are skipped and something is left to import."""
    if contents.faults.total and not skip:
        raise contents.faults.error(
            "correct these rows, rename their columns (--columns NAME=FIELD), or skip them (--skip-faults). Nothing was imported"
        )
    if contents.faults.total and not store.exists() and not contents.events:
        raise contents.faults.error("every row has a fault; nothing was imported, and no store was made")


def _put(contents: _Contents, store: Path, *, keep_raw: bool) -> tuple[Stored, list[str]]:
    """Add the events to the store; return what was added and what to warn of."""
    from instructkit.feedback.store.store import Store, Stored, put

    with Store.open(store, create=True) as opened:
        # File by file, so that a row in two of them is one event, as it is when they are imported one after the other.
        done = sum(
            (put(opened, _events(name, how), keep_raw=keep_raw) for name, how in contents.how), Stored()
        )
        warnings = _rescaled(opened, dict(contents.how)) if done.new else []
    if done.clashes:
        warnings.append(_about_clashes(done.clashes))
    if done.new and not contents.raters:
        warnings.append(_anonymous(contents))
    return done, warnings


def _counts_of(contents: _Contents, done: Stored, store: Path, *, keep_raw: bool) -> dict[str, Any]:
    """Return the result of an import as data."""
    return {
        "store": str(store),
        "new": done.new,
        "known": done.known,
        "withdrawn": done.withdrawn,
        "faults": contents.faults.total,
        "clashes": len(done.clashes),
        "unread": dict(contents.unread),
        "kept" if keep_raw else "replaced": dict(done.personal),
    }


def _summary(contents: _Contents, done: Stored, store: Path, *, keep_raw: bool) -> str:
    """Return the result of an import in words."""
    return (
        f"{store}: {done.new} new events, {done.known} known already, {contents.faults.total} rows with faults left out"
        + (f"; {done.withdrawn} known ones withdrawn: they came without consent" if done.withdrawn else "")
        + _about_personal(done.personal, keep_raw)
    )


@dataclass
class _Contents:
    """The contents of the files: how each is read, errors, unread columns, and numbers of events, raters and times."""

    faults: Faults
    how: list[tuple[str, Reading]] = field(default_factory=list)
    ratings: dict[str, Counter[str]] = field(default_factory=dict)  # by file, how many are up, down and 0
    unread: Counter[str] = field(default_factory=Counter)
    events: int = 0
    raters: int = 0
    times: int = 0

    def notes(self) -> list[str]:
        """Return notes on how the files were read."""
        notes = [
            _about_ratings(name, how.ends, self.ratings[name])
            for name, how in self.how
            if name in self.ratings
        ]
        notes = list(filter(None, notes))
        if self.unread:
            notes.append(
                "columns that are not read: " + ", ".join(f"{n} ({c} rows)" for n, c in self.unread.items())
            )
        return notes


def _about_ratings(name: str, ends: tuple[float, float], counts: Counter[str]) -> str:
    """Return how the ratings of a file were read where that is a guess, or where they are suspiciously alike; else nothing."""
    alike = len(counts) == 1 and counts.total() >= FEW_RATINGS
    if ends == (-1.0, 1.0) and not alike:
        return ""
    read = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), reverse=True))
    return f"{name}: ratings read as {ends[0]:g} (worst) to {ends[1]:g} (best): {read}"


def _look(files: list[str], asked: Reading) -> _Contents:
    """Read all files, and collect the errors of all of them."""
    from instructkit.errors import DataError, Fault, Faults, InputError
    from instructkit.feedback.store.importers import absent, as_thumbs, read, unread

    contents = _Contents(Faults())
    try:
        if missing := absent(files, asked):
            raise InputError(
                f"--columns names `{'`, `'.join(missing)}`, which no row of {', '.join(files)} has",
                hint="copy the name from the header of the file. Nothing was imported",
            )
        for name in itertools.chain.from_iterable(map(_files_of, files)):
            how = asked
            if as_thumbs(name, asked):
                how = replace(asked, scale=(0.0, 1.0))
            contents.how.append((name, how))
            for made in read(name, how):
                if isinstance(made, Fault):
                    contents.faults.add(made)
                    continue
                event, row = made
                contents.events += 1
                contents.raters += bool(event.rater)
                if (rating := event.judgement.get("rating")) is not None:
                    kind = "up" if rating > 0 else "down" if rating < 0 else "neither"
                    contents.ratings.setdefault(name, Counter())[kind] += 1
                contents.times += row.get("time") is not None
                contents.unread.update(unread(row))
    except DataError as error:  # a whole file is unreadable; the error's own hint is about training
        raise DataError(error.faults, error.total, hint="correct the file; nothing was imported") from error
    return contents


def _files_of(source: str) -> list[str]:
    """Return the files of a folder or glob that are not empty, because each has its own scale; else the source itself."""
    from instructkit.data.sources import paths_of

    return [str(path) for path in paths_of(source) if path.stat().st_size] or [source]


def _anonymous(contents: _Contents) -> str:
    columns = {"a rater": "`rater`, `user_id` or `user`"}
    if not contents.times:
        columns["a time"] = "`time`, `created_at` or `timestamp`"
    return (
        f"no event has {' or '.join(columns)}. The events of one person cannot be withdrawn together, only one by one. "
        f"Name a column {', and another one '.join(columns.values())}, or use --columns NAME=rater"
    )


def _about_clashes(ids: list[str]) -> str:
    shown = ", ".join(ids[:3]) + (" ..." if len(ids) > 3 else "")
    return (
        f"{len(ids)} rows left out: their ids are those of events that say something else ({shown}); an event never changes, "
        "so give what is said anew another id, or none"
    )


def _about_personal(found: Counter[str], keep_raw: bool) -> str:
    """The end of a line that says what was done with personal data; nothing where there was none."""
    if not found:
        return ""
    return f"; personal data {'kept' if keep_raw else 'replaced'}: {counts(found)}"


def _scale(told: str | None) -> tuple[float, float] | None:
    import math

    from instructkit.errors import InputError

    if told is None:
        return None
    try:
        low, high = (float(part) for part in told.split(":"))
        if low < high and math.isfinite(high - low):  # every rating would be the lowest of an endless one
            return low, high
    except ValueError:
        pass
    raise InputError(f"--scale {told} is no scale", hint="give the lowest and the highest rating, as 1:5")


def _rescaled(opened: Store, how: dict[str, Reading]) -> list[str]:
    """Which files come on another scale than before: a rating that is another number by it is another event."""
    from instructkit.feedback.store.importers import named

    warnings = []
    for file, reading in how.items():
        scale = ":".join(f"{end:g}" for end in reading.ends)
        for name, scales in opened.other_scales([named(file)], scale).items():
            if scales:
                warnings.append(
                    f"{name} was read with --scale {' and '.join(scales)} before, and with {scale} now: the same row with "
                    "another rating is a new event; `instructkit feedback list` shows both, `feedback withdraw ID` takes one back"
                )
    return warnings


def _events(file: str, how: Reading) -> Any:
    from instructkit.errors import Fault
    from instructkit.feedback.store.importers import read

    return (made for made in read(file, how) if not isinstance(made, Fault))


def add(
    event: Annotated[
        str, typer.Argument(metavar="JSON", help='{"prompt", "response", "rating"}, or - for standard input.')
    ],
    store: At = DEFAULT,
    scale: Scale = None,
    consent: Annotated[bool, typer.Option("--consent/--no-consent", help="May it be trained on?")] = True,
    keep_raw: KeepRaw = False,
) -> None:
    """Add one event, said now unless it has a time."""
    from instructkit.errors import InputError
    from instructkit.feedback.store.events import event_of, ulid
    from instructkit.feedback.store.importers import Reading, parsed, rows_of
    from instructkit.feedback.store.store import Store, put

    how = Reading(_scale(scale))
    try:
        text = sys.stdin.read() if event == "-" else event
        rows = [{**each, "id": ulid()} for each in rows_of(parsed(text), how)]
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


def counts(told: Counter[str]) -> str:
    """How many of each, the most frequent first."""
    return ", ".join(f"{n} {name}" for name, n in told.most_common(8)) or "none"


def print_data(value: Any) -> None:
    """A value as JSON on stdout."""
    typer.echo(json_module.dumps(value, indent=1, ensure_ascii=False))


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
    from instructkit.feedback.store.salvage import Rest

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
    from instructkit.feedback.promotion.chain import Chain
    from instructkit.feedback.store.store import Filter
    from instructkit.feedback.store.summary import of_events

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
    from instructkit.feedback.store.database import PAST_READING
    from instructkit.feedback.store.salvage import Rest

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
    from instructkit.feedback.store.store import Store

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
    from instructkit.feedback.store.events import KINDS, moment
    from instructkit.feedback.store.store import Filter

    _refuse_empty({"since": since, "run": run, "rater": rater, "tag": tag})
    if kind not in (None, *KINDS):
        raise InputError(f"no kind is called {kind!r}", hint=f"there are {', '.join(KINDS)}")
    try:
        return Filter(moment(since), run, rater, tag, kind, withdrawn=withdrawn)
    except ValueError as error:
        raise InputError(
            f"--since {since} is no time", hint="as 2026-11-24 or 2026-11-24T12:00:00Z"
        ) from error

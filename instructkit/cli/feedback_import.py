"""`instructkit feedback import` and `add`: what goes into a store."""

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
    from instructkit.feedback.store import Store

At = Annotated[Path, typer.Option("--store", help="The feedback store, one file.")]
DEFAULT = Path("feedback.db")
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
    from instructkit.feedback.storing import Stored, put

    if total and not store.exists() and not any(True for _ in _events(files, how)):
        raise DataError(
            faults, total, hint="every row has a fault; nothing was imported, and no store was made"
        )
    with Store.open(store, create=True) as opened:
        # File by file, so that a row in two of them is one event, as it is when they are imported one after the other.
        done = sum((put(opened, _events([name], how), keep_raw=keep_raw) for name in files), Stored())
        rescaled = _rescaled(opened, files, how) if done.new else []
    for warning in rescaled:
        typer.echo(f"warning: {warning}", err=True)
    personal = {"kept" if keep_raw else "replaced": dict(done.personal)}
    if done.clashes:
        typer.echo(f"warning: {_about_clashes(done.clashes)}", err=True)
    numbers = {"new": done.new, "known": done.known, "withdrawn": done.withdrawn, "faults": total}
    told = {"store": str(store), **numbers, "clashes": len(done.clashes), **personal}
    if json:
        print_data(told)
        return
    typer.echo(
        f"{store}: {done.new} new events, {done.known} known already, {total} rows with faults left out"
        + (f"; {done.withdrawn} known ones withdrawn: they came without consent" if done.withdrawn else "")
        + _about_personal(done.personal, keep_raw)
    )
    for fault in faults:
        typer.echo(f"  {fault}", err=True)


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


def _rescaled(opened: Store, files: list[str], how: Reading) -> list[str]:
    """Which files come on another scale than before: a rating that is another number by it is another event."""
    from instructkit.feedback.importers import named

    scale = ":".join(f"{end:g}" for end in how.ends)
    before = opened.other_scales(dict.fromkeys(map(named, files)), scale)
    return [
        f"{name} was read with --scale {' and '.join(scales)} before, and with {scale} now: the same row with another "
        "rating is a new event; `instructkit feedback list` shows both, `feedback withdraw ID` takes one back"
        for name, scales in before.items()
        if scales
    ]


def _faults(files: list[str], how: Reading) -> tuple[list[Fault], int]:
    """The first faults of all files, and how many there are."""
    from instructkit.errors import SHOWN_FAULTS, DataError, Fault
    from instructkit.feedback.importers import read

    shown, total = [], 0
    try:
        for name in files:
            for found in read(name, how):
                if isinstance(found, Fault):
                    total += 1
                    shown += [found] if len(shown) < SHOWN_FAULTS else []
    except DataError as error:  # of a file that cannot be read as a whole; its own hint speaks of training
        raise DataError(error.faults, error.total, hint="mend the file; nothing was imported") from error
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
    scale: Scale = None,
    consent: Annotated[bool, typer.Option("--consent/--no-consent", help="May it be trained on?")] = True,
    keep_raw: KeepRaw = False,
) -> None:
    """Add one event, said now unless it has a time."""
    from instructkit.errors import InputError
    from instructkit.feedback.by_hand import parsed
    from instructkit.feedback.events import event_of, ulid
    from instructkit.feedback.importers import Reading, rows_of
    from instructkit.feedback.store import Store
    from instructkit.feedback.storing import put

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

"""What an update reads: feedback, prepared and split; replay and general rows; its parent and where its chain stands."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from instructkit import models
from instructkit.data import prepare as splits
from instructkit.data import sources, table
from instructkit.data.readers import STORE_SUFFIX
from instructkit.errors import InputError
from instructkit.evaluate.inference import level_of_look, smallest_gain
from instructkit.feedback import prepare as preprocessing
from instructkit.feedback import reading
from instructkit.feedback.events import rater_hash
from instructkit.feedback.harms import FEWEST
from instructkit.feedback.items import Item, Prepared
from instructkit.feedback.personal import Redactor
from instructkit.feedback.registry import Chain
from instructkit.feedback.store import Store
from instructkit.runs import lineage
from instructkit.runs.reading import read_record
from instructkit.stages.base import Inputs
from instructkit.stages.functions import load_function

TUNE_GENERAL = 0.1  # of the replay prompts: kept apart for a rescue, which may look at no held-out row
TUNE_GENERAL_ROWS = 100
# Of earlier accepted feedback that is replayed: the cost must not grow with all that was ever said
EARLIER_ROWS = 256
UPDATE = "update"  # in a run folder: the adapter of this update alone


@dataclass
class UpdateInputs(Inputs):
    """
    Rows and parents, and what only an update has.

    Attributes:
        prepared: the feedback's items by side, with outcomes and report.
        chain: the chain of updates that this one belongs to.
        current: the chain's adapter that this update goes on from; None for a fresh one.
        mode: `new`, `continue` or `merge`, and why.
        earlier: of the updates that it goes on from, feedback rows that may still be trained on.
        newest: id of the last event that was read of a store, from which the next update goes on; None of a file.
    """

    prepared: Prepared | None = None
    chain: Chain | None = None
    current: Path | None = None
    mode: tuple[str, str] = ("new", "")
    earlier: list[dict[str, Any]] = field(default_factory=list)
    newest: str | None = None

    def notes(self) -> list[str]:
        """What becomes of every event, and what the test side can show at all."""
        outcomes = preprocessing.table(self.prepared)
        told = [f"events: {sum(n for _, n in outcomes)}, each with one outcome"]
        told += [f"  {n:>7,} {what}" for what, n in outcomes]
        found, general = self.power(), self.data.get("general")
        told.append(
            f"test side: {found['items']} events on {found['clusters']} prompts, look {found['look']} at them; the smallest gain "
            f"that it can show is {found['smallest_gain']:.2f} times the spread of gains between prompts"
        )
        if found["clusters"] < FEWEST:
            told.append(
                f"  too few: below {FEWEST} prompts no gate on feedback is decided, and the update is refused"
            )
        if general is None:
            told.append(
                "  no general rows: nothing can show that the rest is kept, and the update is refused"
            )
        return told

    def as_dict(self) -> dict[str, Any]:
        """Outcomes, report and power, as data."""
        return {
            "feedback": {
                "outcomes": self.prepared.outcomes,
                "report": self.prepared.report,
                "mode": list(self.mode),
                "power": self.power(),
            }
        }

    def power(self) -> dict[str, Any]:
        """How many test events and prompts there are, which look this is, and the gain that it can show (80 % power)."""
        test = self.items("test")
        clusters, look = len({item.cluster for item in test}), self.chain.looks([i.event for i in test])
        gain = smallest_gain(clusters, 1.0, level=level_of_look(look)) if clusters > 1 else float("inf")
        return {"items": len(test), "clusters": clusters, "look": look, "smallest_gain": gain}

    def items(self, side: str) -> list[Item]:
        """The items of `train`, `tune` or `test`."""
        return list(getattr(self.prepared, side))


def collect(recipe: Any) -> UpdateInputs:
    """Read and prepare everything that an update needs, without a model; what is at fault is told here."""
    wanted = recipe.feedback
    parent = models.locate(recipe.model.name)
    if recipe.gates.judge:
        load_function(recipe.gates.judge)
    chain = Chain.at(Path(recipe.run.output).parent, wanted.chain)
    mode, why, current = _mode(recipe, chain, parent)
    is_store = wanted.events.endswith(STORE_SUFFIX)
    last = chain.since() if is_store and wanted.since == "last" else None
    events, test = _feedback_rows(recipe, is_store, last)
    newest = earlier = None
    if is_store:
        # Not the store's last event: one beyond `limit`, or added meanwhile, must still be new to the next update.
        newest = events.rows[-1]["id"]
        earlier = _earlier(chain, current, wanted.events)
    data = {"events": events, **_general_rows(recipe, parent)}
    if test is not None:
        data["test"] = test
    prepared = _prepare(recipe, events, test, is_store, last)
    _refuse_too_few(prepared, data, events.source)
    return UpdateInputs(data, {"model": parent}, prepared, chain, current, (mode, why), earlier or [], newest)


def _mode(recipe: Any, chain: Chain, parent: models.Source) -> tuple[str, str, Path | None]:
    """How the update stands to those before it, why, and the adapter that it goes on from."""
    asked, current = recipe.feedback.mode, chain.current()
    if asked in ("new", "merge"):
        return asked, "set in the recipe", None
    if current is not None:
        theirs = read_record(current)["parents"]["model"]["hash"]
        if theirs == (lineage.run_hash(parent.run) if parent.run else f"model:{parent.base}"):
            reason = (
                "set in the recipe" if asked == "continue" else f"{current} is promoted above the same parent"
            )
            return "continue", reason, current
        told = f"its current adapter {current} stands on another model than {parent.name}"
    else:
        told = "nothing has been promoted in it yet"
    if asked == "continue":
        raise InputError(
            f"{recipe.source}: feedback.mode is continue, but of the chain {recipe.feedback.chain!r} {told}",
            hint="set feedback.mode: new, or name another feedback.chain",
        )
    return "new", told, None


def _feedback_rows(recipe: Any, is_store: bool, last: str | None) -> tuple[sources.Rows, sources.Rows | None]:
    wanted, seed = recipe.feedback, recipe.run.seed
    options = {
        "kind": "feedback", "columns": wanted.columns, "seed": seed, "skip_faults": wanted.on_fault == "skip",
    }  # fmt: skip
    if is_store:
        events = reading.events_after(wanted.events, last, limit=wanted.limit)
    else:
        events = sources.load_rows(wanted.events, limit=wanted.limit, **options)
    test = None
    if isinstance(wanted.eval, str):
        test = sources.load_rows(wanted.eval, every_column=False, **options)
        splits.check_leak(events, test)
        if is_store:
            test = _known_again(test, wanted.events)
    for rows in filter(None, (events, test)):
        _refuse_mixed_prompts(rows)
    return events, test


def _known_again(test: sources.Rows, path: str) -> sources.Rows:
    """Test rows with their raters named as the store names them, so that it shows who was met in training."""
    with Store.open(path) as store:
        salt = store.salt

    def hashed(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "rater": rater_hash(str(row["rater"]), salt)} if row.get("rater") else row

    return replace(test, rows=table.mapped(test.rows, hashed))


def _general_rows(recipe: Any, parent: models.Source) -> dict[str, sources.Rows]:
    """Rows to replay, rows of everything else that only measure, and rows for a rescue to look at."""
    wanted, seed = recipe.feedback, recipe.run.seed
    data: dict[str, sources.Rows] = {}
    for role, named, theirs in (("replay", wanted.replay, "train"), ("general", wanted.general, "eval")):
        found, columns = (named, {}) if named else from_sft(parent, theirs)
        if found:
            data[role] = sources.load_rows(found, kind="sft", columns=columns, seed=seed, every_column=False)
    if "replay" in data and "general" in data:
        splits.check_leak(data["replay"], data["general"])
    if "replay" in data and recipe.gates.rescue:
        with contextlib.suppress(InputError):  # too few to keep some apart
            data["replay"], apart = splits.split(data["replay"], TUNE_GENERAL, seed)
            data["tune"] = replace(apart.pick(range(len(apart.rows))[:TUNE_GENERAL_ROWS]), skipped=())
    return data


def from_sft(parent: models.Source, role: str) -> tuple[str | list | None, dict[str, str]]:
    """The data of the SFT run that the parent descends from, when named by a source of its own, and its `columns`."""
    for record in lineage.chain(parent.run) if parent.run else []:
        if record["stage"] == "sft":
            section = record["recipe"]["data"]
            source = section.get(role)
            return source if isinstance(source, str | list) else None, section.get("columns") or {}
    return None, {}


def _earlier(chain: Chain, current: Path | None, store: str) -> list[dict[str, Any]]:
    """Feedback that the updates before have learned from, the latest first; what was withdrawn since is not among it."""
    if current is None:
        return []
    learned = itertools.islice(chain.learned(int(current.name)), EARLIER_ROWS)
    return list(reading.events_with(store, learned).rows)


def _prepare(
    recipe: Any, events: sources.Rows, test: sources.Rows | None, is_store: bool, last: str | None
) -> Prepared:
    wanted = recipe.feedback
    options: dict[str, Any] = {
        "seed": recipe.run.seed,
        "places": events.places,
        "held_out": None if test is None else test.rows,
        "redact": Redactor().row if wanted.personal_data == "redact" else None,
        "keep": load_function(wanted.filter) if wanted.filter else None,
    }
    settings = preprocessing.Settings.of(wanted)
    with _opened(wanted.events if is_store else None) as store:
        if store is not None:
            options |= {"index": store.clusters(wanted.near_duplicates), "left_out": store.left_out(last)}
        return preprocessing.prepare(events.rows, settings, **options)


@contextlib.contextmanager
def _opened(path: str | None) -> Iterator[Store | None]:
    if path is None:
        yield None
    else:
        with Store.open(path) as store:
            yield store


def _refuse_mixed_prompts(rows: sources.Rows) -> None:
    """A trainer reads texts or conversations, not both at once."""
    texts = sum(isinstance(row.get("prompt"), str) for row in rows.rows)
    if 0 < texts < len(rows.rows):
        raise InputError(
            f"{rows.source}: {texts} of {len(rows.rows)} events have a text as prompt, the rest have messages",
            hint="write every prompt as messages, or every one as text",
        )


def _refuse_too_few(prepared: Prepared, data: dict[str, sources.Rows], source: str) -> None:
    """Of a single figure there is no interval, so no gate could be decided on it."""
    outcomes = ", ".join(f"{n} {what}" for what, n in prepared.outcomes.items() if n)
    for side, least in (("train", 1), ("test", 2)):
        if len(getattr(prepared, side)) < least:
            raise InputError(
                f"{source}: after preprocessing {len(getattr(prepared, side))} {side} events are left ({outcomes}); "
                f"at least {least} {'is' if least == 1 else 'are'} wanted",
                hint="give more events, or change feedback.eval; `--plan` shows what becomes of each of them",
            )
    if "general" in data and len(data["general"].rows) < 2:
        raise InputError(
            f"{data['general'].source}: {len(data['general'].rows)} general rows; a gate needs at least 2",
            hint="give more rows",
        )

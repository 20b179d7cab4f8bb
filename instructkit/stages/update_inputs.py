"""What an update reads: feedback, prepared and split; replay and general rows; its parent and where its chain stands."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from instructkit import naming
from instructkit.data import prepare as splits
from instructkit.data import sources
from instructkit.errors import InputError
from instructkit.evaluate.inference import level_of_look, smallest_gain
from instructkit.feedback.items import Item, Prepared
from instructkit.feedback.registry import Chain
from instructkit.feedback.side_effects import FEWEST
from instructkit.runs import lineage
from instructkit.runs.reading import read_record
from instructkit.stages import formats, update_feedback
from instructkit.stages.base import Inputs
from instructkit.stages.functions import load_function
from instructkit.stages.update_warnings import warnings

TUNE_GENERAL = 0.1  # of the replay prompts: kept apart for a rescue, which may look at no held-out row
TUNE_GENERAL_ROWS = 100
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
        earlier: items of the updates that it goes on from, which may still be trained on.
        newest: id of the last event that was read of a store, from which the next update goes on; None of a file.
        in_force: number of the chain's adapter that is in force, 0 for none.
        refuses: whether gates that cannot be decided refuse the update.
        elsewhere: where other updates from the same store were made, whose looks are not counted; None where there are none.
    """

    prepared: Prepared | None = None
    chain: Chain | None = None
    current: Path | None = None
    mode: tuple[str, str] = ("new", "")
    earlier: Sequence[Item] = ()
    newest: str | None = None
    in_force: int = 0
    refuses: bool = True
    elsewhere: str | None = None

    def notes(self) -> list[str]:
        """What the test side can show at all, and what is wrong before anything begins."""
        found, general = self.power(), self.data.get("general")
        then = "the update is refused" if self.refuses else "gates.on_undecided lets it pass"
        told = [
            f"test side: {found['items']} events on {found['clusters']} prompts, look {found['look']} at them; the smallest gain "
            f"that it can show is {found['smallest_gain']:.2f} times the spread of gains between prompts"
        ]
        if found["clusters"] < FEWEST:
            told.append(f"  too few: below {FEWEST} prompts no gate on feedback is decided, and {then}")
        if general is None:
            told.append(f"  no general rows: nothing can show that the rest is kept, and {then}")
        return told + warnings(self)

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

    def begun(self) -> dict[str, Any]:
        """The last event of a store that was read, and the adapter in force: both may have moved on by a resumption."""
        return {"newest": self.newest, "in_force": self.in_force}

    def power(self) -> dict[str, Any]:
        """How many test events and prompts there are, which look this is, and the gain that it can show (80 % power)."""
        test = self.items("test")
        clusters, look = len({item.cluster for item in test}), self.chain.looks([i.event for i in test])
        gain = smallest_gain(clusters, 1.0, level=level_of_look(look)) if clusters > 1 else float("inf")
        return {"items": len(test), "clusters": clusters, "look": look, "smallest_gain": gain}

    def items(self, side: str) -> Sequence[Item]:
        """The items of `train`, `tune` or `test`."""
        return getattr(self.prepared, side)


def collect(recipe: Any, begun: dict[str, Any] | None = None) -> UpdateInputs:
    """
    Read and prepare everything that an update needs, without a model; what is at fault is told here.

    Args:
        begun: of a run that is resumed what `UpdateInputs.begun` said: nothing is read that came later.

    Raises:
        InputError: for what is at fault, and when another adapter came into force since a run was begun.
    """
    wanted, begun = recipe.feedback, begun or {}
    parents = {"model": naming.locate(recipe.model.name)}
    parent = parents["model"]
    if recipe.gates.reward_model:
        parents["reward"] = naming.locate(recipe.gates.reward_model)
    if recipe.gates.judge:
        load_function(recipe.gates.judge)
    chain = Chain.at(Path(recipe.run.output).parent, wanted.chain)
    # Read once: what comes into force while events are preprocessed is not what this update stands on.
    stands = chain.standing()
    mode, why, current = _mode(recipe, chain.adapter(stands), parent)
    if begun.get("in_force", stands.current) != stands.current:
        raise InputError(
            f"{recipe.run.output} cannot be resumed: since it was begun, another adapter of the chain {wanted.chain!r} came into "
            "force",
            hint="start anew with --overwrite, which goes on from that one",
        )
    feedback = update_feedback.read(recipe, _last(recipe, chain, current), until=begun.get("newest"))
    stored = update_feedback.is_store(recipe)
    data = {"events": feedback.events, **_general_rows(recipe, parent, current is None)}
    if feedback.test is not None:
        data["test"] = feedback.test
    chosen = formats.choose(recipe, parents, data)
    data, feedback = formats.rendered(data, chosen), replace(feedback, chat=chosen.name == formats.CHAT)
    prepared, earlier = update_feedback.prepared(recipe, feedback), []
    _refuse_too_few(prepared, data, feedback.events.source)
    if stored and current is not None:
        before = update_feedback.learned_before(recipe, chain, int(current.name), feedback)
        earlier = before.train
        # Whatever was taken out of them was met in training, or would have been: the memory gate asks for it too.
        secrets = dict.fromkeys([*prepared.redacted, *before.redacted])
        prepared = replace(prepared, redacted=tuple(secrets))
    elif stored and stands.current:
        why += "; it takes the place of what is in force, so all events of the store are read"
    newest = feedback.newest if stored else None
    return UpdateInputs(
        data, parents, prepared, chain, current, (mode, why), earlier, newest,
        stands.current, recipe.gates.on_undecided == "refuse",
        update_feedback.elsewhere(recipe), format=chosen,
    )  # fmt: skip


def _last(recipe: Any, chain: Chain, current: Path | None) -> str | None:
    """The event after which an update reads; all are read where nothing is gone on from, since it would be lost else."""
    wanted = recipe.feedback
    after = update_feedback.is_store(recipe) and wanted.since == "last" and current is not None
    return chain.since(int(current.name)) if after else None


def _mode(recipe: Any, current: Path | None, parent: naming.Source) -> tuple[str, str, Path | None]:
    """How the update stands to those before it, why, and the adapter that it goes on from: the one in force, or none."""
    asked = recipe.feedback.mode
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


def _general_rows(recipe: Any, parent: naming.Source, fresh: bool) -> dict[str, sources.Rows]:
    """Rows to replay, rows of everything else that only measure, and rows for the rescue of a fresh adapter to look at."""
    wanted, seed = recipe.feedback, recipe.run.seed
    data: dict[str, sources.Rows] = {}
    leaves_overlap = False
    for role, named, theirs in (("replay", wanted.replay, "train"), ("general", wanted.general, "eval")):
        found = (
            Theirs(named, {"seed": seed, "skip_faults": wanted.on_fault == "skip"})
            if named
            else from_sft(parent, theirs)
        )
        if found.source:
            data[role] = _rows_of(role, found)
            leaves_overlap |= found.leaves_overlap
    if "replay" in data and "general" in data:
        if leaves_overlap:
            data["general"] = splits.without_leaks(data["replay"], data["general"])
        else:
            splits.check_leak(data["replay"], data["general"])
    if "replay" in data and recipe.gates.rescue and fresh:
        with contextlib.suppress(InputError):  # too few to keep some apart
            data["replay"], apart = splits.split(data["replay"], TUNE_GENERAL, seed)
            data["tune"] = apart.pick(range(len(apart.rows))[:TUNE_GENERAL_ROWS]).told_elsewhere()
    return data


@dataclass(frozen=True)
class Theirs:
    """Demonstrations to replay or to measure on, how they are read, and the run that named them."""

    source: str | list | None = None
    options: dict[str, Any] = field(default_factory=dict)
    run: str | None = None
    leaves_overlap: bool = False  # whether held-out rows that are trained on are left out


def from_sft(parent: naming.Source, role: str) -> Theirs:
    """The data of the SFT run that the parent descends from, when named by a source of its own, read as that run read them."""
    for record in lineage.chain(parent.run) if parent.run else []:
        if record["stage"] != "sft":
            continue
        section, run = record["recipe"]["data"], record["recipe"]["run"]
        source = section.get(role)
        if not isinstance(source, str | list):
            return Theirs()
        options = {
            "columns": section.get("columns") or {},
            "skip_faults": section.get("on_fault") == "skip",
            "limit": section.get("limit" if role == "train" else "eval_limit"),
            "shuffle": role == "train" and bool(section.get("shuffle")),
            "seed": run["seed"],
        }
        return Theirs(source, options, run["output"], section.get("on_overlap") == "skip")
    return Theirs()


def _rows_of(role: str, theirs: Theirs) -> sources.Rows:
    """
    These rows, read and checked.

    Raises:
        InputError: when they are at fault, saying whose rows they are: a recipe of an update need not name them.
    """
    try:
        return sources.load_rows(theirs.source, kind="sft", every_column=False, **theirs.options)
    except InputError as error:
        told = (
            f"feedback.{role}" if theirs.run is None else f"the {role} rows, which are those of {theirs.run}"
        )
        way = "" if theirs.run is None else f"; or name others with `feedback.{role}`"
        raise InputError(f"{told}: {error.message}", hint=f"{error.hint or 'mend them'}{way}") from error


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

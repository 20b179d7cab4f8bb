"""What an update reads: feedback, prepared and split; replay and general rows; its parent and where its chain stands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from instructkit.data import sources
from instructkit.data.split import check_leak, load_split, split, without_held_out, without_leaks
from instructkit.errors import InputError
from instructkit.evaluate.statistics import level_of_look, smallest_gain
from instructkit.feedback.preprocess.items import Item, Prepared
from instructkit.feedback.promotion.chain import Chain
from instructkit.models import source
from instructkit.recipe.schema import DataSection, LoraUpdateRecipe
from instructkit.runs import lineage
from instructkit.runs.read import read_record
from instructkit.stages import formats
from instructkit.stages.base import Inputs
from instructkit.stages.lora_update import feedback as update_feedback
from instructkit.stages.lora_update.feedback import warnings
from instructkit.stages.lora_update.overlap import read_sets, shortages
from instructkit.stages.user_functions import load_function

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
        elsewhere: where other updates from the same store were made, whose looks are not counted; None where there are none.
    """

    prepared: Prepared | None = None
    chain: Chain | None = None
    current: Path | None = None
    mode: tuple[str, str] = ("new", "")
    earlier: Sequence[Item] = ()
    newest: str | None = None
    in_force: int = 0
    elsewhere: str | None = None

    def notes(self) -> list[str]:
        """What the test side can show at all, and what is wrong before anything begins."""
        found = self.power()
        told = [
            f"test split: {found['items']} events on {found['clusters']} prompts, look {found['look']} at them; the smallest "
            f"gain that it can show is {found['smallest_gain']:.2f} times the spread of gains between prompts"
        ]
        return told + warnings(self)

    def undecidable(self, recipe: LoraUpdateRecipe) -> tuple[list[str], bool]:
        """Return the gates that the data are too few to decide, and whether one of them refuses the update."""
        found = shortages(recipe, self)
        refuses = recipe.gates.on_undecided == "refuse"
        return [str(each) for each in found], any(refuses or each.essential for each in found)

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


def collect(recipe: LoraUpdateRecipe, begun: Mapping[str, Any]) -> UpdateInputs:
    """
    Read and prepare everything that an update needs, without a model; what is at fault is told here.

    Args:
        begun: of a run that is resumed what `UpdateInputs.begun` said: nothing is read that came later.

    Raises:
        InputError: for what is at fault, and when another adapter came into force since a run was begun.
    """
    wanted = recipe.feedback
    parents = {"model": source.locate(recipe.model.name)}
    parent = parents["model"]
    if recipe.gates.reward_model:
        parents["reward"] = source.locate(recipe.gates.reward_model)
    if recipe.gates.judge:
        load_function(recipe.gates.judge)
    read_sets(recipe)  # their errors are reported before training
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
    _refuse_too_few(prepared, feedback.events.source)
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
        stands.current, update_feedback.elsewhere(recipe), format=chosen,
    )  # fmt: skip


def _last(recipe: LoraUpdateRecipe, chain: Chain, current: Path | None) -> str | None:
    """The event after which an update reads; all are read where nothing is gone on from, since it would be lost else."""
    wanted = recipe.feedback
    after = update_feedback.is_store(recipe) and wanted.since == "last" and current is not None
    return chain.since(int(current.name)) if after else None


def _mode(
    recipe: LoraUpdateRecipe, current: Path | None, parent: source.Source
) -> tuple[str, str, Path | None]:
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


def _general_rows(recipe: LoraUpdateRecipe, parent: source.Source, fresh: bool) -> dict[str, sources.Rows]:
    """Rows to replay, rows of everything else that only measure, and rows for the rescue of a fresh adapter to look at."""
    wanted, sft = recipe.feedback, from_sft(parent)
    options = {"seed": recipe.run.seed, "skip_faults": wanted.on_fault == "skip"}
    data: dict[str, sources.Rows] = {}
    for role, named in (("replay", wanted.replay), ("general", wanted.general)):
        if named:
            data[role] = _read(f"feedback.{role}", lambda named=named: _demonstrations(named, options))
        elif sft is not None and (rows := sft.rows(role)) is not None:
            data[role] = rows
    if "replay" in data and "general" in data:
        if sft is not None and sft.is_split and not wanted.general:
            data["replay"] = without_held_out(data["replay"], data["general"])
        elif sft is not None and sft.leaves_overlap and not (wanted.replay and wanted.general):
            data["general"] = without_leaks(data["replay"], data["general"])
        else:
            check_leak(data["replay"], data["general"])
    if "replay" in data and recipe.gates.rescue and fresh:
        with contextlib.suppress(InputError):  # too few to keep some apart
            data["replay"], apart = split(data["replay"], TUNE_GENERAL, recipe.run.seed)
            data["tune"] = apart.pick(range(len(apart.rows))[:TUNE_GENERAL_ROWS]).told_elsewhere()
    return data


@dataclass(frozen=True)
class SftData:
    """
    Read the demonstrations that an SFT run trained on, and those that it held out.

    Attributes:
        section: the `data:` section of its recipe.
        seed: the seed of the run.
        run: the run folder.
    """

    section: DataSection
    seed: int
    run: str

    @property
    def is_split(self) -> bool:
        """Return whether a share of the training file was held out."""
        return isinstance(self.section.eval, float)

    @property
    def leaves_overlap(self) -> bool:
        """Return whether held-out rows that are trained on are left out."""
        return self.section.on_overlap == "skip"

    def rows(self, role: str) -> sources.Rows | None:
        """Return the rows that it trained on (`replay`) or held out (`general`); None where it held out none."""
        whose = f"the {role} rows, which are those of {self.run}"
        if self.is_split:
            return _read(whose, lambda: self._split[role], or_name=role)
        source = self.section.train if role == "replay" else self.section.eval
        return source and _read(whose, lambda: _demonstrations(source, self._options(role)), or_name=role)

    @cached_property
    def _split(self) -> dict[str, sources.Rows]:
        """Return both parts as in the run. They depend on the prompts and the seed of the run alone."""
        train, held_out = load_split(self.section, kind="sft", seed=self.seed)
        held_out = replace(held_out, source=f"{held_out.source}, held out by {self.run}")
        return {"replay": train, "general": held_out}

    def _options(self, role: str) -> dict[str, Any]:
        section = self.section
        return {
            "columns": section.columns,
            "skip_faults": section.on_fault == "skip",
            "limit": section.limit if role == "replay" else section.eval_limit,
            "shuffle": role == "replay" and section.shuffle,
            "seed": self.seed,
        }


def from_sft(parent: source.Source) -> SftData | None:
    """Return the demonstrations of the SFT run in the lineage of the parent; None without such a run."""
    for record in lineage.chain(parent.run) if parent.run else []:
        if record["stage"] == "sft":
            section, run = record["recipe"]["data"], record["recipe"]["run"]
            known = {name: value for name, value in section.items() if name in DataSection.model_fields}
            return SftData(DataSection(**known), run["seed"], run["output"])
    return None


def _demonstrations(source: str | list[Any], options: dict[str, Any]) -> sources.Rows:
    return sources.load_rows(source, kind="sft", every_column=False, **options)


def _read(whose: str, read: Callable[[], sources.Rows], *, or_name: str | None = None) -> sources.Rows:
    """
    Read rows, and name them in an error: a recipe of an update need not name the rows of its parent.

    Args:
        whose: names the rows.
        or_name: the key of `feedback` that would replace them.

    Raises:
        InputError: when the rows have faults.
    """
    try:
        return read()
    except InputError as error:
        way = f"; or name others with `feedback.{or_name}`" if or_name else ""
        raise InputError(f"{whose}: {error.message}", hint=f"{error.hint or 'correct them'}{way}") from error


def _refuse_too_few(prepared: Prepared, source: str) -> None:
    """Of a single figure there is no interval, so no gate could be decided on it."""
    outcomes = ", ".join(f"{n} {what}" for what, n in prepared.outcomes.items() if n)
    for side, least in (("train", 1), ("test", 2)):
        if len(getattr(prepared, side)) < least:
            raise InputError(
                f"{source}: after preprocessing {len(getattr(prepared, side))} {side} events are left ({outcomes}); "
                f"at least {least} {'is' if least == 1 else 'are'} wanted",
                hint="give more events, or change feedback.eval; `--plan` shows what becomes of each of them",
            )

"""The contract of a stage: what it reads, what it is given, what it returns. `run` and `plan` use nothing else."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from instructkit.data.sources import Rows
from instructkit.errors import GateRefused, InputError
from instructkit.models import machine as machines
from instructkit.models.machine import Machine
from instructkit.models.source import (
    Source,
    lacks_weights,
    refuse_absent,
    refuse_dora_above_an_adapter,
    refuse_wrong_role,
)
from instructkit.recipe.schema import Recipe
from instructkit.runs.contents import CHECKPOINTS
from instructkit.runs.metrics import MetricsWriter
from instructkit.stages.contention import Contention
from instructkit.stages.formats import Format
from instructkit.stages.stopping import Stop

__all__ = ["CHECKPOINTS", "Frame", "Inputs", "Prepared", "Reporter", "Result", "RunOptions", "Stage"]

LOADING = "loading torch, transformers and trl"  # announced before the first heavy import
PREPARING = "loading the model and preparing the rows"  # a phase of every stage
# A recipe that sets one of these keeps its checkpoints and decides when they are written.
CHECKPOINT_FIELDS = ("save_strategy", "save_steps", "save_total_limit")
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
)  # of both answers of a comparison, elsewhere


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the recipe."""

    overwrite: bool = False
    resume: bool = False
    if_changed: bool = False
    anyway: bool = False
    command: list[str] = field(default_factory=list)


class Reporter(Protocol):
    """Where a run tells how it goes: a terminal, plain lines, or nothing."""

    def note(self, text: str) -> None: ...  # noqa: D102
    def phase(self, title: str, *, announced: bool = False) -> AbstractContextManager[None]: ...  # noqa: D102
    def stage_started(self, title: str, total_steps: int | None) -> None: ...  # noqa: D102
    def step(self, step: int, total: int, figures: dict[str, float]) -> None: ...  # noqa: D102
    def finished(self) -> None: ...  # noqa: D102
    def table(self, run: dict[str, Any]) -> None: ...  # noqa: D102


@dataclass
class Inputs:
    """
    What a stage reads.

    Attributes:
        data: rows by role (`train`, `eval`, ...), in the run's format; of feedback as they were given.
        parents: the models that it starts from, by role (`model`, `reward`, ...).
        format: how rows become tokens.
    """

    data: dict[str, Rows]
    parents: dict[str, Source]
    format: Format = field(default=Format(), kw_only=True)

    def notes(self) -> list[str]:
        """What a plan tells of them beside their rows, a line each."""
        return []

    def as_dict(self) -> dict[str, Any]:
        """The same as data."""
        return {}

    def undecidable(self, recipe: Recipe) -> tuple[list[str], bool]:
        """Return the gates that the data are too few to decide, and whether these refuse the result."""
        return [], False

    def begun(self) -> dict[str, Any]:
        """What has to be known again to read the same when an interrupted run is resumed; the run record keeps it."""
        return {}


RecipeT = TypeVar("RecipeT", bound=Recipe)
InputsT = TypeVar("InputsT", bound=Inputs)


@dataclass
class Prepared:
    """
    What training starts from.

    Attributes:
        trainer: TRL's trainer of the stage with encoded and checked rows; of several, the one that needs the most memory.
        tokenizer: of the model that is trained.
        scorers: reward models and functions that score responses during training.
    """

    trainer: Any
    tokenizer: Any
    scorers: Sequence[Any] = ()


@dataclass
class Result:
    """What training returns: a function that writes the model, and the measurements before and after."""

    save: Callable[[Path], None]
    measurements: list[dict[str, Any]]
    gates: list[Any] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Frame(Generic[RecipeT, InputsT]):
    """What a stage works with during a run."""

    recipe: RecipeT
    inputs: InputsT
    machine: Machine
    folder: Path
    reporter: Reporter
    resume: bool
    stop: Stop = field(default_factory=Stop)
    clock: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # rows that a trainer leaves out, by reason
    contention: Contention | None = None  # watches for other work on the CPUs

    def look_for_other_work(self, when: str, **options: float) -> None:
        """Warn once if other work uses the CPUs that this run computes on."""
        import torch

        if self.contention is not None and self.machine.on_cpu:
            self.contention.look(torch.get_num_threads(), when, **options)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.recipe.run.seed

    def timed(self, what: str, work: Callable[[], Any], *, phase: str = "") -> Any:
        """
        Do `work` and return its result.

        Args:
            what: the key in the run record that its seconds are added to.
            work: takes no arguments.
            phase: the name that is shown while it runs; none is shown without.
        """
        self.stop.check()
        started = time.perf_counter()
        try:
            with self.reporter.phase(phase) if phase else contextlib.nullcontext():
                return work()
        finally:
            self.clock[what] = round(self.clock.get(what, 0.0) + time.perf_counter() - started, 2)


class Stage(ABC, Generic[RecipeT, InputsT]):
    """
    One training command. `stages.run` and `plan` call these methods in this order.

    Attributes:
        name: of the command, and of `stage:` in recipes.
        recipe_type: class of its recipes.
    """

    name: ClassVar[str]
    recipe_type: ClassVar[type[Recipe]]

    @abstractmethod
    def collect(self, recipe: RecipeT, begun: Mapping[str, Any]) -> InputsT:
        """
        Read the data and find the parents, without loading a model.

        Args:
            begun: what `Inputs.begun` returned for the run that is resumed; empty for a new run.

        Raises:
            InputError: for every error in data and parents.
        """

    @abstractmethod
    def prepare(self, frame: Frame[RecipeT, InputsT]) -> Prepared:
        """Build the trainer with its model and encoded rows."""

    @abstractmethod
    def train(self, frame: Frame[RecipeT, InputsT]) -> Result:
        """Measure, train, measure again and decide the gates."""

    def finish(self, recipe: RecipeT, folder: Path, note: Callable[[str], None]) -> GateRefused | None:
        """
        Act on a complete run folder. A repetition must change nothing, since a run may be cut off before or after this.

        Returns:
            The error of a run that passed its gates and was not promoted, else None.
        """
        return None


def uses_default_checkpoints(recipe: Recipe) -> bool:
    """Return whether a recipe leaves it to the defaults when checkpoints are written and kept."""
    return not set(CHECKPOINT_FIELDS) & set(recipe.trainer)


def refuse_unfit_parents(recipe: Recipe, parents: dict[str, Source]) -> None:
    """A reward model may go on from any run; otherwise policies answer and reward models score."""
    for role, source in parents.items():
        if role == "critic":
            continue  # a part of a ppo run, which `critic.init` has looked for
        if role != "model" or recipe.stage != "reward":
            refuse_wrong_role(source, as_reward=role != "model")
        refuse_absent(source.name, source.base, is_adapter=source.adapter is not None)
    refuse_dora_above_an_adapter(parents["model"], recipe.lora)


def refuse_without_weights(parents: dict[str, Source]) -> None:
    """
    A plan needs no weights, a run does.

    Raises:
        InputError: naming the folder of a model that has a config alone.
    """
    for source in parents.values():
        if lacks_weights(source):
            folder = source.adapter or source.base
            raise InputError(
                f"{folder} holds no weights", hint="download them, such as model.safetensors, into it"
            )


def refuse_undecidable(recipe: Recipe, shortages: Sequence[str], refuses: bool) -> None:
    """
    Refuse to train an update whose gates cannot be decided on so little data.

    Args:
        shortages, refuses: as `Inputs.undecidable` returns them.

    Raises:
        InputError: naming each such gate, what there is, how much is needed and which key to change.
    """
    if refuses:
        raise InputError(
            f"{recipe.source}: some gates cannot be decided on the data at hand, so the result would be refused after training:\n"
            + "\n".join(f"  {each}" for each in shortages),
            hint="change these keys or give more data; --anyway trains all the same; nothing was trained",
        )


def seed_everything(seed: int) -> None:
    """Seed before the model is built: a fresh adapter or head is random, and trainers seed only after that."""
    from transformers import set_seed

    set_seed(seed)


def left_out(inputs: Inputs) -> list[str]:
    """The data format, what a mixture's weights and faults leave out, and what was read in another shape, in words."""
    told = [str(inputs.format)]
    for role, rows in inputs.data.items():
        for source, used, of in rows.shares:
            if used < of:
                told.append(f"data {role}: {used} of {of} rows of {source}, by weights and limit")
        for shape, count in rows.shapes:
            told.append(f"data {role}: {count} rows of {rows.source} read as {shape}")
        if rows.unread:
            told.append(
                f"data {role}: columns that are not read: {', '.join(rows.unread)}{_as_margins(rows.unread)}"
            )
        if rows.beside:
            told.append(
                f"data {role}: fields of messages that only a chat template reads, where it names them: {', '.join(rows.beside)}"
            )
        if rows.skipped:
            first = rows.skipped[0].fault
            told.append(f"data {role}: {len(rows.skipped)} rows skipped, the first {first}")
    return told


def _as_margins(unread: Sequence[str]) -> str:
    """The way to read two scores of a comparison, under the names that other tools give them."""
    for names in SCORES:
        if set(names) <= set(unread):
            columns = ", ".join(
                f"{name}: {side}_rating" for name, side in zip(names, ("chosen", "rejected"), strict=True)
            )
            return f" (`data.columns: {{{columns}}}` reads them as margins)"
    return ""


def quiet_libraries() -> None:
    """No telemetry and no progress bars but ours; said here, before the first heavy import."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # TRL's own, while it computes what a reference says
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns that it looks for unused parameters
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The fused 4-bit CPU kernels would be fetched from a hub; bitsandbytes' own are used instead.
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports those kernels as missing


def load_libraries() -> None:
    """Import what training needs. This takes seconds, so the caller shows it as a phase."""
    import trl  # noqa: F401

    import instructkit.stages.trainer  # noqa: F401


def choose_machine(recipe: Recipe) -> Machine:
    """The machine for a recipe, with reasons."""
    return machines.choose(recipe.model.dtype, recipe.model.quantization)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; on a GPU the largest allocation there."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def measurement(name: str, **figures: Any) -> dict[str, Any]:
    """One line of the closing table: `unit, n, before, after, change (mean, low, high), better, note`."""
    blank = {
        "unit": "",
        "n": None,
        "before": None,
        "after": None,
        "change": None,
        "better": None,
        "note": None,
    }
    unknown = set(figures) - set(blank)
    if unknown:
        raise ValueError(f"a measurement has no {sorted(unknown)}")
    return {"name": name, **blank, **figures}


def metrics_writer(frame: Frame[Any, Any]) -> MetricsWriter:
    """The writer of every logged step of this run."""
    return MetricsWriter(frame.folder / "metrics.jsonl")


def prompt_of(row: dict[str, Any]) -> Any:
    """The prompt of a demonstration: everything before the last answer."""
    return row["messages"][:-1] if "messages" in row else row["prompt"]


class Listener:
    """Keeps the notes; everything else passes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.dropped: dict[str, int] = {}  # rows that the trainer leaves out, by reason

    def note(self, text: str) -> None:
        """Keep a line."""
        self.notes.append(text)

    def phase(self, title: str, *, announced: bool = False) -> AbstractContextManager[None]:
        """Nothing is shown."""
        return nullcontext()

    def stage_started(self, title: str, total_steps: int | None) -> None:
        """Nothing is shown."""

    def step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Nothing is shown."""

    def finished(self) -> None:
        """Nothing is shown."""

    def table(self, run: dict[str, Any]) -> None:
        """There is no table."""

"""The feedback that an update reads: new events and test events, prepared and split, and what was learned before."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from instructkit.data import sources, table
from instructkit.data.formats import as_conversation
from instructkit.data.rows import Row
from instructkit.data.sources import STORE_SUFFIX
from instructkit.data.split import check_leak
from instructkit.errors import InputError
from instructkit.evaluate.statistics import budget_warning
from instructkit.feedback.preprocess.items import Prepared
from instructkit.feedback.preprocess.pipeline import Settings, prepare
from instructkit.feedback.promotion.chain import Chain
from instructkit.feedback.store.database import in_words
from instructkit.feedback.store.events import content_id, rater_hash
from instructkit.feedback.store.judgements import asked_of, prompt_form
from instructkit.feedback.store.personal_data import Redactor
from instructkit.feedback.store.store import Store, events_after, events_with
from instructkit.recipe.schema import LoraUpdateRecipe
from instructkit.stages.user_functions import load_function


@dataclass(frozen=True)
class Feedback:
    """
    Feedback as it was read, not yet prepared.

    Attributes:
        events: rows that may be learned from or held out.
        test: test rows of a source of their own; None where events are held out.
        last: id of the event of a store after which they come; None for all of them, or of a file.
        chat: whether text prompts become messages of a user.
    """

    events: sources.Rows
    test: sources.Rows | None
    last: str | None
    chat: bool = False

    @property
    def newest(self) -> str:
        """The last event that was read: not the store's, since one beyond `limit` must still be new to the next update."""
        return self.events.rows[-1]["id"]


def is_store(recipe: LoraUpdateRecipe) -> bool:
    """Whether the events are of a feedback store."""
    return recipe.feedback.events.endswith(STORE_SUFFIX)


def read(recipe: LoraUpdateRecipe, last: str | None, *, until: str | None = None) -> Feedback:
    """
    The rows of a recipe's feedback.

    Args:
        last: id of the event of a store after which they come; None for all of them.
        until: id of the last one that is read; None for all of them.

    Raises:
        NothingNew: when nothing came after it.
        InputError: when the rows are at fault.
    """
    wanted, seed = recipe.feedback, recipe.run.seed
    options = {
        "kind": "feedback", "columns": wanted.columns, "seed": seed, "skip_faults": wanted.on_fault == "skip",
    }  # fmt: skip
    if is_store(recipe):
        if wanted.columns and not isinstance(wanted.eval, str):
            raise InputError(
                f"feedback.columns maps the columns of files, and {wanted.events} is a store",
                hint="leave it out: events of a store have no columns",
            )
        with Store.open(wanted.events) as store:
            store.refuse_unwritable()  # a training keeps the sides of its events in it
        events = events_after(wanted.events, last, until=until, limit=wanted.limit)
    else:
        events = sources.load_rows(wanted.events, limit=wanted.limit, **options)
    test = None
    if isinstance(wanted.eval, str):
        test = sources.load_rows(wanted.eval, every_column=False, **options)
        check_leak(events, test)
        if is_store(recipe):
            test = _known_again(test, wanted.events)
    return Feedback(events, test, last)


def prepared(recipe: LoraUpdateRecipe, feedback: Feedback) -> Prepared:
    """
    The items of the feedback; nothing is written.

    Raises:
        InputError: when the store was begun with other shares of the sides, or another threshold of nearness.
    """
    how = Settings.of(recipe.feedback, chat=feedback.chat)
    with _opened(recipe.feedback.events if is_store(recipe) else None) as store:
        options: dict[str, Any] = {}
        if store is not None:
            _pin(store, how, keep=False)
            options["index"] = store.clusters(how.near_duplicates, keep=False)
            # What came after all that was read is the next update's to count.
            options["left_out"] = store.left_out(feedback.last, until=feedback.newest)
        with in_words(store.path) if store is not None else contextlib.nullcontext():
            return _prepare(recipe, feedback.events, feedback.test, how, **options)


def keep_sides(recipe: LoraUpdateRecipe, found: Prepared) -> None:
    """
    Write into the store what the sides of its events follow from: which prompts are near which, and the shares.

    A training that begins does so, and no plan; prompts of held-out files are no part of it.
    """
    if not is_store(recipe):
        return
    how = Settings.of(recipe.feedback)
    with Store.open(recipe.feedback.events) as store:
        _pin(store, how, keep=True)
        store.runs(_root(recipe))
        with in_words(store.path):
            for _ in store.clusters(how.near_duplicates).touched(found.asked):
                pass  # an index keeps what it has answered


def elsewhere(recipe: LoraUpdateRecipe) -> str | None:
    """Where updates from this store were made before, if not beside this one: their looks are not counted here."""
    if not is_store(recipe):
        return None
    with Store.open(recipe.feedback.events) as store:
        first = store.runs(_root(recipe), keep=False)
    return first if first != _root(recipe) and Path(first).is_dir() else None


def _root(recipe: LoraUpdateRecipe) -> str:
    return str(Path(recipe.run.output).parent.resolve())


def _pin(store: Store, how: Settings, *, keep: bool) -> None:
    store.pin("eval", how.test, keep=keep)
    store.pin("tune", how.tune, keep=keep)


def learned_before(recipe: LoraUpdateRecipe, chain: Chain, number: int, feedback: Feedback) -> Prepared:
    """
    Of what the adapter with this number has learned, some items to replay, prepared as new ones are.

    So personal data is taken out, filters and caps hold, and what was withdrawn, or is near a test event, is not among them.
    They are prepared together with what is said of the same prompts since: what was overruled or outvoted is not replayed, and
    what is learned anew is not learned twice.
    """
    ids = pool(chain.standing_ids(number), f"{recipe.run.seed} {number}")
    before = events_with(recipe.feedback.events, ids)
    how = Settings.of(recipe.feedback, chat=feedback.chat)
    how = replace(how, test=0.0, tune=0.0, objective=None)
    found = _prepare(recipe, _with_since(before, feedback), feedback.test, how)
    known = set(ids)
    return replace(found, train=[item for item in found.train if item.event in known])


def _with_since(before: sources.Rows, feedback: Feedback) -> sources.Rows:
    """Rows, and behind them those of the later ones that speak of the same prompts."""

    def form(row: Row) -> str:
        return prompt_form(asked_of(as_conversation(row, "feedback") if feedback.chat else row))

    since, known = feedback.events, {row["id"] for row in before.rows}
    asked = {form(row) for row in before.rows}
    kept = table.Table()
    for pair in zip(before.rows, before.places, strict=True):
        kept.append(pair)
    for row, place in zip(since.rows, since.places, strict=True):
        if row["id"] not in known and form(row) in asked:
            kept.append((row, place))
    rows, places = (kept.column(range(len(kept)), itemgetter(i)) for i in (0, 1))
    return replace(before, rows=rows, places=places)


def _prepare(
    recipe: LoraUpdateRecipe,
    events: sources.Rows,
    test: sources.Rows | None,
    how: Settings,
    **options: Any,
) -> Prepared:
    wanted = recipe.feedback
    return prepare(
        events.rows if is_store(recipe) else _named(events),
        how,
        seed=recipe.run.seed,
        places=events.places,
        held_out=None if test is None else _named(test),
        redact=Redactor().row if wanted.personal_data == "redact" else None,
        keep=load_function(wanted.filter) if wanted.filter else None,
        **options,
    )


@contextlib.contextmanager
def _opened(path: str | None) -> Iterator[Store | None]:
    if path is None:
        yield None
    else:
        with Store.open(path) as store:
            yield store


def _named(rows: sources.Rows) -> Sequence[Row]:
    """Rows of a file with ids that say what they hold: a look at them is one whatever the file is called by then."""
    return table.mapped(rows.rows, lambda row: {**row, "id": content_id(row)})


def _known_again(test: sources.Rows, path: str) -> sources.Rows:
    """Test rows with their raters named as the store names them, so that it shows who was met in training."""
    with Store.open(path) as store:
        salt = store.salt

    def hashed(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "rater": rater_hash(str(row["rater"]), salt)} if row.get("rater") else row

    return replace(test, rows=table.mapped(test.rows, hashed))


POOL = 1024  # so that the cost does not grow with all that was ever said


def pool(ids: Iterable[str], seed: str, most: int = POOL) -> list[str]:
    """
    So many of the ids, each being as likely as any other, oldest first.

    They are those whose hashes with the seed are the smallest, so that neither their order nor how they are spread over
    updates matters; one in memory at a time but for those that are kept.
    """

    def place(id_: str) -> bytes:
        return hashlib.blake2b(f"{seed} {id_}".encode(), digest_size=8).digest()

    return sorted(set(heapq.nsmallest(most, ids, key=place)))


def warnings(inputs: Any) -> list[str]:
    """
    In words, for a plan and for the beginning of a run; empty where nothing is to be said.

    Args:
        inputs: the `UpdateInputs`.
    """
    told = [budget_warning(inputs.power()["look"] - 1), _withdrawn(inputs), _elsewhere(inputs)]
    return [f"warning: {text}" for text in told if text]


def _elsewhere(inputs: Any) -> str | None:
    """That test events were looked at where this chain does not see it."""
    if inputs.elsewhere is None:
        return None
    return (
        f"updates from this store were made below {inputs.elsewhere} before; how often they looked at its test events is counted "
        "there and not here: let run.output lie below it too"
    )


def _withdrawn(inputs: Any) -> str | None:
    """That the adapter that is gone on from has learned from events that are withdrawn since; a file has none."""
    if inputs.current is None or inputs.newest is None:
        return None
    number = int(inputs.current.name)
    with Store.open(inputs.data["events"].source) as store:
        count = inputs.chain.count_trained(set(store.withdrawn_ids())).get(number, 0)
    if not count:
        return None
    return (
        f"update {number}, which this one goes on from, has learned from {count} events that are withdrawn since, and so will "
        "what it becomes; feedback.mode: new begins without them"
    )

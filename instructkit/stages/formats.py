"""
Choose the data format of a run: `chat` renders rows by the model's chat template, `text` joins texts as they are.

A stage chooses it once, after it has read its rows, and records it in `run.json`. Later stages and `chat` inherit it.
Texts become messages here, so that encoding reads one kind of row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from instructkit.data.formats import has_messages
from instructkit.data.rows import Row, detect_shape
from instructkit.data.sources import Rows
from instructkit.errors import InputError
from instructkit.models import load
from instructkit.models.source import Source, is_to_come, lacks_format, trained_format
from instructkit.recipe.schema import Recipe

if TYPE_CHECKING:
    from instructkit.stages.base import Frame, Inputs

AUTO, CHAT, TEXT = "auto", "chat", "text"


@dataclass(frozen=True)
class Format:
    """
    Hold a data format and the reason for it.

    Attributes:
        name: `chat` or `text`; None where only whole texts are learned and no parent has a format.
        why: the reason, a clause.
    """

    name: str | None = None
    why: str = "nothing was decided"

    def __str__(self) -> str:
        return f"data format {self.name or 'not set'}: {self.why}"


def applied(recipe: Recipe, inputs: Inputs) -> Inputs:
    """
    Return the inputs of a stage in the format of the run.

    Raises:
        InputError: as `choose`.
    """
    chosen = choose(recipe, inputs.parents, inputs.data)
    return replace(inputs, data=rendered(inputs.data, chosen), format=chosen)


def rendered(data: Mapping[str, Rows], chosen: Format) -> dict[str, Rows]:
    """Return rows by role, with texts as messages in the format chat. Feedback is converted when it is prepared."""
    return {
        role: rows if chosen.name == TEXT or rows.kind == "feedback" else rows.in_conversations()
        for role, rows in data.items()
    }


def choose(recipe: Recipe, parents: Mapping[str, Source], data: Mapping[str, Rows]) -> Format:
    """
    Return the format of the recipe, else that of the parent run, else chat where the model has a template.

    Args:
        recipe: of any stage.
        parents: models by role; `model` is the one that is trained.
        data: rows by role, as they were read.

    Raises:
        InputError: when the recipe contradicts the parent run, a model that scores reads another format, or rows do not fit.
    """
    if any(map(is_to_come, parents.values())):
        return Format(None, "a model does not exist yet")
    key, asked = _setting(recipe)
    source = parents["model"]
    has_template = "chat_template_path" in recipe.trainer or load.has_chat_template(source, recipe.model)
    if asked == AUTO:
        chosen = _by_default(source, has_template, data.get("train"))
        if chosen.name == CHAT and lacks_format(source):
            chosen = replace(chosen, why=f"{chosen.why}. {_warning(key, source)}")
    else:
        _refuse_another_parent(recipe, source)
        chosen = Format(asked, f"{key} sets it")
    if chosen.name == CHAT and not has_template:
        raise InputError(
            f"{source.name} has no chat template, but the data format is chat: {chosen.why}",
            hint=f"set {key}: text, or name a model with a chat template",
        )
    _refuse_other_scorers(recipe, parents, chosen)
    for rows in data.values():
        _refuse_unfit(rows, chosen, recipe)
    return chosen


def _warning(key: str, source: Source) -> str:
    return (
        f"warning: {source.name} is a run of version 0.1.0 and records no data format; "
        f"if it was trained on text prompts, set {key}: text"
    )


def _setting(recipe: Recipe) -> tuple[str, str]:
    """Return the key of the format in a recipe, and its value."""
    of_feedback = recipe.stage == "lora-update"
    section = recipe.feedback if of_feedback else recipe.data
    return ("feedback.format" if of_feedback else "data.format"), section.format


def tokenizer_of(frame: Frame) -> Any:
    """Load the tokenizer of the model that is trained, in the format of the run."""
    inputs = frame.inputs
    return load.load_tokenizer(inputs.parents["model"], frame.recipe.model, data_format=inputs.format.name)


def _by_default(source: Source, has_template: bool, train: Rows | None) -> Format:
    if trained := trained_format(source):
        return Format(trained, f"{source.name} was trained as {trained}")
    if not has_template:
        return Format(TEXT, f"{source.name} has no chat template")
    if train and detect_shape(train.rows[0], train.kind) == ("text",):
        return Format(None, "no chat template renders whole texts")
    if train and _is_whole_comparison(train.rows[0], train.kind):
        return Format(TEXT, "no chat template renders comparisons of whole texts without `prompt`")
    return Format(CHAT, f"{source.name} has a chat template")


def _refuse_another_parent(recipe: Recipe, source: Source) -> None:
    (key, asked), trained = _setting(recipe), trained_format(source)
    if trained not in (None, asked):
        raise InputError(
            f"{recipe.run.output}: {key} is {asked}, but its parent {source.name} was trained as {trained}",
            hint=f"leave out {key} to train as {trained}, or train {source.name} again as {asked}",
        )


def _refuse_other_scorers(recipe: Recipe, parents: Mapping[str, Source], chosen: Format) -> None:
    """Refuse a reward model or a critic that reads another format than the policy."""
    for role, source in parents.items():
        theirs = trained_format(source)
        if role == "model" or theirs == chosen.name:
            continue
        name = f"{role} {source.name}"
        if theirs is not None:
            raise InputError(
                f"{recipe.run.output}: its data format is {chosen.name} ({chosen.why}), but {name} was trained as {theirs}",
                hint=f"train {source.name} again as {chosen.name}, or use another model as {role}",
            )
        if (
            role != "critic"
            and chosen.name == CHAT
            and not load.has_chat_template(source, recipe.model.of_another())
        ):
            raise InputError(
                f"{recipe.run.output}: its data format is chat ({chosen.why}), but {name} has no chat template",
                hint=f"use a model with a chat template as {role}",
            )


def _refuse_unfit(rows: Rows, chosen: Format, recipe: Recipe) -> None:
    """Refuse conversations in the format text, and comparisons without a prompt in the format chat."""
    for row, place in zip(rows.rows, rows.places, strict=True):
        if chosen.name == TEXT and has_messages(row, rows.kind):
            raise InputError(
                f"{place}: the row is a conversation, but the data format is text: {chosen.why}",
                hint=f"{_way_to_chat(recipe)}, or write prompts and answers as texts",
            )
        if chosen.name == CHAT and _is_whole_comparison(row, rows.kind):
            raise InputError(
                f"{place}: `chosen` and `rejected` are whole texts without `prompt`, but the data format is chat: {chosen.why}",
                hint="give each row its question as `prompt`, and the answers alone as `chosen` and `rejected`",
            )


def _way_to_chat(recipe: Recipe) -> str:
    key, asked = _setting(recipe)
    if asked == TEXT:
        return f"leave out {key}"
    path = ", set trainer.chat_template_path" if recipe.stage == "sft" else ""
    return f"start from a model that was trained on conversations{path}"


def _is_whole_comparison(row: Row, kind: str) -> bool:
    return kind == "preference" and row.get("prompt") is None and isinstance(row["chosen"], str)

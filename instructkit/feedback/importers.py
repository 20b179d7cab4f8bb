"""
Judgements in the files of others, read as ours: chat logs with a rating, ShareGPT with a score, arena pairs, and exports of
Argilla (1 and 2) and Langfuse. Every row gives one judgement or several, or a fault that says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from instructkit.data.csv_files import numbered
from instructkit.data.ours import renamed
from instructkit.data.readers import read_source
from instructkit.data.records import Row
from instructkit.data.scales import Scale
from instructkit.data.shapes import in_our_shape
from instructkit.data.thumbs import in_our_names, is_ulid, number_of, plain_name, rated
from instructkit.errors import Fault, InputError
from instructkit.feedback import exports
from instructkit.feedback.beside import beside
from instructkit.feedback.events import JUDGEMENTS, ROW_FIELDS, Event, event_of
from instructkit.feedback.ratings import RATINGS, Reading, rating_of

__all__ = ["Reading", "named", "read", "rows_of"]

_JUDGEMENTS = (*RATINGS, "better", "preferred")
_READ = {  # by `event_of`, and by `beside`
    *("prompt", "messages", "conversations", "response", "metadata", "withdrawn", "system", "unused"),
    *(*JUDGEMENTS, *ROW_FIELDS),
}


def read(source: str, how: Reading) -> Iterator[tuple[Event, Row] | Fault]:
    """
    The events of a file, each with the row that it was made of; of a row at fault, why.

    Raises:
        InputError: when there is no such file, it cannot be read, or it holds no rows.
    """
    name = named(source)
    empty = True
    for raw, place in _rows(source, how):
        empty = False
        if isinstance(raw, Fault):
            yield raw
            continue
        try:
            made = [(event_of(row, source=name, consent=how.consent), row) for row in rows_of(raw, how)]
        except ValueError as error:
            yield Fault(place, str(error))
            continue
        except (TypeError, AttributeError, KeyError) as error:
            yield Fault(place, f"a field is not of the kind that the format of its row has there: {error}")
            continue
        yield from made
    if empty:
        hint = "check the file; each line of a .jsonl is one row; nothing was imported"
        raise InputError(f"{source} holds no rows", hint=hint)


def _rows(source: str, how: Reading) -> Iterator[tuple[Row | Fault, str]]:
    """Yield each row of a file and its place, its columns renamed and the numbers of a table read as numbers."""
    for raw, place in read_source(source):
        row = raw if isinstance(raw, Fault) else renamed(raw, place, how.columns or {})
        yield row if isinstance(row, Fault) else numbered(row, place), place


def absent(sources: Iterable[str], how: Reading) -> list[str]:
    """Return the names in `how.columns` that no row of the files has."""
    left = dict.fromkeys(how.columns or ())
    for source in sources if left else ():
        for raw, _ in read_source(source):
            for name in [name for name in left if not isinstance(raw, Fault) and name in raw]:
                del left[name]
            if not left:
                return []
    return list(left)


def as_thumbs(source: str, how: Reading) -> bool:
    """
    Return whether a file without a given scale has thumbs as 1 and 0, by the rule of `data.scales`.

    Raises:
        InputError: when the file is missing or cannot be read.
    """
    scale = Scale()
    if how.scale is not None:
        return False
    for raw, _ in _rows(source, how):
        for row in [] if isinstance(raw, Fault) else _with_ratings(raw, how):
            scale.add(row.get("rating"), kept=is_ulid(row.get("id")))
        if not scale.may_be_thumbs:
            return False
    return scale.is_thumbs


def _with_ratings(row: Row, how: Reading) -> list[Row]:
    """Return the judgements of a row; for a row with an error, only the row, its rating on any scale."""
    try:
        return rows_of(row, how)
    except (ValueError, TypeError, AttributeError, KeyError):
        if how.field is None:
            return [rated(row)]
        return [{**row, "rating": number_of(plain_name(how.field), row.get(how.field))}]


def named(source: str) -> str:
    """What events of a file have as their source."""
    return f"import:{Path(source).name}"


def rows_of(row: Row, how: Reading) -> list[Row]:
    """
    The judgements that one row tells, in our own form.

    Raises:
        ValueError: in words, when it tells none.
    """
    for belongs, reader in _FORMATS:
        if belongs(row):
            return [{**found, **beside(found, row)} for found in reader(row, how)]
    if "response" in row:
        raise ValueError("`response` is empty; wanted the answer that was judged")
    raise ValueError(
        f"found {', '.join(f'`{key}`' for key in row) or 'nothing'}; wanted a prompt or messages, a `response`, and a judgement"
    )


def _is_ours(row: Row) -> bool:
    return row.get("response") is not None


def unread(row: Row) -> list[str]:
    """Return the columns of an imported row that hold something and that nothing reads."""
    return [name for name, value in row.items() if name not in _READ and value not in (None, "", [], {})]


def _ours(row: Row, how: Reading) -> list[Row]:
    row = in_our_names(row)
    if any(row.get(name) is not None for name in ("better", "preferred")):
        return [row]
    return [_rated(row, how)]


def _rated(row: Row, how: Reading) -> Row:
    """Return the row with its rating as `rating` on our scale; a column of such a name that is no rating stays."""
    named = [how.field] if how.field else [key for name in RATINGS for key in row if plain_name(key) == name]
    given = [key for key in named if row.get(key) not in (None, "")]
    if not given:
        raise ValueError(_not_judged(row, how))
    name = next((key for key in given if number_of(plain_name(key), row[key]) is not None), given[0])
    kept = {key: value for key, value in row.items() if key not in (name, "rating")}
    return {**kept, "rating": rating_of(name, row[name], how)}


def _not_judged(row: Row, how: Reading) -> str:
    """What a row without a judgement has instead: fields for one that are empty, or others alone."""
    empty = [name for name in ((how.field,) if how.field else _JUDGEMENTS) if name in row]
    named = f"`{how.field}`" if how.field else "a rating, a better answer or a preference"
    if empty:
        verb, wanted = "are" if len(empty) > 1 else "is", "a rating" if how.field else named
        return f"{' and '.join(f'`{name}`' for name in empty)} {verb} empty; wanted {wanted}"
    return f"found {', '.join(f'`{key}`' for key in row)}; wanted {named}"


def _is_log(row: Row) -> bool:
    return isinstance(row.get("messages") or row.get("conversations"), list)


def _log(row: Row, how: Reading) -> list[Row]:
    """A whole conversation and one rating, which is about its last answer."""
    talk, _ = in_our_shape(in_our_names(row), "sft")
    messages = talk["messages"]
    if not messages or not isinstance(messages[-1], dict) or messages[-1].get("role") != "assistant":
        raise ValueError("the conversation does not end with an assistant's answer, so nothing was judged")
    return [_rated({**talk, "messages": messages[:-1], "response": messages[-1].get("content")}, how)]


_FORMATS: tuple[tuple[Callable[[Row], bool], Callable[[Row, Reading], list[Row]]], ...] = (
    (exports.is_arena, exports.arena),
    (exports.is_argilla, exports.argilla),
    (exports.is_langfuse, exports.langfuse),
    (_is_ours, _ours),
    (_is_log, _log),
)

"""The shapes that rows may have, by the names of their fields. Pure: no file, no library."""

from __future__ import annotations

import itertools
import math
import re
from array import array
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from instructkit.errors import Fault, InputError

Row = dict[str, Any]

SHAPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "completion"), ("text",)),
    "preference": (("chosen", "rejected"),),
    "prompt": (("prompt",),),
    "feedback": (("response",),),
}
WANTED = {
    "sft": "`messages`, or `prompt` and `completion`, or `text`",
    "preference": "`chosen` and `rejected`, with or without `prompt`",
    "prompt": "`prompt`",
    "feedback": "`prompt` or `messages`, `response`, and one of `rating`, `better`, `preferred`",
}
# Names that other data have for our fields, told as a remedy and never applied unasked.
SYNONYMS = {
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "prompt": ("question", "query", "instruction", "input", "user", "context"),
    "completion": ("answer", "response", "output", "assistant", "target"),
    "response": ("answer", "completion", "output"),
    "text": ("content", "document", "body"),
    "chosen": ("preferred", "better", "winner", "accepted"),
    "rejected": ("dispreferred", "worse", "loser"),
}
CONTEXT = ("context", "input", "system", "history", "tools")  # names of what an answer may rest on
_READ = {  # fields that mean something to a kind, beside those of its shapes
    "sft": (),
    "preference": ("prompt", "margin"),
    "prompt": (),
    "feedback": (
        *("prompt", "messages", "rating", "better", "preferred", "other", "shown_first", "id", "time"),
        *("source", "rater", "run", "run_hash", "sampling", "tags", "group", "consent"),
    ),
}
DEEPEST = 100  # levels of a row
_BRIEF_CHARACTERS = 60  # of a value in a message
_KINDS = {str: "text", list: "a list", tuple: "a list", dict: "an object", type(None): "null"}
_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def detect_shape(row: Row, kind: str) -> tuple[str, ...] | None:
    """The fields that make a row usable for a kind of training; None when there are none."""
    return next((shape for shape in SHAPES[kind] if all(row.get(field) is not None for field in shape)), None)


def unread(row: Row, kind: str) -> set[str]:
    """
    Fields of a row in our shape that hold something and that nothing reads.

    Of a prompt only what an answer may rest on: a reward function is given every other column by its name. `columns` can say
    that one is `unused`.
    """
    held = {key for key, value in row.items() if value is not None and value not in ("", [], {})}
    if kind == "prompt":
        return held & set(CONTEXT)
    read = {*(detect_shape(row, kind) or ()), *_READ[kind], "unused"}
    return {key for key in held - read if not (key == "label" and truth(row[key]) is not None)}


def into_alpaca(names: Collection[str], kind: str) -> dict[str, str] | None:
    """The renaming into Alpaca's fields, which alone have a place for a question's context; None where there is none."""

    def first(*wanted: str) -> str | None:
        return next((name for name in wanted if name in names), None)

    asked, more = first("instruction", "prompt", "question", "query"), first("input", "context")
    answer = first("output", "response", "completion", "answer") if kind == "sft" else None
    if asked is None or (kind == "sft" and answer is None) or not (more or "system" in names):
        return None
    wanted = {asked: "instruction", more: "input", answer: "output"}
    return {name: field for name, field in wanted.items() if name is not None and name != field}


def briefly(value: Any) -> str:
    """A value for a message: as Python writes it, cut where no one would read on."""
    told = repr(value[:_BRIEF_CHARACTERS] if isinstance(value, str) else value)
    return told if len(told) <= _BRIEF_CHARACTERS + 2 else f"{told[:_BRIEF_CHARACTERS]}..."


def kind_of(value: Any) -> str:
    """What a value is, in the words of a JSON file; a number as it stands."""
    if isinstance(value, bool):
        return str(value).lower()
    return _KINDS.get(type(value)) or briefly(value)


def spoken(talk: list[Row]) -> list[tuple[str, str]]:
    """Who said what, in a list of checked messages."""
    return [(turn["role"], turn["content"]) for turn in talk]


def truth(label: Any) -> bool | None:
    """TRL's label of an answer, which some write as 1 and 0, or in words, as every table does; None for what is none."""
    if isinstance(label, str):
        return _TRUTHS.get(label.strip().lower())
    return bool(label) if isinstance(label, bool | int | float) and label in (0, 1) else None


def is_nested(value: Any, levels: int) -> bool:
    """Whether a value holds others more than so many levels deep: whatever writes it goes down by recursion."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return levels < 0 or any(
        is_nested(each, levels - 1) for each in inner if isinstance(each, dict | list | tuple)
    )


FAR_OFF = 1e6  # no scale of ratings goes so far


class Scale:
    """
    Collect the ratings of one file: of all its rows, also of those with errors elsewhere.

    `feedback import` and recipes share this rule, so they read a file alike.
    """

    def __init__(self) -> None:
        self.rated = self.outside = 0
        self.low, self.high = math.inf, -math.inf
        self._thumbs = True

    def add(self, rating: Any, *, kept: bool = False) -> None:
        """
        Count a rating; ignore a value that is no number.

        Args:
            kept: whether a store exported the row; on its scale 0 is no signal.
        """
        if isinstance(rating, bool) or not isinstance(rating, int | float) or not abs(rating) < FAR_OFF:
            return
        self.rated += 1
        self._thumbs &= rating in (0, 1) and not kept
        self.outside += not -1 <= rating <= 1
        self.low, self.high = min(self.low, rating), max(self.high, rating)

    @property
    def may_be_thumbs(self) -> bool:
        """Return whether all ratings so far are 1 or 0."""
        return self._thumbs

    @property
    def is_another(self) -> bool:
        """Return whether most ratings are outside -1 to 1."""
        return 2 * self.outside > self.rated

    @property
    def is_thumbs(self) -> bool:
        """Return whether all ratings are 1 or 0 and some are 0: thumbs up and down."""
        return self.rated > 0 and self._thumbs and self.low == 0

    def error(self, file: str) -> InputError:
        """Return the error for ratings on another scale."""
        low = min(self.low, 1) if self.low >= 0 else self.low
        message = f"{file}: {self.rated} rows of users' feedback, rated {self.low:g} to {self.high:g}"
        return InputError(
            f"{message}; wanted are ratings from -1 to 1",
            hint=f"`instructkit feedback import {file} --scale {low:g}:{self.high:g}` reads them into a store with the scale "
            "they were given on, and a recipe names that: `feedback: {events: feedback.db}`",
        )


ROLES = ("system", "user", "assistant", "tool")
LONGEST_CHARACTERS = 2_000_000
MOST_MARGIN = 1000  # between two scores; behind a larger one every loss is lost in rounding


def check_rows(rows: Sequence[Row], kind: str, places: Sequence[str]) -> list[Fault]:
    """
    Every fault of every row.

    Args:
        rows: one dictionary each.
        kind: `sft`, `preference`, `prompt` or `feedback`.
        places: where each row stands, as `file:line`.
    """
    checker, faults, good = Checker(kind), [], []
    for row, place in zip(rows, places, strict=True):
        found = checker.faults(row, place)
        faults += found
        if not found:
            good.append(place)
    return faults + [Fault(good[i], *told) for i, told in checker.strangers()]


class Checker:
    """
    Checks rows one by one, and remembers of the good ones in which form they are.

    Args:
        kind: `sft`, `preference`, `prompt` or `feedback`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        # Of the good rows alone: a bad one must not put all others in the wrong.
        self.forms: dict[tuple[str, ...], array] = {}
        self.form: tuple[str, ...] = ()  # of the last good row
        self._good = 0

    def faults(self, row: Row, place: str) -> list[Fault]:
        """Every fault of the next row."""
        shape = detect_shape(row, self.kind)
        if shape is None:
            return [_shapeless(row, self.kind, place)]
        messages = _CHECKS[self.kind](row, shape)
        if not messages:
            self.form = _form(row, shape)
            self.forms.setdefault(self.form, array("Q")).append(self._good)
            self._good += 1
        return [Fault(place, message) for message in messages]

    def strange_forms(self) -> set[tuple[str, ...]]:
        """All forms but the usual one."""
        return set(self.forms) - {self._usual()}

    def _usual(self) -> tuple[str, ...]:
        """The form of most good rows, the first of those that are as usual."""
        return max(self.forms, key=lambda form: len(self.forms[form]), default=())

    def strangers(self) -> Iterator[tuple[int, tuple[str, str]]]:
        """Of the good rows those of another form than most: which of them, and what is wrong in words."""
        if len(self.forms) < 2:
            return
        usual = self._usual()
        told = f"instead of {form_told(usual)}, as {len(self.forms[usual])} of {self._good} rows"
        others = {i: form for form, found in self.forms.items() if form != usual for i in found}
        for i in sorted(others):
            what = f"a row of another shape than the rest: {form_told(others[i])} {told}"
            yield i, (what, "keep one shape in a file")


def _shapeless(row: Row, kind: str, place: str) -> Fault:
    """A row without the fields of any shape: what it has, what is wanted, and which of its names may mean it."""
    for shape in SHAPES[kind]:
        if set(shape) <= set(row):
            empty = next(field for field in shape if row[field] is None)
            return Fault(place, f"`{empty}` has no value; wanted text or messages")
    found = ", ".join(f"`{key}`" for key in row) or "nothing"
    renamed = _renaming(row, kind)
    hint = f"say `columns: {{{renamed}}}`" if renamed else "map other names with `columns: {found: wanted}`"
    return Fault(place, f"found {found}; wanted {WANTED[kind]}", hint)


def _renaming(row: Row, kind: str) -> str:
    """The `columns` that would make a row one of a known shape; nothing where no names are near."""
    if kind in ("sft", "prompt") and (found := into_alpaca(row, kind)):
        return ", ".join(f"{key}: {field}" for key, field in found.items())
    for shape in SHAPES[kind]:
        names = {
            field: next((key for key in row if key in (field, *SYNONYMS.get(field, ()))), None)
            for field in shape
        }
        if None not in names.values() and len(set(names.values())) == len(names):
            return ", ".join(f"{key}: {field}" for field, key in names.items() if key != field)
    return ""


def _form(row: Row, shape: tuple[str, ...]) -> tuple[str, ...]:
    """What must be the same in all rows: the fields, and whether they hold text or messages."""
    fields = (
        ("prompt", *shape) if shape == ("chosen", "rejected") and row.get("prompt") is not None else shape
    )
    return tuple(f"`{field}` as {'text' if isinstance(row[field], str) else 'messages'}" for field in fields)


def form_told(form: tuple[str, ...]) -> str:
    """A form in words."""
    return " and ".join(form)


def _check_sft(row: Row, shape: tuple[str, ...]) -> list[str]:
    if truth(row.get("label")) is False and (
        shape == ("prompt", "completion") or str(row["label"]).strip().lower() == "false"
    ):
        return [
            f"`label` is {_label(row['label'])}, and sft learns every answer, this one too; lora-update reads such rows as "
            "feedback (if it means something else, say `columns: {label: unused}`)"
        ]
    if shape == ("messages",):
        return _conversation("messages", row["messages"])
    if shape == ("text",):
        return text_faults("text", row["text"])
    faults = _prompt(row["prompt"]) + _answer("completion", row["completion"])
    return faults or _same_form("prompt", row["prompt"], "completion", row["completion"])


def _label(label: Any) -> str:
    return kind_of(label) if isinstance(label, bool) else briefly(label)


def _check_preference(row: Row, shape: tuple[str, ...]) -> list[str]:
    faults = _prompt(row["prompt"]) if row.get("prompt") is not None else []
    for side in shape:
        whole = row.get("prompt") is None and not isinstance(row[side], str)
        faults += _conversation(side, row[side]) if whole else _answer(side, row[side])
    first = "prompt" if row.get("prompt") is not None else "chosen"
    if not faults:
        faults += _same_form(first, row[first], "rejected", row["rejected"])
        faults += _same_form(first, row[first], "chosen", row["chosen"])
    if not faults and _bare(row["chosen"]) == _bare(row["rejected"]):
        told = "are the same" if row["chosen"] == row["rejected"] else "differ in spaces at their ends alone"
        faults.append(f"`chosen` and `rejected` {told}; a comparison needs two answers")
    if not faults and row.get("prompt") is None and not isinstance(row["chosen"], str):
        faults += _same_question(row["chosen"], row["rejected"])
    margin = row.get("margin")
    if margin is not None and not (_number(margin) and 0 <= margin <= MOST_MARGIN):
        faults.append(f"`margin` is {briefly(margin)}; wanted a number from 0 to {MOST_MARGIN}")
    return faults


def _bare(answer: Any) -> Any:
    """An answer without the spaces at its ends; a conversation by its last one."""
    return answer.strip() if isinstance(answer, str) else (spoken(answer[:-1]), answer[-1]["content"].strip())


def _same_question(chosen: list[Row], rejected: list[Row]) -> list[str]:
    """Two conversations are alike up to their last answers, or their comparison says nothing of these."""
    asked = [spoken(side[:-1]) for side in (chosen, rejected)]
    if asked[0] == asked[1]:
        return []
    pairs = enumerate(itertools.zip_longest(*asked))
    first = next(i for i, (one, other) in pairs if one != other)
    return [
        f"`chosen` and `rejected` answer different conversations: they differ at [{first}]; wanted one question and two answers"
    ]


def _check_prompt(row: Row, shape: tuple[str, ...]) -> list[str]:
    return _prompt(row["prompt"])


def _check_feedback(row: Row, shape: tuple[str, ...]) -> list[str]:
    prompt = row.get("prompt") if row.get("prompt") is not None else row.get("messages")
    if row.get("prompt") is not None and row.get("messages") is not None:
        return ["has both `prompt` and `messages`; wanted one of them"]
    faults = ["wanted `prompt` or `messages`"] if prompt is None else _prompt(prompt)
    faults += text_faults("response", row["response"])
    given = [field for field in ("rating", "better", "preferred") if row.get(field) is not None]
    if len(given) != 1:
        told = " and ".join(f"`{field}`" for field in given) or "none of them"
        return [*faults, f"wanted exactly one of `rating`, `better`, `preferred`; found {told}"]
    return faults + _judgement(row, given[0])


def _judgement(row: Row, field: str) -> list[str]:
    value = row[field]
    if field == "rating":
        good = _number(value) and -1 <= value <= 1
        return [] if good else [f"`rating` is {briefly(value)}; wanted a number from -1 to 1"]
    if field == "better":
        faults = text_faults("better", value)
        return faults or (["`better` is the same as `response`"] if value == row["response"] else [])
    if value not in ("response", "other", "tie"):
        return [f"`preferred` is {briefly(value)}; wanted `response`, `other` or `tie`"]
    faults = text_faults("other", row.get("other"))
    return faults or (["`other` is the same as `response`"] if row["other"] == row["response"] else [])


def _prompt(value: Any) -> list[str]:
    if isinstance(value, str):
        return text_faults("prompt", value)
    return _messages("prompt", value, ends_with="user")


def _answer(field: str, value: Any) -> list[str]:
    """An answer is text or exactly one assistant message."""
    if isinstance(value, str):
        return text_faults(field, value)
    faults = _messages(field, value, ends_with="assistant")
    return faults or ([f"`{field}` has {len(value)} messages; wanted one answer"] if len(value) != 1 else [])


def _same_form(first: str, one: Any, second: str, other: Any) -> list[str]:
    same = isinstance(one, str) == isinstance(other, str)
    return [] if same else [f"`{first}` and `{second}` must both be text or both be messages"]


def text_faults(field: str, value: Any) -> list[str]:
    """What is wrong with a text, in words under its own name; nothing where it is sound."""
    if value is None:
        return [f"`{field}` has no value; wanted text"]
    if not isinstance(value, str):
        return [f"`{field}` is {kind_of(value)}; wanted text"]
    if HALF_CHARACTER.search(value):  # no tokenizer and no file takes it
        return [f"`{field}` holds half a character (a lone surrogate)"]
    if "\x00" in value:
        return [f"`{field}` holds a NUL byte"]
    if len(value) > LONGEST_CHARACTERS:
        return [f"`{field}` has {len(value):,} characters; no model reads more than {LONGEST_CHARACTERS:,}"]
    return [] if value.strip() else [f"`{field}` is empty"]


def _messages(field: str, value: Any, *, ends_with: str) -> list[str]:
    if not isinstance(value, list) or not value:
        told = "empty" if isinstance(value, list) else kind_of(value)
        wanted = "a list of messages" if field == "messages" else "text or a list of messages"
        return [f"`{field}` is {told}; wanted {wanted}"]
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return [f"`{field}[{i}]` is {briefly(message)}; wanted `role` and `content`"]
        if message["role"] not in ROLES:
            return [f"`{field}[{i}].role` is {briefly(message['role'])}; wanted one of {', '.join(ROLES)}"]
        if faults := text_faults(f"{field}[{i}].content", message["content"]):
            return faults
    return _order(field, [message["role"] for message in value], ends_with)


def _conversation(field: str, value: Any) -> list[str]:
    """Messages that are learned from: none of their answers stands before a question."""
    if faults := _messages(field, value, ends_with="assistant"):
        return faults
    roles = [message["role"] for message in value]
    if "user" in roles[: roles.index("assistant")]:
        return []
    return [f"`{field}[{roles.index('assistant')}]` is an answer without a user message before it"]


def _order(field: str, roles: list[str], ends_with: str) -> list[str]:
    for i, (before, role) in enumerate(zip(("start", *roles), roles, strict=False)):
        if role == "tool" and before not in ("assistant", "tool"):
            return [f"`{field}[{i}]` is a tool message with no assistant message before it"]
    if "system" in roles[1:]:
        return [f"`{field}` has a system message after the first place"]
    for i, (first, second) in enumerate(zip(roles, roles[1:], strict=False)):
        if first == second and first != "tool":
            return [f"`{field}[{i + 1}]` is a second {first} message in a row"]
    if ends_with == "assistant" and "assistant" not in roles:
        return [f"`{field}` has no assistant turn; there is nothing to learn from"]
    if roles[-1] != ends_with:
        return [f"`{field}` ends with {roles[-1]}; wanted {ends_with} last"]
    return []


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


_CHECKS = {
    "sft": _check_sft,
    "preference": _check_preference,
    "prompt": _check_prompt,
    "feedback": _check_feedback,
}

"""What was said, as other tools write it, as our messages: OpenAI's with parts and developers, ShareGPT's turns. Pure."""

from __future__ import annotations

from typing import Any

from instructkit.data.checks import text_faults
from instructkit.data.records import Row, briefly, detect_shape, kind_of

_OUR_TALKS = ("messages", "prompt", "completion", "chosen", "rejected")
_MEANT = ("role", "content", "weight")  # fields of a message that mean something to us
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_TALKS = {  # fields that may hold messages
    "sft": ("messages", "conversations", "prompt", "completion"),
    "preference": (
        "prompt",
        "conversations",
        "chosen",
        "rejected",
        "preferred_output",
        "non_preferred_output",
        "input",
    ),
    "prompt": ("messages", "conversations", "prompt"),
    "feedback": ("messages", "prompt", "completion"),
}
_ANSWERED = {"sft": ("completion",), "preference": ("chosen", "rejected")}


def has_messages(row: Row, kind: str) -> bool:
    """Return whether the prompt or the answer of a row is a list of messages."""
    fields = _OUR_TALKS if kind == "sft" else ("prompt", "messages", *_ANSWERED.get(kind, ()))
    return any(isinstance(row.get(field), list) for field in fields)


def as_conversation(row: Row, kind: str) -> Row:
    """
    Return a checked row with its prompt as a user's message and its answers as the assistant's.

    The same row is returned where there is no text to convert: messages, whole texts, comparisons without a prompt. Of feedback
    the prompt alone is converted, because its answers are texts under every prompt.
    """
    shape = detect_shape(row, kind)
    if not isinstance(row.get("prompt"), str) or (kind == "sft" and shape != ("prompt", "completion")):
        return row
    answers = {field: [{"role": "assistant", "content": row[field]}] for field in _ANSWERED.get(kind, ())}
    return {**row, "prompt": [{"role": "user", "content": row["prompt"]}], **answers}


def with_plain_messages(row: Row, kind: str) -> Row:
    """
    The row with texts as its messages' contents; the same row where nothing has to change.

    Raises:
        ValueError: in words, for tool calls, for parts that are no text, and for answers that are not to be learned.
    """
    changed = {}
    for field in _TALKS[kind]:
        talk, within = row.get(field), field
        if field == "input" and isinstance(talk, dict):
            talk, within = talk.get("messages"), "input.messages"
        if isinstance(talk, list):
            learned = kind == "sft" and field != "prompt"
            plain = [_message(f"{within}[{i}]", turn, learned) for i, turn in enumerate(talk)]
            if any(new is not old for new, old in zip(plain, talk, strict=True)):
                changed[field] = plain if within == field else {**row[field], "messages": plain}
    return {**row, **changed} if changed else row


def _message(place: str, message: Any, learned: bool) -> Any:
    """One of OpenAI's messages as ours; whatever else it is, is checked later."""
    if not isinstance(message, dict):
        return message
    if message.get("tool_calls") or message.get("function_call"):
        raise ValueError(f"`{place}` holds tool calls, which are not supported; wanted text")
    role, weight = message.get("role", message.get("from")), message.get("weight")
    spoken = isinstance(role, str) and _ROLES.get(role) == "assistant"
    if learned and spoken and weight is not None and weight != 1:
        raise ValueError(
            f"`{place}.weight` is {briefly(weight)}, and every answer of a conversation is learned alike; leave the row out, "
            "or give it as `prompt` and `completion`, of which the completion alone is learned"
        )
    found = {**message, "role": "system"} if role == "developer" and "role" in message else message
    if isinstance(parts := message.get("content"), list) and parts:
        found = {**found, "content": _joined(f"{place}.content", parts)}
    return found


def _joined(place: str, parts: list[Any]) -> str:
    """The texts of a message that is given in parts."""
    for i, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            told = part.get("type") if isinstance(part, dict) and "type" in part else part
            raise ValueError(f"`{place}[{i}]` is {briefly(told)}; of a message's parts only texts are read")
    return "".join(part["text"] for part in parts)


def said(role: str, field: str, text: Any) -> dict[str, Any]:
    """
    One message, of a text that stands in a field of its own.

    Raises:
        ValueError: in words, with the field's own name, when it is no text or an empty one.
    """
    if faults := text_faults(field, text):
        raise ValueError(faults[0])
    return {"role": role, "content": text}


def under_system(messages: list[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    """
    A conversation below the text of a `system` column.

    Raises:
        ValueError: when that is no text, or the conversation has another one of its own.
    """
    if system is None or system == "":
        return messages
    own = messages[0]["content"] if messages[0]["role"] == "system" else None
    if own is None:
        return [said("system", "system", system), *messages]
    if own != system:
        raise ValueError(
            f"`system` is {briefly(system)}, and the conversation begins with a system message of its own, {briefly(own)}; "
            "leave one of them out, or say `columns: {system: unused}`"
        )
    return messages


def fields_beside(row: Row) -> set[str]:
    """Of a row's messages, the fields that hold something and are neither role nor content."""
    talks = [row[field] for field in _OUR_TALKS if isinstance(row.get(field), list)]
    return {
        key
        for talk in talks
        for turn in talk
        if isinstance(turn, dict)
        for key, value in turn.items()
        if key not in _MEANT and value is not None and value not in ("", [], {})
    }


def turns_of(field: str, turns: Any) -> list[dict[str, Any]]:
    """
    ShareGPT's turns as messages.

    Raises:
        ValueError: in words, when they are no list of turns.
    """
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"`{field}` is {'empty' if turns == [] else kind_of(turns)}; wanted a list of turns")
    return [turn_of(f"{field}[{i}]", turn) for i, turn in enumerate(turns)]


def turn_of(field: str, turn: Any) -> dict[str, Any]:
    """
    One turn as a message; some files mix `from, value` with `role, content`.

    Raises:
        ValueError: in words, when it has no known speaker, or no text.
    """
    if not isinstance(turn, dict):
        raise ValueError(f"`{field}` is {kind_of(turn)}; wanted `from` and `value`")
    names = ("from", "value") if "from" in turn else ("role", "content")
    if not set(names) <= set(turn):
        raise ValueError(
            f"`{field}` has {', '.join(f'`{key}`' for key in turn) or 'nothing'}; wanted `from` and `value`"
        )
    speaker = turn[names[0]]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise ValueError(f"`{field}.{names[0]}` is {briefly(speaker)}; wanted one of {', '.join(_ROLES)}")
    beside = {key: value for key, value in turn.items() if key not in names}
    return {**beside, **said(_ROLES[speaker], f"{field}.{names[1]}", turn[names[1]])}

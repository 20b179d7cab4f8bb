"""What a row says beside its judgement, wherever its format keeps it: consent, group, tags and time. Pure."""

from __future__ import annotations

import json
from typing import Any

from instructkit.data.records import Row

BESIDE = ("consent", "group", "tags", "time")


def beside(*rows: Row) -> Row:
    """
    Consent, group, tags and time, each as the first row says it, in itself or else, but for the time, in its `metadata`.

    `metadata` is anybody's: a time in it may be how long something took, and what is no group and no list of tags is another
    thing of that name. A consent there that cannot be read makes the row a fault all the same. Tags are those of all rows. Of
    consent a refusal holds wherever it stands: who said no in one place was not asked again in the other.

    Args:
        rows: the nearest to the judgement first: a score, then the trace that it is about.
    """
    places = [place for row in rows for place in (row, _metadata(row))]
    said = {
        name: [_plain(name, place[name]) for place in places if place.get(name) not in (None, "")]
        for name in BESIDE
    }
    told = {name: values[0] for name, values in said.items() if values}
    if said["consent"]:
        told["consent"] = next((value for value in said["consent"] if value is not True), True)
    if said["tags"]:
        told["tags"] = _all_tags(said["tags"])
    return told


def _metadata(row: Row) -> Row:
    """What the `metadata` of an export says that we know of; some write it as a text of JSON."""
    told = row.get("metadata")
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except ValueError:
            return {}
    told = told if isinstance(told, dict) else {}
    kinds = {"consent": object, "group": str, "tags": str | list}
    known = [name for name, kind in kinds.items() if name in told and isinstance(told[name], kind)]
    return {name: told[name] for name in known if _named(told[name])}


def _named(value: Any) -> bool:
    return not isinstance(value, list) or all(isinstance(part, str) for part in value)


def _plain(name: str, value: Any) -> Any:
    """Tags and consent as a table's cells tell them."""
    if name == "tags" and isinstance(value, str):
        return [tag.strip() for tag in value.split(",") if tag.strip()]
    if (
        name == "consent"
        and isinstance(value, str)
        and value.strip().lower() in ("true", "false", "yes", "no")
    ):
        return value.strip().lower() in ("true", "yes")
    return value


def _all_tags(told: list[Any]) -> Any:
    """Every tag once; of places one of which holds no list that one, so that the row is refused for it."""
    wrong = [tags for tags in told if not isinstance(tags, list)]
    if wrong:
        return wrong[0]
    tags = [tag for place in told for tag in place]
    return [tag for i, tag in enumerate(tags) if tag not in tags[:i]]

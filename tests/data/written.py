"""Rows written to a file and read again: what several test files here need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instructkit.data.sources import Rows, load_rows


def write(name: str, *rows: dict) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def load(*rows: dict, kind: str = "sft", **options: Any) -> Rows:
    return load_rows(write("rows.jsonl", *rows), kind=kind, **options)


def says(*turns: tuple[str, Any]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


PAIR = {"prompt": "q", "completion": "a"}
TALK = says(("user", "Hi"), ("assistant", "Hello."))

"""Whatever stands in a data file is rows or ends in faults with places: never in a traceback, never in a hang."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructkit.data.sources import load_rows
from instructkit.errors import InputError

patient = settings(deadline=timedelta(seconds=5), suppress_health_check=[HealthCheck.too_slow])
KINDS = ("sft", "preference", "prompt", "feedback")
FIELDS = (
    *(
        "messages",
        "prompt",
        "completion",
        "text",
        "chosen",
        "rejected",
        "response",
        "rating",
        "better",
        "preferred",
    ),
    *("other", "conversations", "instruction", "input", "output", "history", "system", "label", "margin"),
    *(
        "preferred_output",
        "non_preferred_output",
        "chosen_rating",
        "rejected_rating",
        "role",
        "content",
        "from",
        "value",
    ),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["user", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=10,
)
rows = st.lists(st.dictionaries(st.sampled_from(FIELDS), values, max_size=5) | values, max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("any")


def rows_or_told(path: Path, kind: str, skip: bool) -> None:
    try:
        found = load_rows(str(path), kind=kind, skip_faults=skip)
    except InputError as error:
        assert error.message and error.hint
    else:
        assert found.rows and len(found.rows) == len(found.places)
        found.summary()
        [row.as_dict() for row in found.skipped]


@patient
@given(
    content=st.binary(max_size=200),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"]),
)
def test_any_bytes(folder: Path, content: bytes, suffix: str) -> None:
    path = folder / f"bytes{suffix}"
    path.write_bytes(content)
    rows_or_told(path, "sft", skip=False)


@patient
@given(found=rows, kind=st.sampled_from(KINDS), skip=st.booleans())
def test_any_rows(folder: Path, found: list, kind: str, skip: bool) -> None:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    rows_or_told(path, kind, skip)

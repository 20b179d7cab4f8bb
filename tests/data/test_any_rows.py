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


def shaped(odd: st.SearchStrategy) -> st.SearchStrategy:
    """Rows of other tools with something else than what belongs there, in any one place of them or in several."""
    text = st.just("a") | odd
    turn = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]) | odd, "value": text}) | odd
    message = (
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]) | odd, "content": text}) | odd
    )
    turns, messages = (
        st.lists(turn, min_size=1, max_size=3) | odd,
        st.lists(message, min_size=1, max_size=3) | odd,
    )
    pairs = st.lists(st.lists(text, min_size=1, max_size=3) | odd, max_size=2) | odd
    numbers = st.integers(-(10**420), 10**420) | odd
    sharegpt = st.fixed_dictionaries(
        {"conversations": turns}, optional={"system": text, "chosen": turn, "rejected": turn}
    )
    alpaca = st.fixed_dictionaries(
        {"instruction": text, "output": text},
        optional={"input": text, "system": text, "history": pairs, "chosen": text, "rejected": text},
    )
    openai = st.fixed_dictionaries(
        {"input": st.fixed_dictionaries({"messages": messages}) | odd, "preferred_output": messages},
        optional={"non_preferred_output": messages},
    )
    rated = st.fixed_dictionaries(
        {"prompt": messages, "chosen": messages, "rejected": messages},
        optional={"chosen_rating": numbers, "rejected_rating": numbers, "margin": numbers},
    )
    labelled = st.fixed_dictionaries({"prompt": text, "completion": messages, "label": st.booleans() | odd})
    spoken = st.fixed_dictionaries({"messages": messages}, optional={"response": text, "rating": numbers})
    return sharegpt | alpaca | openai | rated | labelled | spoken


odd_things = st.integers(-(10**420), 10**420) | st.sampled_from(
    [None, True, 1.5, float("nan"), "", [], {}, ["x"], {"a": []}]
)


@patient
@given(
    found=st.lists(shaped(odd_things), min_size=1, max_size=3),
    kind=st.sampled_from(KINDS),
    skip=st.booleans(),
)
def test_other_tools_rows_with_odd_things_in_any_place(
    folder: Path, found: list, kind: str, skip: bool
) -> None:
    path = folder / "shaped.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    rows_or_told(path, kind, skip)


@patient
@given(found=rows, kind=st.sampled_from(KINDS), skip=st.booleans())
def test_any_rows(folder: Path, found: list, kind: str, skip: bool) -> None:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    rows_or_told(path, kind, skip)

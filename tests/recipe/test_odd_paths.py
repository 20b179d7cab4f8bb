"""What is no readable file is told as what it is, and never waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from instructkit.data.sources import load_rows
from instructkit.errors import InputError
from instructkit.recipe import rules
from instructkit.recipe.load import MOST_FAULTS, check_recipe

GOOD = "stage: sft\nmodel: {name: tiny}\ndata: {train: my.jsonl}\nrun: {output: o}\n"


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    Path("gone.yaml").symlink_to("nowhere.yaml")
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("folder.yaml").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pipe.yaml", "is a named pipe"),
        ("gone.yaml", "is a link to nowhere.yaml, which is not there"),
        ("loop.yaml", "is a link that leads in a circle"),
        ("folder.yaml", "is a folder"),
        ("/dev/null", "is a device"),
        ("a" * 5000, "is a name of 5000 characters, which no file can have"),
        ("", "no recipe is named"),
    ],
)
def test_a_thing_that_is_no_recipe(odd: Path, name: str, told: str) -> None:
    (fault,) = check_recipe(name).faults
    assert fault.message == told
    assert len(fault.where) < 60


@pytest.mark.parametrize(
    ("name", "told"),
    [("pipe.yaml", "a named pipe"), ("gone.yaml", "a link to nowhere.yaml"), ("loop.yaml", "a circle")],
)
def test_a_thing_that_is_no_data(odd: Path, name: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        load_rows(name, kind="sft")
    assert told in caught.value.hint


def test_many_faults_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_text(GOOD + "".join(f"x{i}: 1\n" for i in range(250)), encoding="utf-8")
    faults = check_recipe(str(path)).faults
    assert len(faults) == MOST_FAULTS + 1
    assert faults[-1].message == "and 150 more faults, 250 in all"


def test_the_command_line_is_blamed_for_what_it_set(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD, encoding="utf-8")
    for override, told in {
        "data.train.0=foo": "`data.train` is no list, and has no entry 0",
        "critic.kind=head": "unknown key `critic`",
    }.items():
        (fault,) = check_recipe(str(path), overrides=[override]).faults
        assert (fault.where, fault.message) == (f"command line: {override}", told)


def test_a_variable_may_be_empty_only_with_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTHING", "")
    path = tmp_path / "r.yaml"
    path.write_text(GOOD.replace("output: o", "output: 'o${NOTHING:-1}$${X}'"), encoding="utf-8")
    assert check_recipe(str(path)).recipe.run.output == "o1${X}"
    path.write_text(GOOD.replace("output: o", "output: '${NOTHING}'"), encoding="utf-8")
    assert [fault.message for fault in check_recipe(str(path)).faults] == [
        "`run.output` needs `$NOTHING`, which is empty"
    ]


def test_extends_finds_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "r.yaml"
    path.write_text("extends: ~/base.yaml\n", encoding="utf-8")
    assert check_recipe(str(path)).recipe.run.output == "o"


def test_the_fields_that_columns_may_make_are_those_that_data_reads() -> None:
    from instructkit.data.rows import SHAPES

    for stage, kind in (("sft", "sft"), ("reward", "preference")):
        assert {field for shape in SHAPES[kind] for field in shape} <= set(rules.FIELDS[stage])

"""Where another TRL is installed than the shipped fields were made for, they are derived from it, and that is said."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest

from instructkit.recipe import trainer


@pytest.fixture
def another(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("INSTRUCTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trainer, "installed", lambda: {"trl": "9.9", "transformers": "8.8"})
    trainer.schema.cache_clear()
    yield tmp_path / "cache" / "fields-9.9-8.8.json"
    trainer.schema.cache_clear()


def runs(monkeypatch: pytest.MonkeyPatch, answer) -> list[list[str]]:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        trainer.subprocess, "run", lambda command, **_: asked.append(command) or answer(command)
    )
    return asked


def test_the_fields_are_derived_once_and_kept(another, caplog) -> None:
    """By the real generator, in a process of its own."""
    shipped = json.loads(trainer.FILE.read_text(encoding="utf-8"))
    shipped.pop("made_for")
    with caplog.at_level(logging.WARNING):
        assert trainer.schema() == shipped  # it is the same TRL after all
    assert "other versions are installed than the recipe schema was made for" in caplog.text
    assert "trl 9.9 (made for 1.16" in caplog.text
    assert another.is_file()


def test_kept_fields_are_used(another, monkeypatch, caplog) -> None:
    another.parent.mkdir()
    another.write_text(json.dumps({"sft": {"new_field": {}}, "made_for": {}}), encoding="utf-8")
    asked = runs(monkeypatch, lambda command: pytest.fail("derived again"))
    assert trainer.fields("sft") == {"new_field": {}}
    assert not asked and not caplog.text


def test_a_damaged_cache_is_made_anew_and_one_that_cannot_be_written_is_done_without(
    another, monkeypatch
) -> None:
    another.parent.write_text("a file where the folder should be", encoding="utf-8")

    def made(command):
        with open(command[-1], "w", encoding="utf-8") as stream:  # noqa: PTH123
            json.dump({"sft": {"derived": {}}, "made_for": {}}, stream)
        return SimpleNamespace(returncode=0)

    runs(monkeypatch, made)
    assert trainer.fields("sft") == {"derived": {}}
    another.parent.unlink()
    another.parent.mkdir()
    another.write_text("{half", encoding="utf-8")
    trainer.schema.cache_clear()
    assert trainer.fields("sft") == {"derived": {}}
    assert json.loads(another.read_text(encoding="utf-8"))["sft"] == {"derived": {}}


def test_where_deriving_fails_the_shipped_fields_serve(another, monkeypatch, caplog) -> None:
    runs(monkeypatch, lambda command: SimpleNamespace(returncode=1, stderr="no such config"))
    assert "packing" in trainer.fields("sft")
    assert "the shipped schema is used: no such config" in caplog.text
    assert not another.exists()

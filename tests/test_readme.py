"""What the README says can be typed can be typed: each command, make target and path, with counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = sorted(
    set(
        re.findall(
            r"(?:^(?:\$ )?|`)instructkit ([a-z-]+(?: (?:show|summary|look|import|stats|export|withdraw|check|list))?)",
            README,
            re.MULTILINE,
        )
    )
)
TARGETS = sorted(set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", README, re.MULTILINE)))


def test_the_search_finds_what_it_should() -> None:
    runs = ["runs", "runs show", "runs summary"]
    assert [
        "chat",
        "check",
        "data look",
        "explain",
        "feedback check",
        "feedback export",
        "feedback import",
        "feedback list",
        "feedback stats",
        "feedback withdraw",
        "init",
        "lora-update",
        "ppo",
        "reward",
        *runs,
        "schema",
        "sft",
    ] == COMMANDS
    assert len(TARGETS) == 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists_and_its_help_has_an_example(command: str) -> None:
    from typer.testing import CliRunner

    from instructkit.cli.main import app

    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert f"instructkit {command}" in result.output


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{re.escape(target)}:.*## ", MAKEFILE, re.MULTILINE)


def test_every_target_of_the_makefile_is_phony_and_in_the_help() -> None:
    """A file that happens to be called `test` or `bench` must not stop a target."""
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split())
    helped = set(re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE))
    asked = "setup test train-all sft reward ppo lora-update smollm2 lint proofs bench clean help"
    assert phony == helped >= set(asked.split())


def test_recipes_named_in_readme_and_makefile_exist() -> None:
    named = set(re.findall(r"recipes/[a-z0-9/-]+\.(?:yaml|py)", README + MAKEFILE))
    assert len(named) >= 6
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


def test_files_named_in_the_documentation_exist() -> None:
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]
    written = "\n".join(page.read_text(encoding="utf-8") for page in pages if page.parent.name != "reference")
    named = set(re.findall(r"`((?:instructkit|tests|recipes|benchmarks|docs)/[a-z0-9_/.-]*)`", written))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert len(named) >= 4
    assert missing == []


def test_recipes_in_the_readme_are_the_ones_that_ship() -> None:
    shown = re.findall(r"^`(recipes/[^`]+)`, whole:\n\n```yaml\n(.*?)```", README, re.MULTILINE | re.DOTALL)
    assert len(shown) == 1
    for name, text in shown:
        assert text == (ROOT / name).read_text(encoding="utf-8")


def test_torch_is_pinned_once_for_all() -> None:
    """A build tag such as `+cpu` would refuse other machines; a second version would bring a second build."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in constraints if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    assert "torch==2.13.0" in pins
    assert re.findall(r"torch==\S+", MAKEFILE) == ["torch==2.13.0"]


def test_no_output_is_left_to_fill_in() -> None:
    assert "TODO" not in README

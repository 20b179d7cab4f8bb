"""`instructkit runs history | promote | rollback`: what they print, their errors, and their exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from feedback.chain_runs import run_of, update_of
from rich.console import Console

from instructkit.cli.main import main
from instructkit.feedback.promotion import chain as registry
from instructkit.feedback.promotion.chain import Chain
from instructkit.feedback.store.events import Event
from instructkit.feedback.store.store import Store
from instructkit.report.tables import run_table


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "130")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(registry, "now", lambda: "2026-11-02T10:20:30.456Z")
    monkeypatch.setattr(registry.getpass, "getuser", lambda: "ann")


@pytest.fixture
def run(capsys: pytest.CaptureFixture):
    def told(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["runs", *arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return told


@pytest.fixture
def chain() -> Chain:
    """Three updates, the second refused."""
    found = Chain.at("runs", "support")
    for number, (name, verdict) in enumerate(
        (("mon", "PROMOTED"), ("tue", "REFUSED"), ("wed", "PROMOTED")), start=1
    ):
        folder = run_of(Path("runs") / name, name, verdict)
        trained = [f"E{number}", f"F{number}"]
        found.record(update_of(folder, trained=trained, continues=number - 1 or None, scale=1 / number))
    return found


GOLDEN = """\
support: update 3 is in force
                                                                                                                   \n\
 no  time (UTC)        run       verdict   gates failed   scale  events  used  look  state                         \n\
 ───────────────────────────────────────────────────────────────────────────────────────────────                   \n\
  1  2026-11-02 10:20  runs/mon  PROMOTED  -                  1       5     2     1  promoted                      \n\
  2  2026-11-02 10:20  runs/tue  REFUSED   general kept     0.5       5     2     2  rolled back, forced           \n\
  3  2026-11-02 10:20  runs/wed  PROMOTED  -             0.3333       5     2     3  current                       \n\
                                                                                                                   \n\
update 2 was forced by ann on 2026-11-02 10:20: [urgent] for a customer
update 2 was rolled back by ann on 2026-11-02 10:20: answers too short
"""


def plain(text: str) -> list[str]:
    return [line.rstrip().replace("─", "") for line in text.splitlines()]


def test_a_history(run, chain: Chain) -> None:
    assert run("promote", "support", "1") == (
        0,
        "support: update 1 is in force, in runs/chains/support/001\n",
        "",
    )
    code, out, err = run("promote", "support", "2")
    assert (code, out) == (3, "")
    assert err == (
        "error: update 2 is REFUSED: general kept: 1.2, at most 1.01\n"
        "hint: `--force --why TEXT` promotes it all the same; who did and why is kept for ever\n"
    )
    code, _, err = run("promote", "support", "2", "--force")
    assert code == 2 and "needs a reason" in err and "--why TEXT" in err
    assert run("promote", "support", "2", "--force", "--why", "[urgent] for a customer")[0] == 0
    assert run("rollback", "support", "--why", "answers too short") == (
        0,
        "support: update 1 is in force\n",
        "",
    )
    assert run("promote", "support", "3")[0] == 0
    code, out, err = run("history", "support")
    assert (code, err) == (0, "")
    assert plain(out) == plain(GOLDEN)
    assert run("history")[1] == out
    assert (
        run("rollback", "support", "--to", "0", "--why", "w")[1] == "support: the parent itself is in force\n"
    )
    assert run("history", "support")[1].startswith("support: nothing is promoted\n")


@pytest.mark.parametrize("root", ["runs", "other runs"])
def test_the_command_that_a_finished_update_prints_rolls_it_back(root: str, run) -> None:
    folder = run_of(Path(root) / "mon", "mon")
    chain = Chain.at(root, "support")
    chain.record(update_of(folder))
    chain.promote(1)
    recipe = {"run": {"output": str(folder)}, "feedback": {"chain": "support"}}
    record = {
        "name": "mon",
        "stage": "lora-update",
        "status": "done",
        "verdict": "PROMOTED",
        "recipe": recipe,
    }
    text = io.StringIO()
    Console(file=text, width=500).print(run_table(record))
    commands = re.findall(r"`(instructkit runs .*?)`", text.getvalue())
    assert len(commands) == 1
    code, out, err = run(*shlex.split(commands[0])[2:])
    assert (code, out, err) == (0, "support: the parent itself is in force\n", "")


def test_a_reason_to_promote_again_is_told_and_no_line_is_broken_in_a_pipe(
    run, chain: Chain, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run("promote", "support", "1")
    run("rollback", "support", "--why", "too short")
    run("promote", "support", "1", "--why", "it was the prompt")
    lines = run("history", "support")[1].splitlines()
    assert [line.partition(": ")[::2] for line in lines if line.startswith("update 1 was promoted")] == [
        ("update 1 was promoted by ann on 2026-11-02 10:20", "it was the prompt")
    ]
    assert len([line for line in lines if "2026-11-02 10:20  runs/" in line]) == 3


def test_a_history_as_data(run, chain: Chain) -> None:
    chain.promote(1)
    found = json.loads(run("history", "support", "--json")[1])
    assert (found["chain"], found["current"], found["folder"], found["notes"]) == (
        "support",
        1,
        "runs/chains/support",
        [],
    )
    assert [update["current"] for update in found["updates"]] == [True, False, False]
    assert found["updates"][1]["gates"][1]["name"] == "general kept"
    assert [move["kind"] for move in found["moves"]] == ["promotion"]
    assert json.loads(run("history", "--json")[1]) == [found]


def test_updates_that_trained_on_what_was_withdrawn_since_are_named(run, chain: Chain) -> None:
    """E1 by itself, E3 and F3 with all that bob said; what ann said stays. Each update goes on from the one before."""
    for number in (1, 3):
        chain.promote(number)
    said = {"time": "2026-11-01T00:00:00.000Z", "source": "api", "prompt": "q", "judgement": {"rating": 1}}
    with Store.open("feedback.db", create=True) as store:
        raters = {"E1": "ann", "F1": "ann", "E2": "ann", "E3": "bob", "F3": "bob", "G": "bob"}
        rows = [(Event(id=id_, rater=rater, response=id_, **said), {}) for id_, rater in raters.items()]
        assert list(store.add(rows)) == [(6, 0)]
        assert list(store.withdrawn_ids()) == []
        store.withdraw(event="E1")
        store.withdraw(rater="bob")
        assert list(store.withdrawn_ids()) == ["E1", "E3", "F3", "G"]
    lines = run("history", "support", "--store", "feedback.db")[1].splitlines()
    assert [line for line in lines if line.startswith("update")] == [
        "update 1 has learned from 1 events that are withdrawn since; it is part of what is in force",
        "update 2 has learned from 1 events that are withdrawn since; it is part of what is in force",
        "update 3 has learned from 3 events that are withdrawn since; it is part of what is in force",
    ]
    chain.rollback(why="w")
    said = run("history", "support", "--store", "feedback.db")[1]
    assert "update 3 has learned from 3 events that are withdrawn since\n" in said
    data = json.loads(run("history", "support", "--store", "feedback.db", "--json")[1])
    assert [update["trained_on_withdrawn"] for update in data["updates"]] == [1, 1, 3]


def test_what_is_not_as_it_should_be_is_told(run, chain: Chain) -> None:
    chain.promote(1)
    with (chain.folder / "updates.jsonl").open("ab") as file:
        file.write(b'{"format": 1, "ki')
    (chain.folder / "current").unlink()
    (chain.folder / "current").symlink_to("003")
    code, out, _ = run("history", "support")
    assert code == 0
    assert "the last line of the history is torn and left out" in out
    assert "runs/chains/support/current points to 003, and the history says 001" in out
    (chain.folder / "current").unlink()
    assert "the last move was cut short before `current` moved" in run("history", "support")[1]


@pytest.mark.parametrize(
    ("arguments", "told", "hint"),
    [
        (("history", "nothing"), "no chain is called nothing", "there are support"),
        (("history", "../x"), "'../x' cannot be the name of a chain", "use letters"),
        (
            ("history", "support", "--root", "x"),
            "no chain is called support",
            "there is none below x; --root says",
        ),
        (("history", "support", "--store", "x.db"), "no feedback store at x.db", ""),
        (("promote", "support", "9"), "the chain support has no update 9", "its updates are 1 to 3"),
        (("promote", "support", "x"), "", ""),
        (("promote", "nothing", "1"), "no chain is called nothing", "there are support"),
        (
            ("rollback", "support", "--why", "w"),
            "has nothing to roll back",
            "`instructkit runs history support`",
        ),
        (("rollback", "support"), "Missing option", ""),
    ],
)
def test_bad_input(run, chain: Chain, arguments: tuple[str, ...], told: str, hint: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert told in err and f"hint: {hint}" in err
    assert not Path("runs/chains/nothing").exists()


def test_no_chains_yet(run) -> None:
    assert run("history") == (0, "", "no chains below runs; `instructkit lora-update RECIPE` begins one\n")
    assert json.loads(run("history", "--json")[1]) == []


@pytest.mark.parametrize("command", ["history", "promote", "rollback"])
def test_help_has_an_example(run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0 and f"instructkit runs {command} support" in out

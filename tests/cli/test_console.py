"""Progress of work outside training steps: a line now and then in plain logs, a count on a terminal."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from instructkit.cli import console as consoles
from instructkit.cli.console import Console
from instructkit.runs.progress import counted, each, listening


def test_the_outermost_loop_is_counted_and_loops_inside_it_are_not() -> None:
    heard = []
    with listening(lambda done, total: heard.append((done, total))):
        for part in counted([[1, 2], [3]], 3):
            for _ in each(part):
                pass
        list(each("ab"))
    list(each("ab"))  # nobody listens any more
    assert heard == [(2, 3), (3, 3), (1, 2), (2, 2)]


def test_a_loop_that_fails_leaves_the_listener_to_the_next_one() -> None:
    heard = []
    with listening(lambda *found: heard.append(found)):
        with pytest.raises(ZeroDivisionError):
            for _ in each("ab"):
                _ = 1 / 0
        list(each("a"))
    assert heard == [(1, 1)]


class Clock:
    """Time that passes when the test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture()
def clock(monkeypatch) -> Clock:
    """A clock in place of the console's own, whose watching thread is asleep."""
    clock = Clock()
    monkeypatch.setattr(consoles, "time", clock)
    monkeypatch.setattr(consoles, "WATCH_SECONDS", 1e6)
    return clock


def test_long_work_is_reported_again_and_short_work_is_not(capsys, clock: Clock) -> None:
    with Console() as console:
        with console.phase("short"):
            clock.now += 1
            console.break_silence()
        with console.phase("measuring the parent: general prompts"):
            for _ in each(range(2)):
                clock.now += consoles.SILENT_SECONDS
                console.break_silence()
                console.break_silence()  # a moment later
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == [
        "measuring the parent: general prompts",
        "measuring the parent: general prompts 1/2",
    ]


def test_training_steps_that_take_long_are_reported_too(capsys, clock: Clock) -> None:
    with Console() as console:
        console.stage_started("ppo", None)
        console.step(3, 20, {})
        clock.now += consoles.SILENT_SECONDS
        console.break_silence()
        console.finished()
        clock.now += consoles.SILENT_SECONDS
        console.break_silence()  # no activity is left
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ppo 3/20")


def test_a_signal_handler_may_print_while_a_line_is_printed(capsys, monkeypatch) -> None:
    """In the same thread: with a lock that is not reentrant the run would wait for itself for ever."""
    console = Console()
    own, printed = console.rich.print, []

    def interrupted(*args, **kwargs) -> None:
        if not printed:
            printed.append(True)
            console.note("terminated")
        own(*args, **kwargs)

    monkeypatch.setattr(console.rich, "print", interrupted)
    thread = threading.Thread(target=console.note, args=("a line",), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert capsys.readouterr().err.splitlines() == ["terminated", "a line"]


def test_quiet_prints_nothing(capsys) -> None:
    with Console(quiet=True) as console, console.phase("loading", announced=True):
        console.note("a note")
    assert capsys.readouterr().err == ""


def test_the_first_sign_of_life_comes_before_the_first_slow_import(tmp_path) -> None:
    """What is printed first is printed before pydantic, yaml and rich are loaded, which alone take longer than may pass."""
    (tmp_path / "r.yaml").write_text("stage: sft\n", encoding="utf-8")
    code = (
        "import sys\nfrom instructkit.cli import main\n"
        "class Heard:\n"
        "    def write(self, text):\n"
        "        print(text, {'pydantic', 'yaml', 'rich', 'torch'} & set(sys.modules)); sys.exit()\n"
        "    def flush(self): ...\n"
        "sys.stderr = Heard()\nmain.main(['sft', 'r.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "instructkit sft: reading r.yaml set()\n", done.stderr

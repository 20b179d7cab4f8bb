"""The registry of a chain: what is recorded, what is in force, and what a crash or a changed history does to it."""

from __future__ import annotations

import errno
import getpass
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from feedback.chain_runs import RECIPE, run_of, update_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructkit.errors import GateRefused, InputError
from instructkit.feedback.promotion import chain as registry
from instructkit.feedback.promotion.chain import Chain, Standing, Superseded, standing, story
from instructkit.models.source import locate
from instructkit.runs import lineage, pointer

LETTERS = "abcd"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates, made once; the last two were refused."""
    root = tmp_path_factory.mktemp("runs")
    for letter in LETTERS:
        run_of(root / letter, f"weights of {letter}", "REFUSED" if letter in "cd" else "PROMOTED")
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forced to disk here, where nothing loses its power; what would be is counted."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def chain(tmp_path: Path, runs: Path) -> Chain:
    """A chain `support` of the four updates, none of them promoted."""
    shutil.copytree(runs, tmp_path / "runs")
    found = Chain.at(tmp_path / "runs", "support")
    for letter in LETTERS:
        found.record(update_of(found.root / letter))
    return found


def weights(folder: Path) -> str:
    return (folder / "adapter_model.safetensors").read_text(encoding="utf-8")


def kinds(chain: Chain) -> list[str]:
    return [entry["kind"] for entry in chain.entries()]


# What is recorded


def test_an_update_is_recorded_with_all_that_its_run_says(chain: Chain) -> None:
    entry = chain.entries()[2]
    run = chain.root / "c"
    expected = {
        "kind": "update", "number": 3, "run": str(run), "run_hash": lineage.run_hash(run), "parent": "org/parent",
        "parent_hash": "model:org/parent", "verdict": "REFUSED", "fingerprint": "f", "scale": 1.0, "continues": None,
        "newest": "T2", "outcomes": {"train": 2, "test": 2, "ties": 1}, "looks": 3, "by": getpass.getuser(),
    }  # fmt: skip
    assert {name: entry[name] for name in expected} == expected
    assert [gate["verdict"] for gate in entry["gates"]] == ["passed", "failed", "not applicable"]
    assert entry["recipe_hash"] == json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe_hash"]
    assert entry["trained"]["count"] == entry["test"]["count"] == 2
    assert chain.current() is None and chain.since(0) is None and not chain.torn()


def test_numbers_go_on_whatever_became_of_the_updates(chain: Chain) -> None:
    chain.promote(2)
    assert chain.record(update_of(chain.root / "a")) == 5
    assert sorted(chain.updates()) == [1, 2, 3, 4, 5]


def test_an_unfinished_run_is_no_update(tmp_path: Path, runs: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    record = json.loads((tmp_path / "a" / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "a" / "run.json").write_text(json.dumps({**record, "status": "failed"}), encoding="utf-8")
    with pytest.raises(InputError, match="its status is failed"):
        update_of(tmp_path / "a")


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a/b", "a b", "a\n", "ä", "a" * 101, "/etc", "a\0"]
)
def test_names_that_no_chain_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a chain"):
        Chain.at(tmp_path, name)


def test_names_that_a_chain_can_have(tmp_path: Path) -> None:
    for name in ("default", "support-2.1_eu", "7", "_x"):
        assert Chain.at(tmp_path, name).folder == tmp_path / "chains" / name


# Promotion


def test_a_promoted_adapter_is_a_copy_with_the_hash_of_its_run(chain: Chain) -> None:
    copy = chain.promote(1)
    assert copy == chain.current() == chain.folder / "001"
    assert (chain.folder / "current").readlink() == Path("001")
    found = sorted(str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file())
    assert found == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "run.json",
        "update/adapter_config.json",
        "update/adapter_model.safetensors",
    ]
    assert weights(copy) == "weights of a a"
    assert lineage.run_hash(copy) == lineage.run_hash(chain.root / "a") == chain.entries()[0]["run_hash"]
    assert copy.stat().st_ino != (chain.root / "a").stat().st_ino
    shutil.rmtree(chain.root / "a")
    assert weights(chain.folder / "current") == "weights of a a"


def test_a_refused_update_is_promoted_only_by_force_and_with_a_reason(chain: Chain) -> None:
    with pytest.raises(
        GateRefused, match=r"update 3 is REFUSED: general kept: 1.2, at most 1.01$"
    ) as refused:
        chain.promote(3)
    assert "--force --why" in refused.value.hint
    for why in (None, "", "  "):
        with pytest.raises(InputError, match="needs a reason"):
            chain.promote(3, why=why, forced_by="ann")
    with pytest.raises(GateRefused):
        chain.promote(3, why="a reason without force")
    assert chain.current() is None and kinds(chain) == ["update"] * 4
    assert chain.promote(3, why="checked by hand", forced_by="ann").name == "003"
    entry = chain.entries()[-1]
    assert (entry["by"], entry["why"], entry["forced"]) == ("ann", "checked by hand", True)


def test_force_is_not_written_down_where_the_gates_had_agreed(chain: Chain) -> None:
    chain.promote(1, why="w", forced_by="ann")
    assert chain.entries()[-1]["forced"] is False


def test_a_run_that_was_made_anew_or_is_gone_is_not_promoted(chain: Chain) -> None:
    (chain.root / "a" / "adapter_model.safetensors").write_text("other", encoding="utf-8")
    with pytest.raises(InputError, match="has been made anew since, or changed"):
        chain.promote(1)
    shutil.rmtree(chain.root / "b")
    with pytest.raises(InputError, match="is not there any more"):
        chain.promote(2)
    assert chain.current() is None and kinds(chain) == ["update"] * 4
    assert not list(chain.folder.glob("00*[0-9]"))


def test_a_run_that_is_written_while_it_is_copied_is_not_promoted(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shutil.copyfile

    def torn(source: Path, target: Path) -> None:
        whole(source, target)
        if target.suffix == ".safetensors":
            target.write_text("half of it", encoding="utf-8")

    monkeypatch.setattr(shutil, "copyfile", torn)
    with pytest.raises(InputError, match="was changed while it was copied"):
        chain.promote(1)
    assert chain.current() is None and not (chain.folder / "001").exists()
    monkeypatch.undo()
    assert weights(chain.promote(1)) == "weights of a a"


def test_a_run_is_found_beside_the_chains_when_all_runs_were_moved(chain: Chain, tmp_path: Path) -> None:
    chain.root.rename(tmp_path / "elsewhere")
    moved = Chain.at(tmp_path / "elsewhere", "support")
    assert weights(moved.promote(2)) == "weights of b b"


def test_a_copy_that_was_changed_is_not_put_in_force_again(chain: Chain) -> None:
    chain.promote(1)
    chain.promote(2)
    (chain.folder / "001" / "adapter_model.safetensors").write_text("other", encoding="utf-8")
    with pytest.raises(InputError, match="is not what was promoted"):
        chain.promote(1)
    assert chain.current() == chain.folder / "002"


def test_a_copy_in_force_that_was_changed_is_told_until_it_is_made_again(chain: Chain) -> None:
    copy = chain.promote(1)
    whole = (copy / "adapter_model.safetensors").read_bytes()
    (copy / "adapter_model.safetensors").write_bytes(whole[:-1])
    for ask in (chain.current, lambda: chain.promote(1)):
        with pytest.raises(InputError, match="001 is not what was promoted") as told:
            ask()
        assert f"delete {copy}" in told.value.hint
    shutil.rmtree(copy)
    with pytest.raises(InputError, match="001 is not there any more") as told:
        chain.current()
    assert "instructkit runs promote support 1" in told.value.hint
    before = kinds(chain)
    assert chain.promote(1) == copy == chain.current() and weights(copy).encode() == whole
    assert kinds(chain) == before


def test_a_damaged_adapter_is_rolled_back_from_and_not_to(chain: Chain) -> None:
    for number in (1, 2):
        chain.promote(number)
    for number in (1, 2):
        (chain.folder / f"00{number}" / "adapter_model.safetensors").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="001 is not what was promoted"):
        chain.rollback(why="w")
    assert chain.rollback(to=0, why="w") == 0 and chain.current() is None


@pytest.mark.parametrize("number", [0, -1, 5])
def test_an_update_that_is_not_there(chain: Chain, number: int) -> None:
    with pytest.raises(InputError, match=f"has no update {number}") as told:
        chain.promote(number)
    assert "1 to 4" in told.value.hint


def test_what_is_in_force_is_not_promoted_again(chain: Chain) -> None:
    chain.promote(1)
    with pytest.raises(InputError, match="update 1 is in force"):
        chain.promote(1)


def test_what_was_measured_against_another_adapter_is_superseded(chain: Chain) -> None:
    """Both were made while the parent was in force; the second is told what came between, and nothing moves."""
    chain.promote(1, expected=0)
    with pytest.raises(
        Superseded, match=r"update 2 .* was measured against the parent itself, and update 1 is"
    ) as told:
        chain.promote(2, expected=0)
    assert isinstance(told.value, InputError) and "runs promote support 2" in told.value.hint
    assert chain.current().name == "001" and kinds(chain)[4:] == ["promotion"]
    chain.promote(2, expected=1)
    chain.rollback(to=0, why="w")
    with pytest.raises(Superseded, match="measured against update 2, and the parent itself is"):
        chain.promote(1, expected=2)
    chain.promote(1)  # by hand it may be
    assert chain.current().name == "001"


def test_a_level_that_another_look_has_made_too_lax_is_superseded(chain: Chain, runs: Path) -> None:
    """Two runs at once both see a first look; the second to be entered was the second look."""
    numbers = [chain.record(update_of(runs / "a", test=["S1", "S2"], look=1)) for _ in range(2)]
    assert [chain.updates()[number]["looks"] for number in numbers] == [1, 2]
    with pytest.raises(Superseded, match="decided as look 1 at its test events, and it was look 2"):
        chain.promote(numbers[1], expected=0)
    assert chain.current() is None
    chain.promote(numbers[0], expected=0)
    second = chain.record(update_of(runs / "b", test=["S1", "S2"], look=3))
    with pytest.raises(GateRefused, match="decided as look 1 at its test events") as told:
        chain.promote(numbers[1])  # by hand, but not without a reason
    assert "--force --why" in told.value.hint
    assert chain.promote(second, expected=numbers[0]).name == f"{second:03d}"


def test_what_was_overtaken_is_forced_or_was_in_force_before(chain: Chain, runs: Path) -> None:
    late = [chain.record(update_of(runs / letter, in_force=0)) for letter in "ab"]
    chain.promote(late[0])
    with pytest.raises(GateRefused, match=rf"update {late[1]} .* was measured against the parent itself"):
        chain.promote(late[1])
    with pytest.raises(InputError, match="forcing it needs a reason"):
        chain.promote(late[1], forced_by="ann", why=" ")
    chain.promote(late[1], forced_by="ann", why="both were looked at side by side")
    assert chain.entries()[-1]["forced"] is True and chain.entries()[-1]["from"] == late[0]
    chain.rollback(to=0, why="w")
    chain.promote(late[1])  # it was in force before: a rollback is undone
    assert chain.entries()[-1]["forced"] is False


def test_an_update_knows_the_look_of_its_run(tmp_path: Path, runs: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    file = tmp_path / "a" / "run.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert update_of(tmp_path / "a").look is None
    file.write_text(json.dumps({**record, "look": {"number": 3, "level": 0.004}}), encoding="utf-8")
    assert update_of(tmp_path / "a").look == 3


# Rollback


def test_rollbacks_go_down_what_was_promoted_and_not_back_up(chain: Chain) -> None:
    chain.promote(1)
    chain.promote(2)
    chain.promote(3, why="w", forced_by="ann")
    assert [chain.rollback(why="worse") for _ in range(3)] == [2, 1, 0]
    assert chain.current() is None and not (chain.folder / "current").is_symlink()
    with pytest.raises(InputError, match="nothing to roll back"):
        chain.rollback(why="worse")
    assert sorted(path.name for path in chain.folder.iterdir() if path.is_dir()) == ["001", "002", "003"]
    assert kinds(chain)[4:] == ["promotion"] * 3 + ["rollback"] * 3


def test_a_rollback_to_a_number(chain: Chain) -> None:
    for number in (1, 2):
        chain.promote(number)
    with pytest.raises(InputError, match="update 3 .* was not in force before") as told:
        chain.rollback(to=3, why="w")
    assert "runs promote support 3" in told.value.hint
    with pytest.raises(InputError, match="update 2 is in force"):
        chain.rollback(to=2, why="w")
    with pytest.raises(InputError, match="needs a reason"):
        chain.rollback(to=1, why=" ")
    assert chain.rollback(to=1, why="w") == 1 and weights(chain.current()) == "weights of a a"
    with pytest.raises(InputError, match="update -1 .* was not in force before"):
        chain.rollback(to=-1, why="w")
    assert chain.rollback(to=0, why="w") == 0 and chain.current() is None


def test_a_rollback_to_a_folder_that_was_deleted_is_refused(chain: Chain) -> None:
    for number in (1, 2):
        chain.promote(number)
    shutil.rmtree(chain.folder / "001")
    for to in (1, None):
        with pytest.raises(InputError, match="001 is not there any more"):
            chain.rollback(to=to, why="w")
    assert chain.current() == chain.folder / "002"


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.sampled_from(LETTERS)),
        st.tuples(st.just("promote"), st.integers(0, 6), st.booleans()),
        st.tuples(st.just("rollback"), st.one_of(st.none(), st.integers(0, 6))),
        st.tuples(st.just("crash"), st.integers(1, 6), st.integers(1, 30), st.booleans()),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_current_is_what_the_history_says_after_any_operations(
    runs: Path, tmp_path_factory: pytest.TempPathFactory, operations: list
) -> None:
    """Against a list of what was put in force, kept by hand."""
    root = tmp_path_factory.mktemp("any")
    made, stack = [], []
    for operation in operations:
        chain = Chain.at(root, "c")
        match operation:
            case "record", letter:
                assert chain.record(update_of(runs / letter)) == len(made) + 1
                made.append(letter)
            case "promote", number, force:
                allowed = 1 <= number <= len(made) and stack[-1:] != [number]
                if allowed and (force or made[number - 1] in "ab"):
                    chain.promote(number, why="w", forced_by="ann" if force else None)
                    stack.append(number)
                else:
                    with pytest.raises((InputError, GateRefused)):
                        chain.promote(number, why="w", forced_by="ann" if force else None)
            case "rollback", to:
                wanted = to if to is not None else ([0, *stack][-2] if stack else -1)
                if stack and wanted in [0, *stack[:-1]] and wanted != stack[-1]:
                    assert chain.rollback(to=to, why="w") == wanted
                    while stack and stack[-1] != wanted:
                        stack.pop()
                elif not (stack[-2:-1] == stack[-1:] and to is None):
                    with pytest.raises(InputError):
                        chain.rollback(to=to, why="w")
            case "crash", number, step, after:
                if 1 <= number <= len(made) and stack[-1:] != [number]:
                    with Failing(step, after=after):
                        chain.promote(number, why="w", forced_by="ann")
                    if chain.current() == chain.folder / f"{number:03d}":
                        stack.append(number)
        again = Chain.at(root, "c")
        assert again.current() == (again.folder / f"{stack[-1]:03d}" if stack else None)
        if stack:
            letter = made[stack[-1] - 1]
            assert weights(again.folder / "current") == f"weights of {letter} {letter}"
        assert len(again.updates()) == len(made)


# Crashes

STEPS = ["os.fsync", "os.replace", "os.rename", "os.symlink", "shutil.copyfile"]


class Failing:
    """Let the k-th step that touches the disk fail, before or after it is done, by an error or by the death of the process."""

    def __init__(self, at: int, *, after: bool, kill: bool = False) -> None:
        self.left, self.after, self.kill, self.failed, self.raised = at, after, kill, False, False
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> Failing:
        for name in STEPS:
            module, _, function = name.partition(".")
            owner = {"os": os, "shutil": shutil}[module]
            self.patch.setattr(owner, function, self._wrapped(getattr(owner, function)))
        return self

    def _wrapped(self, step: Any) -> Any:
        def failing(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            done = step(*args, **kwargs) if self.after or self.left else None
            if self.left == 0:
                self.failed = True
                if self.kill:
                    os.kill(os.getpid(), 9)
                raise OSError(errno.EIO, "broken")
            return done

        return failing

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        self.patch.undo()
        self.raised = isinstance(error, OSError) and error.errno == errno.EIO
        return self.raised


def check_after_a_crash(chain: Chain, *, old: str, new: str) -> str:
    """The chain can be read, one of the two adapters is in force and whole, and what was begun can be done again."""
    entries = chain.entries()
    found = chain.current()
    assert found is not None and found.name in (old, new)
    assert (chain.folder / "current").resolve() == found.resolve()
    assert lineage.run_hash(found) == chain.updates()[int(found.name)]["run_hash"]
    recorded = [entry["number"] for entry in entries if entry["kind"] == "promotion"]
    if found.name == new:
        assert recorded[-1] == int(new), "nothing is in force that was not recorded"
    else:
        assert chain.promote(int(new)) == chain.current()
    assert chain.current().name == new
    assert chain.rollback(why="w") == int(old)
    return found.name


@pytest.mark.parametrize("after", [False, True])
def test_an_error_at_any_step_of_a_promotion_leaves_the_old_adapter(chain: Chain, after: bool) -> None:
    chain.promote(1)
    found, step = [], 0
    while True:
        step += 1
        copy = chain.root.parent / f"step{step}"
        shutil.copytree(chain.root, copy, symlinks=True)
        with Failing(step, after=after) as failing:
            Chain.at(copy, "support").promote(2)
        if not failing.failed:
            break
        after_it = check_after_a_crash(Chain.at(copy, "support"), old="001", new="002")
        if failing.raised:
            found.append(after_it)
        else:  # a folder that cannot be forced to disk stops nothing
            assert after_it == "002"
    assert step > 15, "fewer steps were tried than a promotion has"
    # Old until `current` moved, new from then on; that move is the last step that can fail.
    assert found == ["001"] * (len(found) - after) + ["002"] * after


@pytest.mark.parametrize("after", [False, True])
def test_an_error_at_any_step_of_a_rollback_or_a_record(chain: Chain, runs: Path, after: bool) -> None:
    for number in (1, 2):
        chain.promote(number)
    for work in ("rollback", "record"):
        step, failed = 0, True
        while failed:
            step += 1
            copy = chain.root.parent / f"{work}{step}"
            shutil.copytree(chain.root, copy, symlinks=True)
            there = Chain.at(copy, "support")
            with Failing(step, after=after) as failing:
                there.rollback(why="w") if work == "rollback" else there.record(update_of(runs / "a"))
            failed = failing.failed
            assert there.current() == there.folder / (
                "002" if work == "record" or there.standing().current == 2 else "001"
            )
            if failed and there.current().name == "002":
                assert there.rollback(why="w") == 1
            assert there.record(update_of(runs / "b")) in (5, 6)
            assert sorted(there.count_trained(["E1"])) == sorted(there.updates())
        assert step > 2


KILLED = """
import os, shutil, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from feedback.test_registry import Failing, Chain
root, step = Path({root!r}), 0
while True:
    step += 1
    copy = root.parent / f"killed{{step}}"
    shutil.copytree(root, copy, symlinks=True)
    child = os.fork()
    if child == 0:
        with Failing(step, after={after}, kill=True):
            Chain.at(copy, "support").promote(2)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(step - 1)
"""


@pytest.mark.parametrize("after", [False, True])
def test_kill_9_at_any_step_of_a_promotion_leaves_the_old_adapter(chain: Chain, after: bool) -> None:
    chain.promote(1)
    code = KILLED.format(tests=str(Path(__file__).parents[1]), root=str(chain.root), after=after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = []
    for step in range(1, int(done.stdout) + 1):
        there = Chain.at(chain.root.parent / f"killed{step}", "support")
        found.append(check_after_a_crash(there, old="001", new="002"))
        assert not there.torn()
    assert len(found) > 15
    assert found == sorted(found) and set(found) == {"001", "002"}


def test_what_was_acknowledged_is_forced_to_disk(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = set()
    monkeypatch.setattr(os, "fsync", lambda handle: forced.add(os.fstat(handle).st_ino))

    def all_forced() -> None:
        """Every file of the chain that is new, the folders that name them, and the history."""
        there = [item for item in [chain.folder, *chain.folder.rglob("*")] if not item.is_symlink()]
        assert [str(item) for item in there if item not in known and item.stat().st_ino not in forced] == []

    known = {*chain.folder.rglob("*")} - {chain.folder / "updates.jsonl"}
    number = chain.record(update_of(chain.root / "a"))
    all_forced()
    forced.clear()
    known |= set(chain.folder.rglob("*")) - {chain.folder / "updates.jsonl"}
    chain.promote(number)
    all_forced()
    forced.clear()
    chain.rollback(why="w")
    assert {item.stat().st_ino for item in (chain.folder, chain.folder / "updates.jsonl")} <= forced


def test_a_move_that_was_cut_short_is_noted_and_can_be_done_again(chain: Chain) -> None:
    chain.promote(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "point", lambda *_: (_ for _ in ()).throw(OSError("broken")))
        with pytest.raises(OSError, match="broken"):
            chain.promote(2)
    assert chain.current() == chain.folder / "001" and chain.standing().undone == 6
    chain.record(update_of(chain.root / "a"))
    assert kinds(chain)[4:] == ["promotion", "promotion", "abandoned", "update"]
    assert chain.entries()[6]["of"] == 6
    chain.promote(2)
    assert chain.rollback(why="w") == 1


# A history that is not as it was written


CHANGES = [(change, line) for change in ("edit", "drop", "swap", "garble", "repeat") for line in range(6)]
CHANGES.remove(("drop", 5))  # lines missing at the end leave no trace in those before: see the next test


@pytest.mark.parametrize(("change", "line"), CHANGES)
def test_a_changed_line_is_noticed(chain: Chain, line: int, change: str) -> None:
    chain.promote(1)
    chain.rollback(why="w")
    file = chain.folder / "updates.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    if change == "edit":
        assert b'"by"' in lines[line]
        lines[line] = lines[line].replace(b'"by": "', b'"by": "x')
    elif change == "drop":
        del lines[line]
    elif change == "swap":
        lines[line], lines[line - 1] = lines[line - 1], lines[line]
    elif change == "garble":
        lines[line] = lines[line][:-3] + b"\n"
    else:
        lines.insert(line, lines[line])
    file.write_bytes(b"".join(lines))
    place = {"swap": (line - 1) % 6 if line else 0, "repeat": line + 1}.get(change, line) + 1
    with pytest.raises(InputError, match=rf"updates\.jsonl:{place} ") as told:
        chain.entries()
    assert "restore" in told.value.hint
    with pytest.raises(InputError):
        chain.record(update_of(chain.root / "a"))


def test_moves_missing_at_the_end_are_told_by_current(chain: Chain) -> None:
    for number in (1, 2):
        chain.promote(number)
    file = chain.folder / "updates.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for kept, says in ((5, "001"), (4, "nothing")):
        file.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(InputError, match=f"current points to 002, and the history says {says}"):
            chain.current()


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_is_left_out_and_told(chain: Chain, kept: int) -> None:
    chain.promote(1)
    file = chain.folder / "updates.jsonl"
    whole = file.read_bytes()
    last = whole.splitlines(keepends=True)[0]
    file.write_bytes(whole + last[:kept])
    assert chain.torn() and len(chain.entries()) == 5 and chain.current() == chain.folder / "001"
    chain.promote(2)
    assert not chain.torn() and kinds(chain) == ["update"] * 4 + ["promotion"] * 2
    assert file.read_bytes().startswith(whole)


def test_a_newer_format_is_refused(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructkit.feedback.promotion.update.FORMAT", 2)
    with pytest.raises(InputError, match="has format 1; this version reads 2"):
        chain.entries()


def test_current_moved_by_hand_is_told_and_set_right_by_a_rollback(chain: Chain) -> None:
    for number in (1, 2):
        chain.promote(number)
    link = chain.folder / "current"
    link.unlink()
    link.symlink_to("004")
    with pytest.raises(InputError, match="points to 004, and the history says 002") as told:
        chain.current()
    assert "--to 2" in told.value.hint
    assert chain.rollback(to=2, why="w") == 2 and chain.current() == chain.folder / "002"
    assert chain.rollback(why="w") == 1


def test_ids_of_events_that_were_changed_are_noticed(chain: Chain) -> None:
    (chain.folder / "002.trained.gz").write_bytes((chain.folder / "002.test.gz").read_bytes())
    with pytest.raises(InputError, match=r"002\.trained\.gz is not what was written"):
        chain.count_trained(["E1"])
    (chain.folder / "001.test.gz").unlink()
    with pytest.raises(InputError, match=r"001\.test\.gz is not there any more"):
        chain.looks(["T1"])


# Two writers


def test_two_processes_cannot_write_one_chain(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "WAIT_SECONDS", 0.0)
    works = [
        lambda: chain.record(update_of(chain.root / "a")),
        lambda: chain.promote(1),
        lambda: chain.rollback(why="w"),
    ]
    with chain._writing():
        for work in works:
            with pytest.raises(InputError, match=f"being written by another process .pid {os.getpid()}."):
                work()
        assert len(chain.entries()) == 4 and chain.current() is None, "it can be read meanwhile"
        assert Chain.at(chain.root, "other").record(update_of(chain.root / "a")) == 1
    assert chain.record(update_of(chain.root / "a")) == 5


def test_writers_at_once_wait_for_each_other(chain: Chain) -> None:
    code = (
        f"import sys\nsys.path[:0] = [{str(Path(__file__).parents[1])!r}]\nfrom pathlib import Path\n"
        "from feedback.chain_runs import update_of\nfrom instructkit.feedback.promotion.chain import Chain\n"
        f"root = Path({str(chain.root)!r})\nchain = Chain.at(root, 'support')\n"
        "for _ in range(10): chain.record(update_of(root / 'a'))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert sorted(chain.updates()) == list(range(1, 35))
    assert [entry["number"] for entry in chain.entries()] == list(range(1, 35))


# Looks, high-water mark, withdrawals


def test_looks_by_hand(tmp_path: Path, runs: Path) -> None:
    chain = Chain.at(tmp_path, "c")
    assert chain.looks(["t1", "t2", "t3", "t4"]) == 1
    # Of the four: all were used once, then two, then one: 1 + ceil(1), 1 + ceil(1.5), 1 + ceil(1.75).
    for test, looks in (
        (["t1", "t2", "t3", "t4"], 2),
        (["t3", "t4", "x"], 3),
        (["t1"], 3),
        (["t1"], 3),
        (["t1"], 4),
    ):
        chain.record(update_of(runs / "a", test=test))
        assert chain.looks({"t1", "t2", "t3", "t4"}) == looks
    assert chain.looks(["t1"]) == 5 and chain.looks(["x"]) == 2 and chain.looks(["fresh"]) == 1
    assert chain.looks([]) == 1
    # What each decision was on, when it was made: `t1` alone had been used once, twice, three times before.
    assert [entry["looks"] for entry in chain.entries()] == [1, 2, 2, 3, 4]


def test_another_name_for_a_chain_does_not_make_test_events_fresh(tmp_path: Path, runs: Path) -> None:
    first, second = (Chain.at(tmp_path, name) for name in ("a", "b"))
    first.record(update_of(runs / "a", test=["t1", "t2"]))
    assert first.looks(["t1", "t2"]) == second.looks(["t1", "t2"]) == 2
    number = second.record(update_of(runs / "b", test=["t1", "t2"]))
    assert (number, second.updates()[1]["looks"]) == (1, 2)
    assert first.looks(["t1", "t2"]) == 3 and Chain.at(tmp_path / "other", "a").looks(["t1"]) == 1
    (second.folder / "updates.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match="chains/b/updates.jsonl:1 was damaged"):
        first.looks(["t1"])


def test_what_stands_for_what_was_learned_is_kept_beside_it(tmp_path: Path, runs: Path) -> None:
    chain = Chain.at(tmp_path, "c")
    chain.record(update_of(runs / "a", trained=["E1", "E2", "E3"], standing=["E1"]))
    chain.record(update_of(runs / "b", trained=["F1", "F2"], standing=["F2"], continues=1))
    assert list(chain.standing_ids(2)) == ["F2", "E1"] and list(chain.standing_ids(0)) == []
    assert list(chain.learned(2)) == ["F1", "F2", "E1", "E2", "E3"]
    # A history of a version that kept no such ids.
    older = {name: value for name, value in chain.updates()[1].items() if name not in ("standing", "look")}
    chain._append({**older, "number": 3, "continues": 2})
    chain._ids(3, "trained").write_bytes(chain._ids(1, "trained").read_bytes())
    assert list(chain.standing_ids(3)) == ["F2", "E1"] and "E3" in chain.learned(3)


def test_what_was_withdrawn_is_counted_in_all_that_goes_on_from_it(tmp_path: Path, runs: Path) -> None:
    chain = Chain.at(tmp_path, "c")
    chain.record(update_of(runs / "a", trained=["E1", "E2"]))
    chain.record(update_of(runs / "b", trained=["F1", "E2"], continues=1))
    chain.record(update_of(runs / "a", trained=["G1"]))
    assert chain.count_trained(["E1", "E2"]) == {1: 2, 2: 2}
    assert chain.count_trained(["F1"]) == {2: 1} and chain.count_trained(["G1"]) == {3: 1}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_looks_and_trained_on_against_sets(
    runs: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = random.Random(seed)
    chain = Chain.at(tmp_path_factory.mktemp("looks"), "c")
    ids = [f"{i:02d} \n\u00e9\ud800"[: rng.choice([2, 6])] for i in range(12)]
    used = [set(rng.sample(ids, rng.randrange(7))) for _ in range(rng.randrange(5))]
    for test in used:
        chain.record(update_of(runs / "a", test=list(test) * 2, trained=test))
    wanted = set(rng.sample(ids, rng.randint(1, 6)))
    overlap = sum(len(test & wanted) for test in used)
    whole, rest = divmod(overlap, len(wanted))
    assert chain.looks(wanted) == 1 + whole + (rest > 0)
    assert chain.count_trained(wanted) == {
        n: len(test & wanted) for n, test in enumerate(used, start=1) if test & wanted
    }


def test_since_walks_back_from_what_is_in_force(tmp_path: Path, runs: Path) -> None:
    chain = Chain.at(tmp_path / "runs", "c")
    # By what an update went on from, by the hash of its parent, and one on a file, which has no order.
    first = chain.record(update_of(runs / "a", newest="M1", trained=["E1", "E2"]))
    chain.record(update_of(runs / "c", newest="M9", continues=first, trained=["E8"]))
    third = chain.record(
        update_of(run_of(tmp_path / "runs" / "e", "e", parent=runs / "a"), newest=None, trained=["F"])
    )
    fourth = chain.record(update_of(runs / "b", newest="L4", continues=third, trained=["E3", "E4"]))
    assert chain.since(0) is None and list(chain.learned(0)) == []
    seen = {}
    for number in (first, third, fourth):
        chain.promote(number)
        seen[number] = chain.since(number), chain.line(number), list(chain.learned(number))
    assert seen == {
        1: ("M1", [1], ["E1", "E2"]),
        3: ("M1", [3, 1], ["F", "E1", "E2"]),
        4: ("L4", [4, 3, 1], ["E3", "E4", "F", "E1", "E2"]),
    }
    chain.rollback(to=first, why="w")
    assert chain.since(chain.standing().current) == "M1"


# What is said of moves: pure


def entry(kind: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "number": number,
        "time": "t",
        "by": "ann",
        "why": f"{kind} {number}",
        "forced": False,
        **more,
    }


def test_standing_and_story_by_hand() -> None:
    entries = [
        entry("update", 1), entry("update", 2), entry("promotion", 1), entry("promotion", 2, forced=True),
        entry("rollback", 0), entry("promotion", 2), entry("promotion", 1), {"kind": "abandoned", "of": 7}, entry("promotion", 1),
    ]  # fmt: skip
    assert standing([], None) == Standing() and standing([], "001") == Standing(astray="001")
    assert standing(entries, "001") == Standing((2, 1))
    assert standing(entries, "002") == Standing((2,), undone=9)
    assert standing(entries, None) == Standing((2, 1), astray="")
    assert standing(entries, "current.bak") == Standing((2, 1), astray="current.bak")
    assert standing(entries[:4], None) == Standing((1, 2), astray="")
    assert standing(entries[:3], None) == Standing((), undone=3)
    assert standing([*entries[:4], entry("update", 3)], "001") == Standing((1, 2), astray="001"), (
        "moved by hand"
    )
    told = story(entries, standing(entries, "001"))
    assert [len(told[1][what]) for what in ("promoted", "forced", "rolled back")] == [2, 0, 1]
    assert [len(told[2][what]) for what in ("promoted", "forced", "rolled back")] == [2, 1, 1]
    assert told[2]["rolled back"] == [{"time": "t", "by": "ann", "why": "rollback 0"}]
    assert len(story(entries, standing(entries, "002"))[1]["promoted"]) == 1


# Among the other rooms


def test_current_is_a_model_by_its_number(chain: Chain) -> None:
    name = str(chain.folder / "current")
    with pytest.raises(InputError, match="has no promoted adapter") as told:
        locate(name)
    assert "runs history support" in told.value.hint
    chain.promote(1)
    source = locate(name)
    assert (source.name, source.adapter, source.run) == (str(chain.folder / "001"),) + (
        chain.folder / "001",
    ) * 2
    assert source.base == "org/base"
    chain.promote(2)
    assert source.adapter == chain.folder / "001" and locate(name).adapter == chain.folder / "002"


def test_the_lineage_of_an_update_above_a_promoted_one(chain: Chain, tmp_path: Path) -> None:
    copy = chain.promote(1)
    child = run_of(chain.root / "e", "e", parent=copy)
    chain.record(update_of(child))
    chain.promote(5)
    for start in (child, chain.folder / "current"):
        found = lineage.chain(start)
        assert [run["path"] for run in found] == [str(copy), str(start)]
        assert found[-1]["stale"] == []
    assert chain.line(5) == [5, 1]
    chain.root.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    for start in (moved / "e", moved / "chains" / "support" / "005"):
        assert [Path(run["path"]) for run in lineage.chain(start)] == [
            moved / "chains" / "support" / "001",
            start,
        ]


def test_copies_in_chains_are_no_further_runs(chain: Chain) -> None:
    chain.promote(1)
    run_of(chain.root / "chains" / "mine", "a run of a user whose folder is called so")
    names = [run["name"] for run in lineage.list_runs(chain.root)]
    assert sorted(names) == ["a", "b", "c", "d", "mine"]
    assert pointer.names(chain.root) == ["support"] and pointer.names(chain.root / "a") == []


def test_without_links_current_is_a_text_file(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "symlink", none)
    chain.promote(1)
    link = chain.folder / "current"
    assert not link.is_symlink() and link.read_text(encoding="utf-8") == "001\n"
    assert chain.current() == chain.folder / "001" == locate(str(link)).adapter
    chain.promote(2)
    assert chain.rollback(why="w") == 1 and chain.current() == chain.folder / "001"
    monkeypatch.undo()
    chain.promote(2)
    assert link.is_symlink() and chain.current() == chain.folder / "002"
    assert chain.rollback(to=0, why="w") == 0 and not link.exists()


def test_a_user_whom_the_system_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert registry.user() == "unknown"


def test_current_is_a_folder_that_transformers_and_peft_load_as_it_is(
    tmp_path: Path, tiny_folder: Path
) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from instructkit.runs.record import RunFolder

    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    ids = torch.arange(5, 20)[None]
    run = tmp_path / "runs" / "update"
    with RunFolder(run) as folder:
        folder.start(RECIPE, stage="lora-update", command=[])
        folder.update(parents={"model": {"path": "tiny", "hash": "model:tiny"}})
        model.save_pretrained(run)
        model.save_pretrained(run / "update")
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(run)
        with torch.no_grad():
            expected = model(input_ids=ids).logits
        folder.complete(verdict="PROMOTED")
    chain = Chain.at(tmp_path / "runs", "support")
    chain.promote(chain.record(update_of(run)))
    shutil.rmtree(run)
    link = chain.folder / "current"
    source = locate(str(link))
    assert source.base == str(tiny_folder) and source.tokenizer_path == str(chain.folder / "001")
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source.base), str(link))
    by_transformers = AutoModelForCausalLM.from_pretrained(str(link))
    for loaded in (by_peft, by_transformers):
        with torch.no_grad():
            assert torch.equal(loaded.eval()(input_ids=ids).logits, expected)

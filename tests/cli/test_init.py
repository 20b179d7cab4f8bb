"""`init`: what it writes is what we ship, is sound, and runs."""

from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from instructkit.cli.main import main
from instructkit.data.sources import load_rows
from instructkit.recipe.load import check_recipe, load_recipe
from instructkit.recipe.schema import STAGES

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["init", *arguments])
    return ended.value.code


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def test_the_embedded_default_is_what_the_repository_ships() -> None:
    assert run() == 0
    for stage in STAGES:
        for name in (f"{stage}.yaml", f"schemas/{stage}.json"):
            assert Path("recipes", name).read_bytes() == (ROOT / "recipes" / name).read_bytes()


def test_at_a_terminal_it_asks_until_it_understands(tmp_path: Path) -> None:
    terminal, inside = pty.openpty()
    command = [sys.executable, "-m", "instructkit", "init"]
    asking = subprocess.Popen(command, cwd=tmp_path, stdin=inside, stdout=subprocess.PIPE, text=True)
    write(str(tmp_path / "said.jsonl"), [{"prompt": "2 + 2?", "completion": "4"}] * 4)
    os.write(terminal, b"zzz\nown\nsaid.jsonl\nme/mine\n")
    told, _ = asking.communicate(timeout=60)
    assert asking.returncode == 0 and "`zzz` is none of them: demo, own, hub" in told
    assert load_recipe(str(tmp_path / "recipes/sft.yaml"), "sft").model.name == "me/mine"
    for end in (terminal, inside):
        os.close(end)


def test_the_hub_recipes_are_what_the_repository_ships() -> None:
    assert run("gpu", "--hub") == 0
    for stage in STAGES:
        shipped = (ROOT / f"recipes/hub/{stage}.yaml").read_text(encoding="utf-8")
        assert Path(f"gpu/{stage}.yaml").read_text(encoding="utf-8") == shipped.replace(
            "=../schemas", "=schemas"
        )
    assert run("mine", "--hub", "--model", "me/mine") == 0
    assert load_recipe("mine/sft.yaml", "sft").model.name == "me/mine"


def test_own_files_become_recipes_that_fit(capsys: pytest.CaptureFixture) -> None:
    talks = write("talks.jsonl", [{"question": f"q{i}", "answer": "a"} for i in range(100)])
    pairs = write("pairs.jsonl", [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(60)])
    held_out = write("pairs-test.jsonl", [{"prompt": "x", "chosen": "a", "rejected": "b"}])
    said = write("said.jsonl", [{"prompt": f"q{i}", "response": "a", "rating": 1} for i in range(50)])
    files = [word for name in (talks, pairs, held_out, said) for word in ("--data", name)]
    assert run(*files, "--model", "tiny") == 0
    told = capsys.readouterr().out
    assert (
        "talks.jsonl: 100 rows of demonstrations, with `question` as `prompt`, `answer` as `completion`"
        in told
    )
    recipes = {stage: load_recipe(f"recipes/{stage}.yaml", stage) for stage in STAGES}
    assert recipes["sft"].data.columns == {"question": "prompt", "answer": "completion"}
    assert (recipes["reward"].data.train, recipes["reward"].data.eval) == (pairs, held_out)
    assert (recipes["ppo"].data.train, recipes["ppo"].data.eval) == (
        pairs,
        held_out,
    )  # no prompts of their own: those of the comparisons
    parents = [recipes[stage].model.name for stage in STAGES]
    assert parents == ["tiny", "runs/sft", "runs/sft", "runs/ppo"]


ODD = "Customer Message,Agent_Reply (final),Ticket\n"


def table(name: str, count: int = 40) -> str:
    """A table of questions and answers as a help desk exports it."""
    lines = [f"Where is order {i}?,It is on its way to you number {i}.,{i}\n" for i in range(count)]
    Path(name).write_text(ODD + "".join(lines), encoding="utf-8")
    return name


MEANT = {"Customer Message": "prompt", "Agent_Reply (final)": "completion"}


def test_odd_columns_are_a_question_and_an_answer_on_the_command_line(capsys: pytest.CaptureFixture) -> None:
    assert run("--data", table("desk.csv"), "--model", "tiny") == 2
    told = capsys.readouterr().err
    asked = "Customer Message=prompt,Agent_Reply (final)=completion"
    assert f'--columns "{asked}"' in told and not Path("recipes").exists()
    assert run("--data", "desk.csv", "--columns", asked, "--model", "tiny") == 0
    recipe = load_recipe("recipes/sft.yaml", "sft")
    assert recipe.data.columns == MEANT
    assert len(load_rows("desk.csv", kind="sft", columns=recipe.data.columns).rows) == 40
    assert run("two", "--data", "desk.csv", "--columns", "Nothing=prompt") == 2
    assert run("two", "--data", "desk.csv", "--columns", "Ticket=what") == 2
    assert "`what` in `Ticket=what` is not a field" in capsys.readouterr().err


def test_odd_columns_are_asked_for_at_a_terminal(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter(["Customer Message=nothing", "Customer Message=prompt,Agent_Reply (final)=completion"])
    asked = []
    monkeypatch.setattr("typer.prompt", lambda text, default: asked.append(default) or next(answers))
    assert run("--data", table("desk.csv"), "--model", "tiny") == 0
    assert asked == ["Customer Message=prompt,Agent_Reply (final)=completion"] * 2
    assert "`nothing` in `Customer Message=nothing` is not a field" in capsys.readouterr().out
    assert load_recipe("recipes/sft.yaml", "sft").data.columns == MEANT


def test_a_question_beside_pairs_is_not_lost(capsys: pytest.CaptureFixture) -> None:
    pairs = write("pairs.jsonl", [{"q": f"q{i}", "winner": "a", "loser": "b"} for i in range(60)])
    assert run("--data", pairs, "--model", "tiny") == 2
    told = capsys.readouterr().err
    assert "`q` would be ignored, next to the pairs" in told and "q=prompt" in told
    assert run("--data", pairs, "--columns", "q=prompt", "--model", "tiny") == 0
    columns = load_recipe("recipes/reward.yaml", "reward").data.columns
    assert columns == {"q": "prompt", "winner": "chosen", "loser": "rejected"}
    assert load_recipe("recipes/ppo.yaml", "ppo").data.train == pairs
    assert run("two", "--data", pairs, "--columns", "q=unused", "--model", "tiny") == 0
    assert load_recipe("two/reward.yaml", "reward").data.columns["q"] == "unused"


def test_a_question_next_to_a_context_is_proposed_as_the_prompt(capsys: pytest.CaptureFixture) -> None:
    rows = [
        {"q": f"Where is order {i}?", "context": "Plan B.", "winner": f"Here, {i}.", "loser": f"Gone, {i}."}
        for i in range(60)
    ]
    assert run("--data", write("pairs.jsonl", rows), "--model", "tiny") == 2
    told = capsys.readouterr().err
    assert "q=prompt" in told and "context=unused" in told


def test_two_columns_are_not_one_field(capsys: pytest.CaptureFixture) -> None:
    pairs = write("pairs.jsonl", [{"q": "a b", "context": "c d", "winner": "a", "loser": "b"}] * 9)
    meant = "q=prompt,context=prompt,winner=chosen,loser=rejected"
    assert run("--data", pairs, "--columns", meant) == 2
    assert "pairs.jsonl: --columns maps `q` and `context` to `prompt`" in capsys.readouterr().err
    talks = write(
        "talks.jsonl", [{"Customer Message": f"Where is {i}?", "Agent": f"Here, {i}."} for i in range(60)]
    )
    pairs = write("more.jsonl", [{"q": f"a {i}", "winner": f"b {i}", "loser": f"c {i}"} for i in range(60)])
    files = ["--data", talks, "--data", pairs, "--columns", "Customer Message=prompt,Agent=completion"]
    assert run(*files, "--columns", "q=prompt") == 0  # a field of two files is no clash


def test_answers_beside_what_looks_like_prompts_are_not_lost(capsys: pytest.CaptureFixture) -> None:
    rows = [{"question": f"Where is {i}?", "Final wording": f"Over there, at {i}."} for i in range(40)]
    assert run("--data", write("half.jsonl", rows), "--model", "tiny") == 2
    assert "question=prompt,Final wording=completion" in capsys.readouterr().err


def test_a_text_file_holds_prompts(capsys: pytest.CaptureFixture) -> None:
    pairs = write("pairs.jsonl", [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(60)])
    Path("asked.txt").write_text("Where is it?\n\nWho said so?\nWhy?\n", encoding="utf-8")
    assert run("--data", pairs, "--data", "asked.txt", "--model", "tiny") == 0
    assert "asked.txt: 3 rows of prompts" in capsys.readouterr().out
    assert load_recipe("recipes/ppo.yaml", "ppo").data.train == "asked.txt"
    found = load_rows("asked.txt", kind="prompt")
    assert [row["prompt"] for row in found.rows] == ["Where is it?", "Who said so?", "Why?"]
    assert found.places[1] == "asked.txt:3"
    Path("mixed").mkdir()
    Path("mixed/README.txt").write_text("About these files.", encoding="utf-8")
    write("mixed/talks.jsonl", [{"prompt": "q", "completion": "a"}])
    assert len(load_rows("mixed", kind="sft").rows) == 1


def test_problems_of_all_files_are_reported(capsys: pytest.CaptureFixture) -> None:
    write("stars.jsonl", [{"prompt": f"q{i}", "response": "a", "rating": i % 5 + 1} for i in range(20)])
    assert run("--data", "nowhere.jsonl", "--data", "stars.jsonl", "--data", table("desk.csv")) == 2
    told = capsys.readouterr().err
    assert (
        "no data at nowhere.jsonl" in told and "rated 1 to 5" in told and "no column has a known name" in told
    )
    assert "stars.jsonl: `instructkit feedback import" in told and "desk.csv: name the columns" in told


def test_a_plan_accepts_what_was_written(capsys: pytest.CaptureFixture) -> None:
    talks = write("talks.jsonl", [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(100)])
    run("--data", talks, "--model", "tiny")
    with pytest.raises(SystemExit) as ended:
        main(["sft", "recipes/sft.yaml", "--plan"])
    assert ended.value.code == 0
    assert "nothing was trained" in capsys.readouterr().out


def test_stages_without_files_get_no_recipe(capsys: pytest.CaptureFixture) -> None:
    asked = write("asked.jsonl", [{"prompt": "q"}] * 3)
    talks = write("talks.jsonl", [{"text": "x"}] * 3)
    assert run("--data", talks, "--data", asked) == 0
    assert sorted(path.name for path in Path("recipes").glob("*.yaml")) == ["sft.yaml"]
    assert "no ppo.yaml: PPO needs a reward model" in capsys.readouterr().out


def test_only_prompts_make_no_recipe(capsys: pytest.CaptureFixture) -> None:
    assert run("--data", write("asked.jsonl", [{"prompt": "q"}] * 3)) == 2
    assert "no stage can be trained on these files alone" in capsys.readouterr().err
    assert not Path("recipes").exists()


def test_names_that_yaml_would_misread_are_quoted() -> None:
    name = write("yes: [1] # no.jsonl", [{"text": "x"}] * 3)
    assert run("--data", name, "--model", "1.5") == 0
    recipe = load_recipe("recipes/sft.yaml", "sft")
    assert (recipe.data.train, recipe.model.name) == (name, "1.5")


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture) -> None:
    Path("recipes").mkdir()
    Path("recipes/ppo.yaml").write_text("mine", encoding="utf-8")
    assert run("--demo") == 2
    assert "recipes/ppo.yaml is there already" in capsys.readouterr().err
    assert [path.name for path in Path("recipes").iterdir()] == ["ppo.yaml"]


@pytest.mark.parametrize(
    "arguments", [("--hub", "--demo"), ("--demo", "--model", "x"), ("--data", "nowhere.jsonl")]
)
def test_bad_input(arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 2
    assert not Path("recipes").exists()


def test_every_starter_is_sound() -> None:
    for way in ("--demo", "--hub"):
        run(way.strip("-"), way)
        for stage in STAGES:
            assert check_recipe(f"{way.strip('-')}/{stage}.yaml").faults == []


def test_ratings_on_another_scale_are_told_with_the_scale(capsys: pytest.CaptureFixture) -> None:
    name = write("rate.jsonl", [{"prompt": f"q{i}", "response": "a", "rating": i % 5 + 1} for i in range(20)])
    assert run("--data", name) == 2
    told = capsys.readouterr().err
    assert "20 rows of users' feedback, rated 1 to 5" in told
    assert "instructkit feedback import rate.jsonl --scale 1:5" in told
    assert not Path("recipes").exists()


def test_comparisons_with_faults_stay_comparisons_and_their_faults_are_skipped(
    capsys: pytest.CaptureFixture,
) -> None:
    good = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    bad = [{"prompt": f"p{i}", "chosen": "a", "rejected": "a"} for i in range(8)]
    talks = write("talks.jsonl", [{"prompt": f"q{i}", "completion": "a"} for i in range(20)])
    assert run("--data", write("pairs.jsonl", good + bad), "--data", talks, "--model", "tiny") == 0
    assert "pairs.jsonl: 12 rows of comparisons; 8 of them have faults" in capsys.readouterr().out
    assert load_recipe("recipes/reward.yaml", "reward").data.on_fault == "skip"
    assert load_recipe("recipes/sft.yaml", "sft").data.on_fault == "stop"


def test_two_shapes_are_told_with_their_counts(capsys: pytest.CaptureFixture) -> None:
    rows = [{"prompt": "q", "completion": "a"}] * 30 + [{"question": "q", "answer": "a"}] * 30
    assert run("--data", write("half.jsonl", rows)) == 2
    told = capsys.readouterr().err
    assert "of 2 shapes" in told
    assert "30 rows with `completion`, `prompt`" in told and "30 rows with `answer`, `question`" in told


def test_faults_of_conversations_are_not_hidden(capsys: pytest.CaptureFixture) -> None:
    rows = [{"messages": [{"role": "nobody", "content": "x"}]}] * 3
    assert run("--data", write("roles.jsonl", rows)) == 2
    assert "all 3 rows of demonstrations have faults, the first roles.jsonl:1" in capsys.readouterr().err


def test_without_a_terminal_it_says_what_was_chosen(capsys: pytest.CaptureFixture) -> None:
    assert run("--model", "") == 2
    assert "--model is empty" in capsys.readouterr().err
    assert run() == 0
    assert (
        "no terminal to ask at, so these are the recipes of the embedded default" in capsys.readouterr().out
    )


def test_a_file_given_twice_is_taken_once() -> None:
    talks = write("talks.jsonl", [{"prompt": f"q{i}", "completion": "a"} for i in range(20)])
    assert run("--data", talks, "--data", talks, "--model", "tiny") == 0
    assert load_recipe("recipes/sft.yaml", "sft").data.train == talks


def test_labelled_answers_are_feedback_and_no_demonstrations(capsys: pytest.CaptureFixture) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", "label": i % 2 == 0} for i in range(40)]
    assert run("--data", write("kto.jsonl", rows), "--model", "tiny") == 0
    assert "40 rows of users' feedback" in capsys.readouterr().out
    assert [path.name for path in Path("recipes").glob("*.yaml")] == ["lora-update.yaml"]
    classes = [{"prompt": f"q{i}", "completion": "a", "label": "maths"} for i in range(40)]
    assert run("two", "--data", write("classes.jsonl", classes), "--model", "tiny") == 0
    told = capsys.readouterr().out
    assert "40 rows of demonstrations" in told and "classes.jsonl: columns that are not read: label" in told


def test_a_context_is_read_where_it_can_be_and_its_loss_is_a_warning(capsys: pytest.CaptureFixture) -> None:
    rows = [{"instruction": f"q{i}", "context": "c", "response": "a", "category": "x"} for i in range(40)]
    assert run("--data", write("dolly.jsonl", rows), "--model", "tiny") == 0
    told = capsys.readouterr().out
    assert "dolly.jsonl: columns that are not read: category" in told and "warning" not in told
    assert load_recipe("recipes/sft.yaml", "sft").data.columns == {"context": "input", "response": "output"}
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert run("two", "--data", write("talks.jsonl", [{"messages": talk, "system": "s"}] * 40)) == 0
    assert "warning: talks.jsonl: `system` may be what the answers rest on" in capsys.readouterr().out


def test_columns_that_mean_two_things_are_refused(capsys: pytest.CaptureFixture) -> None:
    one = [{"question": f"q{i}", "answer": "a"} for i in range(9)]
    other = [{"question": f"q{i}", "context": "c", "answer": "a"} for i in range(9)]
    names = ["--data", write("one.jsonl", one), "--data", write("other.jsonl", other)]
    assert run("both", *names) == 0
    columns = load_recipe("both/sft.yaml", "sft").data.columns
    assert columns == {"question": "instruction", "context": "input", "answer": "output"}
    assert len(load_rows(names[1::2], kind="sft", columns=columns).rows) == 18
    asked = write("asked.jsonl", [{"context": f"q{i}", "answer": "a"} for i in range(9)])
    assert run(*names, "--data", asked) == 2
    assert "asked.jsonl cannot be read with the columns of the other files" in capsys.readouterr().err
    assert not Path("recipes").exists()


def test_what_cannot_be_written_whole_is_not_written(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(path: Path, text: str) -> None:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        path.write_text(text, encoding="utf-8")

    monkeypatch.setattr("instructkit.runs.files.write_text_atomic", full)
    Path("there").mkdir()
    Path("there/mine.txt").write_text("kept", encoding="utf-8")
    for folder in ("new", "there"):
        assert run(folder) == 2
        assert f"error: {folder}: No space left on device" in capsys.readouterr().err
        written.clear()
    assert not Path("new").exists() and [path.name for path in Path("there").iterdir()] == ["mine.txt"]


def test_files_of_several_kinds_under_one_pattern_are_looked_at_one_by_one(
    capsys: pytest.CaptureFixture,
) -> None:
    write("talks.jsonl", [{"prompt": f"q {i}", "completion": "a"} for i in range(30)])
    write("pairs.jsonl", [{"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(30)])
    assert run("own", "--data", "*.jsonl") == 0
    told = capsys.readouterr().out
    assert "talks.jsonl: 30 rows of demonstrations" in told
    assert "pairs.jsonl: 30 rows of comparisons" in told
    assert load_recipe("own/reward.yaml", "reward").data.train == "pairs.jsonl"


def test_what_cannot_be_read_is_told_in_the_words_of_this_command(capsys: pytest.CaptureFixture) -> None:
    Path("cut.json").write_text('[{"text": "a"', encoding="utf-8")
    assert run("own", "--data", "cut.json") == 2
    told = capsys.readouterr().err
    assert "cut.json:1: not JSON" in told and "nothing was written" in told and "trained" not in told


def test_a_file_without_rows_hides_no_kind_of_the_others(capsys: pytest.CaptureFixture) -> None:
    Path("mix").mkdir()
    write("mix/talks.jsonl", [{"prompt": f"q {i}", "completion": "a"} for i in range(30)])
    write("mix/pairs.jsonl", [{"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(30)])
    write("mix/empty.jsonl", [])
    assert run("own", "--data", "mix") == 0
    assert sorted(path.name for path in Path("own").glob("*.yaml")) == ["ppo.yaml", "reward.yaml", "sft.yaml"]

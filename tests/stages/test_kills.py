"""Runs that are stopped or killed at chosen points, and what a resumed or a next run makes of them, bit by bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from signal import SIGALRM, SIGINT, SIGKILL, SIGTERM

import pytest
from fork_server import Ended, ForkServer

from .small import ANYTHING, CHAT, GENERAL, MANY, ONE_STEP, rows

# Dropout and two micro-steps a step: a resumed run needs the random state of the right moment.
LORA = "lora: {r: 4, alpha: 8, dropout: 0.1}\n"
SIX = "{max_steps: 6, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, logging_steps: 1}"
SFT = f"model: {{name: tiny}}\ndata: {{train: chat.jsonl, eval: 0.3}}\n{LORA}gates: {{loss_ratio_max: 99}}\n"
MICRO_STEP = "trl:SFTTrainer.training_step"


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    found = ForkServer()
    yield found
    found.close()


@pytest.fixture()
def place(workplace: Path) -> Path:
    rows("chat.jsonl", CHAT)
    write("sft", f"{SFT}trainer: {SIX}\n")
    return workplace


def write(stage: str, body: str) -> None:
    Path(f"{stage}.yaml").write_text(f"stage: {stage}\n{body}run: {{output: out}}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, tiny_folder: Path, tmp_path_factory) -> Path:
    """The weights of runs that nothing has stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("INSTRUCTKIT_CACHE", str(tiny_folder.parent))
        rows("chat.jsonl", CHAT)
        write("sft", f"{SFT}trainer: {SIX}\n")
        ended = server.run("sft", "sft.yaml")
        assert ended.code == 0, ended.output
    return folder / "out"


def record() -> dict:
    return json.loads(Path("out/run.json").read_text(encoding="utf-8"))


def weights(folder: Path | str = "out") -> bytes:
    return Path(folder, "adapter_model.safetensors").read_bytes()


def checkpoints() -> list[str]:
    return sorted(path.name for path in Path("out/checkpoints").glob("checkpoint-*"))


def done(ended: Ended) -> None:
    assert ended.code == 0, ended.output
    assert (record()["status"], record()["closing"]) == ("done", False)
    assert not Path("out/checkpoints").exists()
    assert not [path.name for path in Path("out").rglob(".*")], "nothing temporary is left"


@pytest.mark.parametrize(("number", "code"), [(SIGTERM, 143), (SIGINT, 130)])
@pytest.mark.parametrize(("micro_step", "saved"), [(8, "checkpoint-4"), (7, "checkpoint-3")])
def test_a_signal_leaves_a_checkpoint_and_a_closed_record(
    server, place, undisturbed, number: int, code: int, micro_step: int, saved: str
) -> None:
    """In the last micro-step of a step, and in the first one, which the resumed run repeats."""
    ended = server.run("sft", "sft.yaml", hook=(MICRO_STEP, micro_step, (number,)))
    assert ended.code == code, ended.output
    assert record()["status"] == "interrupted" and number.name in record()["error"]
    assert checkpoints() == [saved]
    assert "with --resume to continue" in ended.output
    done(server.run("sft", "sft.yaml", "--resume"))
    assert weights() == weights(undisturbed)


def test_a_signal_while_measuring_after_training_costs_no_training(server, place, undisturbed) -> None:
    ended = server.run("sft", "sft.yaml", hook=("instructkit.stages.sft:samples", 1, (SIGTERM,)))
    assert ended.code == 143 and "with --resume to continue" in ended.output, ended.output
    assert (record()["status"], checkpoints()) == ("interrupted", ["checkpoint-6"])
    done(server.run("sft", "sft.yaml", "--resume"))
    assert weights() == weights(undisturbed)


def test_ppo_stops_between_two_rollouts(server, place) -> None:
    rows("asked.jsonl", [{"prompt": row["messages"][:1]} for row in CHAT])
    Path("own.py").write_text(
        "def score(completions, **_):\n    return [-1.0 * len(str(c)) for c in completions]\n",
        encoding="utf-8",
    )
    write(
        "ppo",
        "model: {name: tiny}\nreward: [{function: own.py:score}]\ndata: {train: asked.jsonl, eval: 0.3}\n"
        f"{LORA}trainer: {{max_steps: 8, per_device_train_batch_size: 2, gradient_accumulation_steps: 1, "
        "steps_per_generation: 1, num_iterations: 2, max_completion_length: 4}\n",
    )
    assert server.run("ppo", "ppo.yaml", "run.output=whole").code == 0
    at = (
        "instructkit.ppo.trainer:PPOTrainer.training_step",
        3,
        (SIGTERM,),
    )  # the first step of the second rollout
    ended = server.run("ppo", "ppo.yaml", hook=at)
    assert ended.code == 143 and checkpoints() == ["checkpoint-4"], ended.output
    Path("own.py").write_text(
        Path("own.py").read_text(encoding="utf-8").replace("-1.0", "-2.0"), encoding="utf-8"
    )
    refused = server.run("ppo", "ppo.yaml", "--resume")
    assert refused.code == 2 and "reward[0].function (own.py:score)" in refused.output
    Path("own.py").write_text(
        Path("own.py").read_text(encoding="utf-8").replace("-2.0", "-1.0"), encoding="utf-8"
    )
    done(server.run("ppo", "ppo.yaml", "--resume"))
    assert weights() == weights("whole")


def test_a_second_signal_ends_the_process_at_once(server, place) -> None:
    ended = server.run("sft", "sft.yaml", hook=(MICRO_STEP, 7, (SIGTERM, SIGTERM)))
    assert ended.code == -SIGTERM
    assert record()["status"] == "running"  # nothing closes it; readers see that nobody holds the folder


def test_a_signal_before_the_first_step_leaves_no_folder(server, place) -> None:
    ended = server.run("sft", "sft.yaml", hook=("instructkit.stages.trainer:fit", 1, (SIGTERM,)))
    assert ended.code == 143, ended.output
    assert "no training was lost; run the same command again" in ended.output
    assert not Path("out").exists()


def test_the_hint_says_what_this_process_did(server, place) -> None:
    before_a_step = ("instructkit.stages.trainer:fit", 1, (SIGTERM,))
    ended = server.run("sft", "sft.yaml", hook=(MICRO_STEP, 8, (SIGTERM,)))
    assert "give the same command with --resume to continue" in ended.output
    ended = server.run("sft", "sft.yaml", "--resume", hook=before_a_step)
    assert "the earlier checkpoint is kept; run the same command again" in ended.output
    assert checkpoints() == ["checkpoint-4"]
    for hook in ("instructkit.stages.sft:collect", 1, (SIGTERM,)), before_a_step:
        ended = server.run("sft", "sft.yaml", "--overwrite", hook=hook)
        assert "no training was lost; run the same command again" in ended.output
        assert checkpoints() == ["checkpoint-4"]
    ended = server.run("sft", "sft.yaml", "--overwrite", hook=(MICRO_STEP, 7, (SIGTERM,)))
    assert "give the same command with --resume in place of --overwrite to continue" in ended.output


def test_a_kill_of_a_replacement_before_its_first_step_costs_no_training(server, place, undisturbed) -> None:
    server.run("sft", "sft.yaml", hook=(MICRO_STEP, 8, (SIGTERM,)))
    server.run("sft", "sft.yaml", "--overwrite", hook=("instructkit.stages.trainer:fit", 1, (SIGKILL,)))
    assert checkpoints() == [], "the replacement had begun"
    done(server.run("sft", "sft.yaml", "--resume"))
    assert weights() == weights(undisturbed)
    assert not Path(".out.discarded").exists()


def test_an_error_before_the_first_step_leaves_no_folder(server, place) -> None:
    """The recipe is sound and the first batch is not: the judge of the first step is the user's own code."""
    Path("bad.py").write_text("def score(completions, **_):\n    raise ValueError('no')\n", encoding="utf-8")
    rows("asked.jsonl", [{"prompt": row["messages"][:1]} for row in CHAT])
    body = (
        "model: {name: tiny}\nreward: [{function: bad.py:score}]\ndata: {train: asked.jsonl, eval: 0.3}\n"
        f"{LORA}trainer: {{max_steps: 2, per_device_train_batch_size: 4, max_completion_length: 4}}\n"
    )
    write("ppo", body)
    ended = server.run("ppo", "ppo.yaml")
    assert ended.code == 1 and "bad.py:score failed" in ended.output
    assert not Path("out").exists()


def test_max_minutes_stop_a_run_that_can_be_resumed(server, place, undisturbed) -> None:
    ended = server.run("sft", "sft.yaml", "run.max_minutes=500", hook=(MICRO_STEP, 4, (SIGALRM,)))
    assert ended.code == 130 and record()["error"] == "run.max_minutes is over"
    done(server.run("sft", "sft.yaml", "--resume"))  # another limit does not shape the result
    assert weights() == weights(undisturbed)
    ended = server.run("sft", "sft.yaml", "--overwrite", "run.max_minutes=0.0001")
    assert ended.code == 130 and "raise run.max_minutes: it was over before the first step" in ended.output
    assert record()["status"] == "done", "the finished run is put back"


@pytest.mark.parametrize("at", ["instructkit.runs.contents:put_in_place", "instructkit.stages.run:_complete"])
def test_a_kill_before_the_record_is_complete_costs_no_training(server, place, undisturbed, at: str) -> None:
    """The last checkpoint is there until the record is complete."""
    assert server.run("sft", "sft.yaml", hook=(at, 1, (SIGKILL,))).code == -SIGKILL
    assert checkpoints() == ["checkpoint-6"]
    Path("out/checkpoints/checkpoint-6/.tmpAb12Cd").write_text("half", encoding="utf-8")
    done(server.run("sft", "sft.yaml", "--resume"))
    assert weights() == weights(undisturbed)


@pytest.mark.parametrize(
    ("at", "option"),
    [
        ("instructkit.stages.closing:close", "--resume"),
        ("instructkit.stages.closing:_drop_checkpoints", "--if-changed"),
    ],
)
def test_a_kill_after_the_record_is_complete_is_repaired_by_the_next_start(
    server, place, undisturbed, at: str, option: str
) -> None:
    assert server.run("sft", "sft.yaml", hook=(at, 1, (SIGKILL,))).code == -SIGKILL
    assert (record()["status"], record()["closing"]) == ("done", True)
    done(server.run("sft", "sft.yaml", option))
    assert weights() == weights(undisturbed)


@pytest.mark.proof
def test_an_update_that_was_killed_before_its_chain_knew_is_entered_by_the_next_start(server, place) -> None:
    def update(output: str, *options: str, **hook) -> Ended:
        return server.run("lora-update", "up.yaml", f"run.output=runs/{output}", *options, **hook)

    assert server.run("sft", "sft.yaml", "run.output=runs/parent").code == 0
    events = [
        {"prompt": row["messages"][:1], "response": "No.", "better": row["messages"][1]["content"]}
        for row in MANY
    ]
    Path("up.yaml").write_text(
        f"stage: lora-update\nmodel: {{name: runs/parent}}\nfeedback: {{events: {rows('f.jsonl', events)}, eval: 0.6, "
        f"objective: sft, replay: chat.jsonl, general: {rows('g.jsonl', GENERAL)}}}\n{LORA}{ANYTHING}{ONE_STEP}"
        "run: {output: runs/first}\n",
        encoding="utf-8",
    )
    chain = Path("runs/chains/default")
    # First the run itself is killed, then the next start, which repairs it.
    for at in (
        "instructkit.feedback.promotion.chain:Chain.record",
        "instructkit.feedback.promotion.chain:Chain.promote",
    ):
        killed = update("first", hook=(at, 1, (SIGKILL,)))
        assert killed.code == -SIGKILL, killed.output
        kept = json.loads(Path("runs/first/run.json").read_text(encoding="utf-8"))
        assert (kept["verdict"], kept["closing"]) == ("PROMOTED", True)
        assert not (chain / "current").exists() and Path("runs/first/checkpoints").exists()
    refused = update("first")  # the run is there already, and now it is whole
    assert refused.code == 2 and "already holds a run (finished)" in refused.output
    assert (chain / "current").readlink() == Path("001")
    assert not Path("runs/first/checkpoints").exists()


def test_overwriting_deletes_only_what_the_run_wrote(server, place) -> None:
    assert server.run("sft", "sft.yaml").code == 0
    old = weights()
    Path("out/notes").mkdir()
    kept = {Path("out/notes/mine.txt"): "years of work", Path("out/table.csv"): "a,b"}
    for path, text in kept.items():
        path.write_text(text, encoding="utf-8")
    assert server.run("sft", "sft.yaml", "--overwrite", "run.seed=7").code == 0
    assert {path: path.read_text(encoding="utf-8") for path in kept} == kept and weights() != old
    assert server.run("sft", "sft.yaml", "--if-changed", "run.seed=8").code == 0
    assert {path: path.read_text(encoding="utf-8") for path in kept} == kept
    assert not list(place.glob(".*"))
    Path("out/more.jsonl").write_text(Path("chat.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    ended = server.run("sft", "sft.yaml", "--overwrite", "data.train=out/more.jsonl")
    assert ended.code == 2 and "data.train (out/more.jsonl)" in ended.output
    shutil.copy("sft.yaml", "out/own.yaml")
    ended = server.run("sft", "out/own.yaml", "--overwrite")
    assert ended.code == 2 and "the recipe (out/own.yaml)" in ended.output and Path("out/own.yaml").exists()

"""Two processes learn what one does (O-11, hazards 4 and 5 of section 4)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ppo.small import PROMPTS

SCRIPT = Path(__file__).with_name("two_processes.py")


def run(folder: Path, out: Path, world: int, *, critic: str, checkpointing: str) -> dict[str, torch.Tensor]:
    """The weights after one step of `world` processes."""
    out.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = []
    for rank in range(world):
        spread = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        told = {name: str(value) for name, value in spread.items()} if world > 1 else {}
        command = [sys.executable, str(SCRIPT), str(folder), str(out), critic, checkpointing]
        environment = {**os.environ, **told, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        )
    for process in started:
        _, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, complaint.decode()[-2000:]
    found = [torch.load(file, weights_only=True) for file in sorted(out.glob("weights-*.pt"))]
    for other in found[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in found[0].items())
    return found[0] if found else {}


@pytest.mark.proof
@pytest.mark.parametrize(
    ("critic", "checkpointing"),
    [("head", "no"), ("adapter", "no"), ("adapter", "yes"), ("separate", "no"), ("separate", "yes")],
)
def test_two_processes_take_the_step_of_one(tiny_folder, tmp_path, critic: str, checkpointing: str) -> None:
    options = {"critic": critic, "checkpointing": checkpointing}
    one = run(tiny_folder, tmp_path / "one", 1, **options)
    two = run(tiny_folder, tmp_path / "two", 2, **options)
    names = {name.replace("module.", ""): tensor for name, tensor in two.items()}
    for name, tensor in one.items():
        torch.testing.assert_close(names[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.proof
def test_processes_say_other_words_to_equal_prompts(tiny_folder, tmp_path) -> None:
    """R-8: two processes with the same prompts and one seed would learn from the same text twice."""
    run(tiny_folder, tmp_path / "two", 2, critic="sample", checkpointing="no")
    said = [torch.load(tmp_path / "two" / f"said-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert said[0] != said[1]


@pytest.mark.proof
@pytest.mark.parametrize("critic", ["adapter", "separate"])
def test_a_whole_run_of_two_processes_is_one_run(tiny_folder, tmp_path, critic: str) -> None:
    """Warm-up, scaling, adaptive beta, early stop, text, evaluation and checkpoints: alike on both, and resumed bit for bit."""
    run(tiny_folder, tmp_path / "a", 2, critic=f"whole {critic}", checkpointing="")
    checkpoint = str(tmp_path / "a" / "out" / "checkpoint-8")
    run(tiny_folder, tmp_path / "b", 2, critic=f"whole {critic}", checkpointing=checkpoint)
    straight, resumed = (
        [torch.load(tmp_path / place / f"seen-{rank}.pt", weights_only=True) for rank in (0, 1)]
        for place in ("a", "b")
    )
    for one, other in (straight, resumed, (straight[0], resumed[0])):
        assert one["state"] == other["state"]  # O-17: beta among it
        assert all(torch.equal(tensor, other["weights"][name]) for name, tensor in one["weights"].items())
    assert straight[0]["state"]["beta"] != 0.05
    assert straight[0]["state"]["episodes"] == 3 * 8
    assert [row["prompt"] for row in straight[0]["answers"]] == PROMPTS[
        :3
    ] * 3  # an evaluation a rollout, told once
    assert straight[1]["answers"] == []
    assert straight[0]["answers"][6:] == resumed[0]["answers"]
    evaluations = [
        line["eval_objective/scores"] for line in straight[0]["log"] if "eval_objective/scores" in line
    ]
    for i, mean in enumerate(evaluations):
        scores = [row["score"] for row in straight[0]["answers"][3 * i : 3 * i + 3]]
        assert sum(scores) / 3 == pytest.approx(mean, rel=1e-5)
    told = [[line for line in seen["log"] if "policy/approxkl_avg" in line] for seen in straight]
    assert len(told[0]) > 2
    for first, second in zip(*told, strict=True):
        assert first["policy/approxkl_avg"] == second["policy/approxkl_avg"]
        assert first["policy/left_early"] == second["policy/left_early"]
    for mine, theirs in zip(straight[0]["rollouts"], straight[1]["rollouts"], strict=True):
        both = torch.cat([mine, theirs])
        assert abs(both.mean()) < 1e-5  # whitened over both, and over neither alone
        assert abs(both.std(correction=0) - 1) < 1e-4
        assert abs(mine.mean()) > 1e-3

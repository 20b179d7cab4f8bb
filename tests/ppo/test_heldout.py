"""What was answered in an evaluation within training is kept, prompt by prompt, beside the means of the log (3.11)."""

from __future__ import annotations

from pathlib import Path

import pytest
from ppo.small import PROMPTS, build, logged
from stages.small import MANY, rows, run

from instructkit.runs.metrics import read_metrics

ASKED = [{"prompt": prompt} for prompt in PROMPTS[:6]]


def judge(prompts, completions):
    return [float(len(text)) for text in completions]


def test_every_evaluation_tells_its_answers(tiny_folder, tmp_path) -> None:
    """Six prompts read four at a time: each answer has its own figures, and their means are those of the log."""
    kept: list[dict] = []
    trainer = build(
        tiny_folder,
        tmp_path,
        reading_batch_size=4,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=4,
        missing_eos_penalty=0.5,
        more={"eval_dataset": ASKED, "judges": {"judge": judge}, "keep_answers": kept.extend},
    )
    trainer.train()
    assert [row["step"] for row in kept] == [4] * 6 + [8] * 6
    assert {row["set"] for row in kept} == {"eval"}
    assert [row["prompt"] for row in kept] == PROMPTS[:6] * 2
    assert {row["ended"] for row in kept} == {True, False}
    for row in kept:
        assert row["score_raw"] == row["answer"].count("e")
        assert row["score"] == row["score_raw"] - (0.0 if row["ended"] else 0.5)
        assert row["judge"] == len(row["answer"])
        assert isinstance(row["length_tokens"], int)
    means = {
        "score": "objective/scores",
        "score_raw": "objective/scores_raw",
        "kl_nats": "objective/kl",
        "length_tokens": "completions/mean_length",
        "ended": "completions/eos_fraction",
        "judge": "judge",
    }
    for name, figure in means.items():
        told = logged(trainer, f"eval_{figure}")
        for evaluation in (0, 1):
            mine = [row[name] for row in kept[6 * evaluation : 6 * evaluation + 6]]
            assert told[evaluation] == pytest.approx(sum(mine) / 6, rel=1e-5), (name, evaluation)
    assert len({row["kl_nats"] for row in kept}) == 12


def test_answers_say_of_which_set_they_are(tiny_folder, tmp_path) -> None:
    kept: list[dict] = []
    sets = {"easy": ASKED[:1], "hard": ASKED[1:3]}
    trainer = build(tiny_folder, tmp_path, beta=0.0, more={"eval_dataset": sets, "keep_answers": kept.extend})
    trainer.evaluate()
    assert [(row["set"], row["prompt"]) for row in kept] == [
        ("eval_easy", PROMPTS[0]),
        ("eval_hard", PROMPTS[1]),
        ("eval_hard", PROMPTS[2]),
    ]
    assert not any("kl_nats" in row for row in kept)  # there is no reference


def test_a_run_keeps_a_table_of_answers_for_each_evaluation(workplace: Path) -> None:
    """As many as `run.samples` says, in a file of the run folder; a run that evaluates only at its ends has none."""
    Path("own.py").write_text(
        "def length(prompts, completions, **_):\n    return [float(len(c[0]['content'])) for c in completions]\n",
        encoding="utf-8",
    )
    rows("prompts.jsonl", [{"prompt": row["messages"][:1]} for row in MANY])
    body = (
        "model: {name: tiny}\nreward: [{function: own.py:length}]\ncritic: {kind: head}\n"
        "data: {train: prompts.jsonl, eval: 0.2}\ntrainer: {max_steps: 2, per_device_train_batch_size: 4, "
        "num_iterations: 1, max_completion_length: 4%s}\nrun: {output: %s, samples: 2, compare: 2}\n"
    )
    run("ppo", body % (", eval_strategy: steps, eval_steps: 1", "with"))
    found = read_metrics("with/eval_samples.jsonl")
    assert [row["step"] for row in found] == [1, 1, 2, 2]
    assert all(row["score_raw"] == len(row["answer"]) for row in found)
    before = read_metrics("with/samples.jsonl")
    assert [row["prompt"] for row in found[:2]] == [row["prompt"] for row in before]
    run("ppo", body % ("", "without"))
    assert not Path("without/eval_samples.jsonl").exists()

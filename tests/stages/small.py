"""Small runs of the stages on a few rows: what several test files here need."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from instructkit.recipe.load import load_recipe
from instructkit.stages import RunOptions, run_stage

LORA = "lora: {r: 4, alpha: 8}\n"
ONE_STEP = "trainer: {max_steps: 2, per_device_train_batch_size: 4}\n"
CHAT = [
    {"messages": [{"role": "user", "content": f"Say {w}."}, {"role": "assistant", "content": f"{w}!"}]}
    for w in ("one", "two", "three", "four", "five", "six", "seven", "eight")
]
PAIRS = [
    {
        "prompt": row["messages"][:1],
        "chosen": row["messages"][1:],
        "rejected": [{"role": "assistant", "content": "No."}],
        "margin": 0.5,
    }
    for row in CHAT
]


# Enough for every gate to be decided, and gates that any update passes.
WORDS = [f"number {i}" for i in range(30)]
MANY = [
    {"messages": [{"role": "user", "content": f"Say {w}."}, {"role": "assistant", "content": f"{w}!"}]}
    for w in WORDS
]
GENERAL = [
    {"messages": [{"role": "user", "content": f"Is {w} here?"}, {"role": "assistant", "content": "Yes."}]}
    for w in WORDS[:12]
]
ANYTHING = (
    "gates: {feedback_gain_min: -99, general_loss_ratio_max: 99, group_loss_max: null, bias_growth_max: null, "
    "contrast_growth_max: null, kl_max_nats: null, length_ratio_min: null, length_ratio_max: null, "
    "conduct_loss_max: null, trigger: false, memory: false, rescue: false}\n"
)


class Silent:
    """A reporter that keeps notes and phases."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def phase(self, title, *, announced=False) -> AbstractContextManager[None]:
        self.phases.append(title)
        return nullcontext()

    def stage_started(self, title, total_steps) -> None: ...
    def step(self, step, total, figures) -> None: ...
    def finished(self) -> None: ...
    def table(self, run) -> None: ...


def rows(name: str, content: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return name


def run(stage: str, body: str, **options) -> tuple[dict, list[str]]:
    if stage == "sft" and "gates:" not in body:
        body += "gates: {loss_ratio_max: 99}\n"  # two steps on eight rows reach nothing
    Path(f"{stage}.yaml").write_text(f"stage: {stage}\n{body}", encoding="utf-8")
    options = {"anyway": stage == "lora-update", **options}  # few rows decide no gate
    reporter = Silent()
    record = run_stage(load_recipe(f"{stage}.yaml", stage), RunOptions(**options), reporter)
    return record, reporter.notes


def sft(
    output: str, *, model: str = "tiny", extra: str = "", data: str | None = None, trainer: str = ONE_STEP
) -> dict:
    data = data or rows("chat.jsonl", CHAT)
    body = f"model: {{name: {model}}}\ndata: {{train: {data}, eval: 0.3}}\n{extra}{trainer}run: {{output: {output}}}\n"
    return run("sft", body)[0]

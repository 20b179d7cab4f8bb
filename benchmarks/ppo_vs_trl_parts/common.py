"""What the workers of the speed benchmark share: one model, one set of prompts, one shape of batch."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPOCHS, RANK = 2, 16
BETA, LEARNING_RATE = 0.05, 1e-5
TARGETS = "all-linear"


def settings() -> dict[str, Any]:
    """What the driver wants of this worker: model folder, prompts file, response length, rollouts, output file."""
    return json.loads(sys.argv[1])


def prompts(path: str, tokenizer: Any) -> list[list[int]]:
    """The token ids of the prompts, as the chat template renders them."""
    rows = [json.loads(line)["prompt"] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    encode = tokenizer.apply_chat_template
    return [
        list(encode(row, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"])
        for row in rows
    ]


def messages(path: str) -> list[dict[str, Any]]:
    """The prompts as messages."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def on_cpu(wanted: dict[str, Any]) -> bool:
    """Whether this worker computes on the CPU, in float32; on a GPU it is bfloat16."""
    return wanted["device"] == "cpu"


def peak_bytes(wanted: dict[str, Any]) -> int:
    """Largest memory so far: resident memory of this process, or what torch had allocated on the GPU."""
    if on_cpu(wanted):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torch

    return torch.cuda.max_memory_allocated()


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes, and what it started on a GPU."""
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def done(wanted: dict[str, Any], **figures: Any) -> None:
    """Hand the figures to the driver."""
    Path(wanted["out"]).write_text(
        json.dumps({**figures, "peak_bytes": peak_bytes(wanted)}), encoding="utf-8"
    )

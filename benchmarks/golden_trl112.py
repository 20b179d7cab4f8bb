"""
Replay one PPO rollout in TRL 1.12's own PPOTrainer, the last release that had one, and keep what it computed.

    python benchmarks/golden_trl112.py            compare a fresh replay with the stored numbers
    python benchmarks/golden_trl112.py --write    store the fresh numbers

TRL 1.12 cannot live beside 1.16, so it gets an environment of its own (`--env`; 1.5 GiB, more with a CUDA torch).
TRL's code runs as it was released: `train()` is called once on a random Llama, and two hooks read what it holds: one around its
`masked_whiten`, one around `accelerator.backward`, where the caller's local variables are all still alive.

The settings are the corner in which 1.12 is right (specification 8.3): one process, one mini-batch, a pad token that is
not EOS, `stop_token="eos"`, k1, float32. The second case has two micro-batches and shows how 1.12 averages over them.
`tests/ppo/test_golden_trl112.py` compares the stored numbers with instructkit's functions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "ppo" / "golden_trl112.json"
TRL, TORCH = "1.12.0", "2.13.0"
WHAT = "what TRL's own PPOTrainer computed, by its names; masks: 1 is padding; rows: of the rollout, in an update's order"
COMMAND = "python benchmarks/golden_trl112.py --write"

PAD, EOS, UNKNOWN, VOCABULARY = 0, 1, 2, 12
PROMPTS = 8
MODELS = {"policy": 59, "reference": 12, "reward": 13, "value": 22}  # seeds of the random weights
SAMPLING = {"seed": 0, "response_length": 8, "temperature": 0.7, "stop_token": "eos"}
REWARDS = {"kl_coef": 0.05, "kl_estimator": "k1", "missing_eos_penalty": None, "whiten_rewards": False}
ADVANTAGES = {"gamma": 1.0, "lam": 0.95}
# the learning rate is large, so that the second epoch has ratios and values on both sides of their clips
UPDATES = {"num_ppo_epochs": 2, "num_mini_batches": 1, "learning_rate": 0.005}
LOSSES = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1}
SETTINGS = {**SAMPLING, **REWARDS, **ADVANTAGES, **UPDATES, **LOSSES}
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# local variables of TRL's `train()`, by its own names
TOKENS = ("queries", "responses", "postprocessed_responses", "sequence_lengths", "contain_eos_token")
FIGURES = ("scores", "logprobs", "ref_logprobs", "values", "kl", "non_score_reward", "rewards")
TARGETS = ("padding_mask", "padding_mask_p1", "advantages", "returns")
STATISTICS = ("pg_clipfrac", "vf_clipfrac", "approxkl", "ratio")


def main() -> int:
    """Prepare the environment, replay both cases in it, then compare or store."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--env", type=Path, default=ROOT / ".bench/trl112", help="home of TRL 1.12")
    parser.add_argument("--write", action="store_true", help="replace the stored numbers")
    parser.add_argument("--replay", nargs=2, metavar=("MICRO_BATCHES", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        Path(options.replay[1]).write_text(json.dumps(replay(int(options.replay[0]))), encoding="utf-8")
        return 0
    python = prepare(options.env.resolve())
    fresh = both_cases(python)
    if options.write:
        GOLDEN.write_text(layout(fresh), encoding="utf-8")
        print(f"wrote {GOLDEN.relative_to(ROOT)}: {GOLDEN.stat().st_size} bytes")
        return 0
    return compare(json.loads(GOLDEN.read_text(encoding="utf-8")), fresh)


def prepare(env: Path) -> Path:
    """Install TRL 1.12 beside the pinned versions of everything else, once; return the environment's interpreter."""
    python = env / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = env / ".installed"
    if done.exists():
        return python
    venv.create(env, with_pip=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = env / "pins.txt"
    pins.write_text("\n".join(x for x in lines if not x.startswith("trl==")), encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(pins)]
    subprocess.run([*pip, f"torch=={TORCH}"], check=True)
    subprocess.run([*pip, f"trl=={TRL}", "transformers", "accelerate", "peft"], check=True)
    done.touch()
    return python


def both_cases(python: Path) -> dict[str, Any]:
    """Replay with one and with two micro-batches, each in a process of its own: accelerate keeps global state."""
    offline = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}
    found = {}
    for micro_batches in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "replay.json"
            command = [str(python), __file__, "--replay", str(micro_batches), str(file)]
            subprocess.run(command, check=True, cwd=folder, env={**os.environ, **offline})
            found[micro_batches] = json.loads(file.read_text(encoding="utf-8"))
    if found[1]["rollout"] != found[2]["rollout"]:
        raise SystemExit("error: the two cases sampled different rollouts")
    about = {"what": WHAT, "command": COMMAND}
    settings = {"model_seeds": MODELS, "vocabulary": VOCABULARY, "pad": PAD, "eos": EOS, **SETTINGS}
    first = {"about": {**about, **found[1]["versions"]}, "settings": settings, "rollout": found[1]["rollout"]}
    return {**first, "one_micro_batch": found[1]["updates"], "two_micro_batches": found[2]["updates"]}


def layout(data: dict[str, Any]) -> str:
    """JSON with a row of numbers on each line, so that a change can be read in a diff."""
    text = json.dumps(data, indent=1)
    return re.sub(r'\[([^\[\]{}"]*)\]', lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"


def compare(stored: dict[str, Any], fresh: dict[str, Any]) -> int:
    """Print the largest difference of each quantity; 1 when other tokens were sampled, so that nothing compares."""
    if stored["rollout"]["responses"] != fresh["rollout"]["responses"]:
        print("other tokens were sampled than stored: another machine or other versions", file=sys.stderr)
        return 1
    for part in ("rollout", "one_micro_batch", "two_micro_batches"):
        old, new = ([x] if isinstance(x, dict) else x for x in (stored[part], fresh[part]))
        for name in old[0]:
            pairs = zip(flat([x[name] for x in old]), flat([x[name] for x in new]), strict=True)
            print(f"{part:18} {name:26} {max(abs(a - b) for a, b in pairs):.1e}")
    return 0


def flat(values: Any) -> list[float]:
    """The numbers of nested lists in one."""
    return [x for part in values for x in flat(part)] if isinstance(values, list) else [float(values)]


# What follows runs in the environment of TRL 1.12 alone.


def replay(micro_batches: int) -> dict[str, Any]:
    """One `train()` of TRL's PPOTrainer over one rollout; what it held, as nested lists."""
    import torch
    import transformers
    import trl.experimental.ppo.ppo_trainer as theirs

    torch.set_num_threads(1)
    # numpy's generator shuffles the rollout, and TRL 1.12 does not seed it
    transformers.set_seed(SETTINGS["seed"])
    rollout: dict[str, Any] = {}
    updates: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(micro_batches, folder)
        watch_whitening(theirs, rollout)
        statistics = watch_backward(trainer, rollout, updates)
        trainer.train()
    for i, update in enumerate(updates):
        update.update({name: numbers(statistics[name].flatten()[i]) for name in STATISTICS})
    check_coverage(rollout, updates)
    return {"versions": versions(), "rollout": rollout, "updates": updates}


def build_trainer(micro_batches: int, folder: str) -> Any:
    """TRL's trainer on four random Llamas and eight prompts of two to five tokens."""
    import torch
    from datasets import Dataset
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    generator = torch.Generator().manual_seed(SETTINGS["seed"])
    prompts = [
        torch.randint(UNKNOWN + 1, VOCABULARY, (2 + i % 4,), generator=generator).tolist()
        for i in range(PROMPTS)
    ]
    config = PPOConfig(
        output_dir=folder,
        total_episodes=PROMPTS,
        per_device_train_batch_size=PROMPTS // micro_batches,
        gradient_accumulation_steps=micro_batches,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **SETTINGS,
    )
    rows = Dataset.from_dict({"input_ids": prompts})
    return PPOTrainer(
        config,
        tokenizer(),
        model=llama(LlamaForCausalLM, MODELS["policy"]),
        ref_model=llama(LlamaForCausalLM, MODELS["reference"]),
        reward_model=llama(LlamaForSequenceClassification, MODELS["reward"], num_labels=1),
        value_model=llama(LlamaForSequenceClassification, MODELS["value"], num_labels=1),
        train_dataset=rows,
        eval_dataset=rows,
    )


def llama(kind: Any, seed: int, **more: Any) -> Any:
    """A Llama of two layers; tied, so that the pad's logit is 0 and it is seldom sampled."""
    import torch
    from transformers import LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        **LLAMA,
        vocab_size=VOCABULARY,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=PAD,
        eos_token_id=EOS,
        **more,
    )
    return kind(config)


def tokenizer() -> Any:
    """Twelve words, padded on the left."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(3, VOCABULARY))]
    model = WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), padding_side="left", **special)


def watch_whitening(theirs: Any, rollout: dict[str, Any]) -> None:
    """Keep what goes into `masked_whiten`, which with rewards left alone is called for the advantages only."""
    original = theirs.masked_whiten

    def whiten(values: Any, mask: Any, **options: Any) -> Any:
        rollout["advantages_before_whitening"] = numbers(values)
        return original(values, mask, **options)

    theirs.masked_whiten = whiten


def watch_backward(trainer: Any, rollout: dict[str, Any], updates: list[dict[str, Any]]) -> dict[str, Any]:
    """Keep the caller's local variables at each `accelerator.backward`, and the gradients that it leaves."""
    original = trainer.accelerator.backward
    statistics: dict[str, Any] = {}

    def backward(loss: Any, **options: Any) -> None:
        seen = sys._getframe(1).f_locals
        new_logprobs, new_values = seen["new_logprobs"], seen["vpred"]
        new_logprobs.retain_grad()
        new_values.retain_grad()
        if not updates:
            rollout.update({name: numbers(seen[name]) for name in TOKENS + FIGURES + TARGETS})
            statistics.update({name: seen[f"{name}_stats"] for name in STATISTICS})
        kept = {"rows": seen["micro_batch_inds"], "new_logprobs": new_logprobs, "new_values": new_values}
        kept |= {"policy_loss": seen["pg_loss"], "value_loss": seen["vf_loss"], "loss": loss}
        original(loss, **options)
        kept |= {"grad_new_logprobs": new_logprobs.grad, "grad_new_values": new_values.grad}
        updates.append({name: numbers(value) for name, value in kept.items()})

    trainer.accelerator.backward = backward
    return statistics


def numbers(values: Any) -> Any:
    """Nested lists; nine significant digits, which are all that a float32 has."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, list):
        return [numbers(value) for value in values]
    return float(f"{values:.9g}") if isinstance(values, float) else int(values)


def check_coverage(rollout: dict[str, Any], updates: list[dict[str, Any]]) -> None:
    """Refuse a rollout that leaves a branch of the formulas untouched."""
    limit = SETTINGS["response_length"]
    rows = list(zip(rollout["responses"], [last + 1 for last in rollout["sequence_lengths"]], strict=True))
    ends = [length for row, length in rows if row[length - 1] == EOS]
    wanted = {
        "two responses that end early": sum(length < limit - 1 for length in ends) >= 2,
        "one that ends just before the limit": limit - 1 in ends,
        "one that ends at the limit": limit in ends,
        "two that do not end": sum(row[-1] != EOS for row, length in rows if length == limit) >= 2,
        "no pad token sampled": all(row[n - 1] == EOS or n == limit and PAD not in row for row, n in rows),
        "some ratios clipped": 0 < updates[-1]["pg_clipfrac"] < 1,
        "some values clipped": 0 < updates[-1]["vf_clipfrac"] < 1,
    }
    if missing := [name for name, there in wanted.items() if not there]:
        raise SystemExit(
            f"error: the replay lacks: {'; '.join(missing)}\nhint: change the seeds in this file"
        )


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    from importlib.metadata import version

    return {name: version(name) for name in ("trl", "torch", "transformers", "accelerate", "peft", "numpy")}


if __name__ == "__main__":
    sys.exit(main())

"""Train one method (but TRL 1.12's) from the seed's policy and reward model, and measure it on held-out prompts."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from instructkit.data.demo.judge import judge_batch
from instructkit.data.sources import load_rows
from instructkit.models import source
from instructkit.models.generate import answer
from instructkit.models.machine import Machine
from instructkit.models.reward import RewardScorer
from instructkit.models.tokens import encode_prompt
from instructkit.ppo import rollout
from instructkit.recipe.schema import ModelSection

ROLLOUTS, BATCH, EPOCHS, LONGEST = 30, 128, 2, 40  # what recipes/ppo.yaml does
ASKED, ANSWERS = (
    400,
    8,
)  # prompts, and answers to each: one alone would leave more noise than methods differ by
SECTION = ModelSection(name="runs/sft")
MACHINE = Machine("cpu", "float32", ())


def main() -> None:
    """Write the figures of one method beside the runs of its seed."""
    wanted = json.loads(sys.argv[1])
    torch.manual_seed(wanted["seed"])
    if wanted["method"] == "prompts":
        write_prompts()
        return
    if wanted["method"] == "best of n":
        figures = best_of(wanted)
    else:
        make = {"instructkit PPO": ppo, "TRL 1.12 PPO": already}.get(wanted["method"], trl)
        place = already(wanted)
        figures = measured(Path(place if is_done(place) else make(wanted)), wanted)
    Path(f"{wanted['name']}.json").write_text(json.dumps(figures), encoding="utf-8")


def write_prompts() -> None:
    """The training prompts as tokens, for TRL 1.12, which reads nothing else."""
    tokenizer = AutoTokenizer.from_pretrained("runs/sft")
    rows = [encode_prompt(tokenizer, row["prompt"]) for row in prompts("demo/prompts")]
    Path("prompts.json").write_text(json.dumps(rows), encoding="utf-8")


def ppo(wanted: dict[str, Any]) -> str:
    """Our stage, by its command."""
    root = Path(__file__).resolve().parents[2]
    out = f"runs/{wanted['name']}"
    told = [
        f"run.seed={wanted['seed']}",
        f"trainer.beta={wanted['beta']}",
        f"trainer.learning_rate={wanted['rate']}",
    ]
    command = [
        sys.executable,
        "-m",
        "instructkit",
        "ppo",
        str(root / "recipes/ppo.yaml"),
        *told,
        f"run.output={out}",
    ]
    done = subprocess.run([*command, "--overwrite", "--quiet"], capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr[-3000:])
    return out


def already(wanted: dict[str, Any]) -> str:
    """Where the policy is, TRL 1.12's saved by its own worker."""
    return f"runs/{wanted['name']}"


def is_done(place: str) -> bool:
    """Whether a policy was trained and saved there."""
    return (Path(place) / "model.safetensors").exists()


def trl(wanted: dict[str, Any]) -> str:
    """TRL's RLOO or GRPO: as many episodes, four answers a prompt."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    config, trainer = {"TRL RLOO": (RLOOConfig, RLOOTrainer), "TRL GRPO": (GRPOConfig, GRPOTrainer)}[
        wanted["method"]
    ]
    tokenizer = AutoTokenizer.from_pretrained("runs/sft", padding_side="left")
    out = f"runs/{wanted['name']}"
    arguments = config(
        output_dir=f"{out}/checkpoints",
        seed=wanted["seed"],
        per_device_train_batch_size=BATCH // 2,
        steps_per_generation=2,
        num_generations=4,
        num_iterations=EPOCHS,
        max_steps=ROLLOUTS * 2 * EPOCHS,
        max_completion_length=LONGEST,
        learning_rate=wanted["rate"],
        beta=wanted["beta"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    made = trainer(
        model=AutoModelForCausalLM.from_pretrained("runs/sft"),
        reward_funcs=[scorer()],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in prompts("demo/prompts")]),
        processing_class=tokenizer,
    )
    made.train()
    made.model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def scorer() -> RewardScorer:
    """The seed's reward model."""
    return RewardScorer.load(source.locate("runs/reward"), SECTION, MACHINE)


def prompts(source: str) -> list[dict[str, Any]]:
    """Rows of the demo world."""
    return load_rows(source, kind="prompt").rows


def measured(place: Path, wanted: dict[str, Any]) -> dict[str, float]:
    """Judge, KL to the SFT policy and length of sampled answers to the first prompts of the wanted source."""
    tokenizer = AutoTokenizer.from_pretrained("runs/sft", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(str(p)).eval() for p in (place, "runs/sft"))
    asked = ANSWERS * [row["prompt"] for row in prompts(wanted["prompts"])][:ASKED]
    answers = answer(policy, tokenizer, asked, max_new_tokens=LONGEST, seed=wanted["seed"])
    batch = rollout.collate(
        [a.prompt_ids for a in answers], [a.ids for a in answers], pad_id=tokenizer.pad_token_id
    )
    with torch.no_grad():
        ours, theirs = (rollout.read(model, batch, temperature=1.0).logprobs for model in (policy, reference))
    return {
        "judge": statistics.fmean(judge_batch(asked, [a.text for a in answers])),
        "kl": float((ours - theirs).sum(1).mean()),
        "length": statistics.fmean(len(a.ids) for a in answers),
    }


def best_of(wanted: dict[str, Any]) -> dict[str, float]:
    """
    The best of n samples of the SFT policy by the reward model.

    Its KL is at most `log n - (n - 1) / n` (Beirami et al. 2024, 2401.01879), which is what is told.
    """
    n = wanted["n"]
    tokenizer = AutoTokenizer.from_pretrained("runs/sft", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained("runs/sft").eval()
    asked = ANSWERS * [row["prompt"] for row in prompts(wanted["prompts"])][:ASKED]
    tries = [
        answer(policy, tokenizer, asked, max_new_tokens=LONGEST, seed=1000 * wanted["seed"] + i)
        for i in range(n)
    ]
    score = scorer()
    scores = [score.score(asked, [a.text for a in each]) for each in tries]
    best = [max(range(n), key=lambda i: scores[i][row]) for row in range(len(asked))]
    chosen = [tries[i][row] for row, i in enumerate(best)]
    return {
        "judge": statistics.fmean(judge_batch(asked, [a.text for a in chosen])),
        "kl": math.log(n) - (n - 1) / n,
        "length": statistics.fmean(len(a.ids) for a in chosen),
    }


if __name__ == "__main__":
    main()

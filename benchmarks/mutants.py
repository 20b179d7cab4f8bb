"""
Break the implementation on purpose, one way at a time, and see a test go red for each: `make mutants`.

A test that cannot fail proves nothing. Each mutant is one change to one file, made in a copy of the project; the tests that
should notice run first, then all tests of PPO. A mutant that no test notices is a survivor, and the script exits 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "mutants.md"


class Mutant(NamedTuple):
    """What is broken, where, how, and which tests should notice (pytest's arguments)."""

    breaks: str
    file: str
    old: str
    new: str
    tests: str


PPO = "instructkit/ppo"
MUTANTS = (
    # -- specification, section 8: the listed ways ---------------------------------------------------------------------
    Mutant("O-5 mask dropped from sums", f"{PPO}/masks.py", "torch.where(mask, values, torch.zeros_like(values)).sum()", "values.sum()", "tests/ppo/test_maths.py"),
    Mutant("O-5 padding in whitening", f"{PPO}/masks.py", "values = torch.where(mask, values.float(), 0.0)\n    count, total = reduce(torch.stack([mask.sum().float(), values.sum()]))", "count, total = reduce(torch.stack([torch.tensor(float(mask.numel())), values.sum()]))", "tests/ppo/test_maths.py"),
    Mutant("O-2 value shifted by one", f"{PPO}/reader.py", ".last_hidden_state[:, -length - 1 : -1]", ".last_hidden_state[:, -length:]", "tests/ppo/test_roles.py tests/ppo/test_reader.py"),
    Mutant("separate critic's value shifted by one", f"{PPO}/critic.py", "out.last_hidden_state[:, -length - 1 : -1]", "out.last_hidden_state[:, -length:]", "tests/ppo/test_trainer.py"),
    Mutant("R-3 temperature ignored", f"{PPO}/reader.py", "ids[mask],\n            temperature,", "ids[mask],\n            1.0,", "tests/ppo/test_reader.py"),
    Mutant("A-2 returns after whitening", f"{PPO}/sampling.py", '"returns": returns,', '"returns": whiten(advantages, mask) + values,', "tests/ppo/test_steps.py"),
    Mutant("S-8 score one token early", f"{PPO}/masks.py", "torch.where(mask, steps, -1).amax(dim=1)", "(torch.where(mask, steps, -1).amax(dim=1) - 1).clamp(min=0)", "tests/ppo/test_maths.py"),
    Mutant("R-8 one seed for all processes", f"{PPO}/trainer.py", "self.watch_borders()", "torch.manual_seed(config.seed)\n        self.watch_borders()", "tests/ppo/test_processes.py -m proof -k other_words"),
    Mutant("O-1 lambda forgotten", f"{PPO}/advantages.py", "delta + gamma * lam * carried", "delta + gamma * carried", "tests/ppo/test_maths.py"),
    Mutant("O-1 gaps not jumped over", f"{PPO}/advantages.py", "carried = torch.where(here, advantage, carried)", "carried = torch.where(here, advantage, 0.0)", "tests/ppo/test_maths.py"),
    Mutant("O-3 next value forgotten", f"{PPO}/advantages.py", "gamma * next_value - values", "-values", "tests/ppo/test_maths.py"),
    Mutant("O-6 ratios of another law", f"{PPO}/sampling.py", "read = self._read_in_parts(batch)", "read = self._read_in_parts({**batch, 'prompt_mask': batch['prompt_mask'] * 0 + 1})", "tests/ppo/test_trainer.py"),
    Mutant("O-7 sign of the policy loss", f"{PPO}/losses.py", "free = -advantages * ratio", "free = advantages * ratio", "tests/ppo/test_maths.py"),
    Mutant("O-8 masks from token identity", f"{PPO}/rollout.py", '"response_mask": response_mask_from_lengths(lengths, completion_ids.size(1))', '"response_mask": completion_ids != pad_id', "tests/ppo/test_trainer.py tests/ppo/test_steps.py"),
    Mutant("R-1 no positions", f"{PPO}/rollout.py", "return input_ids, attention_mask, position_ids(attention_mask)", "return input_ids, attention_mask, torch.arange(input_ids.size(1)).expand_as(input_ids)", "tests/ppo/test_trainer.py"),
    Mutant("O-9 reference is the bare base", "instructkit/adapters.py", "    if PARENT in model.peft_config:\n        with Role([PARENT])(model):", "    if False:\n        with Role([PARENT])(model):", "tests/ppo/test_roles.py tests/test_adapters.py"),
    Mutant("O-10 k3 in the reward", f"{PPO}/kl.py", "rewards = -beta * k1(old_logprobs, ref_logprobs)", "rewards = -beta * k3(old_logprobs, ref_logprobs)", "tests/ppo/test_maths.py"),
    Mutant("O-11 mean of micro-batch means", f"{PPO}/masks.py", "count = mask.sum() if denominator is None else", "count = mask.sum() if True else", "tests/ppo/test_trainer.py"),
    Mutant("O-11 gradients not summed over processes", f"{PPO}/updating.py", "loss * self.accelerator.num_processes\n", "loss\n", "tests/ppo/test_processes.py -m proof -k head"),
    Mutant("O-12 no fresh shuffle", f"{PPO}/rollout.py", 'torch.randperm(batch["prompt_ids"].size(0))', 'torch.arange(batch["prompt_ids"].size(0))', "tests/ppo/test_reader.py"),
    Mutant("O-12 buffer never renewed", f"{PPO}/trainer.py", "if self._rollout is None or self._step % (pieces * self.num_iterations) == 0:", "if self._rollout is None:", "tests/ppo/test_trainer.py"),
    Mutant("O-13 value clip ignored", f"{PPO}/losses.py", "loss = torch.maximum(free, clipped) / 2", "loss = free / 2", "tests/ppo/test_maths.py"),
    Mutant("O-15 policy clip ignored", f"{PPO}/losses.py", "loss = torch.maximum(free, clipped)\n", "loss = free\n", "tests/ppo/test_maths.py"),
    Mutant("O-15 dual clip for good actions too", f"{PPO}/losses.py", "torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)", "torch.minimum(loss, -dual_clip * advantages)", "tests/ppo/test_maths.py tests/ppo/test_steps.py"),
    Mutant("O-16 coefficient forgotten on resume", f"{PPO}/keeping.py", 'self.state_of_ppo, self._step = State.restored(saved["state"]), saved["step"]', 'self._step = saved["step"]', "tests/ppo/test_resume.py"),
    Mutant("O-16 critic forgotten on resume", f"{PPO}/keeping.py", 'load_state(self._unwrapped_critic(), saved["critic"])', "pass", "tests/ppo/test_resume.py"),
    Mutant("O-16 order of prompts restarts on resume", f"{PPO}/trainer.py", "sampler.set_epoch = set_epoch", "pass", "tests/ppo/test_resume.py"),
    Mutant("O-17 KL per token in the controller", f"{PPO}/sampling.py", "float(observed.mean()),", "float(observed.mean() / mask.sum(1).float().mean()),", "tests/ppo/test_steps.py"),
    Mutant("O-17 error not clipped", f"{PPO}/kl.py", "min(max(observed_kl / target_kl_per_sequence - 1, -0.2), 0.2)", "observed_kl / target_kl_per_sequence - 1", "tests/ppo/test_maths.py"),
    Mutant("O-18 policy moves in the warm-up", f"{PPO}/updating.py", "return self.model.training and 0 < self.state_of_ppo.rollouts <= self.args.value_warmup_steps", "return False", "tests/ppo/test_trainer.py"),
    Mutant("O-19 critic in the policy's role", f"{PPO}/updating.py", "        with critic.role(self.accelerator.unwrap_model(model)):\n            values", "        with contextlib.nullcontext():\n            values", "tests/ppo/test_roles.py"),
    Mutant("hazard 3: one backward pass for two roles", f"{PPO}/updating.py", "            self.accelerator.backward(self.args.vf_coef * value.loss * self.accelerator.num_processes)\n        return losses.ValueLoss(value.loss.detach(), value.clip_fraction)", "        self.accelerator.backward(self.args.vf_coef * value.loss * self.accelerator.num_processes)\n        return losses.ValueLoss(value.loss.detach(), value.clip_fraction)", "tests/ppo/test_roles.py"),
    Mutant("hazard 2: PEFT's switch freezes the others", "instructkit/adapters.py", "            parameter.requires_grad_(adapter in _TRAINED)", "            pass", "tests/ppo/test_roles.py"),
    Mutant("hazard 9: adapters in the base's format", "instructkit/adapters.py", "            parameter.data = parameter.data.float()", "            pass", "tests/ppo/test_roles.py"),
    Mutant("O-20 policy's gradient not clipped", f"{PPO}/updating.py", "policy = self.accelerator.clip_grad_norm_(self.policy_parameters(), self.args.max_grad_norm)", "policy = self.accelerator.clip_grad_norm_(self.policy_parameters(), 1e9)", "tests/ppo/test_steps.py"),
    Mutant("O-20 one learning rate for both", f"{PPO}/updating.py", '{"params": theirs, "lr": self.args.value_learning_rate}', '{"params": theirs}', "tests/ppo/test_roles.py"),
    Mutant("O-20 critic's gradients never cleared", f"{PPO}/updating.py", "            self.critic.zero_grad()", "            pass", "tests/ppo/test_trainer.py"),
    Mutant("O-21 end seen by the tokenizer's id alone", f"{PPO}/rollout.py", "ids[-1] in set(end_ids)", "ids[-1] in set(end_ids[:1])", "tests/ppo/test_steps.py"),
    Mutant("O-21 scaling raises negative scores", f"{PPO}/scores.py", "torch.where(scores > 0, scores * penalty, scores)", "scores * penalty", "tests/ppo/test_maths.py"),
    Mutant("O-22 importance weights on the value loss", f"{PPO}/updating.py", '            weights=self._weights(mask, tokens, inputs),', '            weights=inputs.get("sampler_weights"),', "tests/ppo/test_options.py"),
    Mutant("O-22 importance weights not capped", f"{PPO}/losses.py", "gap.exp().clamp(max=cap)", "gap.exp()", "tests/ppo/test_maths.py"),
    Mutant("O-23 text learned at the prompt too", f"{PPO}/ptx.py", 'pad(labels, padding_value=IGNORED, padding_side="right") != IGNORED', 'pad(labels, padding_value=IGNORED, padding_side="right") > -1000', "tests/ppo/test_options.py"),
    # -- other requirements of section 3 -------------------------------------------------------------------------------
    Mutant("R-4 the checkpoint's own sampling settings", f"{PPO}/sampling.py", "with rollout.own_law(self.accelerator.unwrap_model(self.model), list(self.eos_token_ids)):", "with contextlib.nullcontext():", "tests/ppo/test_trainer.py"),
    Mutant("R-6 dropout on", f"{PPO}/config.py", "disable_dropout: bool = field(default=True", "disable_dropout: bool = field(default=False", "tests/ppo/test_steps.py"),
    Mutant("reference reloaded by its name", f"{PPO}/reference.py", "copy.deepcopy(model).requires_grad_(False)", "type(model).from_pretrained(model.config._name_or_path).requires_grad_(False)", "tests/ppo/test_trainer.py"),
    Mutant("K-6 target_kl ignored", f"{PPO}/updating.py", "self._left_early = bool(far > EARLY_STOP_FACTOR * self.args.target_kl)", "pass", "tests/ppo/test_options.py"),
    Mutant("S-6 held-out scores in the moments", f"{PPO}/sampling.py", "            if self.model.training:\n                self.state_of_ppo.scores", "            if True:\n                self.state_of_ppo.scores", "tests/ppo/test_rewards.py"),
    Mutant("evaluation advances training's randomness", f"{PPO}/heldout.py", "    with torch.random.fork_rng(devices=devices):", "    with contextlib.nullcontext():", "tests/ppo/test_resume.py"),
    Mutant("a silent 0 where no function scored", f"{PPO}/rewarding.py", "    if missing.any():", "    if False:", "tests/ppo/test_rewards.py"),
    Mutant("soft-capped logits read as plain ones", f"{PPO}/reader.py", "return scale if bool(close) else None", "return scale", "tests/ppo/test_reader.py"),
    # -- the rest of the line ------------------------------------------------------------------------------------------
    Mutant("adapters of a 4-bit base stay bfloat16", "instructkit/stages/training.py", "parameter.data = parameter.data.float()", "pass", "tests/stages/test_variants.py -k qlora"),
    Mutant("replay drawn alike at every step", "instructkit/stages/updaters.py", 'random.Random(f"{self.args.seed} {self._drawn}")', 'random.Random(f"{self.args.seed}")', "tests/stages/test_guards.py -k draws_by_step"),
    Mutant("a run resumed on other data", "instructkit/stages/base.py", "lineage.refuse_other_inputs(output, data, parents)", "pass", "tests/stages/test_guards.py -k not_resumed"),
    Mutant("a policy's adapter merged with its task", "instructkit/models.py", "config.task_type, config.modules_to_save = None, None", "pass", "tests/stages/test_guards.py -k reward_model"),
    Mutant("a failed gate exits 0", "instructkit/stages/base.py", "    if failed:\n        raise GateRefused", "    if False:\n        raise GateRefused", "tests/stages/test_guards.py -k exit_code"),
    Mutant("weights that are not finite are kept", "instructkit/stages/training.py", "p.isfinite().all()", "p.isfinite().any() or True", "tests/stages/test_guards.py -k finite"),
    Mutant("a damaged checkpoint ends in a traceback", "instructkit/stages/training.py", "except EOFError", "except KeyError", "tests/stages/test_guards.py -k damaged"),
    Mutant("the last piece of an answer is lost", "instructkit/chat/session.py", "if rest :=", "if rest := '' and", "tests/chat/test_session.py"),
    Mutant("mixtures without weights drop rows", "instructkit/data/sources.py", "return [len(rows) for rows in read]", "return [min(map(len, read)) for rows in read]", "tests/data/test_sources.py"),
    Mutant("reward functions called otherwise when measuring", "instructkit/stages/ppo.py", 'a.text if isinstance(prompt, str) else [{"role": "assistant", "content": a.text}]', "a.text", "tests/stages/test_guards.py -k called_alike"),
    Mutant("rows of one prompt counted as independent", "instructkit/evaluate/metrics.py", "worth = n / max(1.0,", "worth = n / min(1.0,", "tests/evaluate/test_metrics.py"),
)  # fmt: skip


def main() -> int:
    """Run every mutant whose name holds the first argument (all without one), and write the table when all were run."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutant for mutant in MUTANTS if wanted in mutant.breaks]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skip = shutil.ignore_patterns(".git", ".venv", "runs", "data", ".bench", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=skip)
        shutil.copytree(ROOT / "instructkit" / "data", copy / "instructkit" / "data", dirs_exist_ok=True)
        rows = [tried(mutant, copy) for mutant in chosen]
    if not wanted:
        TABLE.write_text(table(rows), encoding="utf-8")
    survivors = [row for row in rows if row[1] == "SURVIVED"]
    print(f"{len(rows)} mutants, {len(survivors)} survivors")
    return 1 if survivors else 0


def tried(mutant: Mutant, copy: Path) -> tuple[str, str, str]:
    """What is broken, `red` or `SURVIVED`, and the first test that noticed."""
    path = copy / mutant.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(mutant.old) < 1:
        raise SystemExit(f"{mutant.breaks}: {mutant.file} has no such line any more; mend the mutant")
    path.write_text(whole.replace(mutant.old, mutant.new, 1), encoding="utf-8")
    try:
        noticed = first_red(mutant.tests, copy) or first_red("tests/ppo", copy)
    finally:
        path.write_text(whole, encoding="utf-8")
    row = (mutant.breaks, "red" if noticed else "SURVIVED", noticed or "")
    print(f"{row[1]:8}  {row[0]}  {row[2]}", flush=True)
    return row


def first_red(tests: str, copy: Path) -> str | None:
    """The first test that fails, or None when all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    if done.returncode != 1:
        raise SystemExit(f"{tests}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-500:]}")
    return next(line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")))


def table(rows: list[tuple[str, str, str]]) -> str:
    """The kept table."""
    head = "# Mutants: each way of breaking the implementation, and the first test that went red\n\nCommand: `make mutants`.\n\n"
    lines = ["| broken | outcome | noticed by |", "|---|---|---|"] + [f"| {a} | {b} | `{c}` |" for a, b, c in rows]
    red = sum(row[1] == "red" for row in rows)
    return head + "\n".join(lines) + f"\n\n{red} of {len(rows)} mutants were noticed.\n"


if __name__ == "__main__":
    sys.exit(main())

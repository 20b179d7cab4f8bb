"""The real trainer of a run, built without weights, taking the step that needs the most memory."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from instructkit.data.near_duplicates import text_of
from instructkit.data.sources import Rows
from instructkit.models import adapters, load, source
from instructkit.models.machine import Machine
from instructkit.models.tokens import IGNORED
from instructkit.plan import ppo_phases as ppo
from instructkit.plan.ledger import GRADIENTS, Held, Ledger, rehearsing
from instructkit.plan.statistics import Statistics, of_rows
from instructkit.runs.files import TemporaryFolder
from instructkit.stages import stage_of
from instructkit.stages.base import Frame, Inputs, Listener, Prepared
from instructkit.stages.preflight import told_by_recipe

FEW = 64  # rows that a trainer is built on when only its memory is asked for


@dataclass(frozen=True)
class Kept:
    """
    Of a rehearsal, what its memory depends on.

    Attributes:
        settings: what the trainer made of the recipe's figures, defaults included.
        heaviest: the encoded rows with the most tokens, longest first, one batch of them; none for PPO.
        indices: by role, the rows that a trainer is built on again; for PPO the longest prompt is one of them.
        starts: of demonstrations, the place of the first token that each row learns: a shorter limit leaves nothing of it.
    """

    settings: dict[str, Any]
    heaviest: list[dict[str, Any]] = field(default_factory=list)
    indices: dict[str, list[int]] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)


def keep(stage: str, trainer: Any, inputs: Any) -> Kept:
    """What later rehearsals need of a trainer that is prepared on all its data."""
    names = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "max_length",
        "max_completion_length",
        "gradient_checkpointing",
    )
    settings = {name: getattr(trainer.args, name) for name in names if hasattr(trainer.args, name)}
    usual = {
        role: _usual(rows)
        for role, rows in inputs.data.items()
        if role in ("train", "eval") and stage != "lora-update"
    }
    if stage != "ppo":
        return Kept(settings, _heaviest(trainer), usual, _starts(stage, trainer))
    usual["train"] = [*usual["train"], _longest_prompt(trainer, inputs.data["train"])]
    return Kept(settings, [], usual)


def few(stage: str, inputs: Any, kept: Kept) -> Any:
    """The inputs with a few of their rows."""
    if stage == "lora-update":  # its sides hang together, and none of them is large
        return inputs
    data = {
        role: rows.pick(sorted(set(kept.indices[role]))) if role in kept.indices else rows
        for role, rows in inputs.data.items()
    }
    return replace(inputs, data=data)


def rows_of_batch(kept: Kept, args: Any) -> list[dict[str, Any]]:
    """As many of the longest rows as a device takes at once, cut where the trainer would cut them."""
    limit = getattr(args, "max_length", None)
    rows = kept.heaviest[: args.per_device_train_batch_size]
    return rows if limit is None else [cut(row, limit) for row in rows]


def cut(row: dict[str, Any], limit: int) -> dict[str, Any]:
    """
    An encoded row without the tokens behind `limit`; of a prompt with its completion, the completion gives way first.

    Args:
        row: columns of an encoded row; those that are lists have one item a token, but for the lengths of packed rows.
        limit: tokens.
    """
    if "prompt_ids" in row:
        left = max(1, limit - len(row["prompt_ids"]))
        lengths = {name: limit if name == "prompt_ids" else left for name in row if name.endswith("_ids")}
        return {n: v[: lengths[n]] if n in lengths and isinstance(v, list) else v for n, v in row.items()}
    found = {n: v[:limit] if isinstance(v, list) and n != "seq_lengths" else v for n, v in row.items()}
    if isinstance(row.get("seq_lengths"), list):
        found["seq_lengths"] = _within(row["seq_lengths"], limit)
    return found


def _within(lengths: list[int], limit: int) -> list[int]:
    """The lengths of packed rows up to a limit."""
    found: list[int] = []
    for length in lengths:
        if room := min(length, limit - sum(found)):
            found.append(room)
    return found


def _heaviest(trainer: Any) -> list[dict[str, Any]]:
    rows = trainer.train_dataset
    lengths = [max((len(v) for v in row.values() if isinstance(v, list)), default=0) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    return [rows[i] for i in order[: trainer.args.per_device_train_batch_size]]


def _starts(stage: str, trainer: Any) -> list[int]:
    if stage != "sft" or trainer.args.packing:
        return []
    every = trainer.train_dataset["labels"]
    return [next((i for i, label in enumerate(row) if label != IGNORED), len(row)) for row in every]


def _usual(rows: Rows) -> list[int]:
    """The places of some rows of middle length, and of those with the shortest questions, whose answers a limit masks last."""
    if len(rows.rows) <= FEW:
        return list(range(len(rows.rows)))
    lengths = [(len(text_of(row)), len(text_of({"asked": _asked(row)}))) for row in rows.rows]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i][0])
    start = (len(order) - FEW // 2) // 2
    middle = order[start : start + FEW // 2]
    brief = sorted(set(order) - set(middle), key=lambda i: lengths[i][::-1])
    return [*middle, *brief[: FEW - len(middle)]]


def _asked(row: dict[str, Any]) -> Any:
    """What stands before the first answer of a row."""
    talk = row.get("messages")
    if isinstance(talk, list):
        return list(itertools.takewhile(lambda turn: turn["role"] != "assistant", talk))
    return row.get("prompt")


def _longest_prompt(trainer: Any, rows: Rows) -> int:
    """The place of the prompt with the most tokens."""
    from instructkit.models.tokens import encode_prompt

    prompts = trainer.train_dataset["prompt"]
    longest = max(prompts, key=lambda prompt: len(encode_prompt(trainer._tokenizer, prompt)))
    return next((i for i, row in enumerate(rows.rows) if row.get("prompt") == longest), 0)


STATE_BYTES = {  # of an optimizer, for each trained weight
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2,
    "adamw_torch_8bit": 2,
    "adamw_torch_4bit": 1,
    "lion_32bit": 4,
    "lion_8bit": 1,
    "paged_lion_32bit": 4,
    "paged_lion_8bit": 1,
    "sgd": 0,
    "adagrad": 4,
    "rmsprop": 4,
    "adafactor": 0.01,
}
_ADAPTERS = {
    adapters.NEW: "new adapter",
    adapters.PARENT: "parent's adapter",
    adapters.CRITIC: "critic's adapter",
}
_TRAINED_BODIES = ("model", "policy")
ADAM_STATE_BYTES = 8  # two moments in float32
QUANTIZED_BYTES = {
    "4bit": 0.5 + 0.016,
    "8bit": 1.0 + 0.002,
}  # of a weight, with its scales (nf4 in two levels, int8 by row)


@dataclass
class Rehearsal:
    """
    What one optimizer step holds, in bytes of tensors, and what the trainer says of its run.

    Attributes:
        weights: by role: the base, each adapter, a head.
        mapped: of a quantised base the file that it was read from, which a CPU's process goes on to map.
        gradients, optimizer: of everything that is trained.
        held: by phase, what it holds beside weights and optimizer: activations, logits, gradients, KV cache.
        batch: rows and tokens of the longest batch.
        steps: what the trainer will do: epochs, steps, rows, batches.
        rows: what the training rows are like.
        trained: number of trained parameters, and all.
        work: tokens, padding included, that one optimizer step reads without gradients, and that it learns.
        dropped: rows that the trainer leaves out, by reason.
        kept: what a change of the recipe is rehearsed with, so that no data are prepared again.
    """

    weights: dict[str, int]
    gradients: int
    optimizer: int
    held: dict[str, Held]
    batch: tuple[int, int]
    steps: dict[str, Any]
    rows: Statistics
    trained: tuple[int, int]
    work: tuple[float, float]
    kept: Kept
    mapped: int = 0
    notes: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def phases(self) -> dict[str, int]:
        """By name, the most that a phase holds beside weights and optimizer."""
        return {phase: sum(held.at_peak.values()) for phase, held in self.held.items()}

    @property
    def total(self) -> int:
        """All of it, at the moment of the peak."""
        return sum(self.weights.values()) + self.optimizer + max(self.phases.values())


@contextlib.contextmanager
def on_paper(recipe: Any, inputs: Inputs, machine: Machine) -> Iterator[tuple[Prepared, Ledger, Listener]]:
    """Yield what the stage prepares, on real data and without weights, with its ledger and listener."""
    listener = Listener()
    with TemporaryFolder() as folder, load.weightless(), rehearsing() as ledger:
        frame = Frame(recipe, inputs, machine, Path(folder), listener, resume=False)
        with told_by_recipe(recipe):
            prepared = stage_of(recipe).prepare(frame)
        listener.dropped = frame.dropped
        yield prepared, ledger, listener


def rehearse(recipe: Any, inputs: Inputs, machine: Machine, known: Rehearsal | None = None) -> Rehearsal:
    """
    Build the trainer of a recipe on the meta device and take its heaviest step; nothing is loaded and nothing is left behind.

    Args:
        known: an earlier rehearsal of the same data, whose longest rows and figures are used again.

    Raises:
        InputError: for all that the stage refuses when it prepares its trainer.
    """
    if known is not None:
        inputs = few(recipe.stage, inputs, known.kept)
    with on_paper(recipe, inputs, machine) as (prepared, ledger, listener):
        trainer, scorers = prepared.trainer, prepared.scorers
        bodies = {role: body.to("meta") for role, body in bodies_of(trainer, scorers).items()}
        every = list({id(p): p for body in bodies.values() for p in body.parameters()}.values())
        trained = [p for p in every if p.requires_grad]
        _watch(ledger, trainer, trained)
        kept = known.kept if known else keep(recipe.stage, trainer, inputs)
        if recipe.stage == "ppo":
            held, batch = ppo.phases(trainer, ledger, trained), ppo.shape(trainer)
        else:
            longest = longest_batch(trainer, kept)
            held, batch = {"step": _heaviest_step(trainer, longest, ledger, trained)}, _shape(longest)
            if "reward" in inputs.parents:
                held["measuring"] = _reward_of_an_update(recipe, inputs.parents["reward"], machine)
        said = known.rows if known else of_rows(recipe.stage, trainer, prepared.tokenizer, inputs.data)
        per_weight = STATE_BYTES.get(str(trainer.args.optim), ADAM_STATE_BYTES)
        return Rehearsal(
            weights=_weights(bodies, recipe.model.quantization),
            gradients=sum(p.numel() * p.element_size() for p in trained),
            optimizer=int(per_weight * sum(p.numel() for p in trained)),
            held=held,
            batch=batch,
            steps=known.steps if known else _steps(recipe, trainer),
            rows=said,
            trained=(sum(p.numel() for p in trained), sum(p.numel() for p in every)),
            kept=kept,
            work=ppo.work(trainer, said.p50, len(scorers)) if scorers else _work(trainer, batch, said.p95),
            mapped=_mapped(bodies) if recipe.model.quantization != "none" else 0,
            notes=listener.notes,
            dropped=listener.dropped,
        )


def bodies_of(trainer: Any, scorers: Sequence[Any]) -> dict[str, Any]:
    """Every model of a run by role; one backbone with several adapters is one body."""
    found = {"policy" if hasattr(trainer, "critic") else "model": trainer.model}
    if getattr(trainer, "ref_model", None) is not None:
        found["reference"] = trainer.ref_model
    if hasattr(trainer, "critic"):
        found["critic"] = trainer.critic
    for scorer in scorers:
        body = getattr(scorer, "model", None)
        if body is not None and body is not trainer.model:
            found[f"reward {scorer.__name__}"] = body
    return found


def longest_batch(trainer: Any, kept: Kept) -> dict[str, Tensor]:
    """The rows with the most tokens, as many as a device takes at once, through the trainer's own collator."""
    batch = trainer.data_collator(rows_of_batch(kept, trainer.args))
    return {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in batch.items()}


def _watch(ledger: Ledger, trainer: Any, trained: list[Any]) -> None:
    """Tell the ledger what logits and gradients look like."""
    ledger.vocabulary = getattr(trainer.model.config.get_text_config(), "vocab_size", None)
    shapes = [tuple(p.shape) for p in trained]
    ledger.gradient_shapes = frozenset([*shapes, *(shape[::-1] for shape in shapes)])
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.mark(p.grad, GRADIENTS))


def _heaviest_step(trainer: Any, batch: dict[str, Tensor], ledger: Ledger, trained: list[Any]) -> Held:
    """What a forward and backward pass holds beside the weights, gradients of an earlier micro-batch included."""
    trainer.model.train()
    before = ledger.begin()
    for _ in range(min(2, trainer.args.gradient_accumulation_steps)):
        ledger.forget_peak()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        del loss
    forget_gradients(trained)
    return Held(ledger.held(before), ledger.most(before))


def _reward_of_an_update(recipe: Any, source: source.Source, machine: Machine) -> Held:
    """The reward model that scores answers before training and after it, and is not held in between."""
    body = load.load_for_use(source, recipe.model.of_another(), machine, task="SEQ_CLS").to("meta")
    size = sum(_weights({"reward": body}, recipe.model.quantization).values())
    return Held({"weights, reward": size}, {})


def forget_gradients(trained: list[Any]) -> None:
    """As after an optimizer step."""
    for parameter in trained:
        parameter.grad = None


def _weights(bodies: dict[str, Any], quantization: str) -> dict[str, int]:
    """Bytes of the weights by role; those of a quantised base's linear layers are counted as they will be stored."""
    found: dict[str, float] = defaultdict(float)
    for role, body in bodies.items():
        stored = _quantized(body) if quantization != "none" else set()
        for name, parameter in body.named_parameters():
            adapter = adapters.adapter_of(name) if role in _TRAINED_BODIES else None
            part = _ADAPTERS.get(adapter, f"adapter {adapter}") if adapter else role
            each = QUANTIZED_BYTES[quantization] if id(parameter) in stored else parameter.element_size()
            found[part] += parameter.numel() * each
    return {role: int(size) for role, size in found.items()}


def _mapped(bodies: dict[str, Any]) -> int:
    """The bytes of the weights that are stored in fewer bits, as the file of the base has them."""
    stored = {key for body in bodies.values() for key in _quantized(body)}
    every = {id(p): p for body in bodies.values() for p in body.parameters()}
    return sum(p.numel() * p.element_size() for key, p in every.items() if key in stored)


def _quantized(body: Any) -> set[int]:
    """The weights that bitsandbytes stores in fewer bits: linear layers but heads and adapters."""
    from torch.nn import Linear

    return {
        id(module.weight)
        for name, module in body.named_modules()
        if type(module) is Linear and "lora_" not in name and not name.endswith(("lm_head", "score", "head"))
    }


def _shape(batch: dict[str, Tensor]) -> tuple[int, int]:
    ids = next(value for name, value in batch.items() if isinstance(value, Tensor) and value.dim() == 2)
    return ids.size(0), ids.size(1)


def _work(trainer: Any, batch: tuple[int, int], usual: int) -> tuple[float, float]:
    """Padded to the longest of its rows, a batch is about as wide as one row in twenty is long."""
    rows, longest = batch
    if getattr(trainer, "_given", None):  # as many replayed rows beside each micro-batch
        rows *= 2
    return 0.0, trainer.args.gradient_accumulation_steps * rows * min(usual, longest)


def _steps(recipe: Any, trainer: Any) -> dict[str, Any]:
    """Epochs, steps and batches as Trainer itself works them out."""
    args = trainer.args
    with told_by_recipe(recipe):
        found = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    rollout = {}
    if hasattr(trainer, "critic"):
        rollout = {
            "rollout": args.prompts_per_rollout,
            "steps_a_rollout": args.num_iterations * args.mini_batches,
        }
    return {
        **rollout,
        "rows": len(trainer.train_dataset),
        "epochs": found[0],
        "steps_per_epoch": found[1],
        "steps": found[6],
        "per_device": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
        "processes": args.world_size,
        "batch": found[4],
    }

"""Refuse before the first step what libraries would fail on during a run; plan and run call the same checks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from instructkit.errors import InputError, InstructKitError
from instructkit.models.tokens import encode_prompt
from instructkit.recipe.schema import Recipe

MANY = 10**6  # steps, of which no schedule has too few


def refuse_before_a_step(trainer: Any, recipe: Recipe, tokenizer: Any) -> None:
    """
    Refuse an optimizer or schedule that cannot be made, and rows that the model has no embedding for.

    Raises:
        InputError: naming what is at fault.
    """
    _try_optimizer(trainer, recipe.source)
    _refuse_rows(trainer, recipe, tokenizer)


def _try_optimizer(trainer: Any, source: str) -> None:
    """Trainer makes both when it begins to train; here a schedule is made for one number, and the optimizer is looked up."""
    import torch
    from transformers import get_scheduler
    from transformers.utils import is_liger_kernel_available

    args = trainer.args
    given = getattr(args, "lr_scheduler_kwargs", None) or {}
    try:
        type(trainer).get_optimizer_cls_and_kwargs(args, trainer.model)
        one = torch.optim.SGD([torch.zeros(1, device="cpu")], lr=1.0)
        get_scheduler(args.lr_scheduler_type, one, 0, MANY, scheduler_specific_kwargs=dict(given))
        if args.use_liger_kernel and not is_liger_kernel_available():
            raise ImportError("use_liger_kernel needs liger-kernel, which is not installed")
    except (ValueError, TypeError, ImportError, KeyError) as error:
        raise InputError(
            f"{source}: the optimizer, its schedule or its kernels cannot be made: {error}",
            hint="change trainer.optim, optim_args, lr_scheduler_type, lr_scheduler_kwargs or use_liger_kernel, or install what "
            "is named",
        ) from error


def _refuse_rows(trainer: Any, recipe: Recipe, tokenizer: Any) -> None:
    """Look at all tokens of all rows, where the model may not know some, or has learned its positions one by one."""
    known = trainer.model.get_input_embeddings().num_embeddings
    places = _learned_positions(trainer.model)
    if len(tokenizer) <= known and places is None:
        return
    for ids in _rows(trainer, recipe.stage, tokenizer):
        if (largest := max(ids, default=0)) >= known:
            raise InputError(
                f"{recipe.source}: the model knows {known} tokens, and its tokenizer makes "
                f"{tokenizer.convert_ids_to_tokens(largest)!r} of the data, which is number {largest}",
                hint="the tokenizer is that of another model, or tokens were added to it and no rows to the embedding",
            )
        if places is not None and len(ids) > places:
            raise InputError(
                f"{recipe.source}: a row has {len(ids)} tokens, and the model has learned {places} positions",
                hint=f"set trainer.max_length to {places} or lower, or shorten the rows",
            )


def _learned_positions(model: Any) -> int | None:
    """How many positions a model has an embedding of; None where it works them out, as most do."""
    import torch

    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    own = model.get_input_embeddings()
    tables = (
        module for module in model.modules() if isinstance(module, torch.nn.Embedding) and module is not own
    )
    # Some models keep two rows more than they have positions.
    return positions if positions and any(t.num_embeddings - positions in (0, 2) for t in tables) else None


def _rows(trainer: Any, stage: str, tokenizer: Any) -> Iterator[list[int]]:
    """The token ids of every row, a prompt and its answer as one."""
    for dataset in filter(None, (trainer.train_dataset, trainer.eval_dataset)):
        for row in dataset:
            if stage == "ppo":
                yield encode_prompt(tokenizer, row["prompt"])
                continue
            prompt = row.get("prompt_ids") or []
            yield from (
                [*prompt, *ids]
                for name, ids in row.items()
                if name.endswith("_ids") and name != "prompt_ids" and ids
            )


@contextlib.contextmanager
def told_by_recipe(recipe: Any) -> Iterator[None]:
    """
    What a library refuses within this context is told with the recipe's name.

    Raises:
        InputError: in place of the library's own error, which stands behind it.
    """
    try:
        yield
    except InstructKitError:
        raise
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{recipe.source}: this run is refused before its first step: {first}",
            hint="change the part of the recipe that it names; `instructkit explain` tells what a key means, --debug shows where",
        ) from error


def refuse_early(recipe: Any) -> None:
    """
    Refuse what the names of the model's layers can tell, where the recipe names some.

    Raises:
        InputError: for LoRA targets that match no layer.
    """
    if recipe.lora is not None and recipe.lora.target_modules != "all-linear":
        _refuse_targets(recipe)


def _refuse_targets(recipe: Any) -> None:
    """PEFT's own matching on a model without weights: the names that no layer has."""
    from instructkit.models import load
    from instructkit.models.machine import Machine
    from instructkit.models.source import locate

    source = locate(recipe.model.name)
    with load.weightless():
        task = "SEQ_CLS" if recipe.stage == "reward" else "CAUSAL_LM"
        body = load.load_for_training(source, recipe.model, Machine("cpu", "float32", ()), None, task=task)
    names = [name for name, module in body.named_modules() if not list(module.children())]
    targets = recipe.lora.target_modules
    if _unmatched(names, targets):
        layers = sorted({name.rpartition(".")[2] for name in names if _is_linear(body, name)})
        raise InputError(
            f"{recipe.source}: `lora.target_modules` is {targets!r}, and no layer of {recipe.model.name} is called "
            + ", ".join(map(repr, _unmatched(names, targets))),
            hint=f"its linear layers are {', '.join(layers)}; or give all-linear",
        )


def _is_linear(body: Any, name: str) -> bool:
    from torch.nn import Linear

    return isinstance(body.get_submodule(name), Linear)


def _unmatched(names: list[str], targets: str | list[str]) -> list[str]:
    """The targets that match no layer; an empty list of targets is one that matches nothing."""
    import re

    if isinstance(targets, str):
        return [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    if not targets:
        return ["(nothing: the list is empty)"]
    return [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]

"""
Models by name: what `model.name` means, and how it becomes a policy, a reward model or a model to talk to.

A name is `tiny`, a run folder, a transformers folder, a `.gguf` file or a hub id. Every one of them comes down to a base
and, where a LoRA run stands between, one PEFT adapter on it. Heavy libraries are imported where they are used, so that a
wrong name is reported before torch is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructkit.errors import InputError
from instructkit.machine import Machine
from instructkit.runs.chains import follow

if TYPE_CHECKING:
    from instructkit.recipe.schema import LoraSection, ModelSection

SCORE_FILE = "score_offset.json"
_WEIGHTLESS: ContextVar[bool] = ContextVar("weightless", default=False)
_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?$")


@dataclass(frozen=True)
class Source:
    """A name resolved: the base (folder or hub id), the adapter on it, and the run folder that it came from."""

    name: str
    base: str
    adapter: Path | None = None
    run: Path | None = None
    gguf_file: str | None = None

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer lies: beside the adapter when there is one, else with the base."""
        return (
            str(self.adapter)
            if self.adapter and (self.adapter / "tokenizer_config.json").exists()
            else self.base
        )


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Within this context models are built from their configs on torch's meta device: every shape, and no numbers."""
    token = _WEIGHTLESS.set(True)
    try:
        yield
    finally:
        _WEIGHTLESS.reset(token)


def cache_folder() -> Path:
    """Where built and converted models are kept: `INSTRUCTKIT_CACHE`, else a folder in the user's cache."""
    return Path(os.environ.get("INSTRUCTKIT_CACHE") or Path.home() / ".cache" / "instructkit")


def locate(name: str) -> Source:
    """
    Say what a model name stands for, without loading anything.

    Raises:
        InputError: when a folder is missing or holds no model, or the parent run did not finish.
    """
    if name == "tiny":
        from instructkit.tiny import build_tiny, tiny_key

        folder = cache_folder() / f"tiny-{tiny_key()}"
        return Source(name, str(folder if folder.is_dir() else build_tiny(folder)))
    path = follow(Path(name))
    if path != Path(name):
        name = str(path)  # of a chain's `current` the folder that it means now
    if path.is_file() and path.suffix == ".gguf":
        return Source(name, str(path.parent), gguf_file=path.name)
    if path.is_dir():
        return _locate_folder(name, path)
    if path.is_file():
        raise InputError(f"{name} is a file, not a model", hint="name its folder, or a .gguf file")
    if _HUB_ID.match(name) and not _meant_as_path(name):
        return Source(name, name)
    raise InputError(
        f"no model at {name}",
        hint="model.name is `tiny`, a run folder (train it first), a transformers folder, a .gguf file or a hub id",
    )


def _meant_as_path(name: str) -> bool:
    first = Path(name).parts[0]
    return name.startswith((".", "/", "~", "runs/")) or Path(first).is_dir() or name.endswith(".gguf")


def _locate_folder(name: str, path: Path) -> Source:
    run = _finished_run(path)
    if (path / "adapter_config.json").exists():
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path") or ""
        if not Path(base).exists() and not _HUB_ID.match(base):
            raise InputError(
                f"{name} is an adapter on {base}, which is not there any more",
                hint="restore the base folder, or train the run again",
            )
        return Source(name, base, adapter=path, run=run)
    if (path / "config.json").exists():
        return Source(name, str(path.resolve()), run=run)
    raise InputError(
        f"{name} holds no model", hint="a model folder has config.json or adapter_config.json in it"
    )


def _finished_run(path: Path) -> Path | None:
    from instructkit.runs.record import is_run, read_run

    if not is_run(path):
        return None
    status = read_run(path)["status"]
    if status != "done":
        hint = "wait until it is done" if status == "running" else "go on with --resume, or train it again"
        raise InputError(f"the run {path} is not finished: its status is {status}", hint=hint)
    return path


def refuse_wrong_role(source: Source, *, as_reward: bool) -> None:
    """
    A reward model writes no answers, and a policy has no trained score.

    Raises:
        InputError: when a run is used as what it is not; of a model that is no run nothing is known.
    """
    from instructkit.runs.record import read_run

    stage = read_run(source.run)["stage"] if source.run else None
    if stage is None or (stage == "reward") == as_reward:
        return
    wanted = (
        "a run of `instructkit reward` is wanted here" if as_reward else "a model that answers is wanted here"
    )
    raise InputError(
        f"{source.name} is a run of `{stage}`; {wanted}", hint="`instructkit runs` lists the runs"
    )


def load_tokenizer(source: Source, section: ModelSection) -> Any:
    """The tokenizer of a model, with a padding token."""
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, source, section, path=source.tokenizer_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_for_training(
    source: Source,
    section: ModelSection,
    machine: Machine,
    lora: LoraSection | None,
    *,
    task: str = "CAUSAL_LM",
    merge_parent: bool = False,
) -> Any:
    """
    A model ready for one of TRL's trainers.

    With `lora`, a fresh adapter above the frozen parent's; without, all weights, the parent's adapter merged in.

    Args:
        task: `CAUSAL_LM` for a policy, `SEQ_CLS` for a reward model (one label, head trained and saved).
        merge_parent: with `lora`, put the fresh adapter on weights that the parent's adapter is merged into.

    Raises:
        InputError: for full fine-tuning of a quantised base, which has no gradients.
    """
    from instructkit import adapters

    if lora is None and section.quantization != "none":
        raise InputError(
            f"model.quantization is {section.quantization}, and quantised weights cannot be trained",
            hint="add a `lora:` section, or set quantization: none",
        )
    dtype = machine.dtype if lora is not None else "float32"
    model = _load_base(source, section, machine, dtype=dtype, task=task)
    if lora is not None:
        below = source.adapter
        if merge_parent and below is not None:
            model, below = _merged(model, source, task), None
        return adapters.add_lora(model, lora_config(lora, task), below)
    return _merged(model, source, task) if source.adapter else model


def refuse_dora_above_an_adapter(source: Source, lora: LoraSection | None) -> None:
    """
    Adapters are joined by rank, and DoRA's magnitudes cannot be.

    Raises:
        InputError: when the parent is an adapter and it or the new one is DoRA.
    """
    if lora is None or source.adapter is None:
        return
    config = json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if lora.use_dora or config.get("use_dora"):
        raise InputError(
            f"{source.name} is an adapter, and DoRA cannot be joined with another adapter",
            hint="set lora.use_dora: false in both stages, or leave out `lora:` to train all weights",
        )


def load_for_use(source: Source, section: ModelSection, machine: Machine, *, task: str = "CAUSAL_LM") -> Any:
    """A model to generate or to score with: base and adapter as saved, in evaluation mode, without gradients."""
    from peft import PeftModel

    model = _load_base(source, section, machine, dtype=machine.dtype, task=task)
    if source.adapter is not None:
        model = PeftModel.from_pretrained(model, str(source.adapter), is_trainable=False)
    model = model.requires_grad_(False).eval()
    return model if _WEIGHTLESS.get() else model.to(machine.device)


def lora_config(section: LoraSection, task: str) -> Any:
    """PEFT's configuration for a recipe's `lora:` section; a reward model's head is trained and saved with it."""
    from peft import LoraConfig

    return LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def save_model(model: Any, tokenizer: Any, folder: Path, source: Source) -> None:
    """Write a run's model so that transformers or peft load the folder as it is."""
    from peft import PeftModel

    from instructkit import adapters

    tokenizer.save_pretrained(str(folder))
    if isinstance(model, PeftModel):
        adapters.save_adapter(model, folder, base=source.base)
    else:
        model.save_pretrained(str(folder))


def _load_base(source: Source, section: ModelSection, machine: Machine, *, dtype: str, task: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if section.attn_implementation:
        options["attn_implementation"] = section.attn_implementation
    if section.quantization != "none" and not _WEIGHTLESS.get():
        options["quantization_config"] = _quantization(section.quantization, machine.dtype)
        options["device_map"] = {"": machine.device}
    load = _skeleton if _WEIGHTLESS.get() else _from_pretrained
    if task == "CAUSAL_LM":
        return _differentiable(load(AutoModelForCausalLM, source, section, **options))
    with suppress_seqcls_warning():
        model = load(AutoModelForSequenceClassification, source, section, num_labels=1, **options)
    model = _differentiable(model)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(source, section).pad_token_id
    return model


def _differentiable(model: Any) -> Any:
    """
    Keep a 4-bit base's layers on the path that has a backward pass.

    On CPUs with AVX512-BF16, bitsandbytes (0.50, `Linear4bit.forward`) repacks a layer's weights the first time it runs
    in evaluation mode, and from then on computes it with a kernel without autograd, in training too: the gradient would
    reach the adapters by the residual stream alone, without an error. A measurement before training is such a run.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _quantization(kind: str, dtype: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def _skeleton(
    loader: Any, source: Source, section: ModelSection, *, num_labels: int | None = None, **options: Any
):
    """A model of this config without numbers."""
    import torch
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig, source, section)
    if num_labels is not None:
        config.num_labels = num_labels
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return loader.from_config(config, trust_remote_code=section.trust_remote_code, **options)


def _merged(model: Any, source: Source, task: str) -> Any:
    from peft import PeftConfig, PeftModel

    if _WEIGHTLESS.get():  # merging changes numbers alone
        return model
    config = PeftConfig.from_pretrained(str(source.adapter))
    if (
        config.task_type != task
    ):  # a policy's adapter under a reward model: its layers are the same, its head is not
        config.task_type, config.modules_to_save = None, None
    merged = PeftModel.from_pretrained(model, str(source.adapter), config=config).merge_and_unload()
    return merged.requires_grad_(True)  # PEFT froze the base when it put the adapter on


def _from_pretrained(
    loader: Any, source: Source, section: ModelSection, *, path: str | None = None, **options: Any
):
    """`from_pretrained` with the recipe's revision and trust, its failures turned into one clear sentence."""
    try:
        return loader.from_pretrained(
            path or source.base,
            revision=section.revision or "main",
            trust_remote_code=section.trust_remote_code,
            **({"gguf_file": source.gguf_file} if source.gguf_file else {}),
            **options,
        )
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        local = Path(source.base).exists()
        raise InputError(
            f"{source.name} cannot be loaded: {first_line}",
            hint="check that the folder is complete"
            if local
            else "check the hub id; offline, give a local folder or fill the cache first (HF_HUB_OFFLINE=1 uses it)",
        ) from error

"""
How what a name stands for becomes a policy, a reward model or a model to talk to.

Heavy libraries are imported where they are used, so that what is at fault is told before torch is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructkit.errors import InputError
from instructkit.models.machine import Machine
from instructkit.models.source import Source, refuse_absent

if TYPE_CHECKING:
    from instructkit.recipe.schema import LoraSection, ModelSection

SCORE_FILE = "score_offset.json"
_WEIGHTLESS: ContextVar[bool] = ContextVar("weightless", default=False)


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Within this context models are built from their configs on torch's meta device: every shape, and no numbers."""
    token = _WEIGHTLESS.set(True)
    try:
        yield
    finally:
        _WEIGHTLESS.reset(token)


def load_tokenizer(source: Source, section: ModelSection, *, data_format: str | None = None) -> Any:
    """
    Load the tokenizer of a model and give it a padding token.

    Args:
        data_format: of the run that trains or trained the model. With `text` the tokenizer has no chat template, and a run is
            saved without one, so that no program chats with it.
    """
    from transformers import AutoTokenizer

    tokenizer = from_pretrained(AutoTokenizer, source, section, path=source.tokenizer_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if data_format == "text" or not tokenizer.chat_template:  # an empty one renders nothing
        tokenizer.chat_template = None
    return tokenizer


def has_chat_template(source: Source, section: ModelSection) -> bool:
    """Return whether a model's tokenizer renders conversations; of a folder its files say so, and no library is loaded."""
    has_files = (Path(source.tokenizer_path) / "tokenizer_config.json").is_file()
    if source.gguf_file or section.trust_remote_code or not has_files:
        return load_tokenizer(source, section).chat_template is not None
    return template_of(source) is not None


def template_of(source: Source) -> str | None:
    """Return the chat template in the files of a model's folder, several as JSON; None where there is none."""
    folder = Path(source.tokenizer_path)
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8") or None
    config = folder / "tokenizer_config.json"
    template = (
        json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    )
    return json.dumps(template) if template else None


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
    from instructkit.models import adapters

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
        config = lora_config(lora, task)
        with in_words(source, below) if below else contextlib.nullcontext():
            return adapters.add_lora(model, config, below)
    return _merged(model, source, task) if source.adapter else model


def load_for_use(source: Source, section: ModelSection, machine: Machine, *, task: str = "CAUSAL_LM") -> Any:
    """A model to generate or to score with: base and adapter as saved, in evaluation mode, without gradients."""
    from peft import PeftModel

    model = _load_base(source, section, machine, dtype=machine.dtype, task=task)
    if source.adapter is not None:
        with in_words(source, source.adapter):
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

    from instructkit.models import adapters

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
    load = _skeleton if _WEIGHTLESS.get() else from_pretrained
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

    config = from_pretrained(AutoConfig, source, section)
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
    with in_words(source, source.adapter):
        merged = PeftModel.from_pretrained(model, str(source.adapter), config=config).merge_and_unload()
    return merged.requires_grad_(True)  # PEFT froze the base when it put the adapter on


def from_pretrained(
    loader: Any, source: Source, section: ModelSection, *, path: str | None = None, **options: Any
):
    """`from_pretrained` with the recipe's revision and trust."""
    refuse_absent(source.name, source.base, is_adapter=source.adapter is not None)
    with in_words(source, source.base):
        return loader.from_pretrained(
            path or source.base,
            revision=section.revision or "main",
            trust_remote_code=section.trust_remote_code,
            **({"gguf_file": source.gguf_file} if source.gguf_file else {}),
            **options,
        )


@contextlib.contextmanager
def in_words(source: Source, place: str | Path) -> Iterator[None]:
    """What cannot be loaded from a place, a folder or a hub's id, is told in one clear sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source.name} cannot be loaded: {first_line}",
            hint=f"check that {place} is complete; a run that was cut off or copied in part is trained again"
            if Path(place).exists()
            else "check the hub id; offline, give a local folder or fill the cache first (HF_HUB_OFFLINE=1 uses it)",
        ) from error

"""
What a model's name stands for, without loading anything.

A name is `tiny`, a run folder, a transformers folder, a `.gguf` file or a hub id. Every one of them comes down to a base and,
where a LoRA run stands between, one PEFT adapter on it. No heavy library is imported, so that a wrong name is reported before
torch is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from instructkit.errors import InputError
from instructkit.runs.lineage import base_in_lineage
from instructkit.runs.pointer import follow

if TYPE_CHECKING:
    from instructkit.recipe.schema import LoraSection
import socket
import sys
import threading
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_EXPECTED: ContextVar[frozenset[str] | None] = ContextVar("expected", default=None)
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
def expecting(folders: Iterable[str]) -> Iterator[None]:
    """Within this context `locate` takes these folders for runs that are yet to be written, and builds no embedded model."""
    token = _EXPECTED.set(frozenset(map(os.path.normpath, folders)))
    try:
        yield
    finally:
        _EXPECTED.reset(token)


def is_to_come(source: Source) -> bool:
    """Return whether a model is only expected, within `expecting`: nothing of it can be read yet."""
    return _EXPECTED.get() is not None and not Path(source.base).exists()


def cache_folder() -> Path:
    """Where built and converted models are kept: `INSTRUCTKIT_CACHE`, else a folder in the user's cache."""
    return Path(os.environ.get("INSTRUCTKIT_CACHE") or Path.home() / ".cache" / "instructkit")


def locate(name: str) -> Source:
    """
    Say what a model name stands for, without loading anything.

    Raises:
        InputError: when a folder is missing or holds no model, or the parent run did not finish.
    """
    expected = _EXPECTED.get()
    if expected is not None and (name == "tiny" or os.path.normpath(name) in expected):
        return Source(name, name)
    if name == "tiny":
        from instructkit.models.tiny import build_tiny, tiny_key

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
        if not Path(base).exists() and (moved := base_in_lineage(path)):
            base = str(moved.resolve())
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


def lacks_weights(source: Source) -> bool:
    """Whether a folder holds a config and no weights; of a hub id nothing is known here."""
    folder = source.adapter or Path(source.base)
    if source.gguf_file or not folder.is_dir():
        return False
    return not any(item.suffix in _WEIGHTS for item in folder.iterdir())


def _finished_run(path: Path) -> Path | None:
    from instructkit.runs.record import is_run, read_run

    if not is_run(path):
        return None
    run = read_run(path)
    status, stage = run["status"], run["stage"]
    if status != "done":
        hint = (
            "wait until it is done"
            if status == "running"
            else f"run `instructkit {stage} RECIPE --resume` to finish it, or train it again with --overwrite"
        )
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


def trained_format(source: Source) -> str | None:
    """
    Return the data format that a run was trained in, `chat` or `text`; None where that is unknown, and of a model that is no run.

    Version 0.1.0 recorded no format and rendered messages alone. So the prompts of its samples tell how it was trained.
    """
    from instructkit.runs.read import read_record

    if source.run is None:
        return None
    record = read_record(source.run)
    return record["data_format"] if "data_format" in record else _format_of_samples(source.run)


def lacks_format(source: Source) -> bool:
    """Return whether a model is a run of version 0.1.0 that does not tell its data format."""
    from instructkit.runs.read import read_record

    if source.run is None or "data_format" in read_record(source.run):
        return False
    return trained_format(source) is None


def _format_of_samples(run: Path) -> str | None:
    try:
        with (run / "samples.jsonl").open(encoding="utf-8") as lines:
            prompt = json.loads(next(lines, "{}")).get("prompt")
    except (OSError, ValueError, AttributeError):
        return None
    return "text" if isinstance(prompt, str) else "chat" if isinstance(prompt, list) else None


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


ENDPOINT = "https://huggingface.co"
WAIT_SECONDS = 5.0  # for an answer; the hub's libraries retry for about a minute
_YES = ("1", "on", "yes", "true")


def refuse_absent(name: str, base: str, *, is_adapter: bool) -> None:
    """
    Refuse a hub model that is neither cached nor reachable; where the hub is unreachable, use the cache offline.

    Args:
        name: the model, as the user gave it.
        base: folder or hub id of its weights.
        is_adapter: whether `name` is a local adapter that names `base`.

    Raises:
        InputError: when the base is not on this machine and the hub cannot be reached.
    """
    if Path(base).exists() or reachable():
        return
    if is_cached(base):
        _go_offline()
        return
    config = f"set base_model_name_or_path in {name}/adapter_config.json to"
    raise InputError(
        (f"{name}: the adapter's base model {base}" if is_adapter else base)
        + " is neither a local folder nor in the hub's local cache, and the hub cannot be reached",
        hint=f"run `hf download {base}` with network access, or {config if is_adapter else 'give'} a local folder",
    )


def is_cached(name: str) -> bool:
    """Return whether the hub's local cache has a config of the model."""
    folder = _cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    return any(folder.glob("*/config.json"))


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or Path(home) / "huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named or Path(home) / "hub").expanduser()


@cache
def reachable() -> bool:
    """Return whether the hub answers; False in offline mode. Each process asks once."""
    if any(os.environ.get(name, "").lower() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return False
    answers: list[bool] = []
    # In a thread, because a name lookup has no time limit.
    asking = threading.Thread(target=lambda: answers.append(_connects()), daemon=True)
    asking.start()
    asking.join(WAIT_SECONDS)
    return bool(answers and answers[0])


def _connects() -> bool:
    address = urlsplit(os.environ.get("HF_ENDPOINT") or ENDPOINT)
    proxy = getproxies().get(address.scheme)
    if proxy and not proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=WAIT_SECONDS).close()
    except OSError:
        return False
    return True


def _go_offline() -> None:
    """Keep the libraries, imported or not, from asking the hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = True

"""Look for a model in the local cache of the Hugging Face hub, and for the hub itself, without its libraries."""

from __future__ import annotations

import os
import socket
import sys
import threading
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from instructkit.errors import InputError

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

"""The Hugging Face hub: whether a model lies in its local cache, and whether it can be reached, without its libraries."""

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
WAIT_SECONDS = 5.0  # for an answer; the libraries would try again for about a minute
_YES = ("1", "on", "yes", "true")


def refuse_absent(name: str, base: str, *, is_adapter: bool) -> None:
    """
    Refuse a model of the hub that cannot be had; where the hub cannot be reached, use what is cached without asking it.

    Args:
        name: of the model, as the user gave it.
        base: folder or hub id that its weights come from.
        is_adapter: whether `name` is a local adapter that names `base`.

    Raises:
        InputError: when the base is not here and the hub cannot be reached.
    """
    if Path(base).exists() or reachable():
        return
    if is_cached(base):
        _go_offline()
        return
    what = f"{name} is an adapter on {base}, which" if is_adapter else base
    way = (
        f", or set base_model_name_or_path in {name}/adapter_config.json to a local folder"
        if is_adapter
        else ""
    )
    raise InputError(
        f"{what} is no folder here, is not in the local cache of the hub, and the hub cannot be reached",
        hint=f"run `hf download {base}` where the hub can be reached{way or ', or give a local folder'}",
    )


def is_cached(name: str) -> bool:
    """Whether a config of the model lies in the hub's local cache."""
    folder = _cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    return any(folder.glob("*/config.json"))


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or Path(home) / "huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named or Path(home) / "hub").expanduser()


@cache
def reachable() -> bool:
    """Whether the hub answers, asked once in a process; False in offline mode."""
    if any(os.environ.get(name, "").lower() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return False
    answers: list[bool] = []
    # A thread, since looking up a name knows no time limit.
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
    """Keep the libraries from asking the hub, whether they are imported already or not."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = True

"""A hub model that cannot be had is refused at once; one that is cached is used without asking a hub that cannot be reached."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from instructkit.errors import InputError
from instructkit.models import source
from instructkit.models import source as hub
from instructkit.models.load import load_tokenizer
from instructkit.recipe.schema import ModelSection


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple]:
    """No offline mode is set, as on a machine whose network is down."""
    asked = []

    def refused(address, timeout):
        asked.append(address)
        raise OSError("no route")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(hub, "_go_offline", lambda: None)
    hub.reachable.cache_clear()
    yield asked
    hub.reachable.cache_clear()


def adapter(folder: Path, base: str) -> source.Source:
    folder.mkdir()
    config = {"base_model_name_or_path": base, "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return source.locate(str(folder))


def test_an_adapter_on_a_hub_model_is_refused_at_once_when_offline(tmp_path: Path, no_network) -> None:
    source = adapter(tmp_path / "mine", "org/base")
    with pytest.raises(
        InputError, match="mine: the adapter's base model org/base is neither a local folder nor"
    ) as told:
        load_tokenizer(source, ModelSection(name=source.name))
    assert "hf download org/base" in told.value.hint and "adapter_config.json" in told.value.hint
    with pytest.raises(InputError, match="^org/other is neither a local folder nor"):
        hub.refuse_absent("org/other", "org/other", is_adapter=False)
    assert no_network == [("huggingface.co", 443)]  # asked once


def test_what_is_cached_is_used_without_asking(tmp_path: Path, monkeypatch) -> None:
    went = []
    monkeypatch.setattr(hub, "_go_offline", lambda: went.append(True))
    config = tmp_path / "hub/models--org--base/snapshots/abc/config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}", encoding="utf-8")
    hub.refuse_absent("mine", "org/base", is_adapter=True)
    assert went == [True]


def test_a_hub_that_answers_is_left_to_the_libraries(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hub, "_connects", lambda: True)
    hub.refuse_absent("org/base", "org/base", is_adapter=False)


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"HF_ENDPOINT": "http://mirror:8080"}, ("mirror", 8080)),
        ({"https_proxy": "http://proxy:3128"}, ("proxy", 3128)),
        ({"https_proxy": "proxy:3128", "no_proxy": "huggingface.co"}, ("huggingface.co", 443)),
    ],
)
def test_the_mirror_or_the_proxy_is_asked(variables, address, monkeypatch, no_network) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not hub.reachable()
    assert no_network == [address]


def test_offline_mode_asks_nobody(monkeypatch, no_network) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.reachable() and no_network == []

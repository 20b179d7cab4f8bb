"""What many tests need: a tiny model folder, and the environment that every run has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["USE_HUB_KERNELS"] = "NO"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, built once a test session."""
    from instructkit.models.tiny import build_tiny

    cache = tmp_path_factory.mktemp("cache")
    os.environ["INSTRUCTKIT_CACHE"] = str(cache)
    return build_tiny(cache / "tiny-for-tests")


@pytest.fixture()
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """An empty folder to work in, with the embedded model's cache shared between tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTRUCTKIT_CACHE", str(tiny_folder.parent))
    return tmp_path

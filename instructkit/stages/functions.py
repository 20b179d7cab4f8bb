"""Python functions that a recipe names: rewards, and the judge that only measures."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructkit.errors import InputError


def load_function(place: str) -> Callable[..., Any]:
    """
    A Python function named `module:function`, `path/to/file.py:function`, or `demo/judge`.

    Raises:
        InputError: when there is no such module, file or function.
    """
    if place == "demo/judge":
        place = "instructkit.data.demo.judge:judge_batch"
    module_name, _, name = place.rpartition(":")
    if not (module_name and name):
        raise InputError(
            f"{place} names no function",
            hint="write `module:function`, `path/to/file.py:function`, or `demo/judge`",
        )
    try:
        if module_name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, name)
    except (ImportError, AttributeError, FileNotFoundError, ValueError) as error:
        raise InputError(
            f"no function at {place}: {error}",
            hint="name it `module:function` or `path/to/file.py:function`; the module must be importable from here",
        ) from error

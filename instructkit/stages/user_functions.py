"""Python functions that a recipe names: rewards, and the judge that only measures."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

from instructkit.errors import InputError, InstructKitError

_SAID = ("prompts", "completions")  # arguments of a reward function
DEMO = {"demo/judge": "instructkit.data.demo.judge:judge_batch"}
WANTED = "wanted is a list with a number, None or a list of numbers for each answer"


def load_function(place: str) -> Callable[..., Any]:
    """
    A Python function named `module:function`, `path/to/file.py:function`, or `demo/judge`.

    Raises:
        InputError: when there is no such module, file or function.
    """
    place = DEMO.get(place, place)
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
            # The source itself: for a cached compilation two edits within a second can look alike.
            code = spec.loader.source_to_code(spec.loader.get_data(module_name), module_name)
            exec(code, module.__dict__)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, name)
    except Exception as error:  # a module is a program of somebody else's, which may end in anything
        raise InputError(
            f"no function at {place}: {_told(error)}",
            hint="name it `module:function` or `path/to/file.py:function`; the module must be importable from here",
        ) from error


def module_of(place: str) -> str:
    """Return the module or the path of the file in the place of a function."""
    return DEMO.get(place, place).rpartition(":")[0]


def scoring_function(place: str, *, texts: bool = False) -> Callable[..., Any]:
    """
    A function that scores answers, sync or async, with its faults told by its name.

    What it gives is a list with, for each answer, a float, None, or a list of floats (tensors and arrays are made lists); it
    raises `InputError` for anything else, and `InstructKitError` for what is raised within.

    Args:
        place: as `load_function` takes it.
        texts: pass prompts and answers as texts, because the data hold texts and a template made messages of them.

    Raises:
        InputError: as `load_function` does.
    """
    from trl.trainer.utils import is_async_callable

    function, form = load_function(place), _as_texts if texts else list
    if is_async_callable(function):

        async def ask(*given: Any, **named: Any) -> list[Any]:
            with _faults_of(place):
                found = await function(*map(form, given), **_with_forms(named, form))
            return _scores(place, found, _answers(given, named))

    else:

        def ask(*given: Any, **named: Any) -> list[Any]:
            with _faults_of(place):
                found = function(*map(form, given), **_with_forms(named, form))
            return _scores(place, found, _answers(given, named))

    ask.__name__ = getattr(function, "__name__", place.rpartition(":")[2])
    return ask


def _told(error: Exception) -> str:
    """An error in a line: its kind and what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _as_texts(values: Sequence[Any]) -> list[Any]:
    """Return prompts or answers of one message as texts, others unchanged."""
    return [value[0]["content"] if isinstance(value, list) and len(value) == 1 else value for value in values]


def _with_forms(named: dict[str, Any], form: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: form(value) if name in _SAID else value for name, value in named.items()}


@contextmanager
def _faults_of(place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise InstructKitError(
            f"{place} failed: {_told(error)}", hint="run again with --debug to see where in it"
        ) from error


def _answers(given: tuple[Any, ...], named: dict[str, Any]) -> int:
    """How many answers a function was asked about."""
    return len(given[0] if given else named["prompts"])


def _scores(place: str, found: Any, wanted: int) -> list[Any]:
    found = _plain(found)
    if not isinstance(found, list) or len(found) != wanted:
        gave = f"{len(found)} scores" if isinstance(found, list) else f"a {type(found).__name__}"
        raise InputError(f"{place} gave {gave} for {wanted} answers", hint=WANTED)
    return [_score(place, _plain(each)) for each in found]


def _plain(value: Any) -> Any:
    """Arrays, tensors and tuples as lists, their numbers as Python's."""
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _score(place: str, value: Any) -> float | list[float] | None:
    if value is None:
        return None
    numbers = [_plain(each) for each in value] if isinstance(value, list) else [value]
    for number in numbers:
        if not isinstance(number, Real) or not math.isfinite(number):
            raise InputError(f"{place} gave {number!r} as a score", hint=WANTED)
    return [float(number) for number in numbers] if isinstance(value, list) else float(value)

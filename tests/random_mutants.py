"""
Draw changes of the code at random and see which the tests next to the code notice: `make mutants-random N=30 SEED=1`.

Each mutant changes one operator, comparison, number or text. Docstrings, type annotations, help and log texts stay as they are.
A mutant of `instructkit/ROOM/x.py` is tried on `tests/ROOM/`: first the files that name the module, then the others.
"""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutants import ROOT, left_behind

TABLE = ROOT / "benchmarks" / "results" / "mutants_random.md"
N, SEED = int(os.environ.get("N", "30")), int(os.environ.get("SEED", "1"))
LIMIT_SECONDS = int(os.environ.get("LIMIT", "600"))  # of the tests of one mutant
PAIRS = "Lt LtE,LtE Lt,Gt GtE,GtE Gt,Eq NotEq,NotEq Eq,In NotIn,NotIn In,Is IsNot,IsNot Is,And Or,Or And"
PAIRS += ",Add Sub,Sub Add,Mult Div,Div Mult,BitAnd BitOr,BitOr BitAnd,FloorDiv Mult,Mod Mult,Pow Mult"
SWAPPED = {getattr(ast, old): getattr(ast, new) for old, new in (pair.split() for pair in PAIRS.split(","))}
LOGS = re.compile(r"_?(note|log|debug|info|warn|warning)")
HELP = ("description", "help")


class Mutant(NamedTuple):
    """One change: its kind, the file and line, where its bytes begin and end, and the code before and after."""

    kind: str
    file: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def applied(self, whole: bytes) -> bytes:
        """Return the file with the change made."""
        return whole[: self.start] + self.new.encode() + whole[self.end :]


def main() -> None:
    """Try `N` mutants drawn with `SEED`, print each outcome and write the table."""
    rows = [["place", "kind", "change", "outcome", "test"], ["---"] * 5]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=left_behind)
        for mutant in drawn():
            change = " -> ".join(re.sub(r"\s+", " ", f"`{part}`") for part in (mutant.old, mutant.new))
            rows.append([f"{mutant.file}:{mutant.line}", mutant.kind, change, *outcome(mutant, copy)])
            print("  ".join(rows[-1]), flush=True)
    last = f"{sum(row[3] != 'SURVIVED' for row in rows[2:])} of {N} random mutants were noticed."
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    command = f"Command: `make mutants-random N={N} SEED={SEED}`."
    head = "# Random mutants and the first test that noticed"
    TABLE.write_text("\n".join([head, "", command, "", *lines, "", last, ""]), encoding="utf-8")
    print(last)


def drawn() -> Iterator[Mutant]:
    """Draw mutants that compile: a kind first, each as likely, then a place of that kind in the package."""
    rng, places, left = random.Random(SEED), {}, N
    for path in sorted((ROOT / "instructkit").rglob("*.py")):
        for mutant in mutants_of(path):
            places.setdefault(mutant.kind, []).append(mutant)
    for listed in places.values():
        rng.shuffle(listed)
    while left:
        mutant = places[rng.choice(sorted(places))].pop()
        try:
            compile(mutant.applied((ROOT / mutant.file).read_bytes()), mutant.file, "exec")
        except SyntaxError:
            continue
        left -= 1
        yield mutant


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield one mutant for each place of a file that can be changed."""
    whole, starts = path.read_bytes(), [0]
    for line in whole.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in code_of(ast.parse(whole)):
        if change := changes(node):
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            where = (str(path.relative_to(ROOT)), node.lineno, start, end)
            yield Mutant(change[0], *where, whole[start:end].decode(), change[1])


def code_of(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one, but for what changes no behaviour and for f-strings, whose parts have no exact place."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or is_silent(child):
                continue
            # The limits of a recipe's value are in its annotation: `Annotated[float, Field(gt=0)]`.
            annotated = name in ("annotation", "returns")
            for part in ast.walk(child) if annotated else [child]:
                if not annotated or isinstance(part, ast.Call):
                    yield part
                    yield from code_of(part)


def is_silent(node: ast.AST) -> bool:
    """Return whether a node is a docstring, an f-string, a log call, a help text, or for type checkers only."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.JoinedStr():
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return bool(LOGS.fullmatch(name))
        case ast.Dict(keys=[ast.Constant(value=name)]) | ast.keyword(arg=name):
            return name in HELP
        case ast.If():
            return ast.unparse(node.test).endswith("TYPE_CHECKING")
    return False


def changes(node: ast.AST) -> tuple[str, str] | None:
    """Return the kind of change that a node allows and its new code; None where there is none."""
    match node:
        case ast.Compare(ops=[op, *others]) if type(op) in SWAPPED:
            new = ast.Compare(node.left, [SWAPPED[type(op)](), *others], node.comparators)
            return "comparison", f"({ast.unparse(new)})"
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPPED:
            new = ast.unparse(type(node)(**dict(ast.iter_fields(node)) | {"op": SWAPPED[type(op)]()}))
            return "operator", new if isinstance(node, ast.AugAssign) else f"({new})"
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return "operator", f"({ast.unparse(node.operand)})"
        case ast.Constant(value=bool(value)):
            return "number", repr(not value)
        case ast.Constant(value=int(value) | float(value)):
            return "number", repr(value * 2 if isinstance(value, float) and value else value + 1)
        case ast.Constant(value=str(value)) if value:
            return "text", repr(f"{value}~")
    return None


def outcome(mutant: Mutant, copy: Path) -> tuple[str, str]:
    """Return `noticed`, `SURVIVED` or `timeout`, and the test that failed, which passes on unchanged code."""
    path = copy / mutant.file
    whole = path.read_bytes()
    path.write_bytes(mutant.applied(whole))
    try:
        failed = next(filter(None, (first_failure(tests, copy) for tests in tests_of(mutant.file))), None)
    except subprocess.TimeoutExpired:
        return "timeout", ""
    finally:
        path.write_bytes(whole)
    if failed and first_failure([failed.partition("[")[0]], copy):
        raise SystemExit(f"{failed} fails on unchanged code too")
    return ("noticed", failed) if failed else ("SURVIVED", "")


def tests_of(file: str) -> list[list[str]]:
    """Return the test files next to a module, in the nearest folder that there is: those that name it, and the others."""
    module, tests = Path(file).with_suffix("").relative_to("instructkit"), ROOT / "tests"
    room = next(each for each in module.parents if (tests / each).is_dir())
    package = re.escape(".".join(("instructkit", *module.parent.parts)))
    naming = re.compile(rf"{package}(\.| import .*?\b){module.name}\b|\b{module}\.py")
    named, others = [], []
    for path in sorted((tests / room).glob("test_*.py" if room == Path() else "**/test_*.py")):
        # This one compares the code with the chosen mutants, so any change fails it.
        if path.name == "test_mutants.py":
            continue
        is_named = path.stem == f"test_{module.name}" or naming.search(path.read_text(encoding="utf-8"))
        (named if is_named else others).append(str(path.relative_to(ROOT)))
    return [part for part in (named, others) if part]


def first_failure(tests: list[str], copy: Path) -> str | None:
    """Return the first test that fails, or None when all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "timeout": LIMIT_SECONDS}
    done = subprocess.run(command, cwd=copy, env=environment, **options)
    if done.returncode in (0, 5):  # 5: no test was selected
        return None
    if done.returncode in (
        -signal.SIGTERM,
        -signal.SIGKILL,
    ):  # by something else, so nothing is known of the mutant
        raise SystemExit(f"pytest was ended by signal {-done.returncode}; run again")
    failed = (re.sub(r" - .*", "", line) for line in done.stdout.splitlines())
    failed = (line.split(" ", 1)[1] for line in failed if line.startswith(("FAILED ", "ERROR ")))
    return next(failed, tests[0])  # a package that cannot be imported stops conftest.py


if __name__ == "__main__":
    main()

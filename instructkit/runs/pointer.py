"""Where chains of updates lie beside the runs, and the pointer to the adapter that is in force."""

from __future__ import annotations

import errno
from pathlib import Path

from instructkit.errors import InputError
from instructkit.runs.files import sync_folder, write_text_atomic

CHAINS = "chains"
HISTORY = "updates.jsonl"
CURRENT = "current"
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def is_chain(folder: Path) -> bool:
    """True when the folder is that of a chain: it has a history."""
    return (folder / HISTORY).is_file()


def names(root: str | Path) -> list[str]:
    """The names of the chains below a folder of runs, sorted."""
    folder = Path(root) / CHAINS
    return sorted(item.name for item in folder.iterdir() if is_chain(item)) if folder.is_dir() else []


def pointed(link: Path) -> str | None:
    """The name of the folder that a pointer means, a sibling of it; None where there is no pointer."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return None
    except OSError:  # no link: a text file, written where the file system has no links
        return link.read_text(encoding="utf-8").strip()


def point(link: Path, name: str | None) -> None:
    """
    Let a pointer mean the folder `name` beside it, or nothing, in one atomic step.

    It is a symbolic link; where the file system has none, a text file with the folder's name.
    """
    if name is None:
        link.unlink(missing_ok=True)
        sync_folder(link.parent)
        return
    fresh = link.parent / f".{link.name}.new"
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(name, target_is_directory=True)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        write_text_atomic(link, f"{name}\n")
        return
    fresh.replace(link)
    sync_folder(link.parent)


def follow(path: Path) -> Path:
    """
    The folder that `CHAIN/current` means at this moment, by its number; any other path as it is.

    A name that is kept must not change its meaning with the next promotion.

    Raises:
        InputError: when nothing of that chain is promoted.
    """
    if path.name != CURRENT or not is_chain(path.parent):
        return path
    name = pointed(path)
    if name is None:
        raise InputError(
            f"the chain {path.parent} has no promoted adapter",
            hint=f"`instructkit runs history {path.parent.name}` shows its updates; the model below them is the parent",
        )
    return path.parent / name


def beside(child: Path, name: str) -> Path:
    """
    Where a parent lies that a recipe called `name`, if it lies among the same runs as its child.

    So a folder of runs can be moved whole: `runs/sft` is looked for beside the child, `runs/chains/NAME/001` in the chains there.
    """
    inside = child.parent.parent.name == CHAINS and is_chain(child.parent)
    root, parts = child.parent.parent.parent if inside else child.parent, Path(name).parts
    return root.joinpath(*(parts[-3:] if CHAINS in parts[-3:-2] else parts[-1:]))

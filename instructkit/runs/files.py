"""Write files atomically, and remove temporary files and folders that killed processes left."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

_TEMPORARY = ".tmp"
# Names of files that are renamed once they are whole: ours, those of safetensors, and the critic's.
TEMPORARIES = (f".*{_TEMPORARY}", f"{_TEMPORARY}??????", "critic.pt.part")


def plain(value: Any) -> Any:
    """
    What JSON can hold of a value: paths as text, tuples as lists, numbers of tensor libraries as Python's.

    NaN and the infinities become None, because JSON has no word for them.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item") and not isinstance(value, (str, bytes, int)):
        return plain(value.item())
    return value


def write_json_atomic(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON; a reader sees the old file or the new one, never half of either."""
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` in UTF-8 to a temporary name beside `path`, force it to disk, and rename it into place."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner reads; a run is as readable as the rest of the folder.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder and below it; nobody else may write there."""
    for pattern in TEMPORARIES:
        for left in folder.rglob(pattern):
            if left.is_file():
                left.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Force the rename itself to disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


PREFIX = "instructkit-"
OWNER = "owner.lock"  # locked while the process that made the folder lives; appears when it is locked


class TemporaryFolder(tempfile.TemporaryDirectory):
    """A temporary folder that is marked as in use as long as its process lives."""

    def __init__(self) -> None:
        super().__init__(prefix=PREFIX)
        lock = Path(self.name) / f"{OWNER}.new"
        self._handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        lock.rename(lock.with_name(OWNER))


def sweep_temporary() -> None:
    """Remove the temporary folders of processes that were killed; those of living ones, also of other users, stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            handle = os.open(folder / OWNER, os.O_RDWR)
        except OSError:  # not locked yet
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use
            continue
        finally:
            os.close(handle)

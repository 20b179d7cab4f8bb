"""Temporary folders with training rows, which the next start removes if their process was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

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


def sweep() -> None:
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

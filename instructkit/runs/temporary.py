"""Temporary folders with training rows, which the next start removes if their process was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "instructkit-"
YOUNG_SECONDS = 60.0  # a process that made a folder this recently may not have locked it yet
OWNER = "owner.lock"  # locked while the process that made the folder lives


class TemporaryFolder(tempfile.TemporaryDirectory):
    """A temporary folder that is marked as in use as long as its process lives."""

    def __init__(self) -> None:
        super().__init__(prefix=PREFIX)
        self._handle = os.open(Path(self.name) / OWNER, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX)


def sweep() -> None:
    """Remove the temporary folders of processes that were killed; those of living ones, also of other users, stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < YOUNG_SECONDS:
                continue
            handle = os.open(folder / OWNER, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use
            continue
        finally:
            os.close(handle)

"""One process to a run folder: a lock that the system frees when its holder ends, however it ends."""

from __future__ import annotations

import os
from pathlib import Path

from instructkit.errors import InputError


class FolderLock:
    """
    A lock on a run folder, kept in `.NAME.lock` beside it, so that it outlives a rename of the folder.

    The lock is the system's advisory lock on the open file; the pid inside is for the message only. So a
    process that was killed leaves no lock behind.
    """

    def __init__(self, folder: Path) -> None:
        self.path = lock_path(folder)
        self.folder = folder
        self._handle: int | None = None

    def acquire(self) -> None:
        """
        Take the lock.

        Raises:
            InputError: when a process holds it; names the pid.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._handle is None:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(handle):
                holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
                os.close(handle)
                raise _held(self.folder, holder)
            # The last holder may have removed the file between our open and our lock: then we hold nothing.
            if _same_file(handle, self.path):
                self._handle = handle
            else:
                os.close(handle)
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Remove the lock file and free the lock; does nothing when it is not held."""
        if self._handle is None:
            return
        self.path.unlink(missing_ok=True)
        # Closing frees the lock only when no forked child has the file open; unlocking frees it for all.
        _unlock(self._handle)
        os.close(self._handle)
        self._handle = None


def refuse_held(folder: Path) -> None:
    """Raise the `InputError` of `FolderLock.acquire` when a living process is writing the folder; takes nothing."""
    if is_held(folder):
        holder = lock_path(folder).read_text(encoding="ascii", errors="replace").strip() or "unknown"
        raise _held(folder, holder)


def _held(folder: Path, holder: str) -> InputError:
    return InputError(
        f"{folder} is being written by another process (pid {holder})",
        hint="wait until it has ended, or choose another folder with run.output=FOLDER",
    )


def lock_path(folder: Path) -> Path:
    """Return where the lock of a run folder lies: next to the real folder, so that all links to it share one lock."""
    folder = folder.resolve()
    return folder.parent / f".{folder.name}.lock"


def is_held(folder: Path) -> bool:
    """True when a living process (this one included) is writing the folder."""
    try:
        handle = os.open(lock_path(folder), os.O_RDWR)
    except OSError:
        return False
    try:
        if not _lock(handle):
            return True
        _unlock(handle)
        return False
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(handle: int) -> None:
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_UN)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False

"""What stands where a file was meant: told in words, so that a pipe is never waited for and a link is told as one."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

LONGEST_SHOWN = 200  # characters of a path in a message
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)

_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),  # before UTF-16, whose mark it begins with
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def oddity(path: str) -> str | None:
    """What a path names, in words, when that can be read neither as a file nor as a folder; None where nothing is there."""
    try:
        mode = Path(path).stat().st_mode
    except ValueError:
        return "a name that no file can have"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return f"a name of {len(path)} characters, which no file can have"
        if error.errno == errno.ELOOP:
            return "a link that leads in a circle"
        return f"a link to {Path(path).readlink()}, which is not there" if Path(path).is_symlink() else None
    return next((told for is_one, told in _KINDS if is_one(mode)), None)


def shown(path: str) -> str:
    """A path for a message, shortened where no one would read it."""
    return path if len(path) <= LONGEST_SHOWN else f"{path[:40]}..."


def encoding_of(start: bytes) -> str | None:
    """Of a file's first four bytes: UTF-16 or UTF-32, by their mark, or by the zeros beside plain letters."""
    marked = next((name for mark, name in _ENCODINGS if start.startswith(mark)), None)
    zeros = [byte == 0 for byte in start]
    if marked or len(start) < 4:
        return marked
    if zeros in ([False, True, False, True], [True, False, True, False]):
        return "UTF-16"
    return "UTF-32" if zeros in ([False, True, True, True], [True, True, True, False]) else None

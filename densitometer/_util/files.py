"""Atomic writing of files: under a temporary name in the same folder, which is then renamed.

A pipe or device (/dev/stdout) is written to directly and never replaced by a file. A link stays a
link to the file that is written. The SHA-256 of a file's content is computed here, too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ArgumentTypeError, InputError, StorageError

# Longest name and path that Linux takes, in bytes. Others take no longer names.
_LONGEST_NAME, _LONGEST_PATH = 255, 4096
# Names that `tempfile` makes from the prefix in `_replacing`.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}")
# Paths of files that this process has open already.
_OPEN_ALREADY = re.compile(r"/dev/(?P<name>stdout|stderr)|/(?:dev|proc/self)/fd/(?P<number>\d+)")
# Digests of files, by what says which content a file has: path, size, times, inode.
_DIGESTS: dict[tuple[Any, ...], str] = {}
# A file that was written less than this before it was read may be written again within the same
# tick of the clock, so its digest is not kept.
_TICK_NS = 10**8
_BLOCK = 2**22


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    A file is read once, and again only when its size, a time or its inode has changed.

    Raises:
        OSError: the file cannot be read.
    """
    before = file_state(path)
    if (known := _DIGESTS.get((str(path), *before))) is not None:
        return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if file_state(path) == before and time.time_ns() - before[1] > _TICK_NS:
        _DIGESTS[(str(path), *before)] = digest.hexdigest()
    return digest.hexdigest()


def file_state(path: Path) -> tuple[int, int, int, int]:
    """Size, times of modification and of change (ns), and inode: what changes with the content.

    Raises:
        OSError: there is no such file.
    """
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def checked_path(path: Any) -> Path:
    """Return a path that a file can have.

    Raises:
        ArgumentTypeError: it is not a path.
        InputError: it has a null character, or is longer than file systems take.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"expected a path, got {path!r} ({type(path).__name__})")
    name = os.fspath(path)
    if isinstance(name, bytes):
        raise ArgumentTypeError(f"expected a path as text, got bytes ({name[:60]!r}); give os.fsdecode(path)")
    if "\0" in name:
        raise InputError(
            f"a path cannot hold a null character, got {name[:60]!r}; give the path of a file or folder"
        )
    longest = max((len(part.encode(errors="surrogatepass")) for part in Path(name).parts), default=0)
    if longest > _LONGEST_NAME or len(name.encode(errors="surrogatepass")) > _LONGEST_PATH:
        raise InputError(
            f"a path of {len(name):,} characters has a name of {longest:,} bytes, got {name[:40]!r}...; expected at most "
            f"{_LONGEST_NAME} bytes in a name and {_LONGEST_PATH:,} in all. Give a shorter path"
        )
    return Path(name)


def check_writable(*paths: Path | None) -> None:
    """Check that paths can be written to, before long work whose result they will hold.

    Raises:
        StorageError: a path is a folder, or its folder does not exist or is not writable.
        InputError: a path cannot be that of a file.
    """
    for path in paths:
        if path is None:
            continue
        checked_path(path)
        if path.is_dir():
            raise _cannot(path, "it is a folder")
        place = path if _is_stream(path) else Path(os.path.realpath(path)).parent
        if not place.exists():
            raise _cannot(path, "there is no such folder")
        if not os.access(place, os.W_OK):
            raise _cannot(path, "permission denied")


def write_file(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all.

    Args:
        path: the path.
        write: function that is called with the open binary file.

    Raises:
        StorageError: the path cannot be written, or the disk is full.
    """
    path = checked_path(path)
    try:
        with _open_stream(path) if _is_stream(path) else _replacing(Path(os.path.realpath(path))) as file:
            write(file)
    except OSError as error:
        unread = error.errno == errno.ENXIO
        raise _cannot(
            path, "no process reads this pipe" if unread else error.strerror or str(error)
        ) from error


def written_beside(path: Path) -> str | None:
    """Return the name that a temporary file of this module gets once it is complete.

    None for a file that is not a temporary file of this module.
    """
    match = _TEMPORARY.fullmatch(path.name)
    return None if match is None else match["name"]


def _cannot(path: Path, reason: str) -> StorageError:
    return StorageError(
        f"cannot write {str(path)!r}: {reason}; nothing was changed there. Give a path in a folder that exists, "
        "that you may write to and that has room"
    )


def _is_stream(path: Path) -> bool:
    """Return whether a path that can be written to is a pipe, a terminal or a device."""
    if _OPEN_ALREADY.fullmatch(os.path.abspath(path)):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def _open_stream(path: Path) -> Iterator[BinaryIO]:
    """Open a pipe or device for writing."""
    if match := _OPEN_ALREADY.fullmatch(os.path.abspath(path)):
        handle = os.dup(int(match["number"] or {"stdout": 1, "stderr": 2}[match["name"]]))
    else:
        # without blocking, a pipe that no process reads is an error and not an endless wait
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        yield file


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file, and rename it to a path if all goes well."""
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:60]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """Return the mode of the file at a path. For a new file it is the default of this process."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        # the umask can only be read by setting it
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask

"""Write a file whole or not at all: under a temporary name beside its place, renamed when it is complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .errors import StorageError


def write_file(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all.

    Args:
        write: called with the open binary file.

    Raises:
        StorageError: the path cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {str(path)!r}: {error.strerror or error}; give a path in a folder that exists and that you "
            "may write to"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"cannot write {str(path)!r}: {error.strerror or error}; nothing was changed there"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)

"""Memory that is free for this process: on the machine, and within the limits set for it.

A job of a scheduler or a container may use less than the machine has. On Linux its control group
says so. Both versions of control groups are read, and every group that holds this process: a limit
of any of them binds.

What this file does not do: it does not read the memory of GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Names of a group's files by version: limit, bytes in use, and in its statistics the pages of files
# that can be dropped.
_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_V2 = "memory.max", "memory.current", "inactive_file"


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process can still take. None if they are not known.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names:
            return None
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield the bytes that each control group of this process leaves it, where it has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    mounted = root / "sys/fs/cgroup"
    places: set[tuple[Path, tuple[str, str, str]]] = set()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops = [(mounted, _V2), (mounted / "unified", _V2)]
        elif "memory" in controllers.split(","):
            tops = [(mounted / "memory", _V1)]
        else:
            continue
        # a container may see its own group as the topmost, whatever its path says
        parts = PurePosixPath(path).parts[1:]
        places |= {
            (top.joinpath(*parts[:depth]), names) for top, names in tops for depth in range(len(parts) + 1)
        }
    for folder, (limit, used, droppable) in places:
        try:
            most = int((folder / limit).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield most - int((folder / used).read_text()) + int(statistics.get(droppable, 0))
        # no such group, or one without a limit
        except (OSError, ValueError):
            continue

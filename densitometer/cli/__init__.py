"""Command line of the package: the command `densitometer`."""

from .commands import main

__all__ = ["main"]

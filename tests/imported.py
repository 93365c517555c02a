"""Imported last by the server in `command.py`: what it holds stays, so that its forks neither collect nor copy it."""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()

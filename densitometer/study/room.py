"""Memory that the workers of a study need, before any of them starts.

    1. Bound the tokens of the longest piece, without a tokenizer: a token has at least one byte.
    2. Plan its measurement under each model from the config alone (`measuring/planning.py`).
    3. If that does not fit, tokenize the longest texts, and plan again.

Weights that are used exactly as a safetensors file stores them are memory-mapped, so that all
workers of a machine share one copy. Weights that are converted while loading take memory in each
worker.

What this file does not do: it does not check the memory of GPUs, which would start CUDA in the
process that hands out the texts. `densitometer plan MODEL --device cuda` does that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import polars

from ..errors import DensitometerError, InputError
from ..graph.tiled.tiles import STORED_EDGES
from ..measuring.planning import is_tiled, memory_items, shape_of
from ..measuring.settings import checked_sizes
from ..models.blueprint import blueprint
from ..models.checkpoint import read_tokenizer
from ..models.source import local_files, source_of
from .corpus import Window
from .engines import WORKER_BYTES
from .worker import StudySettings, split_revision

# Longest texts that are tokenized to find the longest piece.
TOKENIZED = 8
# Bytes of a token, where no tokenizer is read.
BYTES_OF_TOKEN = 3
# Tokens that a chat template, or a tokenizer, puts around a text, at most.
AROUND = 64
# Keywords of `load_model` that say which model it is, and not where its weights go.
_NAMING = frozenset({"trust_remote_code", "token", "cache_dir", "subfolder", "gguf_file"})
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Memory that the workers of a study need on one machine, in bytes.

    Args:
        model: the model that takes most.
        n_tokens: number of tokens of the piece that takes most memory; 0 if it is not known.
        shared: weights that all workers share.
        own: weights that each worker holds.
        measuring: what measuring that piece takes in each worker.
    """

    model: str = ""
    n_tokens: int = 0
    shared: int = 0
    own: int = 0
    measuring: int = 0

    @property
    def each(self) -> int:
        """Bytes that each worker takes beside the shared weights, Python and torch included."""
        return WORKER_BYTES + self.own + self.measuring

    def of(self, workers: int) -> int:
        """Return the bytes that a number of workers take together."""
        return self.shared + workers * self.each

    def __str__(self) -> str:
        """What the memory is for, for a message."""
        parts = [f"{WORKER_BYTES / GIB:.1f} Python and torch"]
        if self.own:
            parts.append(f"{self.own / GIB:.1f} weights")
        if self.measuring:
            parts.append(f"{self.measuring / GIB:.1f} measuring a text of {self.n_tokens:,} tokens")
        shared = f", and {self.shared / GIB:.1f} GiB of weights that workers share" if self.shared else ""
        named = f" under {self.model}" if self.model else ""
        return f"{self.each / GIB:.1f} GiB a worker{named} ({' + '.join(parts)}){shared}"


def need_of(
    names: Sequence[str],
    texts: polars.DataFrame,
    settings: StudySettings,
    device: str | None,
    fits: Callable[[Need], bool],
) -> tuple[Need, int | None]:
    """Find what workers need under the model that takes most.

    A model that is not on this machine yet counts as 0 bytes. One that cannot be planned counts
    with the size of its files.

    Args:
        names: names of the models, as the study has them.
        texts: the texts that will be measured, one row each.
        settings: settings of the study.
        device: device of the workers; None for the CPU.
        fits: function that returns whether there is room for a need. Texts are tokenized only
            if the need for the bound on their tokens does not fit.

    Returns:
        The need, and the number of tokens of a window with which it would fit. The latter is
        None if it fits already, or if no window helps.
    """
    most, shorter = Need(), None
    for name in names:
        try:
            need, shorten = _need_under(name, texts, settings, device, fits)
        # An estimate ends no study: what cannot be found, read or planned becomes failed rows.
        except Exception:
            continue
        if need.of(1) > most.of(1):
            most, shorter = need, shorten
    return most, shorter


def _need_under(
    name: str,
    texts: polars.DataFrame,
    settings: StudySettings,
    device: str | None,
    fits: Callable[[Need], bool],
) -> tuple[Need, int | None]:
    where, revision = split_revision(name)
    source = source_of(where, settings.options.get("gguf_file"))
    unplanned = Need(where, own=sum(path.stat().st_size for path in local_files(source)))
    if settings.options.keys() - _NAMING:
        # weights may be quantised, or on several devices
        return unplanned, None
    keywords = {**settings.options, "revision": revision, "local_files_only": True}
    keywords = {key: value for key, value in keywords.items() if value is not None}

    def at(n_tokens: int) -> Need:
        drawn = blueprint(where, n_tokens, settings.dtype, **keywords)
        shape, names = shape_of(drawn), settings.measuring.importance
        n_sizes = len(checked_sizes(settings.measuring.sizes))
        items = memory_items(shape, names, n_sizes, device or "cpu")["cpu"]
        weights = items.pop("weights", 0)
        shared = min(drawn.mapped_bytes, weights)
        need = Need(where, n_tokens, shared, weights - shared, sum(items.values()))
        if not is_tiled(shape, names):
            return need
        # inputs just short enough to be stored take more than longer ones, which go tile by tile
        stored = at(max(2, int(n_tokens * (STORED_EDGES / shape.attention_size) ** 0.5)))
        return max(need, stored, key=lambda one: one.each)

    window = Window.parse(settings.window)
    bound = max(2, _bound(texts, window))
    try:
        try:
            need = at(bound)
        # more tokens than the context has, with which a text fails
        except InputError:
            bound = min(bound, blueprint(where, 2, settings.dtype, **keywords).context_length or bound)
            need = at(bound)
    except DensitometerError:
        return unplanned, None
    if fits(need):
        return need, None
    # reading the tokenizer of a GGUF file takes longer than a text
    if source.gguf_file is None:
        tokenizer = read_tokenizer(source.place, **keywords)
        bound = max(2, min(bound, _longest(texts, window, tokenizer)))
    else:
        bound = max(2, bound // BYTES_OF_TOKEN)
    need = at(bound)
    length = bound
    while not fits(at(length)):
        length //= 2
        if length < 2:
            return need, None
    return need, None if length == bound else length


def _bound(texts: polars.DataFrame, window: Window) -> int:
    """Bound on the tokens of the longest piece: a token has at least one byte of its text."""
    longest = texts["text"].str.len_bytes().max()
    whole = AROUND + (longest if isinstance(longest, int) else 0)
    return whole if window.kind in ("whole", "words", "positions") else min(whole, AROUND + max(window.sizes))


def _longest(texts: polars.DataFrame, window: Window, tokenizer: Any) -> int:
    """Tokens of the longest piece of the texts with most bytes."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, verbose=False)["input_ids"])

    rows = texts.select("text", n=polars.col("text").str.len_bytes()).top_k(TOKENIZED, by="n")
    lengths = [0]
    for text in rows["text"]:
        # a text that is too short for the window fails later, by name
        with suppress(InputError):
            lengths += [piece.position + 1 for piece in window.pieces(text, None, encode)]
    return max(lengths)

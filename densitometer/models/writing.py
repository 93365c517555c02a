"""Generate text with a model, one token at a time.

Keys and values of earlier tokens are cached. A model without a cache (one that ignores `use_cache`)
reads the whole text again for each token.

What this file does not do: it measures nothing, and it has no limit of length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .loading import Model
from .placement import memory_watched


def written(model: Model, ids: Sequence[int], temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
    """Generate token ids after a text, up to and including an end-of-sequence token.

    Args:
        model: the model.
        ids: token ids of the text.
        temperature: divisor of the logits before a token is drawn; 0 takes the most probable token
            (greedy).
        seed: random seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = _ends(model)
    # all tokens so far, and of these the ones that the cache does not hold
    whole, new, cache = list(ids), list(ids), None
    while True:
        with model.running(), torch.no_grad(), memory_watched(f"writing after {len(whole)} tokens"):
            batch = torch.tensor([new], device=model.adapter.device)
            output = model.module(input_ids=batch, past_key_values=cache, use_cache=True)
        token = _chosen(output.logits[0, -1].float().cpu(), temperature, generator)
        cache = getattr(output, "past_key_values", None)
        whole.append(token)
        new = whole if cache is None else [token]
        yield token
        if token in ends:
            return


def _chosen(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """Choose the next token from logits (vocabulary,)."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))


def _ends(model: Model) -> set[int]:
    """Return the ids of end-of-sequence tokens from the generation config, or from the config."""
    settings = getattr(model.module, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    if named is None:
        named = getattr(model.module.config.get_text_config(), "eos_token_id", None)
    return set() if named is None else {named} if isinstance(named, int) else set(named)

"""Models built by hand for calibration, of which it is known which parts a prediction needs.

Photographers calibrate a densitometer with a step tablet, a strip of film whose densities are
known. Here the step tablet is a Llama model whose weights are all zero except those that the
functions below set. Its residual stream has named, orthogonal directions:

    CONSTANT     the same large amount in every token's embedding. It keeps the scale of every
                 RMSNorm constant to about 1 %. So the model is linear apart from its MLPs and
                 softmaxes, and a direction that no part reads has no effect
    IDENTITY     one direction per bit of the token id, +1 or -1 in the token's embedding
    ANSWER       one direction per bit, written by the parts below
    PREVIOUS     one direction per bit of the token before, written by a previous-token head
    MARK         +1 in the embedding of marked tokens, else 0
    RELAY        written by one MLP, read by another
    NOISE        written by distractor parts, never read

The output head predicts a token by its bits. Each bit is read from ANSWER, or directly from the
last token's IDENTITY. It adds MARGIN / 2 nats to the logit of every token that has the bit, and
-MARGIN / 2 to the others. A missing bit halves the probability of the right answer. So the
prediction needs all bits, and no part can replace another.

What this file does not do: it does not compute edges or densities
(`densitometer.measuring.calibration`).

Axes: D hidden size, B bits, V vocabulary (2 ** B).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

N_BITS = 9
N_HEADS = 2
HEAD_SIZE = 16
HIDDEN_SIZE = N_HEADS * HEAD_SIZE
MARGIN = 8.0  # nats per bit: a right prediction has probability (1 - e^-8)^9, 0.997

CONSTANT = 0
IDENTITY = tuple(range(1, 1 + N_BITS))
ANSWER = tuple(range(10, 10 + N_BITS))
PREVIOUS = tuple(range(19, 19 + N_BITS))
MARK, RELAY, NOISE = 28, 29, 30

CONSTANT_AMOUNT = 256.0
_PER_AMOUNT = CONSTANT_AMOUNT / math.sqrt(HIDDEN_SIZE)  # norms divide the stream by this number
_CONSTANT_SEEN = math.sqrt(HIDDEN_SIZE)  # the amount of CONSTANT after a norm

# Rotary frequencies fall from 1 radian per token to 1e-11. Frequencies of index 2 and above (1e-3
# and less) hardly rotate over the few tokens of an input, so a head that compares contents uses
# their dimensions. A head that compares positions uses those of the first frequency.
_ROTARY_BASE = 1e12
_QUIET = (2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15)
_TURNING = (0, HEAD_SIZE // 2)  # the two halves of the first pair: one radian per token


def blank_module(n_layers: int, written: Sequence[int], marked: Sequence[int] = ()) -> LlamaForCausalLM:
    """Build a Llama model whose decoder blocks add nothing yet.

    It predicts the last token again, except for the bits that are read from ANSWER.

    Args:
        n_layers: number of decoder blocks; all of their weights are 0.
        written: the bits that the output head reads from ANSWER; the others are read from the last
            token's IDENTITY.
        marked: token ids whose embeddings have MARK.

    Returns:
        The module, float32. The global random state is left as it was.
    """
    config = LlamaConfig(
        vocab_size=2**N_BITS,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=4,
        num_hidden_layers=n_layers,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": _ROTARY_BASE},
        rms_norm_eps=1e-6,
    )
    with torch.random.fork_rng(devices=[]):
        module = LlamaForCausalLM(config)
    ids = torch.arange(2**N_BITS)
    signs = (2 * (ids[:, None] >> torch.arange(N_BITS) & 1) - 1).float()  # (V, B)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        embedding = module.model.embed_tokens.weight  # (V, D)
        embedding[:, CONSTANT] = CONSTANT_AMOUNT
        embedding[:, list(IDENTITY)] = signs
        embedding[list(marked), MARK] = 1.0
        read = [ANSWER[bit] if bit in written else IDENTITY[bit] for bit in range(N_BITS)]
        module.lm_head.weight[:, read] = signs * MARGIN / 2 * _PER_AMOUNT
    return module


def add_mlp(module: LlamaForCausalLM, layer: int, reads: int, writes: int) -> None:
    """Make a layer's MLP copy the amount of one direction to another, at every token.

    Its gate reads CONSTANT. Its output is silu(gate) * up, scaled so that the amount stays the
    same.

    Args:
        module: the model.
        layer: index of the layer.
        reads: the direction that is read.
        writes: the direction to which the amount is added.
    """
    mlp = module.model.layers[layer].mlp
    gate = _CONSTANT_SEEN / (1 + math.exp(-_CONSTANT_SEEN))  # silu
    with torch.no_grad():
        mlp.gate_proj.weight[0, CONSTANT] = 1.0
        mlp.up_proj.weight[0, reads] = _PER_AMOUNT
        mlp.down_proj.weight[writes, 0] = 1.0 / gate


def add_copy_head(module: LlamaForCausalLM, layer: int, head: int, bits: Sequence[int], gap: float) -> None:
    """Add a head that attends to the marked token and writes bits of its IDENTITY into ANSWER.

    Args:
        bits: the bits that are written.
        gap: how far the attention score of a marked token is above that of any other, nats.
    """
    query, key, value, write = _head(module, layer, head)
    with torch.no_grad():
        query[_QUIET[0], CONSTANT] = 1 / _CONSTANT_SEEN
        key[_QUIET[0], MARK] = gap * math.sqrt(HEAD_SIZE) * _PER_AMOUNT
    _move(value, write, [IDENTITY[bit] for bit in bits], [ANSWER[bit] for bit in bits])


def add_previous_token_head(module: LlamaForCausalLM, layer: int, head: int, gap: float) -> None:
    """Add a head that attends to the token before and writes its IDENTITY into PREVIOUS.

    It serves inputs of at most 7 tokens: the attention score of the token d places back is
    A cos(d - 1), which is A at d = 1 and at most 0.54 A at d = 0, 2, 3, 4, 5, 6.

    Args:
        gap: how far the attention score of the token before is above that of any other, nats.
    """
    query, key, value, write = _head(module, layer, head)
    size = gap / (1 - math.cos(1.0)) * math.sqrt(HEAD_SIZE)
    with torch.no_grad():
        query[_TURNING[0], CONSTANT] = size * math.cos(-1.0) / _CONSTANT_SEEN
        query[_TURNING[1], CONSTANT] = size * math.sin(-1.0) / _CONSTANT_SEEN
        key[_TURNING[0], CONSTANT] = 1 / _CONSTANT_SEEN
    _move(value, write, IDENTITY, PREVIOUS)


def add_induction_head(
    module: LlamaForCausalLM, layer: int, head: int, bits: Sequence[int], gap: float
) -> None:
    """Add an induction head: it attends to the token after an earlier copy of the query token.

    That is the token whose PREVIOUS equals the query token's IDENTITY. The head writes bits of its
    IDENTITY into ANSWER.

    Args:
        bits: the bits that are written.
        gap: attention score that a token loses per bit in which its PREVIOUS differs, nats.
    """
    query, key, value, write = _head(module, layer, head)
    with torch.no_grad():
        for bit in range(N_BITS):
            query[_QUIET[bit], IDENTITY[bit]] = _PER_AMOUNT
            key[_QUIET[bit], PREVIOUS[bit]] = gap / 2 * math.sqrt(HEAD_SIZE) * _PER_AMOUNT
    _move(value, write, [IDENTITY[bit] for bit in bits], [ANSWER[bit] for bit in bits])


def add_noise_head(module: LlamaForCausalLM, layer: int, head: int, amount: float) -> None:
    """Add a head that attends to every token equally and writes an amount into NOISE."""
    _, _, value, write = _head(module, layer, head)
    with torch.no_grad():
        value[0, CONSTANT] = 1 / _CONSTANT_SEEN
        write[NOISE, 0] = amount


def _head(module: LlamaForCausalLM, layer: int, head: int) -> list[torch.Tensor]:
    """Views of a head's weights: query, key, value (head size, D) and output (D, head size)."""
    attention = module.model.layers[layer].self_attn
    rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
    weights = [getattr(attention, name).weight[rows] for name in ("q_proj", "k_proj", "v_proj")]
    return [*weights, attention.o_proj.weight[:, rows]]


def _move(value: torch.Tensor, write: torch.Tensor, reads: Sequence[int], writes: Sequence[int]) -> None:
    """Let a head carry the amount of each direction in `reads` to the one in `writes`.

    Args:
        value: the head's value weights.
        write: the head's output weights.
    """
    with torch.no_grad():
        for i, (source, target) in enumerate(zip(reads, writes, strict=True)):
            value[i, source] = _PER_AMOUNT
            write[target, i] = 1.0

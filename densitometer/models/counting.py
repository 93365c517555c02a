"""What one decoder block costs, per token and head: floating-point operations and parameters.

Counting rules. One multiply-add is two operations. Matrix products and attention are counted; norms, rotary
embeddings, softmax, activations and biases are not, as in `torch.utils.flop_counter`. The MLP is counted by running it
on one token under that counter (so a mixture of experts counts the experts that run). The attention's input projections
are counted by their weights and split between queries, keys and values in proportion to their head sizes. A quantised
layer counts as the matrix that it stands for.

An MLP's cost is split between its units so that all of them cost what it costs:

    one unit    everything
    neurons     an equal part of the operations, and of the parameters of every matrix and of the inner biases. The down
                projection's bias and single parameters of an activation are the layer's: used when any neuron is
    experts     each its own parameters, and the operations of one expert on one token; a shared expert its own. The
                router and a shared expert's gate are the layer's: run for a token when any of its units is on
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy
import torch

from .blocks import Block, configs_set, mlp_output
from .placement import device_of
from .units import Neurons, Units, without
from .weights import n_parameters, operations_of


@dataclass(frozen=True)
class BlockCost:
    """Costs of one block. Operations are per head and token (MLP: per unit and token), parameters per head (MLP: unit).

    The cost of a key or value head is per key-value head; `score` and `mix` are operations per attention edge and head.
    `mlp_flops` and `mlp_parameters` are (M,) float64; `router_flops` are per token that has any unit on, and
    `router_parameters` are used where any token has.
    """

    n_groups: int
    query_flops: float
    key_flops: float
    value_flops: float
    output_flops: float
    score_flops: float
    mix_flops: float
    mlp_flops: numpy.ndarray
    router_flops: float
    query_parameters: float
    key_parameters: float
    value_parameters: float
    output_parameters: float
    mlp_parameters: numpy.ndarray
    router_parameters: float


def block_cost(
    block: Block, n_heads: int, n_groups: int, key_size: int, value_size: int, units: Units | None = None
) -> BlockCost:
    """Count the operations and parameters of a block.

    Args:
        n_heads: query heads; n_groups: key-value heads; key_size, value_size: their sizes.
        units: what its MLP edges are; None for the whole MLP.
    """
    into = n_parameters(block.attention, matrices_only=True, without=block.projection)
    output = n_parameters(block.projection, matrices_only=True)
    widths = (n_heads * key_size, n_groups * key_size, n_groups * value_size)
    query, key, value = (into * width / sum(widths) for width in widths)
    (mlp_flops, router_flops), (mlp_parameters, router_parameters) = _mlp_cost(block, units)
    return BlockCost(
        n_groups=n_groups,
        query_flops=2 * query / n_heads,
        key_flops=2 * key / n_groups,
        value_flops=2 * value / n_groups,
        output_flops=2 * output / n_heads,
        score_flops=2 * key_size,
        mix_flops=2 * value_size,
        mlp_flops=mlp_flops,
        router_flops=router_flops,
        query_parameters=query / n_heads,
        key_parameters=key / n_groups,
        value_parameters=value / n_groups,
        output_parameters=output / n_heads,
        mlp_parameters=mlp_parameters,
        router_parameters=router_parameters,
    )


_Split = tuple[numpy.ndarray, float]  # what each unit costs, and what they share


def _mlp_cost(block: Block, units: Units | None) -> tuple[_Split, _Split]:
    """Operations on one token and parameters of the MLP."""
    modules = [block.module.get_submodule(name) for name in (*block.layout.mlp, *block.layout.mlp_beside)]
    flops, parameters = _mlp_flops(block), float(sum(n_parameters(module) for module in modules))
    if units is None:
        return (numpy.array([flops]), 0.0), (numpy.array([parameters]), 0.0)
    of_flops, of_parameters = numpy.zeros(units.n_units), numpy.zeros(units.n_units)
    if isinstance(units, Neurons):
        last = {id(p) for p in units.projection.parameters()}
        inner = {id(p): p for module in modules for p in module.parameters() if id(p) not in last}
        biases = sum(p.numel() for p in inner.values() if p.ndim == 1 and len(p) % units.n_units == 0)
        matrices = sum(n_parameters(module, matrices_only=True) for module in modules)
        of_flops += flops / units.n_units
        of_parameters += (matrices + biases) / units.n_units
        return (of_flops, 0.0), (of_parameters, parameters - of_parameters.sum())
    without_experts = _mlp_flops(block, without(units.module))
    of_flops[: units.n_experts] = (flops - without_experts) / units.n_chosen
    of_parameters[: units.n_experts] = n_parameters(units.module) / units.n_experts
    router_flops = without_experts
    if units.shared is not None:
        with without(units.module):
            router_flops = _mlp_flops(block, without(units.shared))
        of_flops[-1] = without_experts - router_flops
        of_parameters[-1] = n_parameters(units.shared)
    return (of_flops, router_flops), (of_parameters, parameters - of_parameters.sum())


def _mlp_flops(block: Block, context: AbstractContextManager[None] | None = None) -> float:
    """Operations of the MLP on one token, counted while it runs on one."""
    token = torch.linspace(-1, 1, block.hidden_size, device=device_of(block.module), dtype=block.dtype)
    with _plain_experts(block), context or nullcontext():
        return operations_of(block.module, lambda: mlp_output(block, token[None, None]))


def _plain_experts(block: Block) -> AbstractContextManager[None]:
    """Let mixtures run their experts one by one: torch's grouped matrix product is not counted."""
    return configs_set(block.module, "_experts_implementation_internal", "eager")

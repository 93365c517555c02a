"""Cost of one decoder block, per token and head: floating-point operations and parameters.

Counting rules:

    - One multiply-add is two operations.
    - Matrix products and attention are counted. Norms, rotary embeddings, softmax, activations and
      biases are not, as in `torch.utils.flop_counter`.
    - The MLP is counted by running it on one token under that counter. So a mixture of experts
      counts the experts that run.
    - The attention's input projections are counted by their weights, and split between queries,
      keys and values in proportion to their widths.
    - A quantised layer counts as the matrix that it replaces.

The cost of an MLP is split between its units, so that all units together cost as much as the MLP:

    whole MLP   everything
    neurons     an equal part of the operations, of the parameters of every matrix, and of the inner
                biases. The down projection's bias and the parameters of an activation belong to the
                layer: they count if any neuron is on
    experts     for each expert its own parameters, and the operations of one expert on one token;
                for a shared expert its own cost. The router and a shared expert's gate belong to
                the layer: they run for a token if any of its units is on

What this file does not do: it does not count what a trace costs (`graph/cost.py`).

Axes: M units of an MLP.
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
    """Costs of one decoder block, in floating-point operations and in parameters.

    Args:
        n_groups: number of key-value heads.
        query_flops: operations of the query projection, per query head and token.
        key_flops: operations of the key projection, per key-value head and token.
        value_flops: operations of the value projection, per key-value head and token.
        output_flops: operations of the output projection, per query head and token.
        score_flops: operations of one attention score, per query head, target and source.
        mix_flops: operations of adding one weighted value, per attention edge.
        mlp_flops: (M,) float64, operations of the MLP, per unit and token.
        router_flops: operations that the units share, per token that has any unit on.
        query_parameters: parameters of the query projection, per query head.
        key_parameters: parameters of the key projection, per key-value head.
        value_parameters: parameters of the value projection, per key-value head.
        output_parameters: parameters of the output projection, per query head.
        mlp_parameters: (M,) float64, parameters of the MLP, per unit.
        router_parameters: parameters that the units share, used where any token has a unit on.
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
    """Count the operations and parameters of a decoder block.

    Args:
        block: the block.
        n_heads: number of query heads.
        n_groups: number of key-value heads.
        key_size: size of a query or key head.
        value_size: size of a value head.
        units: the units of its MLP; None where the whole MLP is one edge.
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


_Split = tuple[numpy.ndarray, float]  # the cost of each unit, (M,), and the cost that they share


def _mlp_cost(block: Block, units: Units | None) -> tuple[_Split, _Split]:
    """Split the MLP's operations on one token, and its parameters, between its units.

    Returns:
        Operations: those of each unit, (M,), and those that the units share.
        Parameters, in the same form.
    """
    modules = [block.module.get_submodule(name) for name in (*block.layout.mlp, *block.layout.mlp_beside)]
    flops, parameters = _mlp_flops(block), float(sum(n_parameters(module) for module in modules))
    if units is None:
        return (numpy.array([flops]), 0.0), (numpy.array([parameters]), 0.0)
    of_flops, of_parameters = numpy.zeros(units.n_units), numpy.zeros(units.n_units)
    if isinstance(units, Neurons):
        # the down projection's bias does not belong to a neuron
        last = {id(p) for p in units.projection.parameters()}
        inner = {id(p): p for module in modules for p in module.parameters() if id(p) not in last}
        # inner biases have one or two numbers per neuron; other vectors belong to activations
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
    """Count the operations of the MLP by running it on one token.

    Args:
        block: the block.
        context: entered during the run, for example to switch experts off.
    """
    token = torch.linspace(-1, 1, block.hidden_size, device=device_of(block.module), dtype=block.dtype)
    with _plain_experts(block), context or nullcontext():
        return operations_of(block.module, lambda: mlp_output(block, token[None, None]))


def _plain_experts(block: Block) -> AbstractContextManager[None]:
    """Make mixtures run their experts one by one: torch does not count grouped matrix products."""
    return configs_set(block.module, "_experts_implementation_internal", "eager")

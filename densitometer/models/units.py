"""The units of an MLP: what its edge is made of at a finer grain than the block. Found by what they do, not by name.

    neuron    one input of the down projection, the linear module whose output is the MLP's own (before a norm on the
              branch). Unit i carries act_i * w_i: what the down projection reads there, times the row that it writes
    expert    one expert of a mixture: what its module gives where it is called with tokens, the experts chosen for each,
              and their weights. What the mixture adds whatever was chosen (a shared expert) is one more unit, the last

Units are switched off where they are added: a neuron by a factor on what the down projection reads, an expert by one on its
routing weight, a shared expert by one on its output. What is left with every unit off (the down projection's bias) is a
constant: always on, and no edge.

A mixture's router reads the stream that it gets, so with edges off it may choose other experts than in the full run. An
expert has an edge only where the full run chose it: one that only a pruned stream would choose has none, and stays off.

All of this is held to the block's own activations before it is used: with every unit on, and with half of them, the MLP
must give the sum of what is on.

Axes: B batch, T tokens, N = B * T rows, M units of an MLP, K experts that a token is sent to, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import DensitometerError, IdentityError, ModelError
from .blocks import Block, instance_attribute, mlp_output
from .linear import constant_of, head_weights

Granularity = Literal["block", "expert", "neuron"]
GRANULARITIES = ("block", "expert", "neuron")


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of one MLP.

    Args:
        projection: the down projection.
        constant: (D,) float32, what it writes when every neuron is off.
        example: an input of it, (1, M), and its output there, (1, D).
    """

    projection: nn.Module
    n_units: int
    constant: Tensor
    example: tuple[Tensor, Tensor]

    @contextmanager
    def gated(self, on: Tensor) -> Iterator[None]:
        """Let the MLP sum only the units that are on, while this context lasts.

        Floats may carry gradients.

        Args:
            on: (B, T, M), for the tokens that the MLP is called with.
        """

        def gate(forward: Callable[..., Any], read: Tensor) -> Any:
            return forward(read * on.reshape(read.shape).to(read))

        with _replaced(self.projection, gate):
            yield

    def read(self, block: Block, stream: Tensor) -> tuple[Tensor, Tensor]:
        """What the down projection reads, (T, M) float32, and the MLP's output, (T, D), for a stream (T, D)."""
        seen: list[Tensor] = []
        handle = self.projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with torch.no_grad():
                output = mlp_output(block, stream[None])[0]
        finally:
            handle.remove()
        return seen[0].reshape(-1, self.n_units).float(), output

    @property
    def writes(self) -> Tensor:
        """Direction that each neuron writes per unit of activation, (M, D) float32."""
        return head_weights(self.projection, 1, *self.example)[0]


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts of one mixture, and what it adds besides them.

    Args:
        module: called with tokens (N, D), experts (N, K) int64 and their weights (N, K).
        n_experts: that it has; n_chosen: of these, for each token (K).
        shared: the module of the shared expert, or None.
        constant: (D,) float32, what the mixture gives when every unit is off.
    """

    module: nn.Module
    n_experts: int
    n_chosen: int
    shared: nn.Module | None
    constant: Tensor

    @property
    def n_units(self) -> int:
        return self.n_experts + (self.shared is not None)

    @contextmanager
    def gated(self, on: Tensor) -> Iterator[None]:
        """Let the MLP sum only the units that are on, as `Neurons.gated` does."""
        rows = on.flatten(0, 1)  # (N, M)

        def gate_shared(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
            output: Tensor = forward(*args, **kwargs)
            return output * rows[:, -1].reshape(*output.shape[:-1], 1).to(output)

        with ExitStack() as stack:
            stack.enter_context(_replaced(self.module, lambda *call: self._gate(rows, *call)))
            if self.shared is not None:
                stack.enter_context(_replaced(self.shared, gate_shared))
            yield

    def _gate(self, rows: Tensor, forward: Callable[..., Any], tokens: Tensor, *routing: Tensor) -> Tensor:
        index, weights = routing
        on = rows.to(index.device).gather(1, index.flatten(0, -2)).view(weights.shape)
        return forward(tokens, index, weights * on.to(weights))

    def _of_slot(self, slot: int | None, forward: Callable[..., Any], *call: Tensor) -> Tensor:
        """The experts' output where only the experts in one slot of the K, or none, run."""
        tokens, index, weights = call
        if slot is None:
            return torch.zeros_like(tokens)
        return forward(tokens, index[..., slot : slot + 1], weights[..., slot : slot + 1])

    def _chosen(self, *call: Tensor) -> Tensor:
        """Expert of each slot, (N, K). -1 where there is none."""
        index = call[1].flatten(0, -2)
        ordered = index.sort(dim=-1).values
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()) or int(ordered.max()) >= self.n_experts:
            raise ModelError(
                f"{type(self.module).__name__} sends a token to one expert twice, or to one that it does not have; its "
                "experts cannot be shown as edges: use granularity='block'"
            )
        return index

    @torch.no_grad()
    def routed(self, block: Block, stream: Tensor) -> Tensor:
        """Return the units that each token of a stream (T, D) is sent to, (M, T) bool.

        No expert runs.
        """
        unit = self._routes(block, stream)[0]
        there = unit.new_zeros(self.n_units + 1, unit.shape[1], dtype=torch.bool).scatter(0, unit, True)
        if self.shared is not None:
            there[-2] = True
        return there[:-1]

    def _routes(self, block: Block, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Unit of each slot, (K, T), and the MLP's output without any expert, (T, D).

        The unit is M where a slot has none.
        """
        seen: list[Tensor] = []

        def stub(forward: Callable[..., Any], *call: Tensor) -> Tensor:
            seen.append(self._chosen(*call))
            return self._of_slot(None, forward, *call)

        with _replaced(self.module, stub):
            rest = mlp_output(block, stream[None])[0]
        unit = torch.where(seen[0] < 0, self.n_units, seen[0])
        return unit.T.to(stream.device), rest

    @torch.no_grad()
    def read(self, block: Block, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the units add for a stream (T, D).

        Returns:
            vectors (S, T, D) float32, of K slots and the shared expert; the unit of each, (S, T), M where there is none;
            and the MLP's output (T, D).
        """
        unit, rest = self._routes(block, stream)
        vectors = []
        for slot in range(len(unit)):

            def only(forward: Callable[..., Any], *call: Tensor, slot: int = slot) -> Tensor:
                return self._of_slot(slot, forward, *call)

            with _replaced(self.module, only):
                vectors.append(mlp_output(block, stream[None])[0].float() - rest.float())
        if self.shared is not None:
            vectors.append(rest.float() - self.constant)
            unit = torch.cat([unit, torch.full_like(unit[:1], self.n_units - 1)])
        return torch.stack(vectors), unit, mlp_output(block, stream[None])[0]


class AllExperts(Experts):
    """Experts whose module is called with each token once per expert, (M * N, D).

    Its output is scaled by the expert's weight, 0 for experts that were not chosen.
    """

    def _gate(self, rows: Tensor, forward: Callable[..., Any], tokens: Tensor, *routing: Tensor) -> Tensor:
        output: Tensor = forward(tokens)
        return output * rows[:, : self.n_experts].T.reshape(-1, 1).to(output)

    def _of_slot(self, slot: int | None, forward: Callable[..., Any], *call: Tensor) -> Tensor:
        (tokens,) = call
        output = torch.zeros_like(tokens) if slot is None else forward(tokens)
        if slot is None:
            return output
        of_slot = torch.arange(self.n_experts, device=tokens.device) == slot
        return output * of_slot.repeat_interleave(len(tokens) // self.n_experts)[:, None].to(output)

    def _chosen(self, *call: Tensor) -> Tensor:
        chosen = call[0].view(self.n_experts, -1, call[0].shape[-1]).any(dim=-1).T  # (N, M)
        return torch.where(chosen, torch.arange(self.n_experts, device=chosen.device), -1)


Units = Neurons | Experts


def find_units(block: Block, stream: Tensor, granularity: str, tolerance: float) -> Units | None:
    """Find the units of a block's MLP.

    None at the grain "expert" for an MLP that is not a mixture of experts. Such an MLP is one unit
    itself.

    Args:
        stream: (T, D), what the MLP gets on the probe.
        tolerance: largest difference, relative to the MLP's output.

    Raises:
        ModelError: it has no such units, or they do not sum to its output.
    """
    with torch.no_grad():
        found = (
            _find_neurons(block, stream)
            if granularity == "neuron"
            else _find_experts(block, stream, tolerance)
        )
        if found is not None:
            _hold(found, block, stream, tolerance)
    return found


def _find_neurons(block: Block, stream: Tensor) -> Neurons:
    seen: list[tuple[nn.Module, tuple, Any]] = []
    output = _hooked(block, stream, seen)
    # modules end inside out, so what only hands the down projection's output on (dropout, the MLP itself) comes later
    for module, args, result in seen:
        if not (isinstance(result, Tensor) and args and isinstance(args[0], Tensor)):
            continue
        if result.numel() == output.numel() and torch.equal(result.reshape(output.shape), output):
            example = (args[0].flatten(0, -2)[:1], output[:1])
            try:
                n_units = len(head_weights(module, 1, *example)[0])
                constant = constant_of(module, example[0])
            except (DensitometerError, AttributeError, RuntimeError, TypeError):
                break
            if constant is None:
                constant = torch.zeros_like(output[0]).float()
            return Neurons(module, n_units, constant, example)
    raise ModelError(
        f"the MLP of layer {block.index} ({_mlp_name(block)}) does not end in one linear module (a mixture of experts does "
        "not), so its neurons cannot be separated; use granularity='block', or 'expert' for a mixture of experts"
    )


def _find_experts(block: Block, stream: Tensor, tolerance: float) -> Experts | None:
    seen: list[tuple[nn.Module, tuple, Any]] = []
    output = _hooked(block, stream, seen)
    none = torch.zeros_like(output[0]).float()
    for module, args, _ in seen:
        n_experts = _number_of_experts(module)
        if n_experts and _is_routed(args, len(stream)):
            found = Experts(module, n_experts, args[1].shape[-1], None, none)
            break
        if n_experts and len(args) == 1 and args[0].shape == (n_experts * len(stream), stream.shape[-1]):
            chosen = int(AllExperts(module, n_experts, 0, None, none)._chosen(*args)[0].ge(0).sum())
            found = AllExperts(module, n_experts, chosen, None, none)
            break
    else:
        return None
    kind = type(found)
    shared = None
    rest = found._routes(block, stream)[1]
    if not _alike(rest, output, tolerance):
        inside = set(found.module.modules())
        for module in _mlp_modules(block):
            if module in inside or found.module in set(module.modules()):
                continue
            with _replaced(module, lambda forward, *args, **kwargs: _none_of(forward(*args, **kwargs))):
                without = found._routes(block, stream)[1]
            if _alike(without, output, tolerance):
                shared, rest = module, without
                break
        else:
            raise ModelError(
                f"the mixture of experts of layer {block.index} ({_mlp_name(block)}) adds something besides its experts that "
                "is not the output of one module; use granularity='block'"
            )
    return kind(found.module, n_experts, found.n_chosen, shared, rest[0].float())


def _hold(units: Units, block: Block, stream: Tensor, tolerance: float) -> None:
    """Refuse units that do not sum to the MLP's output, all of them and three random halves."""
    n_tokens = len(stream)
    generator = torch.Generator().manual_seed(0)
    halves = torch.rand(3, n_tokens, units.n_units, generator=generator) < 0.5
    for on in (torch.ones(1, n_tokens, units.n_units, dtype=torch.bool), *halves.split(1)):
        on = on.to(stream.device)
        if isinstance(units, Neurons):
            read, output = units.read(block, stream)
            expected = (read * on[0]) @ units.writes
        else:
            vectors, unit, output = units.read(block, stream)
            padded = torch.cat([on[0].T, on.new_zeros(1, n_tokens)])
            expected = (vectors * padded.gather(0, unit)[..., None]).sum(0)
        with units.gated(on):
            got = mlp_output(block, stream[None])[0].float()
        gap = float((got - expected - units.constant).norm() / output.float().norm().clamp_min(1e-30))
        if not gap <= tolerance:
            raise IdentityError(
                f"in layer {block.index}, the {type(units).__name__.lower()} of {_mlp_name(block)} do not sum to its output "
                f"(off by {gap:.1e}), so they cannot be shown as edges; use granularity='block'"
            )


def _hooked(block: Block, stream: Tensor, seen: list[tuple[nn.Module, tuple, Any]]) -> Tensor:
    """Return the MLP's output (T, D) for a stream (T, D).

    Each of its modules is added to `seen` when it ends.
    """

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        copied = (
            output.clone() if isinstance(output, Tensor) else output
        )  # others may be added to it in place
        seen.append((module, args, copied))

    handles = [module.register_forward_hook(keep) for module in _mlp_modules(block)]
    try:
        return mlp_output(block, stream[None])[0]
    finally:
        for handle in handles:
            handle.remove()


def _mlp_modules(block: Block) -> list[nn.Module]:
    """Every module of the MLP, outer before inner."""
    names = (*block.layout.mlp, *block.layout.mlp_beside)
    return [part for name in names for part in block.module.get_submodule(name).modules()]


def _mlp_name(block: Block) -> str:
    return type(block.module.get_submodule(block.layout.mlp[0])).__name__


def _number_of_experts(module: nn.Module) -> int:
    """Length of the first axis of a module's own stacked weights. 0 where it has none."""
    stacked = [len(p) for p in module.parameters(recurse=False) if p.ndim == 3]
    return stacked[0] if stacked else 0


def _is_routed(args: tuple, n_tokens: int) -> bool:
    """Whether a call's arguments are tokens, experts and weights."""
    if len(args) != 3 or not all(isinstance(arg, Tensor) for arg in args):
        return False
    _, index, weights = args
    return (
        index.dtype == torch.int64
        and weights.is_floating_point()
        and index.shape == weights.shape
        and index[..., 0].numel() == n_tokens
    )


def _alike(rows: Tensor, output: Tensor, tolerance: float) -> bool:
    """Whether rows (T, D) are all the same, next to the size of an output."""
    return float((rows - rows[:1]).float().norm()) <= tolerance * float(output.float().norm())


def _none_of(output: Any) -> Any:
    return output * 0 if isinstance(output, Tensor) else output


def without(module: nn.Module) -> AbstractContextManager[None]:
    """Replace a module that gives what it gets its shape from, while this context lasts.

    The module does not run, and its output is zeros.
    """
    return _replaced(module, lambda forward, tokens, *_, **__: torch.zeros_like(tokens))


@contextmanager
def _replaced(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Send calls of a module to a function, while this context lasts.

    The function gets the module's own forward first.
    """
    forward = module.forward
    with instance_attribute(module, "forward", lambda *args, **kwargs: function(forward, *args, **kwargs)):
        yield

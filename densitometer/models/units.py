"""The units of an MLP: the neurons or experts into which its edge is divided.

Units are found by what modules compute, not by their names:

    neuron    one input of the down projection, the linear module whose output is the MLP's output
              (before a norm on the branch). Neuron i adds act_i * w_i: the i-th input of the down
              projection, times the row of its weight
    expert    one expert of a mixture. The experts' module is called with tokens, the experts chosen
              for each token, and their weights. A shared expert, which runs for every token, is one
              more unit, the last

A unit is switched off by a factor of 0: on the down projection's input for a neuron, on the routing
weight for an expert, on the output for a shared expert. What the MLP adds with every unit off (the
down projection's bias) is a constant. It is always on and is not an edge.

A mixture's router reads the pruned stream, so with edges off it may choose other experts than in
the full run. An expert has an edge only for tokens for which the full run chose it. An expert that
is chosen only with edges off has no edge, and stays off.

Before units are used, they are checked on the block's own activations: with every unit on, and with
random halves of them, the MLP must give the sum of what is on.

What this file does not do: it does not put a unit's vector through a norm on the MLP's branch
(`graph/forward_pass.py` does).

Axes: B batch, T tokens, N = B * T rows, M units of an MLP, K slots (experts that a token is sent
to), D hidden size.
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
    """The neurons of one MLP: the inputs of its down projection.

    Args:
        projection: the down projection.
        n_units: number of neurons, M.
        constant: (D,) float32, the projection's output when every neuron is off.
        example: an input of the projection, (1, M), and its output there, (1, D).
    """

    projection: nn.Module
    n_units: int
    constant: Tensor
    example: tuple[Tensor, Tensor]

    @contextmanager
    def gated(self, on: Tensor) -> Iterator[None]:
        """Let the MLP sum only the units that are on, while this context lasts.

        Args:
            on: (B, T, M), 1 for on and 0 for off, for the tokens that the MLP is called with.
                Floats may carry gradients.
        """

        def gate(forward: Callable[..., Any], read: Tensor) -> Any:
            return forward(read * on.reshape(read.shape).to(read))

        with _replaced(self.projection, gate):
            yield

    def read(self, block: Block, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Run the MLP on a stream (T, D).

        Returns:
            What the down projection reads, (T, M) float32.
            The MLP's output, (T, D).
        """
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
        """Vector that each neuron writes per unit of activation, (M, D) float32."""
        return head_weights(self.projection, 1, *self.example)[0]


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts of one mixture, and its shared expert.

    Args:
        module: the experts' module. It is called with tokens (N, D), experts (N, K) int64 and their
            weights (N, K).
        n_experts: number of experts that can be chosen.
        n_chosen: number of experts to which each token is routed, K.
        shared: the module of the shared expert; None where there is none.
        constant: (D,) float32, the mixture's output when every unit is off.
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

        # the shared expert is the last unit
        def gate_shared(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
            output: Tensor = forward(*args, **kwargs)
            return output * rows[:, -1].reshape(*output.shape[:-1], 1).to(output)

        with ExitStack() as stack:
            stack.enter_context(_replaced(self.module, lambda *call: self._gate(rows, *call)))
            if self.shared is not None:
                stack.enter_context(_replaced(self.shared, gate_shared))
            yield

    def _gate(self, rows: Tensor, forward: Callable[..., Any], tokens: Tensor, *routing: Tensor) -> Tensor:
        """Call the experts with the routing weights of experts that are off set to 0.

        Args:
            rows: (N, M), the units that are on.
            forward: the module's own forward.
        """
        index, weights = routing  # (N, K) each: the experts chosen, and their weights
        on = rows.to(index.device).gather(1, index.flatten(0, -2)).view(weights.shape)  # (N, K)
        return forward(tokens, index, weights * on.to(weights))

    def _run_slot(self, slot: int | None, forward: Callable[..., Any], *call: Tensor) -> Tensor:
        """Run only the experts in one of the K slots, or return zeros if the slot is None.

        Slot k holds the k-th expert that the router chose for each token.
        """
        tokens, index, weights = call
        if slot is None:
            return torch.zeros_like(tokens)
        return forward(tokens, index[..., slot : slot + 1], weights[..., slot : slot + 1])

    def _chosen(self, *call: Tensor) -> Tensor:
        """Expert in each slot, (N, K). -1 where a slot holds none.

        Args:
            *call: the arguments of a call of the experts' module.

        Raises:
            ModelError: a token is routed to one expert twice, or to an expert that does not exist.
        """
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
        """Return the units to which each token of a stream (T, D) is routed, (M, T) bool.

        Only the router runs, not the experts.
        """
        unit = self._routes(block, stream)[0]  # (K, T)
        # (M + 1, T): empty slots, whose unit is M, set the last row, which is dropped
        there = unit.new_zeros(self.n_units + 1, unit.shape[1], dtype=torch.bool).scatter(0, unit, True)
        # every token goes through the shared expert
        if self.shared is not None:
            there[-2] = True
        return there[:-1]

    def _routes(self, block: Block, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Run the MLP on a stream (T, D) without its experts.

        Returns:
            The unit in each slot, (K, T) int64; M where a slot holds none.
            The MLP's output without any expert, (T, D).
        """
        slots: list[Tensor] = []

        def stub(forward: Callable[..., Any], *call: Tensor) -> Tensor:
            slots.append(self._chosen(*call))
            return self._run_slot(None, forward, *call)

        with _replaced(self.module, stub):
            rest = mlp_output(block, stream[None])[0]
        unit = torch.where(slots[0] < 0, self.n_units, slots[0])
        return unit.T.to(stream.device), rest

    @torch.no_grad()
    def read(self, block: Block, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what each unit adds, by one run of the MLP per slot.

        Args:
            stream: (T, D), what the MLP reads.

        Returns:
            Vectors, (K, T, D) float32: one per slot, and one more for a shared expert.
            The unit of each vector, (K, T) int64; M where a slot holds none.
            The MLP's output, (T, D).
        """
        unit, rest = self._routes(block, stream)
        vectors = []
        for slot in range(len(unit)):

            def only(forward: Callable[..., Any], *call: Tensor, slot: int = slot) -> Tensor:
                return self._run_slot(slot, forward, *call)

            with _replaced(self.module, only):
                vectors.append(mlp_output(block, stream[None])[0].float() - rest.float())
        if self.shared is not None:
            vectors.append(rest.float() - self.constant)
            unit = torch.cat([unit, torch.full_like(unit[:1], self.n_units - 1)])
        return torch.stack(vectors), unit, mlp_output(block, stream[None])[0]


class AllExperts(Experts):
    """Experts whose module is called with all tokens once per expert, (M * N, D).

    The tokens are scaled by the routing weight before the call, with 0 for experts that are not
    chosen. There is one slot per expert, so slot k holds expert k.
    """

    def _gate(self, rows: Tensor, forward: Callable[..., Any], tokens: Tensor, *routing: Tensor) -> Tensor:
        output: Tensor = forward(tokens)  # (M N, D)
        return output * rows[:, : self.n_experts].T.reshape(-1, 1).to(output)

    def _run_slot(self, slot: int | None, forward: Callable[..., Any], *call: Tensor) -> Tensor:
        (tokens,) = call
        output = torch.zeros_like(tokens) if slot is None else forward(tokens)
        if slot is None:
            return output
        is_slot = torch.arange(self.n_experts, device=tokens.device) == slot  # (M,)
        return output * is_slot.repeat_interleave(len(tokens) // self.n_experts)[:, None].to(output)

    def _chosen(self, *call: Tensor) -> Tensor:
        # an expert is chosen for a token whose scaled copy is not all 0
        chosen = call[0].view(self.n_experts, -1, call[0].shape[-1]).any(dim=-1).T  # (N, M)
        return torch.where(chosen, torch.arange(self.n_experts, device=chosen.device), -1)


Units = Neurons | Experts


def find_units(block: Block, stream: Tensor, granularity: str, tolerance: float) -> Units | None:
    """Find the units of a block's MLP.

    At granularity "expert", an MLP that is not a mixture of experts has no units (None): the whole
    MLP is one edge.

    Args:
        stream: (T, D), what the MLP reads on the probe.
        granularity: "expert" or "neuron".
        tolerance: largest difference between the MLP and its units, relative to the MLP's output.

    Raises:
        ModelError: the MLP has no such units, or they do not sum to its output.
    """
    with torch.no_grad():
        units = (
            _find_neurons(block, stream)
            if granularity == "neuron"
            else _find_experts(block, stream, tolerance)
        )
        if units is not None:
            _check_sums(units, block, stream, tolerance)
    return units


def _find_neurons(block: Block, stream: Tensor) -> Neurons:
    """Find the down projection: the first linear module whose output is the MLP's own.

    Raises:
        ModelError: the MLP does not end in one linear module.
    """
    calls: list[tuple[nn.Module, tuple, Any]] = []  # module, arguments and output of each call
    output = _run_hooked(block, stream, calls)  # (T, D)
    # Calls are in the order in which they end, inner modules before outer ones. So the down
    # projection comes before modules that return its output unchanged (dropout, the MLP itself).
    for module, args, result in calls:
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
    """Find the experts' module, and the shared expert where there is one.

    Raises:
        ModelError: the mixture adds something besides its experts and one shared module.
    """
    calls: list[tuple[nn.Module, tuple, Any]] = []  # module, arguments and output of each call
    output = _run_hooked(block, stream, calls)  # (T, D)
    none = torch.zeros_like(output[0]).float()  # (D,), the constant, until it is known
    for module, args, _ in calls:
        n_experts = _number_of_experts(module)
        if n_experts and _is_routed(args, len(stream)):
            experts = Experts(module, n_experts, args[1].shape[-1], None, none)
            break
        if n_experts and len(args) == 1 and args[0].shape == (n_experts * len(stream), stream.shape[-1]):
            # every token is routed to as many experts as the first one
            chosen = int(AllExperts(module, n_experts, 0, None, none)._chosen(*args)[0].ge(0).sum())
            experts = AllExperts(module, n_experts, chosen, None, none)
            break
    else:
        return None
    kind = type(experts)
    shared = None
    # Without its experts, a mixture's output is the same for every token. If it is not, there is a
    # shared expert. It is the module without which the output is the same for every token.
    rest = experts._routes(block, stream)[1]  # (T, D)
    if not _rows_equal(rest, output, tolerance):
        inside = set(experts.module.modules())
        for module in _mlp_modules(block):
            # skip parts of the experts, and modules that contain the experts
            if module in inside or experts.module in set(module.modules()):
                continue
            with _replaced(module, lambda forward, *args, **kwargs: _zeroed(forward(*args, **kwargs))):
                without = experts._routes(block, stream)[1]
            if _rows_equal(without, output, tolerance):
                shared, rest = module, without
                break
        else:
            raise ModelError(
                f"the mixture of experts of layer {block.index} ({_mlp_name(block)}) adds something besides its experts that "
                "is not the output of one module; use granularity='block'"
            )
    return kind(experts.module, n_experts, experts.n_chosen, shared, rest[0].float())


def _check_sums(units: Units, block: Block, stream: Tensor, tolerance: float) -> None:
    """Check that the MLP's output is the sum of the vectors of its units that are on.

    This is tested with all units on, and with three random halves of them.

    Raises:
        IdentityError: the MLP's output is not that sum.
    """
    n_tokens = len(stream)
    generator = torch.Generator().manual_seed(0)
    halves = torch.rand(3, n_tokens, units.n_units, generator=generator) < 0.5  # (3, T, M)
    for on in (torch.ones(1, n_tokens, units.n_units, dtype=torch.bool), *halves.split(1)):
        on = on.to(stream.device)
        if isinstance(units, Neurons):
            read, output = units.read(block, stream)  # (T, M), (T, D)
            expected = (read * on[0]) @ units.writes
        else:
            vectors, unit, output = units.read(block, stream)
            # (M + 1, T): unit M, of empty slots, is off
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


def _run_hooked(block: Block, stream: Tensor, seen: list[tuple[nn.Module, tuple, Any]]) -> Tensor:
    """Run the MLP on a stream (T, D) and record the calls of its modules.

    Args:
        seen: list to which module, arguments and output of each call are appended, in the order in
            which the calls end.

    Returns:
        The MLP's output, (T, D).
    """

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        # a copy, because the MLP may later add to the output in place
        copied = output.clone() if isinstance(output, Tensor) else output
        seen.append((module, args, copied))

    handles = [module.register_forward_hook(keep) for module in _mlp_modules(block)]
    try:
        return mlp_output(block, stream[None])[0]
    finally:
        for handle in handles:
            handle.remove()


def _mlp_modules(block: Block) -> list[nn.Module]:
    """Modules of a block's MLP, outer ones before inner ones."""
    names = (*block.layout.mlp, *block.layout.mlp_beside)
    return [part for name in names for part in block.module.get_submodule(name).modules()]


def _mlp_name(block: Block) -> str:
    return type(block.module.get_submodule(block.layout.mlp[0])).__name__


def _number_of_experts(module: nn.Module) -> int:
    """Return the number of experts in a module: the first axis of its 3-dimensional weights.

    0 if it has no such weights.
    """
    stacked = [len(p) for p in module.parameters(recurse=False) if p.ndim == 3]
    return stacked[0] if stacked else 0


def _is_routed(args: tuple, n_tokens: int) -> bool:
    """Whether a call's arguments are tokens, chosen experts and routing weights."""
    if len(args) != 3 or not all(isinstance(arg, Tensor) for arg in args):
        return False
    _, index, weights = args
    return (
        index.dtype == torch.int64
        and weights.is_floating_point()
        and index.shape == weights.shape
        and index[..., 0].numel() == n_tokens
    )


def _rows_equal(rows: Tensor, output: Tensor, tolerance: float) -> bool:
    """Whether all rows (T, D) are equal, up to a tolerance relative to the norm of an output."""
    return float((rows - rows[:1]).float().norm()) <= tolerance * float(output.float().norm())


def _zeroed(output: Any) -> Any:
    return output * 0 if isinstance(output, Tensor) else output


def without(module: nn.Module) -> AbstractContextManager[None]:
    """Let a module return zeros of its input's shape, without running, while this context lasts."""
    return _replaced(module, lambda forward, tokens, *_, **__: torch.zeros_like(tokens))


@contextmanager
def _replaced(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Call a function instead of a module, while this context lasts.

    Args:
        function: called with the module's own forward, then with the arguments of the call.
    """
    forward = module.forward
    with instance_attribute(module, "forward", lambda *args, **kwargs: function(forward, *args, **kwargs)):
        yield

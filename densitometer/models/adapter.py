"""Run any Hugging Face decoder and record, or switch off, each edge of its forward pass.

No modelling code is copied. Two things are replaced during a run, and always restored:

1. the attention function, by densitometer's own (`attention.py`);
2. the forward of each decoder block, by `add_up` (`blocks.py`).

An adapter is made in three steps:

1. Find the decoder blocks: the one list of modules whose members all fit declared layouts
   (`layouts.py`) and run when the model runs.
2. Find each block's layout, by running the candidates on real activations. A layout that does not
   reproduce the block's own output is not used, and a model without a fitting layout is refused.
3. Check that the blocks, with every edge on, give the model's own prediction.

Masked runs compute only the rows that can matter (`packed.py`), in models where a comparison showed
that this changes nothing.

What this file does not do: it knows masks of blocks, but not edge numbers, importances or traces.

Axes: B batch (variants of one input), T target tokens, S source tokens, H query heads,
G key-value heads, V value head size, M units of an MLP, N rows or streams, D hidden size.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .._util.metrics import total_variation
from ..errors import DensitometerError, IdentityError, ModelError, NonFiniteError, UnknownLayoutError
from .attention import AttentionInputs, Run
from .blocks import Block, BlockMask, BlockRecord, add_up, attention_arguments, first, instance_attribute
from .conditions import describe_hooks, evaluated, foreign_hooks, hooks_off
from .counting import BlockCost, block_cost
from .interception import our_attention
from .layouts import Layout, fitting_layouts, layouts
from .linear import scale_held
from .packed import NotPackedError, packed_add_up, pays, plan_block, plan_rows
from .placement import device_of, memory_watched, probe_ids
from .probing import BlockCall, find_block
from .tolerances import block_tolerance, tolerance_tv
from .units import Units, find_units
from .weights import gradients_required

# A replacement for a block's forward. It gets the block, the stream into it and the keywords of its
# attention, and returns the stream out of it.
BlockForward = Callable[[Block, Tensor, dict[str, Any]], Tensor]
Kept = TypeVar("Kept")
Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def _running(
    method: Callable[Concatenate[Any, Given], Returned],
) -> Callable[Concatenate[Any, Given], Returned]:
    """Run a method of an adapter under `Adapter.running`."""

    @wraps(method)
    def run(self: Any, /, *args: Given.args, **kwargs: Given.kwargs) -> Returned:
        with self.running():
            return method(self, *args, **kwargs)

    return run


@contextmanager
def _replaced_forwards(
    blocks: Sequence[Block], run_block: BlockForward, returns_tuple: bool
) -> Iterator[None]:
    """Replace the forward of each decoder block, while this context lasts.

    Args:
        blocks: the decoder blocks.
        run_block: computes the stream out of a block.
        returns_tuple: whether the model expects a tuple from its blocks.
    """
    with ExitStack() as stack:
        for block in blocks:
            # What the attention returns besides its output and weights. Some blocks return it too,
            # so it is recorded by a hook and returned with the stream.
            more: list[Any] = []

            def keep(_: nn.Module, args: tuple, output: Any, more: list[Any] = more) -> None:
                more[:] = output[2:] if isinstance(output, tuple) else ()

            def forward(*args: Any, block: Block = block, more: list[Any] = more, **kwargs: Any) -> Any:
                stream, arguments = attention_arguments(block.module, block.attention, args, kwargs)
                out = run_block(block, stream, arguments)
                return (out, *(more or (None,))) if returns_tuple else out

            if returns_tuple:
                stack.callback(block.attention.register_forward_hook(keep).remove)

            # where accelerate moves a block between devices, `forward` is its own wrapper, which
            # calls the real forward under another name
            name = "_old_forward" if hasattr(block.module, "_old_forward") else "forward"
            stack.enter_context(instance_attribute(block.module, name, forward))
        yield


class BlockGraph(NamedTuple):
    """Autograd graph of one block's run.

    Args:
        block: the block.
        stream: (1, T, D), the stream into the block.
        out: (1, T, D), the stream out of it.
        did: what `blocks.add_up` records, with a batch axis of 1. Heads' outputs are (1, T, H, V),
            values are (1, G, S, V).
    """

    block: Block
    stream: Tensor
    out: Tensor
    did: Mapping[str, Any]


class Adapter:
    """A causal language model whose edges can be seen and switched off.

    Args:
        module: any Hugging Face causal language model. It is put into evaluation mode and otherwise
            left as it is. If its dtype, its submodules or its hooks change later, its blocks are
            found again before the next text is recorded.

    Raises:
        UnknownLayoutError: the layout of a block is not declared.
        NonFiniteError: the model yields NaN or infinities.
        IdentityError: the blocks with every edge on do not give the model's own prediction.
        ModelError: the model is not a causal decoder, or its attention does not go through
            transformers' `AttentionInterface`.
    """

    # Whether masked runs skip rows even where that costs more than it saves (`packed.pays`), as in
    # tiny models.
    always_skip = False

    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module.eval()
        _refuse_other_kinds(module)
        self._keeps_logits = "logits_to_keep" in inspect.signature(type(module).forward).parameters
        self._returns_tuple = False
        self.not_packed: str | None = None  # why rows cannot be skipped, where that was refused
        self._moves: torch.Generator | None = None  # draws how streams are moved (`streams_moved`)
        self.final_norm: nn.Module | None = None  # reads the last block's output
        self.blocks: tuple[Block, ...] = ()
        self._units: dict[str, tuple[Units | None, ...]] = {}  # of each block, by granularity
        self._packs: dict[tuple[Units | None, ...], bool] = {}  # whether rows can be skipped
        self._costs: dict[tuple[Any, ...], BlockCost] = {}
        self._running_in: int | None = None  # the thread for which `running` has set the conditions
        self._differentiable = False  # whether gradients flow to masks (`differentiable`)
        # the state of the module when its blocks were found
        self._found_in: tuple[Any, ...] | None = None
        with self.running():
            self._find_again_if_changed()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set the conditions for running the module, or a part of it (`conditions.evaluated`).

        They hold while this context lasts. Every method that runs the module sets them itself.

        Raises:
            ModelError: a hook of the module raised an error during the context.
        """
        # this thread has set them already; another thread waits in `evaluated` until it is done
        if self._running_in == threading.get_ident():
            yield
            return
        with evaluated(self.module):
            self._running_in = threading.get_ident()
            try:
                yield
            finally:
                self._running_in = None

    def _find_again_if_changed(self) -> None:
        """Find the blocks again if the module's submodules, weights or hooks have changed.

        A change of weights is noticed by their dtypes and shapes only.

        Raises:
            ModelError: the module cannot be measured, or only if its hooks were removed.
        """
        state = (
            tuple(map(id, self.module.modules())),
            tuple((p.dtype, p.shape) for p in self.module.parameters()),
            tuple(number for _, number, _ in foreign_hooks(self.module)),
        )
        if state == self._found_in:
            return
        self._found_in = None
        _refuse_inference_weights(self.module)
        try:
            self._find()
        except ModelError as error:
            if not foreign_hooks(self.module):
                raise
            # if the blocks are found with the hooks off, the hooks caused the error
            try:
                with hooks_off(self.module):
                    self._find()
            except ModelError:
                raise error from None
            raise ModelError(
                f"hooks on {_name(self.module)} change what it computes in a way that its edges cannot show: "
                f"{describe_hooks(self.module)}. Remove them (handle.remove()); without them its blocks were found, with them: "
                f"{error}"
            ) from error
        self._found_in = state

    def _find(self) -> None:
        """Find the blocks from scratch, and check them against the model's own output."""
        self._returns_tuple, self.not_packed, self.final_norm, self.blocks = False, None, None, ()
        vars(self).pop("takes_mask_rows", None)
        self.blocks = self._find_blocks()
        self._units, self._packs, self._costs = {"block": (None,) * len(self.blocks)}, {}, {}
        if self._hooked:
            self._refuse_mixing_hooks()
        self._refuse_another_output()

    @property
    def _hooked(self) -> bool:
        """Whether decoder blocks have hooks that are not densitometer's.

        Such a hook changes the stream between two blocks, after the edges of a block are summed.
        """
        return any(not name for block in self.blocks for name, *_ in foreign_hooks(block.module))

    def _refuse_mixing_hooks(self) -> None:
        """Refuse hooks on blocks that mix tokens, or mix inputs of a batch.

        A hook may return for a token's stream only what depends on that stream. To test this, every
        block is made to return the same given streams. The streams after the hooks are compared in
        three runs: each of two inputs alone, and both in one batch. The inputs differ at one token.

        Raises:
            UnknownLayoutError: the result of a hook depends on other tokens or other inputs, too.
        """
        size, token = self.blocks[0].hidden_size, 5
        streams = torch.randn(1, 11, size, generator=torch.Generator().manual_seed(0)).to(self.device)
        streams = streams.repeat(2, 1, 1)  # (2, T, D), two inputs
        streams[1, token] *= -2.0

        def received(given: Tensor) -> list[Tensor]:
            """Record the streams into each block and out of the last, if each returns `given`."""
            into: list[Tensor] = []

            def run_block(_: Block, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
                into.append(stream)
                return given.to(stream)

            def keep(_: nn.Module, args: tuple, output: Any) -> None:
                into.append(first(output))

            handle = self.blocks[-1].module.register_forward_hook(keep)
            try:
                with torch.no_grad(), _replaced_forwards(self.blocks, run_block, self._returns_tuple):
                    self._forward(self._probe().expand(len(given), -1))
            finally:
                handle.remove()
            return into

        rest = [t for t in range(11) if t != token]
        runs = [received(part) for part in (streams[:1], streams[1:], streams)]
        for i, (one, other, both) in enumerate(zip(*runs, strict=True)):
            apart = torch.cat([one, other]).float()
            # two differences that must be 0: between the batch and each input alone, and between
            # the two inputs at the tokens where they are equal
            gap = (both.float() - apart).norm() + (other - one)[:, rest].float().norm()
            if not float(gap) <= block_tolerance(self.dtype) * float(apart.norm()) + 1e-30:
                raise UnknownLayoutError(
                    f"what hooks make of the stream {'into' if i < len(self.blocks) else 'out of'} layer "
                    f"{min(i, len(self.blocks) - 1)} depends on other tokens or on other inputs of a batch"
                )

    @property
    def device(self) -> torch.device:
        """Device on which the model expects token ids."""
        return device_of(self.module.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the residual stream. Quantised weights may have a different dtype."""
        return self.blocks[0].dtype if self.blocks else self.module.dtype

    @_running
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the model's own logits after the last token, (vocabulary,) float32.

        The model runs with its own attention and its own blocks.
        """
        with torch.no_grad():
            return self._forward(torch.tensor([list(ids)], device=self.device))[0]

    @_running
    def logits_of_all(self, ids: Sequence[int]) -> Tensor:
        """Return the model's own logits after each token, (T, vocabulary) float32.

        The model runs with its own attention and its own blocks.
        """
        with torch.no_grad():
            batch = torch.tensor([list(ids)], device=self.device)
            return self.module(input_ids=batch, use_cache=False).logits[0].float()

    @_running
    def capture(self, ids: Sequence[int]) -> tuple[list[BlockRecord], Tensor]:
        """Run the model once and record every block.

        Returns:
            The records.
            Logits after the last token, (vocabulary,) float32.

        Raises:
            NonFiniteError: the model yields NaN or infinities; the message names the first layer.
            ModelError: the module was changed since it was loaded, and cannot be measured any more.
        """
        self._find_again_if_changed()
        recorded: list[dict[str, Any]] = [{} for _ in self.blocks]
        run = self._new_run(recorded=recorded)
        with torch.no_grad(), ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(_projection_recorded(block, recorded[block.index]))
            stack.enter_context(self._dense_blocks(None, recorded))
            logits = self._run(torch.tensor([list(ids)], device=self.device), run)[0]
        for block, record in zip(self.blocks, recorded, strict=True):
            # with other edges on, the indexer may choose any earlier token as a source
            if block.chooses:
                record["allowed"] = torch.ones_like(record["allowed"]).tril()
        records = [BlockRecord(**_first_of_batch(record)) for record in recorded]
        _refuse_non_finite(records, logits)
        return records, logits

    @_running
    def capture_tiles(
        self,
        ids: Sequence[int],
        tile_targets: int,
        keep: Callable[[Block, BlockRecord, AttentionInputs, Tensor], Kept],
    ) -> tuple[list[Kept], Tensor]:
        """Run the model once and record every block, with one tile of attention weights at a time.

        Args:
            tile_targets: number of targets whose weights are computed at a time.
            keep: called after each block with its record (weights and `allowed` empty), the inputs
                of its attention weights, and its heads' outputs (T, H, V). Nothing else is kept.

        Returns:
            What `keep` returned, block by block.
            Logits after the last token, (vocabulary,) float32.

        Raises:
            NonFiniteError: the model yields NaN or infinities; the message names the first layer.
            ModelError: the module was changed since it was loaded, and cannot be measured any more.
        """
        self._find_again_if_changed()
        kept: list[Kept] = []
        recorded: list[dict[str, Any]] = [{} for _ in self.blocks]
        run = self._new_run(recorded=recorded, tile_targets=tile_targets, mask_rows=self.takes_mask_rows)

        def run_block(block: Block, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
            record = recorded[block.index]
            with _projection_recorded(block, record):
                out = add_up(block, stream, arguments, None, record)
            inputs, heads = record.pop("inputs"), record.pop("heads")[0]
            if not bool(record["mlp_sum"].isfinite().all()):
                raise NonFiniteError(_not_finite(block.index, len(self.blocks)))
            empty = heads.new_empty(0, 0)
            record.update(weights=heads.new_empty(1, heads.shape[1], 0, 0), allowed=empty)
            kept.append(keep(block, BlockRecord(**_first_of_batch(record)), inputs, heads))
            # frees this block's activations before the next block runs
            record.clear()
            return out

        with torch.no_grad(), _replaced_forwards(self.blocks, run_block, self._returns_tuple):
            logits = self._run(torch.tensor([list(ids)], device=self.device), run)[0]
        _refuse_non_finite_logits(logits)
        return kept, logits

    @_running
    def walk_back(
        self,
        ids: Sequence[int],
        tile_targets: int,
        start: Callable[[Tensor, Tensor], Tensor],
        visit: Callable[[BlockGraph, Tensor], Tensor],
    ) -> None:
        """Backpropagate block by block, from the last to the first. Call it in `differentiable`.

        The autograd graph of only one block is in memory at a time: each block is run again on its
        recorded input, with its attention computed tile by tile. K gradients are propagated
        together.

        Args:
            ids: token ids of the input.
            tile_targets: number of targets whose attention weights are computed at a time.
            start: called with the logits (vocabulary,) and the stream (1, T, D) out of the last
                block, from which the logits are computed. It returns the K gradients with respect
                to that stream, (K, 1, T, D).
            visit: called with each block's graph and the K gradients with respect to the stream out
                of the block, (K, 1, T, D). It returns those with respect to the stream into it.
        """
        passed: list[tuple[Tensor, dict[str, Any]]] = []
        last = len(self.blocks) - 1
        handed_on: list[Tensor] = []
        rows = self.takes_mask_rows

        def run_block(block: Block, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
            passed.append((stream, arguments))
            out = add_up(block, stream, arguments)
            if block.index == last:
                handed_on.append(out)
            return out

        def hand_on(block: Block, stream: Tensor, _: dict[str, Any]) -> Tensor:
            return handed_on[0] if block.index == last else stream

        batch = torch.tensor([list(ids)], device=self.device)
        # 1. Run the model without gradients, and keep each block's input.
        with torch.no_grad(), _replaced_forwards(self.blocks, run_block, self._returns_tuple):
            self._run(batch, self._new_run(tile_targets=tile_targets, mask_rows=rows))
        # 2. Run the output head alone on the last block's output, which becomes a leaf: `hand_on`
        #    returns it from the last block, and earlier blocks compute nothing.
        with torch.enable_grad(), _replaced_forwards(self.blocks, hand_on, self._returns_tuple):
            handed_on[0] = handed_on[0].detach().requires_grad_()
            gradients = start(self._forward(batch)[0], handed_on[0])
        recorded: list[dict[str, Any]] = [{} for _ in self.blocks]
        run = self._new_run(recorded=recorded, tile_targets=tile_targets, mask_rows=rows)
        # 3. Run each block again with gradients, last to first, and pass its gradients on.
        with torch.enable_grad(), our_attention(self.module, run):
            for block in reversed(self.blocks):
                stream, arguments = passed.pop()
                stream = stream.detach().requires_grad_()
                out = add_up(block, stream, arguments, None, recorded[block.index])
                did = recorded[block.index]
                gradients = visit(BlockGraph(block, stream, out, did), gradients.to(out.device))
                did.clear()

    @cached_property
    @_running
    def takes_mask_rows(self) -> bool:
        """Whether the model accepts `attention.MaskRows` objects in place of attention masks.

        This is tested by running eleven tokens. If it does, masks of long inputs are built for a
        few targets at a time.
        """
        run = self._new_run(tile_targets=4, mask_rows=True)
        ids = self._probe()
        try:
            with torch.no_grad(), self._dense_blocks(None, None):
                got = self._run(ids, run)[0]
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
            return False
        gap = float(total_variation(self.logits(ids[0].tolist()).cpu(), got.cpu()))
        return gap <= tolerance_tv(self.dtype)

    @_running
    def masked_logits(
        self,
        ids: Sequence[int],
        masks: Sequence[BlockMask],
        recorded: Sequence[dict[str, Any]] | None = None,
        positions: Tensor | None = None,
        always_skip: bool = False,
    ) -> Tensor:
        """Compute logits with only some edges on, (B, vocabulary) float32.

        Args:
            ids: token ids of the input.
            masks: one per block, of B variants each. With boolean masks, only the rows that can
                affect the result are computed, if the model allows it and it saves time. With float
                masks every row is computed, and gradients flow to the masks.
            recorded: with float masks, one dictionary per block, to which the block's activations
                are written, with a batch axis.
            positions: (B,) int64, the token after which each variant's logits are returned; None
                for the last token.
            always_skip: with boolean masks, whether to skip rows even if that takes longer.
        """
        if masks[0].mlp.dtype == torch.bool:
            # vectors that replace those of removed edges are added to every row, so then no row can
            # be skipped
            packs = masks[0].stand_ins is None and self._packs_with(tuple(mask.units for mask in masks))
            skip = always_skip or self.always_skip or self._in_tiles(masks)
            with torch.no_grad():
                if packs and (skip or pays(self.blocks, masks)):
                    return self._packed_logits(ids, masks, positions)
                return self._dense_logits(ids, masks, positions=positions)
        return self._dense_logits(ids, masks, recorded, positions)

    @_running
    def read_out(self, streams: Tensor) -> Tensor:
        """Compute logits, (N, vocabulary) float32, from streams (N, D) out of the last block.

        Everything that the model does after its blocks is applied: final norm, output head, and
        scales and soft caps of logits where it has them.
        """
        last = len(self.blocks) - 1

        def run_block(block: Block, stream: Tensor, _: dict[str, Any]) -> Tensor:
            return streams[:, None].to(stream) if block.index == last else stream

        # N inputs of one token; the blocks pass the stream through, and the last returns `streams`
        batch = self._probe()[:, :1].expand(len(streams), -1)
        with torch.no_grad(), _replaced_forwards(self.blocks, run_block, self._returns_tuple):
            return self._forward(batch)

    @_running
    def units(self, granularity: str) -> tuple[Units | None, ...]:
        """Return the MLP units of each block at a granularity.

        None stands for a block whose whole MLP is one edge.

        Args:
            granularity: "block", "expert" or "neuron".

        Raises:
            ModelError: the MLPs have no such units, or the units' vectors do not sum to the MLP's
                output.
        """
        if granularity not in self._units:
            records, _ = self.capture(self._probe()[0].tolist())
            tolerance = block_tolerance(self.dtype)
            units = tuple(
                find_units(block, record.mlp_stream(block), granularity, tolerance)
                for block, record in zip(self.blocks, records, strict=True)
            )
            if not any(units):
                raise ModelError(
                    f"no MLP of {_name(self.module)} is a mixture of experts that densitometer can take apart (one whose "
                    "experts are a module called with tokens, chosen experts and weights); use granularity='block' or "
                    "'neuron'"
                )
            self._units[granularity] = units
        return self._units[granularity]

    @_running
    def cost_of(
        self, block: Block, n_heads: int, n_groups: int, key_size: int, value_size: int, units: Units | None
    ) -> BlockCost:
        """Count the operations and parameters of a block, and remember the result.

        The arguments are those of `counting.block_cost`.
        """
        what = (block.index, n_heads, n_groups, key_size, value_size, units)
        if what not in self._costs:
            self._costs[what] = block_cost(block, *what[1:])
        return self._costs[what]

    @property
    @_running
    def packs(self) -> bool:
        """Whether masked runs give the same result if rows without effect are skipped.

        This is tested by running eleven tokens.
        """
        return self._packs_with(self._units["block"])

    def _packs_with(self, units: tuple[Units | None, ...]) -> bool:
        """Whether packed rows give the same result if the MLPs have these units. Tested once."""
        if units not in self._packs:
            self._packs[units] = self._can_pack(units)
        return self._packs[units]

    def _can_pack(self, units: tuple[Units | None, ...]) -> bool:
        """Test packed rows on eleven tokens. If the test fails, set `not_packed` to the reason."""
        if any(block.own_attention for block in self.blocks):
            return False
        if self._hooked:
            self.not_packed = "hooks on its decoder blocks may depend on where a row stands"
            return False
        try:
            with torch.no_grad():
                gap = self._packing_gap(units)
                whole = self._packed_gap_of_the_full_trace(units)
        except (NotPackedError, RuntimeError, IndexError, TypeError, ValueError) as error:
            self.not_packed = " ".join(str(error).split())
            return False
        return gap <= block_tolerance(self.dtype) and whole <= tolerance_tv(self.dtype)

    @_running
    def packing_gap(self, granularity: str) -> tuple[float, float]:
        """Return the largest gap between packed rows and all rows of a block, and the tolerance.

        Both are relative to what a block adds to the stream.
        """
        with torch.no_grad():
            gap = self._packing_gap(self.units(granularity))
        return gap, block_tolerance(self.dtype)

    def _packed_gap_of_the_full_trace(self, units: tuple[Units | None, ...]) -> float:
        """Total variation between the model's prediction and its full trace on packed rows."""
        ids = self._probe()[0].tolist()
        pairs = zip(self.blocks, units, strict=True)
        # Two variants, so that the blocks return more streams than the model has inputs. Some
        # models cannot do that.
        masks = [_all_on(block, len(ids), self.device, of_mlp, n_variants=2) for block, of_mlp in pairs]
        got = self._packed_logits(ids, masks).cpu()
        return float(total_variation(self.logits(ids).cpu(), got).max())

    def _packing_gap(self, units: tuple[Units | None, ...]) -> float:
        """Largest difference in a block's output between packed rows and all rows, for any block.

        It is relative to what the block adds to the stream. Every block gets the same input in both
        ways of running it. Comparing the outputs of two whole runs would be too strict: a trained
        model amplifies rounding, block by block. Two exact ways of running a random half of its
        edges then differ by TV 3e-3 in float32, and by nothing in float64 (dev/LOG.md, 2026-11-29).
        """
        ids = self._probe()  # (1, T)
        masks = self._placed(_probe_masks(self.blocks, units, ids.shape[1], self.device))
        n_variants = masks[0].mlp.shape[0]
        passed: list[tuple[Tensor, Tensor]] = []  # into and out of each block, (B, T, D)
        gaps: list[float] = []

        def run_all_rows(block: Block, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
            out = add_up(block, stream, arguments, masks[block.index])
            passed.append((stream, out))
            return out

        with _replaced_forwards(self.blocks, run_all_rows, self._returns_tuple):
            self._run(ids.expand(n_variants, -1), self._new_run(masks=masks))
        run = self._new_run(masks=masks)

        def run_packed(block: Block, _: Tensor, arguments: dict[str, Any]) -> Tensor:
            stream, expected = passed[block.index]
            # every stream is a row of its own: row b T + t is variant b at token t
            rows = numpy.arange(index_size).reshape(n_variants, -1)
            plan, index = plan_block(block, masks[block.index], rows)
            table = packed_add_up(block, stream.flatten(0, 1), plan, arguments, run)  # (N, D)
            got = table[torch.from_numpy(index).to(table.device)].float()  # (B, T, D)
            # the size of what the block adds; the second term where it adds next to nothing
            added = (expected - stream).float().abs().amax() + 1e-3 * expected.float().abs().amax()
            gaps.append(float((got - expected.float()).abs().amax() / (added + 1e-30)))
            return expected[:1]

        index_size = n_variants * ids.shape[1]
        with _replaced_forwards(self.blocks, run_packed, self._returns_tuple):
            self._run(ids, run)
        return max(gaps)

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Let gradients flow to masks, not to parameters, and treat scales of norms as constant.

        This holds while the context lasts. Afterwards, each parameter requires a gradient if it did
        before. Entering the context again within it has no effect.
        """
        with self.running():
            # set already; no other thread is in `running` meanwhile
            if self._differentiable:
                yield
                return
            with self._gradients_to_masks():
                self._differentiable = True
                try:
                    yield
                finally:
                    self._differentiable = False

    @contextmanager
    def _gradients_to_masks(self) -> Iterator[None]:
        """Set the conditions that `differentiable` describes."""
        norms = [self.final_norm] if self.final_norm is not None else []
        for block in self.blocks:
            norms += [block.module.get_submodule(name) for name in block.layout.norms]
        wanted = {n: p.requires_grad for n, p in self.module.named_parameters(remove_duplicate=False)}
        with ExitStack() as stack:
            stack.enter_context(gradients_required(self.module))
            for norm in norms:
                stack.enter_context(scale_held(norm))
            try:
                self.module.requires_grad_(False)
                yield
            finally:
                # by name: if weights are offloaded, each run replaces the placeholders
                for name, parameter in self.module.named_parameters(remove_duplicate=False):
                    parameter.requires_grad_(wanted[name])

    @contextmanager
    def streams_moved(self, seed: int) -> Iterator[None]:
        """Perturb every residual stream at random before each block of a masked run.

        This holds while the context lasts. Each number is moved up or down by one or two units in
        the last place, about as much as rounding changes it anyway.
        """
        self._moves = torch.Generator().manual_seed(seed)
        try:
            yield
        finally:
            self._moves = None

    # ----------------------------------------------------------------------------------------------

    def _moved(self, stream: Tensor) -> Tensor:
        """Perturb a stream within the context `streams_moved`. Otherwise return it unchanged."""
        if self._moves is None:
            return stream
        signs = torch.randint(0, 2, stream.shape, generator=self._moves, dtype=torch.int8).to(stream.device)
        unit = torch.finfo(stream.dtype).eps
        return torch.addcmul(stream, stream, (signs * 2 - 1).to(stream.dtype), value=unit)

    def _dense_blocks(
        self,
        masks: Sequence[BlockMask] | None,
        recorded: Sequence[dict[str, Any]] | None,
        positions: Tensor | None = None,
    ) -> AbstractContextManager[None]:
        """Let every block compute every row by `add_up`, while this context lasts."""

        def run_block(block: Block, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
            mask = masks[block.index] if masks is not None else None
            out = add_up(
                block,
                self._moved(stream),
                arguments,
                mask,
                recorded[block.index] if recorded is not None else None,
            )
            if positions is None or block.index < len(self.blocks) - 1:
                return out
            # The output head reads the last token only. So the stream that it has to read is copied
            # to every token.
            at = positions.to(out.device)
            return out[torch.arange(len(at), device=out.device), at][:, None].expand_as(out)

        return _replaced_forwards(self.blocks, run_block, self._returns_tuple)

    def _dense_logits(
        self,
        ids: Sequence[int],
        masks: Sequence[BlockMask],
        recorded: Sequence[dict[str, Any]] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Compute logits from every row of every variant, (B, vocabulary) float32."""
        masks = self._placed(masks)
        batch = torch.tensor([list(ids)], device=self.device).expand(masks[0].mlp.shape[0], -1)
        rows = self._in_tiles(masks) and self.takes_mask_rows
        with self._dense_blocks(masks, recorded, positions):
            return self._run(batch, self._new_run(masks=masks, recorded=recorded, mask_rows=rows))

    def _packed_logits(
        self,
        ids: Sequence[int],
        masks: Sequence[BlockMask],
        positions: Tensor | None = None,
    ) -> Tensor:
        """Compute logits from only the rows that can affect them, (B, vocabulary) float32.

        The model runs on one input. Inside its blocks, the stream (1, T, D) is replaced by the
        table of all variants' rows, (1, N, D). The last block returns one stream per variant.
        """
        plan = plan_rows(self.blocks, masks)
        masks = self._placed(masks)
        run = self._new_run(masks=masks, mask_rows=self._in_tiles(masks) and self.takes_mask_rows)

        def run_block(block: Block, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
            i = block.index
            table = packed_add_up(block, self._moved(stream[0]), plan.blocks[i], arguments, run)
            if i < len(self.blocks) - 1:
                return table[None]
            last = torch.full(plan.index.shape[:1], -1) if positions is None else positions.cpu()
            read = torch.from_numpy(plan.index)[torch.arange(len(last)), last].to(table.device)
            # (B, T, D): the stream that is read, at every token, so at the last one too
            return table[read][:, None].expand(-1, len(ids), -1)

        with _replaced_forwards(self.blocks, run_block, self._returns_tuple):
            return self._run(torch.tensor([list(ids)], device=self.device), run)

    def _in_tiles(self, masks: Sequence[BlockMask]) -> bool:
        """Whether masks belong to a long input, and so are computed tile by tile."""
        return not masks[0].edges.shares_buckets

    def _placed(self, masks: Sequence[BlockMask]) -> list[BlockMask]:
        """Copy each block's mask to the device that the block works on."""
        return [mask.to(device_of(b.module)) for mask, b in zip(masks, self.blocks, strict=True)]

    def _new_run(self, **what: Any) -> Run:
        """Make the state of a run of the decoder blocks. The keywords are fields of `Run`."""
        block_of = {id(part): b.index for b in self.blocks for part in b.attention.modules()}
        return Run(block_of, own={b.index for b in self.blocks if b.own_attention}, **what)

    def _run(self, batch: Tensor, run: Run) -> Tensor:
        """Run the model with densitometer's attention, and check that every layer called it.

        Returns:
            Logits after the last token, (B, vocabulary) float32.

        Raises:
            ModelError: an attention module does not go through the attention function.
        """
        with our_attention(self.module, run):
            logits = self._forward(batch)
        missing = sorted(set(run.block_of.values()) - run.seen)
        if missing:
            raise ModelError(
                f"the attention of layer {missing[0]} ({type(self.blocks[missing[0]].attention).__name__}) does not "
                "go through transformers' AttentionInterface, so its edges cannot be seen or removed"
            )
        return logits

    def _forward(self, batch: Tensor) -> Tensor:
        """Run the model on token ids (B, T). Return the last token's logits, (B, vocabulary)."""
        keep = {"logits_to_keep": 1} if self._keeps_logits else {}
        with memory_watched(f"running the model on {batch.shape[0]} x {batch.shape[1]} tokens"):
            output = self.module(input_ids=batch, use_cache=False, **keep)
            return output.logits[:, -1].float()

    def _find_blocks(self) -> tuple[Block, ...]:
        """Find the decoder blocks and their layouts, by running each candidate on real activations.

        Raises:
            UnknownLayoutError: the model has no list of decoder blocks, several of them, or blocks
                that cannot be shown as edges.
        """
        # `lists`: lists of modules that all fit a layout; `near`: all other lists, for the message
        lists, near = [], []
        for name, part in self.module.named_modules():
            if isinstance(part, nn.ModuleList) and len(part) > 0:
                candidates = [fitting_layouts(child) for child in part]
                if all(candidates):
                    lists.append((name, list(part), candidates))
                elif ".experts" not in name:
                    near.append((name, part))
        if not lists:
            raise UnknownLayoutError(_unknown_layout_message(self.module, lists, near))
        calls, attended = self._calls(lists, own=())
        # blocks that read images or sounds do not run on a text
        lists = [entry for entry in lists if id(entry[1][0]) in calls]
        if len(lists) != 1:
            raise UnknownLayoutError(_unknown_layout_message(self.module, lists, near))
        _, modules, candidates = lists[0]
        # Layers that did not call the attention function may compute attention themselves: run the
        # model again, and watch those.
        own = set(range(len(modules))) - attended
        if own:
            calls, attended = self._calls(lists, own)
        for i, module in enumerate(modules):
            if i not in attended or id(module) not in calls:
                attention = module.get_submodule(candidates[i][0].attention)
                raise UnknownLayoutError(
                    f"the attention of layer {i} ({_name(attention)} in {_name(module)}) neither calls transformers' "
                    "AttentionInterface nor multiplies a softmax with values, so its edges cannot be seen or removed"
                )
            n_tokens = first(calls[id(module)].output).shape[1]
            if n_tokens != self._probe().shape[1]:
                raise UnknownLayoutError(
                    f"{_name(self.module)} runs layer {i} ({_name(module)}) on {n_tokens} of {self._probe().shape[1]} tokens; "
                    "densitometer measures models whose blocks each run on all of them (layers that share keys and values "
                    "with earlier ones do not)"
                )
        self._returns_tuple = isinstance(calls[id(modules[0])].output, tuple | list)
        tolerance = block_tolerance(self.dtype)
        blocks = []
        for i, module in enumerate(modules):
            with _failing_as(UnknownLayoutError, f"layer {i} ({_name(module)}) cannot be run by itself"):
                call = calls[id(module)]
                blocks.append(find_block(self.module, i, module, candidates[i], call, tolerance, i in own))
        return tuple(blocks)

    def _calls(
        self, lists: Sequence[tuple[str, list[nn.Module], list[list[Layout]]]], own: Collection[int]
    ) -> tuple[dict[int, BlockCall], set[int]]:
        """Run the model on eleven tokens, and record how it calls the modules of some lists.

        The final norm is found in the same run: the first module that gets the last block's output.

        Args:
            lists: name, modules and candidate layouts of each list.
            own: indices of the layers whose attention modules are watched, because they may compute
                attention themselves.

        Returns:
            The call of each module, by the module's id.
            Indices of the layers whose attention was seen.

        Raises:
            UnknownLayoutError: a block runs several times in a forward pass.
            ModelError: the model cannot be run on token ids alone, or turns autocast on.
        """
        calls: dict[int, BlockCall] = {}
        last: list[Tensor] = []  # output of the block that ran last, after its hooks
        device_type = self.device.type

        def keep(block: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if id(block) in calls:
                raise UnknownLayoutError(
                    f"{_name(self.module)} runs one decoder block ({_name(block)}) several times in a forward pass; "
                    "densitometer measures models that run each once"
                )
            if torch.is_autocast_enabled(device_type):
                raise ModelError(
                    f"{_name(self.module)} turns autocast on inside its forward ({torch.get_autocast_dtype(device_type)}), as "
                    "accelerate's mixed precision does, so its layers' outputs are rounded to fewer bits than their dtype has. "
                    "Unwrap the module (accelerator.unwrap_model(module, keep_fp32_wrapper=False)); to measure it at that "
                    "precision, cast it (module.to(torch.bfloat16))"
                )
            calls[id(block)] = BlockCall(args, kwargs, output)

        def keep_last(_: nn.Module, args: tuple, output: Any) -> None:
            last[:] = [first(output)]
            self.final_norm = None

        def find_final_norm(part: nn.Module, args: tuple) -> None:
            if self.final_norm is None and last and args and args[0] is last[0]:
                self.final_norm = part

        blocks = [block for _, blocks, _ in lists for block in blocks]
        # prepended, so that a block's output is taken before a foreign hook changes it
        handles = [block.register_forward_hook(keep, with_kwargs=True, prepend=True) for block in blocks]
        handles += [block.register_forward_hook(keep_last) for block in blocks]
        handles += [part.register_forward_pre_hook(find_final_norm) for part in self.module.modules()]
        attention = {
            id(part): i
            for _, blocks, candidates in lists
            for i, block in enumerate(blocks)
            for layout in candidates[i]
            for part in block.get_submodule(layout.attention).modules()
        }
        run = Run(attention, own=own)
        failed = (
            f"{_name(self.module)} cannot be run on token ids alone; densitometer measures models that can"
        )
        try:
            with _failing_as(ModelError, failed), torch.no_grad(), our_attention(self.module, run):
                self._forward(self._probe())
        finally:
            for handle in handles:
                handle.remove()
        return calls, run.seen

    def _refuse_another_output(self) -> None:
        """Check, on eleven tokens, that the blocks with every edge on give the model's prediction.

        Raises:
            IdentityError: the blocks give another prediction.
            NonFiniteError: the model yields NaN or infinities.
        """
        ids = self._probe()[0].tolist()
        expected = self.logits(ids)
        _refuse_non_finite((), expected)
        masks = [_all_on(block, len(ids), self.device) for block in self.blocks]
        failed = f"{_name(self.module)} cannot be run block by block, so its edges cannot be removed"
        with _failing_as(IdentityError, failed), torch.no_grad():
            full = self._dense_logits(ids, masks)[0]
        gap = float(total_variation(expected.cpu(), full.cpu()))
        if not gap <= tolerance_tv(self.dtype):
            raise IdentityError(
                f"run block by block with every edge on, {_name(self.module)} is not the model: total variation {gap:.1e} at "
                "its output; its blocks pass each other something that densitometer does not know, or round activations to "
                "fewer bits than their dtype has (quantised activations)"
            )

    def _probe(self) -> Tensor:
        """Eleven fixed token ids, spread over the vocabulary."""
        return torch.tensor([probe_ids(vocabulary_size(self.module), 11)], device=self.device)


@contextmanager
def _failing_as(kind: type[ModelError], what: str) -> Iterator[None]:
    """Turn any error of a model's own code into a `ModelError`, while this context lasts.

    A model's code may raise anything when its parts are run alone.

    Args:
        kind: the class of the error.
        what: the start of its message, which names the model.
    """
    try:
        yield
    except (DensitometerError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise kind(f"{what} ({type(error).__name__}: {error})") from error


def _all_on(
    block: Block, n_tokens: int, device: torch.device, units: Units | None = None, n_variants: int = 1
) -> BlockMask:
    """Make the mask of a block for variants that have every edge on.

    All units of an MLP are on, including experts that no router chooses.
    """
    on = torch.ones(n_variants, n_tokens, dtype=torch.bool, device=device)
    residual = None if block.layout.parallel else on
    attention = on[:, None, None].expand(-1, block.n_heads, n_tokens, -1)
    mlp = on[:, None].expand(-1, units.n_units if units is not None else 1, -1)
    return BlockMask(residual, attention, on, mlp, units=units)


def _probe_masks(
    blocks: Sequence[Block], units: Sequence[Units | None], n_tokens: int, device: torch.device
) -> list[BlockMask]:
    """Make the masks of three fixed variants: all edges, about half of them, about one in ten."""
    generator = torch.Generator().manual_seed(0)
    share = torch.tensor([1.0, 0.5, 0.1])

    def drawn(*shape: int) -> Tensor:  # (3, *shape)
        return (torch.rand(3, *shape, generator=generator) < share.view(3, *[1] * len(shape))).to(device)

    masks = []
    for block, of_mlp in zip(blocks, units, strict=True):
        residual = None if block.layout.parallel else drawn(n_tokens)
        attention = drawn(block.n_heads, n_tokens, n_tokens)
        mlp = drawn(of_mlp.n_units if of_mlp is not None else 1, n_tokens)
        masks.append(BlockMask(residual, attention, drawn(n_tokens), mlp, units=of_mlp))
    return masks


def vocabulary_size(module: PreTrainedModel) -> int:
    """Return the number of rows of the input embedding. Token ids are smaller than it."""
    return int(module.get_input_embeddings().weight.shape[0])  # type: ignore[index]


def _children(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _refuse_other_kinds(module: nn.Module) -> None:
    """Refuse a module that is not a causal language model of transformers."""
    config = getattr(module, "config", None)
    if not isinstance(module, PreTrainedModel) or config is None:
        raise ModelError(
            f"expected a Hugging Face causal language model (transformers.PreTrainedModel), got {_name(module)}"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{_name(module)} is an encoder-decoder model; densitometer measures decoder-only causal language models"
        )
    if module.get_output_embeddings() is None and not hasattr(module, "lm_head"):
        raise ModelError(
            f"{_name(module)} has no language-model head; load it as a causal language model "
            "(AutoModelForCausalLM), or give its name to densitometer.load_model"
        )


def _refuse_inference_weights(module: nn.Module) -> None:
    """Refuse weights that were made under `torch.inference_mode`: no gradient can pass them."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    made = [name for name, tensor in tensors if tensor.is_inference()]
    if made:
        raise ModelError(
            f"{len(made)} weights and buffers of {_name(module)} were made under torch.inference_mode() ({made[0]} ...), where "
            "tensors lose what gradients need. Make or load the module outside of it, or give its name to "
            "densitometer.load_model, which may be called inside"
        )


def _unknown_layout_message(module: nn.Module, lists: list, near: list) -> str:
    """Write the message for a model without exactly one list of decoder blocks.

    Args:
        module: the model.
        lists: name, modules and candidate layouts of each list of decoder blocks.
        near: name and modules of every other list of modules. The message names the largest.
    """
    if lists:
        names = ", ".join(repr(name) for name, _, _ in lists)
        return f"{_name(module)} has several lists of decoder blocks ({names}); densitometer measures models with one"
    if not near:
        return f"{_name(module)} has no list of decoder blocks"
    name, blocks = max(near, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))
    unknown = [(i, block) for i, block in enumerate(blocks) if not fitting_layouts(block)]
    index, block = unknown[0]
    named = {part for layout in layouts() for path in layout.required for part in (path, path.split(".")[0])}
    named |= {part for layout in layouts() for part in layout.ignored}
    parts = [f"{child} ({_name(part)})" for child, part in block.named_children() if child not in named]
    why = f"no layout knows its {', '.join(parts)}" if parts else f"no layout has just {_children(block)}"
    return (
        f"{_name(module)} has {len(unknown)} decoder blocks of {len(blocks)} in {name!r} whose layout is not known, first "
        f"block {index}, {_name(block)}: {why}. densitometer measures blocks of attention and MLP; declare such a layout "
        "with densitometer.register_layout(Layout(...)), it is used if it gives the block's own output back"
    )


def _first_of_batch(record: dict[str, Any]) -> dict[str, Any]:
    """Drop the batch axis of size 1 from all that was recorded of one block."""
    unbatched = ("allowed", "key_size")
    return {k: v if k in unbatched or v is None else v[0] for k, v in record.items()}


def _refuse_non_finite(records: Sequence[BlockRecord], logits: Tensor) -> None:
    """Refuse NaN and infinities with an error that names the first layer, or the output head."""
    finite = [bool(_all_finite(record)) for record in records]
    if not all(finite):
        raise NonFiniteError(_not_finite(finite.index(False), len(records)))
    _refuse_non_finite_logits(logits)


def _not_finite(layer: int, n_layers: int) -> str:
    return (
        f"the model yields NaN or infinities on this text, first in layer {layer} of {n_layers}; "
        "load it in a wider dtype (dtype='float32' or 'bfloat16') or check its weights"
    )


def _refuse_non_finite_logits(logits: Tensor) -> None:
    if not bool(logits.isfinite().all()):
        raise NonFiniteError(
            "the model yields NaN or infinities on this text, first in the output head (every layer is finite)"
        )


def _all_finite(record: BlockRecord) -> Tensor:
    return record.mlp_sum.isfinite().all() & record.weights.isfinite().all()


@contextmanager
def _projection_recorded(block: Block, recorded: dict[str, Any]) -> Iterator[None]:
    """Record what the attention's output projection reads and writes, while this context lasts."""

    def hook(_: nn.Module, args: tuple, output: Tensor) -> None:
        recorded.update(projection_input=args[0], projected=first(output))

    handle = block.projection.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()

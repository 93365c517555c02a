"""How each kind of decoder block adds up: a declarative table.

A block is described by the names of its child modules and by how their outputs are added to the
residual stream. Nothing else in densitometer knows the module names of transformers.

    sequential   mid = x + [norm] attention(norm(x));   out = mid + [norm] mlp(norm(mid))
    parallel     out = x + attention(norm(x)) + mlp(norm'(x))

A layout is a candidate for a block when *every* child of the block is one that it names (a child it does
not know could do anything). Names alone never decide: the adapter runs each candidate on real activations
and keeps the one that gives the block's own output back. If none does, the model is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Layout:
    """One way in which a decoder block adds up.

    Args:
        name: shown by `densitometer doctor`.
        attention: child module with the attention.
        mlp: child modules of the MLP, applied one after the other.
        attention_norm: norm before the attention; None where it reads the stream itself.
        mlp_norm: norm before the MLP; None where it reads the stream itself.
        attention_branch_norm: norm on the attention's output, before it is added.
        mlp_branch_norm: norm on the MLP's output, before it is added.
        parallel: attention and MLP read the same stream and are added together.
        multiplier: attribute of the block with the number that scales both branches.
        ignored: children without effect in evaluation mode (dropout).
    """

    name: str
    attention: str
    mlp: tuple[str, ...]
    attention_norm: str | None = None
    mlp_norm: str | None = None
    attention_branch_norm: str | None = None
    mlp_branch_norm: str | None = None
    parallel: bool = False
    multiplier: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def required(self) -> frozenset[str]:
        """Children that a block must have."""
        norms = (
            self.attention_norm,
            self.mlp_norm,
            self.attention_branch_norm,
            self.mlp_branch_norm,
        )
        return frozenset((self.attention, *self.mlp, *(norm for norm in norms if norm)))

    def fits(self, children: Iterable[str], attributes: Iterable[str] = ()) -> bool:
        """Whether a block with these children can have this layout (every child is accounted for)."""
        names = frozenset(children)
        has_multiplier = self.multiplier is None or self.multiplier in attributes
        return self.required <= names <= self.required | frozenset(self.ignored) and has_multiplier


_DROPOUT = ("dropout", "resid_attn_dropout", "resid_mlp_dropout", "resid_dropout")
_NEOX_DROPOUT = ("post_attention_dropout", "post_mlp_dropout")

# Order matters only between layouts with the same children: the first that gives the block's own
# output back is taken.
_LAYOUTS: list[Layout] = [
    Layout("sequential with residual multiplier", "self_attn", ("mlp",),
           "input_layernorm", "post_attention_layernorm", multiplier="residual_multiplier"),
    Layout("sequential", "self_attn", ("mlp",),
           "input_layernorm", "post_attention_layernorm", ignored=_DROPOUT),
    # StableLM and Persimmon families: both branches read the stream's first norm.
    Layout("parallel, one norm", "self_attn", ("mlp",),
           "input_layernorm", "input_layernorm", parallel=True, ignored=_DROPOUT),
    Layout("branch-normed, four norms", "self_attn", ("mlp",),
           "input_layernorm", "pre_feedforward_layernorm",
           "post_attention_layernorm", "post_feedforward_layernorm"),
    Layout("branch-normed, outputs only", "self_attn", ("mlp",),
           None, None, "post_attention_layernorm", "post_feedforward_layernorm"),
    Layout("branch-normed, four norms (GLM-4)", "self_attn", ("mlp",),
           "input_layernorm", "post_attention_layernorm",
           "post_self_attn_layernorm", "post_mlp_layernorm"),
    Layout("branch-normed, four norms (AFMoE)", "self_attn", ("mlp",),
           "input_layernorm", "pre_mlp_layernorm",
           "post_attention_layernorm", "post_mlp_layernorm"),
    Layout("sequential (VaultGemma)", "self_attn", ("mlp",),
           "input_layernorm", "pre_feedforward_layernorm"),
    Layout("sequential (Apertus)", "self_attn", ("mlp",),
           "attention_layernorm", "feedforward_layernorm"),
    Layout("sequential (Llama 4)", "self_attn", ("feed_forward",),
           "input_layernorm", "post_attention_layernorm"),
    Layout("sequential (LFM2 attention)", "self_attn", ("feed_forward",),
           "operator_norm", "ffn_norm"),
    Layout("sequential (GraniteMoE)", "self_attn", ("block_sparse_moe",),
           "input_layernorm", "post_attention_layernorm", multiplier="residual_multiplier"),
    Layout("sequential (OPT)", "self_attn", ("fc1", "activation_fn", "fc2"),
           "self_attn_layer_norm", "final_layer_norm", ignored=_DROPOUT),
    Layout("sequential (GPT-2)", "attn", ("mlp",), "ln_1", "ln_2"),
    Layout("parallel, one norm (GPT-J)", "attn", ("mlp",), "ln_1", "ln_1", parallel=True),
    Layout("parallel, two norms (GPT-NeoX)", "attention", ("mlp",),
           "input_layernorm", "post_attention_layernorm", parallel=True, ignored=_NEOX_DROPOUT),
    Layout("sequential (GPT-NeoX)", "attention", ("mlp",),
           "input_layernorm", "post_attention_layernorm", ignored=_NEOX_DROPOUT),
    Layout("sequential (BLOOM)", "self_attention", ("mlp",),
           "input_layernorm", "post_attention_layernorm", ignored=_DROPOUT),
    Layout("parallel, one norm (Falcon)", "self_attention", ("mlp",),
           "input_layernorm", "input_layernorm", parallel=True, ignored=_DROPOUT),
    Layout("parallel, two norms (Falcon)", "self_attention", ("mlp",),
           "ln_attn", "ln_mlp", parallel=True, ignored=_DROPOUT),
    Layout("sequential (ModernBERT decoder)", "attn", ("mlp",), "attn_norm", "mlp_norm"),
    Layout("sequential (MPT)", "attn", ("ffn",), "norm_1", "norm_2", ignored=_DROPOUT),
]  # fmt: skip

# Where an attention module keeps its output projection, tried in this order.
ATTENTION_PROJECTIONS = ("o_proj", "dense", "out_proj", "c_proj", "wo")


def layouts() -> tuple[Layout, ...]:
    """Every declared layout, registered ones first."""
    return tuple(_LAYOUTS)


def register_layout(layout: Layout) -> None:
    """Declare a layout for blocks of your own; it is tried before the built-in ones.

    It still has to give the block's own output back on real activations to be used.

    Raises:
        InputError: a layout with this name exists.
    """
    if any(known.name == layout.name for known in _LAYOUTS):
        raise InputError(f"a layout named {layout.name!r} is declared already; give yours another name")
    _LAYOUTS.insert(0, layout)

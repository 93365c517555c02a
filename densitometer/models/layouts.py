"""Table of the layouts of decoder blocks: how attention and MLP are added to the residual stream.

A layout describes a block by the names of its child modules, and by how their outputs are added to
the residual stream x. No other file of densitometer has transformers' names of modules.

    sequential   mid = [norm] (x + [norm] attention(norm(x)))
                 out = [norm] (mid + [norm] mlp(norm(mid)))
    parallel     out = [norm] (x + [norm] attention(norm(x)) + [norm] mlp(norm'(x)))

Norms in brackets are optional. One before a branch's name normalises that branch. One before a sum,
as in BERT, is applied to the sum; the node of the graph is the sum itself.

A layout is a candidate for a block if it names *every* submodule of the block, or a module that
contains it, because an unknown submodule could compute anything. Names alone are not enough: the
adapter runs each candidate on real activations, and keeps the one that reproduces the block's own
output. If none does, the model is refused.

What this file does not do: it runs nothing (`probing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..errors import InputError


@dataclass(frozen=True)
class Layout:
    """One way in which the branches of a decoder block are added up.

    Modules and attributes are given by their paths in the block; None where the block has none.

    Args:
        name: the layout's name, which `densitometer doctor` shows.
        attention: the module that calls the attention function.
        mlp: modules of the MLP, applied one after the other.
        attention_norm: norm before the attention; None where the attention reads the stream itself.
        mlp_norm: norm before the MLP; None where the MLP reads the stream itself.
        attention_branch_norm: norm on the attention's output, before it is added.
        mlp_branch_norm: norm on the MLP's output, before it is added.
        attention_sum_norm: norm on the sum of stream and attention.
        mlp_sum_norm: norm on the sum to which the MLP is added; in a parallel block, on the only
            sum.
        attention_projection: output projection that is applied to what the attention module
            returns; None where it is inside the attention module.
        mlp_beside: modules of a second MLP that reads what the first reads, and is added to it (a
            shared expert).
        parallel: whether attention and MLP read the same stream and are added in one sum.
        multiplier: attribute with a number that scales both branches.
        stream_scale: attribute with a number that scales the block's last sum.
        attention_residual_scale: attribute with factors (D,) of the stream before the attention is
            added.
        mlp_residual_scale: attribute with factors (D,) of the stream before the MLP is added.
        attention_inputs: how many times the attention module is given its input (3 if it takes
            queries, keys and values as separate arguments).
        stream_argument: name of the argument for the stream, if attention and MLP take it and add
            it to their outputs themselves.
        ignored: modules that have no effect in evaluation mode (dropout), or on a text alone
            (attention to an encoder).

    Examples:
        >>> layout = dm.Layout(
        ...     "mine", attention="attn", mlp=("up", "act", "down"),
        ...     attention_norm="n1", mlp_norm="n2")
        >>> sorted(layout.required)
        ['act', 'attn', 'down', 'n1', 'n2', 'up']
    """

    name: str
    attention: str
    mlp: tuple[str, ...]
    attention_norm: str | None = None
    mlp_norm: str | None = None
    attention_branch_norm: str | None = None
    mlp_branch_norm: str | None = None
    attention_sum_norm: str | None = None
    mlp_sum_norm: str | None = None
    attention_projection: str | None = None
    mlp_beside: tuple[str, ...] = ()
    parallel: bool = False
    multiplier: str | None = None
    stream_scale: str | None = None
    attention_residual_scale: str | None = None
    mlp_residual_scale: str | None = None
    attention_inputs: int = 1
    stream_argument: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def norms(self) -> tuple[str, ...]:
        """Paths of all norms of the block, each once."""
        names = (
            self.attention_norm, self.mlp_norm, self.attention_branch_norm, self.mlp_branch_norm,
            self.attention_sum_norm, self.mlp_sum_norm,
        )  # fmt: skip
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def required(self) -> frozenset[str]:
        """Paths of the modules that a block must have."""
        projection = (self.attention_projection,) if self.attention_projection else ()
        return frozenset((self.attention, *projection, *self.mlp, *self.mlp_beside, *self.norms))

    def fits(self, block: nn.Module) -> bool:
        """Whether a block has all modules and attributes that this layout names, and no others."""
        attributes = (
            self.multiplier, self.stream_scale, self.attention_residual_scale, self.mlp_residual_scale,
        )  # fmt: skip
        modules = dict(block.named_modules())
        return (
            self.required <= modules.keys()
            and all(hasattr(block, name) for name in attributes if name)
            and _covered(block, self.required | frozenset(self.ignored), "")
        )


def _covered(module: nn.Module, names: frozenset[str], path: str) -> bool:
    """Whether every submodule is named, is dropout, or has only submodules that are.

    Args:
        module: the module whose submodules are checked.
        names: paths of the modules that a layout names.
        path: path of the module in the block, with a dot at its end; empty for the block.
    """
    for child, part in module.named_children():
        name = path + child
        if name in names or isinstance(part, nn.Dropout):
            continue
        inside = any(known.startswith(name + ".") for known in names)
        if not (inside and _covered(part, names, name + ".")):
            return False
    return True


_ENCODER = ("encoder_attn", "encoder_attn_layer_norm")

# Order matters only between layouts with the same modules: the first that reproduces the block's
# own output is taken.
_LAYOUTS: list[Layout] = [
    Layout("sequential with residual multiplier", "self_attn", ("mlp",),
           "input_layernorm", "post_attention_layernorm", multiplier="residual_multiplier"),
    Layout("sequential with residual multiplier (MiniCPM3)", "self_attn", ("mlp",),
           "input_layernorm", "post_attention_layernorm", multiplier="residual_scale"),
    Layout("sequential with learned residual scales", "self_attn", ("mlp",),
           "input_layernorm", "post_attention_layernorm",
           attention_residual_scale="input_residual", mlp_residual_scale="post_attention_residual"),
    Layout("sequential", "self_attn", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    # StableLM and Persimmon families: both branches read the stream's first norm.
    Layout("parallel, one norm", "self_attn", ("mlp",),
           "input_layernorm", "input_layernorm", parallel=True),
    Layout("branch-normed, four norms, scaled stream (Gemma 4)", "self_attn", ("mlp",),
           "input_layernorm", "pre_feedforward_layernorm",
           "post_attention_layernorm", "post_feedforward_layernorm", stream_scale="layer_scalar"),
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
    Layout("branch-normed, with residual multiplier (HyperCLOVA X)", "self_attn", ("mlp",),
           "input_layernorm", "post_attention_layernorm",
           "post_norm1", "post_norm2", multiplier="residual_multiplier"),
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
    Layout("sequential, shared expert beside (GraniteMoE)", "self_attn", ("block_sparse_moe",),
           "input_layernorm", "post_attention_layernorm",
           mlp_beside=("shared_mlp",), multiplier="residual_multiplier"),
    Layout("sequential, shared expert only (GraniteMoE)", "self_attn", ("shared_mlp",),
           "input_layernorm", "post_attention_layernorm", multiplier="residual_multiplier"),
    Layout("sequential (OPT)", "self_attn", ("fc1", "activation_fn", "fc2"),
           "self_attn_layer_norm", "final_layer_norm"),
    Layout("post-normed (OPT)", "self_attn", ("fc1", "activation_fn", "fc2"),
           attention_sum_norm="self_attn_layer_norm", mlp_sum_norm="final_layer_norm"),
    Layout("sequential (mBART)", "self_attn", ("fc1", "activation_fn", "fc2"),
           "self_attn_layer_norm", "final_layer_norm", ignored=_ENCODER),
    Layout("post-normed (BART)", "self_attn", ("fc1", "activation_fn", "fc2"),
           attention_sum_norm="self_attn_layer_norm", mlp_sum_norm="final_layer_norm", ignored=_ENCODER),
    Layout("post-normed (BERT)", "attention.self", ("intermediate", "output.dense"),
           attention_sum_norm="attention.output.LayerNorm", mlp_sum_norm="output.LayerNorm",
           attention_projection="attention.output.dense"),
    Layout("sequential (Megatron-BERT)", "attention.self", ("intermediate", "output.dense"),
           "attention.ln", "ln", attention_projection="attention.output.dense"),
    Layout("sequential (RoBERTa-PreLayerNorm)", "attention.self",
           ("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
           "attention.LayerNorm", "intermediate.LayerNorm", attention_projection="attention.output.dense"),
    Layout("sequential (XLM-RoBERTa-XL)", "attention.self", ("intermediate", "output.dense"),
           "attention.self_attn_layer_norm", "LayerNorm", attention_projection="attention.output.dense"),
    Layout("sequential (GPT-2)", "attn", ("mlp",), "ln_1", "ln_2"),
    Layout("parallel, one norm (GPT-J)", "attn", ("mlp",), "ln_1", "ln_1", parallel=True),
    Layout("parallel, two norms (GPT-NeoX)", "attention", ("mlp",),
           "input_layernorm", "post_attention_layernorm", parallel=True),
    Layout("sequential (GPT-NeoX)", "attention", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    Layout("sequential (BLOOM)", "self_attention", ("mlp",), "input_layernorm", "post_attention_layernorm",
           stream_argument="residual"),
    Layout("parallel, one norm (Falcon)", "self_attention", ("mlp",),
           "input_layernorm", "input_layernorm", parallel=True),
    Layout("parallel, two norms (Falcon)", "self_attention", ("mlp",), "ln_attn", "ln_mlp", parallel=True),
    Layout("sequential (ModernBERT decoder)", "attn", ("mlp",), "attn_norm", "mlp_norm"),
    Layout("sequential, no first norm (ModernBERT decoder)", "attn", ("mlp",), None, "mlp_norm",
           ignored=("attn_norm",)),
    Layout("sequential (CTRL)", "multi_head_attention", ("ffn",), "layernorm1", "layernorm2", attention_inputs=3),
    Layout("sequential (DBRX)", "norm_attn_norm.attn", ("ffn",), "norm_attn_norm.norm_1", "norm_attn_norm.norm_2"),
    Layout("sequential (MPT)", "attn", ("ffn",), "norm_1", "norm_2", stream_argument="residual"),
    Layout("post-normed (GPT)", "attn", ("mlp",), attention_sum_norm="ln_1", mlp_sum_norm="ln_2"),
]  # fmt: skip

# Names that an attention module may give its output projection, tried in this order.
ATTENTION_PROJECTIONS = ("o_proj", "dense", "out_proj", "c_proj", "wo", "Wo")


def layouts() -> tuple[Layout, ...]:
    """List the declared layouts, registered ones first."""
    return tuple(_LAYOUTS)


def fitting_layouts(block: nn.Module) -> list[Layout]:
    """List the declared layouts that match the names of a block's modules and attributes."""
    return [layout for layout in layouts() if layout.fits(block)]


def register_layout(layout: Layout) -> None:
    """Declare a layout for decoder blocks of your own. It is tried before the built-in ones.

    It is used only if it reproduces the block's own output on real activations.

    Raises:
        InputError: a layout with this name is declared already.

    Examples:
        >>> dm.register_layout(dm.Layout(
        ...     "mine", attention="attn", mlp=("ffn",), attention_norm="n1", mlp_norm="n2"))
    """
    if any(known.name == layout.name for known in _LAYOUTS):
        raise InputError(f"a layout named {layout.name!r} is declared already; give yours another name")
    _LAYOUTS.insert(0, layout)

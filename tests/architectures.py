"""Tiny random models of every causal language model that transformers registers, and what densitometer makes of each.

`tiny_module` shrinks a default config. `SMALL` says what each size becomes, wherever a config has a field of that name,
also in the configs inside it. `ALSO` adds, for single models, what their own validation asks for. Nothing else is
changed, so that what is special about an architecture in its default config stays.

`gaps` holds a model to what "exact" means; `coverage_of` says exact, refused or not buildable of a model type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import densitometer as dm
from densitometer.graph.masked_runs import masked_logits
from densitometer.models.blocks import BlockMask

IDS = [3, 88, 41, 7, 59, 26, 11, 64, 19]  # 9 tokens
KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 101
LAYERS = 3

SMALL: dict[str, int | float] = {
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "emb_dim": 32, "word_embed_proj_dim": 32,
    "embedding_size": 32, "input_embedding_size": 32, "output_embedding_size": 32,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS,
    "decoder_layers": LAYERS, "encoder_layers": LAYERS, "num_decoder_layers": LAYERS, "num_encoder_layers": LAYERS,
    "depth": LAYERS,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "linear_num_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "multi_query_group_num": 2,
    "head_dim": 16, "attention_head_dim": 16, "linear_head_dim": 8, "rotary_dim": 4,
    "intermediate_size": 44, "ffn_dim": 44, "decoder_ffn_dim": 44, "encoder_ffn_dim": 44, "n_inner": 44,
    "ffn_hidden_size": 44, "intermediate_size_mlp": 44, "d_ff": 44, "dff": 44, "dim_ff": 44,
    "moe_intermediate_size": 20, "expert_ffn_hidden_size": 20, "shared_expert_intermediate_size": 20,
    "shared_experts_intermediate_size": 20, "moe_shared_expert_intermediate_size": 20, "shared_intermediate_size": 20,
    "num_experts": 5, "num_local_experts": 5, "n_routed_experts": 5, "moe_num_experts": 5,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_topk": 2, "top_k_experts": 2, "moe_k": 2,
    "n_group": 1, "topk_group": 1, "num_expert_group": 1, "zero_expert_num": 2, "router_hidden_size": 12,
    "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5,
    "qk_head_dim": 10, "o_lora_rank": 8, "index_topk": 4, "index_n_heads": 2, "index_head_dim": 8,
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4, "indexer_compress_ratio": 2,
    "max_position_embeddings": 64, "n_positions": 64, "max_target_positions": 64, "n_ctx": 64, "max_seq_len": 64,
    "sliding_window": 4, "attention_window": 4, "window_size": 4, "attention_chunk_size": 8,
    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 12, "num_kv_shared_layers": 1,
    "n_langs": 2, "max_2d_position_embeddings": 16,
    # state-space, convolution and linear attention layers
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "n_mamba_heads": 2, "mamba_headdim": 32, "mamba_d_ssm": 64, "state_size": 8,
    "ssm_state_size": 8, "n_groups": 1, "time_step_rank": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "lru_width": 32, "attention_hidden_size": 64,
}  # fmt: skip
IDENTIFIERS = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
# Set even where the default is None, which there means "not said", not "none".
NEVER_NONE = {"num_experts_per_tok", "n_routed_experts", "num_key_value_heads", "indexer_n_heads", "indexer_kv_heads",
              "indexer_head_dim", "indexer_budget", "indexer_compress_ratio"}  # fmt: skip
INSIDE = (
    "text_config",
    "decoder",
    "vision_config",
    "audio_config",
    "encoder",
    "audio_encoder",
    "text_encoder",
    "patcher_config",
    "global_config",
    "encoder_config",
    "decoder_config",
)

ALSO: dict[str, dict[str, Any]] = {
    "axk1": {"v_head_dim": 6},
    "blt": {"encoder_hash_byte_group_vocab": 31},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 500.0, "clip_qkv": 8}, "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 5}},
    "doge": {"keep_window_size": 4},
    "dots3_note_text": {"head_dim": 10, "per_layer_config": {1: {"num_attention_heads": 2, "num_key_value_heads": 2}}},
    "dots1": {"n_shared_experts": 1},
    "gemma4_text": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "per_layer_config": {2: {"head_dim": 24}}, "num_kv_shared_layers": 0,
    },
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "qwen4_exp_text": {"indexer_head_dim": 16},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "attention_head_size": 8},
    "xlm": {"emb_dim": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


# Config switches of the main families that the defaults leave off, each with a name.
_SLIDING, _FULL = "sliding_attention", "full_attention"
_MIXED = {"sliding_window": 3, "layer_types": [_SLIDING, _FULL, _SLIDING]}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    """A rotary embedding that is stretched from 8 tokens on, so that a text of 9 is beyond them."""
    rope = {
        "rope_type": kind,
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        **more,
    }
    return {"rope_parameters": rope, "max_position_embeddings": 64}


VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, one key-value head, small heads": ("llama", {"num_key_value_heads": 1, "head_dim": 6}),
    "llama, no groups, large heads": ("llama", {"num_key_value_heads": 4, "head_dim": 18}),
    "llama, yarn": ("llama", _rope("yarn")),
    "llama, llama3 rope": ("llama", _rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0)),
    "llama, dynamic rope": ("llama", _rope("dynamic")),
    "phi3, longrope": (
        "phi3",
        {**_rope("longrope", long_factor=[1.5] * 4, short_factor=[1.0] * 4), "original_max_position_embeddings": 8,
         "hidden_size": 32, "num_attention_heads": 4, "head_dim": 8},
    ),
    "phi3, window": ("phi3", {"sliding_window": 3}),
    "qwen2, window on some layers": ("qwen2", {**_MIXED, "use_sliding_window": True}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "qwen2_moe, a dense layer": ("qwen2_moe", {"mlp_only_layers": [0], "decoder_sparse_step": 1}),
    "gemma2, soft caps": (
        "gemma2",
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 3, "query_pre_attn_scalar": 7},
    ),
    "gemma3, local and global": ("gemma3_text", {**_MIXED, "attn_logit_softcapping": 20.0}),
    "gemma4, dense": ("gemma4_text", {"hidden_size_per_layer_input": 0}),
    "phi, norms on queries and keys": ("phi", {"qk_layernorm": True, "num_key_value_heads": 2}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "stablelm, norms on queries and keys": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, new decoder, one norm": (
        "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon, alibi": ("falcon", {"alibi": True, "bias": True}),
    "falcon, alibi, sequential": (
        "falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "num_kv_heads": 4},
    ),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox, no biases": ("gpt_neox", {"attention_bias": False}),
    "cohere, norms on queries and keys": ("cohere", {"use_qk_norm": True}),
    "cohere2, window": ("cohere2", _MIXED),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.5}),
    "olmo2, biases": ("olmo2", {"attention_bias": True}),
    "olmo3, window": ("olmo3", _MIXED),
    "exaone4, window": ("exaone4", _MIXED),
    "mixtral, window": ("mixtral", {"sliding_window": 3}),
    "gpt_oss, window": ("gpt_oss", {"sliding_window": 3}),
    "deepseek_v2, queries of full rank": ("deepseek_v2", {"q_lora_rank": None}),
    "deepseek_v3, queries of full rank": ("deepseek_v3", {"q_lora_rank": None, "first_k_dense_replace": 1}),
    "deepseek_v3, yarn": ("deepseek_v3", _rope("yarn", mscale=1.0, mscale_all_dim=1.0)),
    "opt, post-normed": ("opt", {"do_layer_norm_before": False}),
    "opt, small embeddings": ("opt", {"word_embed_proj_dim": 20, "do_layer_norm_before": False}),
    "opt, no biases": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "mpt, no alibi, clipped": ("mpt", {"attn_config": {"alibi": False, "clip_qkv": 0.5}}),
    "gpt_bigcode, no groups": ("gpt_bigcode", {"multi_query": False}),
    "gpt2, scaled by layer": (
        "gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "starcoder2, window, no biases": ("starcoder2", {"sliding_window": 3, "use_bias": False}),
    "granite, multipliers": (
        "granite",
        {"residual_multiplier": 0.3, "attention_multiplier": 0.4, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
         "attention_bias": True, "mlp_bias": True},
    ),
    "granitemoe, multipliers": ("granitemoe", {"residual_multiplier": 0.3, "attention_multiplier": 0.4}),
    "smollm3, layers without positions": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "llama4, chunks": ("llama4_text", {"attention_chunk_size": 4, "no_rope_layers": [1, 0, 1]}),
    "glm4_moe, norms on queries and keys": ("glm4_moe", {"use_qk_norm": True, "first_k_dense_replace": 1}),
    "nemotron, biases": ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    "vaultgemma, soft caps": ("vaultgemma", {"attn_logit_softcapping": 3.0}),
    "qwen3_next, attention only": ("qwen3_next", {"layer_types": [_FULL] * 3}),
    "granitemoehybrid, attention only": ("granitemoehybrid", {"layer_types": ["attention"] * 3}),
}  # fmt: skip


def _shrunk(default: transformers.PretrainedConfig) -> dict[str, Any]:
    """Keyword arguments that make a small config of this one's class."""
    fields = default.to_dict()
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name in IDENTIFIERS:
            found[name] = IDENTIFIERS[name]
        elif name in SMALL and ((type(value) is int and value > 0) or (value is None and name in NEVER_NONE)):
            found[name] = SMALL[name]
        elif name in SMALL and isinstance(value, list) and value and type(value[0]) is int:
            found[name] = [SMALL[name]] * LAYERS
        elif name in ("layer_types", "mlp_layer_types", "layers_block_type") and isinstance(value, list):
            kinds = list(dict.fromkeys(value))
            found[name] = (kinds * LAYERS)[: max(LAYERS, len(kinds))]
    if (
        "kv_lora_rank" in found
    ):  # multi-head latent attention has no groups; its head_dim is the rotary part's
        found |= {
            name: value for name, value in (("num_key_value_heads", 4), ("head_dim", 4)) if name in fields
        }
    for name in INSIDE:
        inner = getattr(default, name, None)
        if isinstance(inner, transformers.PretrainedConfig):
            found[name] = {"model_type": inner.model_type, **_shrunk(inner), **ALSO.get(inner.model_type, {})}
    return found


def tiny_config(kind: str, **changes: Any) -> transformers.PretrainedConfig:
    """The default config of a model type, shrunk."""
    default = CONFIG_MAPPING[kind]()
    arguments = {**_shrunk(default), **ALSO.get(kind, {}), **changes}
    layers = arguments.get("layer_types") or arguments.get("layers_block_type")
    if layers and "num_hidden_layers" in arguments:
        arguments["num_hidden_layers"] = len(layers)
    if "is_decoder" in default.to_dict() or hasattr(default, "is_decoder"):
        arguments["is_decoder"] = True
    return CONFIG_MAPPING[kind](**arguments)


def randomised(module: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model with noise on every weight, so that norms, biases, sinks and scales matter too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.nan_to_num_().clamp_(-3, 3).add_(0.2 * noise)
        for name, buffer in module.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.mul_(0.7)
    return module


def tiny_module(kind: str, **changes: Any) -> transformers.PreTrainedModel:
    """A random causal language model of a model type."""
    torch.manual_seed(0)
    return randomised(transformers.AutoModelForCausalLM.from_config(tiny_config(kind, **changes)))


def model_types() -> Mapping[str, str]:
    """Every model type of transformers' causal language models, and its class."""
    return {
        kind: names if isinstance(names, str) else names[0]
        for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    }


def gaps(model: dm.Model) -> list[str]:
    """Every way in which a model is not measured exactly, in words; none for an exact one.

    Exact: `check_model` passes (sums, full trace, removals of each kind, batch); the full trace is within 1e-4 of each of
    the model's logits; half of the edges gone changes them; and, in the last block, taking an edge away by a real
    intervention takes its vector off its node (where no norm of the branch stands between).
    """
    found = [f"{row.identity}: {row.gap:.1e}" for row in dm.check_model(model).rows if not row.passed]
    graph = dm.build_graph(model, IDS)
    own = model.adapter.logits(IDS).cpu()
    full, half = masked_logits(graph.forward, [graph.reachable, graph.trace(size=0.5).flat])
    if (gap := float((full - own).abs().max())) > 1e-4:
        found.append(f"the full trace's logits are off by {gap:.1e}")
    if (change := float((half - own).abs().max())) < 1e-3:
        found.append(f"half of the edges gone changes the logits by {change:.1e} only")
    return found + _wrong_vectors(graph)


def _wrong_vectors(graph: dm.Graph) -> list[str]:
    """Edges into the last block's nodes whose removal does not take their vectors off."""
    forward, block = graph.forward, graph.model.adapter.blocks[-1]
    layout = block.layout
    levels = list(forward.levels())[-1 if layout.parallel else -2 :]
    n_heads, n_tokens = levels[0].weights.shape[0], forward.n_tokens
    on = torch.ones(4, n_tokens, dtype=torch.float32)
    attention = torch.ones(4, n_heads, n_tokens, n_tokens)
    residual, residual_mlp, mlp = on.clone(), on.clone(), on.clone()
    head = int(levels[0].weights[:, -1, 1].argmax())
    attention[1, head, -1, 1] = 0  # variant 0 is whole
    (residual_mlp if layout.parallel else residual)[2, -1] = 0
    mlp[3, -1] = 0
    masks = [
        BlockMask(
            None if b.layout.parallel else on, torch.ones(4, b.n_heads, n_tokens, n_tokens), on, on[:, None]
        )
        for b in graph.model.adapter.blocks[:-1]
    ]
    masks.append(BlockMask(None if layout.parallel else residual, attention, residual_mlp, mlp[:, None]))
    recorded: list[dict[str, Any]] = [{} for _ in masks]
    with torch.no_grad():
        graph.model.adapter.masked_logits(forward.ids, masks, recorded)
    into, out = recorded[-1]["attention_sum"], recorded[-1]["mlp_sum"]
    node = out if layout.parallel else into
    wanted = [
        ("residual", node[0, -1] - node[2, -1], levels[0].residual[-1]),
        ("mlp", out[0, -1] - out[3, -1], levels[-1].mlp[-1]),
    ]
    if not (layout.attention_branch_norm or block.gated):
        vector = levels[0].attention_vectors(head)[-1, 1]
        wanted.append(("attention", node[0, -1] - node[1, -1], vector))
    return [
        f"a removed {kind} edge takes off another vector than its own: {gap:.1e}"
        for kind, got, vector in wanted
        if (gap := float((got - vector).norm() / vector.norm())) > 1e-3
    ]


@dataclass(frozen=True)
class Coverage:
    """What densitometer makes of a model type.

    Args:
        outcome: "exact", "refused", "not buildable here", or what must never be: "wrong", "crash".
        detail: the layouts that were found, or why not.
    """

    kind: str
    architecture: str
    outcome: str
    detail: str


def coverage_of(kind: str) -> Coverage:
    """Build a tiny model of this type and hold it to everything."""

    def found(outcome: str, detail: str) -> Coverage:
        return Coverage(kind, model_types()[kind], outcome, " ".join(detail.split()))

    try:
        module = tiny_module(kind)
    except Exception as error:
        return found("not buildable here", f"{type(error).__name__}: {error}")
    try:
        model = dm.load_model(module)
        wrong = gaps(model)
    except dm.DensitometerError as error:
        return found("refused", str(error))
    except Exception as error:
        return found("crash", f"{type(error).__name__}: {error}")
    if wrong:
        return found("wrong", "; ".join(wrong))
    layouts = dict.fromkeys(block.layout.name for block in model.adapter.blocks)
    own = "; computes attention itself" if any(b.own_attention for b in model.adapter.blocks) else ""
    return found("exact", ", ".join(layouts) + own)

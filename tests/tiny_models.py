"""Tiny random models of every kind of layout, with pairwise different sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers

IDS = [3, 88, 41, 7, 59, 26, 11]  # 7 tokens
VOCABULARY = 101
_SHARED = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 3,
    "intermediate_size": 44,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
_FOUR = {"hidden_size": 24, "num_attention_heads": 4}
_NO_INTERMEDIATE = {k: v for k, v in _SHARED.items() if k != "intermediate_size"}

CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_SHARED, **_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_SHARED, **_GROUPED),
    "mistral-window": lambda: transformers.MistralConfig(**_SHARED, **_GROUPED, sliding_window=3),
    "neox": lambda: transformers.GPTNeoXConfig(
        **_SHARED, hidden_size=32, num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    "neox-sequential": lambda: transformers.GPTNeoXConfig(**_SHARED, **_FOUR, use_parallel_residual=False),
    "gemma2": lambda: transformers.Gemma2Config(**_SHARED, **_GROUPED, sliding_window=3),
    "olmo2": lambda: transformers.Olmo2Config(**_SHARED, **_FOUR, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "opt": lambda: transformers.OPTConfig(
        **_NO_INTERMEDIATE, **_FOUR, ffn_dim=34, word_embed_proj_dim=24, max_position_embeddings=64
    ),
    "granite": lambda: transformers.GraniteConfig(
        **_SHARED, **_FOUR, num_key_value_heads=2, residual_multiplier=0.3, attention_multiplier=0.4,
        embedding_multiplier=3.0, logits_scaling=2.0,
    ),
    "cohere": lambda: transformers.CohereConfig(**_SHARED, **_FOUR, num_key_value_heads=2),
    "phi": lambda: transformers.PhiConfig(**_SHARED, hidden_size=32, num_attention_heads=4),
    "mixtral": lambda: transformers.MixtralConfig(**_SHARED, **_FOUR, num_key_value_heads=2, num_local_experts=5),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **_SHARED, **_GROUPED, num_local_experts=5, num_experts_per_tok=2, sliding_window=3
    ),
}  # fmt: skip

PARALLEL = ("neox", "cohere", "phi")
BRANCH_NORMED = ("gemma2", "olmo2")


def make_module(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model with weights large enough that every part matters, norms and biases too."""
    torch.manual_seed(seed)
    module = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module

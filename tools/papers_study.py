"""What the papers' study takes on ten models of 7 to 14 billion parameters, from their configs alone: no weight, no network.

    python tools/papers_study.py        # the table of docs/howto/papers.md

The configs hold the sizes that each model's config.json has on the Hub. That they are right is checked by what they give: the
number of parameters must be the published one of the model's weights, to the last digit.
"""

from __future__ import annotations

import tempfile

import transformers

import densitometer as dm

LENGTH = 50  # tokens of the first 40 words of a WikiText passage, about
TEXTS = 5000
_QWEN3 = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": False}


def _sizes(hidden: int, mlp: int, layers: int, heads: int, groups: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups, "vocab_size": vocabulary,
    }  # fmt: skip


# Name, config, parameters as published.
MODELS = (
    ("Llama 3.1 8B", transformers.LlamaConfig(**_sizes(4096, 14336, 32, 32, 8, 128256)), 8_030_261_248),
    ("Mistral 7B v0.1", transformers.MistralConfig(**_sizes(4096, 14336, 32, 32, 8, 32000)), 7_241_732_096),
    ("Qwen 2.5 7B", transformers.Qwen2Config(**_sizes(3584, 18944, 28, 28, 4, 152064)), 7_615_616_512),
    ("Qwen 2.5 14B", transformers.Qwen2Config(**_sizes(5120, 13824, 48, 40, 8, 152064)), 14_770_033_664),
    ("Qwen 3 8B", transformers.Qwen3Config(**_sizes(4096, 12288, 36, 32, 8, 151936) | _QWEN3), 8_190_735_360),
    ("Qwen 3 14B", transformers.Qwen3Config(**_sizes(5120, 17408, 40, 40, 8, 151936) | _QWEN3), 14_768_307_200),
    ("OLMo 2 7B", transformers.Olmo2Config(**_sizes(4096, 11008, 32, 32, 32, 100352)), 7_298_617_344),
    ("OLMo 2 13B", transformers.Olmo2Config(**_sizes(5120, 13824, 40, 40, 40, 100352)), 13_716_198_400),
    ("Gemma 2 9B", transformers.Gemma2Config(**_sizes(3584, 14336, 42, 16, 8, 256000)), 9_241_705_984),
    ("Phi 3 medium", transformers.Phi3Config(**_sizes(5120, 17920, 40, 40, 10, 32064)), 13_960_238_080),
)  # fmt: skip


def table(length: int = LENGTH, names: tuple[str, ...] = ("l1", "fisher")) -> list[str]:
    """Markdown: for each model its edges, its landmark, and the memory that a measurement takes beside the weights."""
    lines = [
        "| model | parameters | edges | 2L/E | weights | beside them: `l1` | `l1` and `fisher` |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, config, parameters in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            plans = [dm.plan(folder, length, importance=names[:n], dtype="bfloat16") for n in (1, len(names))]
        found = plans[0]
        assert found.n_parameters == parameters, (name, found.n_parameters)
        weights = found.memory["cpu"]["weights"]
        beside = " | ".join(f"{(plan.peak_bytes - weights) / 1e9:.2f} GB" for plan in plans)
        lines.append(
            f"| {name} | {parameters / 1e9:.2f} billion | {found.n_edges:,} | {2 * found.n_layers / found.n_edges:.1e} "
            f"| {weights / 1e9:.1f} GB | {beside} |"
        )
    return lines


if __name__ == "__main__":
    print("\n".join(table()))

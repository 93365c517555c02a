"""Density against early exit and activation sparsity: do cheap measures of how much is computed rank texts alike?

Four numbers for each text's prediction, side by side:

    density       size_at(0.1) by `fisher`: the share of the edges that holds the prediction
    lens depth    logit lens: the share of the layers after which the stream, read by the output head, has the final most probable
                  token and keeps it
    drop TV       leave one layer out, all tokens: the mean total variation over layers
    near zero     the share of MLP activations smaller than 5 % of the largest of their token and layer
"""

# %% Texts, and the model as transformers has it.
import polars
import torch

import densitometer as dm

TEXTS = [
    "The president of the United",
    "The old captain looked at the sea and said that the white whale",
    "In the first half of the year the price of",
    "There was a great deal of",
    "He opened the door and saw that the room was",
    "The capital of France is a large city in the",
    "They walked along the river until the lights of the",
    "The government said on Monday that the tax will",
    "It was one of the most",
    "as well as the other members of the European",
    "She did not know whether he would come back or",
    "Two and two are four and three and three are",
]
model = dm.load_model("demo")
module, layers = model.module, model.module.model.layers


def total_variation(p: torch.Tensor, q: torch.Tensor) -> float:
    """Half the sum of |p - q|."""
    return 0.5 * float((p - q).abs().sum())


# %% Early exit: read the stream after every layer as if it were the last (the logit lens).
@torch.no_grad()
def lens_depth(ids: torch.Tensor) -> float:
    """The share of the layers after which the final token stands first, and keeps standing there."""
    streams = module(input_ids=ids, output_hidden_states=True).hidden_states[
        1:
    ]  # (layers,) of (1, T, D), the last one normed
    last = [module.model.norm(stream[0, -1]) for stream in streams[:-1]] + [streams[-1][0, -1]]
    tokens = [int(module.lm_head(vector).argmax()) for vector in last]
    others = [i for i, token in enumerate(tokens) if token != tokens[-1]]
    return (others[-1] + 2 if others else 1) / len(layers)


# %% Layer drop: the block gives back what it was given.
@torch.no_grad()
def drop_tv(ids: torch.Tensor) -> float:
    """Mean total variation, over layers, between the model without the layer and with it."""
    full = module(input_ids=ids).logits[0, -1].softmax(-1)
    found = []
    for layer in layers:
        handle = layer.register_forward_hook(
            lambda part, given, output: given[0] if torch.is_tensor(output) else (given[0], *output[1:])
        )
        found.append(total_variation(module(input_ids=ids).logits[0, -1].softmax(-1), full))
        handle.remove()
    return sum(found) / len(found)


# %% Activation sparsity: what enters the MLPs' down projections.
@torch.no_grad()
def near_zero(ids: torch.Tensor) -> float:
    """Mean share, over layers and tokens, of activations below 5 % of the largest."""
    shares: list[float] = []

    def look(part: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        size = given[0].abs()
        shares.append(float((size < 0.05 * size.amax(-1, keepdim=True)).float().mean()))

    handles = [layer.mlp.down_proj.register_forward_pre_hook(look) for layer in layers]
    module(input_ids=ids)
    for handle in handles:
        handle.remove()
    return sum(shares) / len(shares)


# %% Side by side.
rows = []
for text in TEXTS:
    measurement = dm.measure(
        model, text, importance="fisher", sizes=[0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0], baselines=[]
    )
    ids = torch.tensor([measurement.input.ids])
    rows.append(
        {
            "text": text,
            "density": measurement.density["fisher"].size_at(0.1),
            "lens depth": lens_depth(ids),
            "drop TV": drop_tv(ids),
            "near zero": near_zero(ids),
            "entropy": measurement.entropy,
        }
    )
table = polars.DataFrame(rows)
with polars.Config(tbl_rows=20, fmt_str_lengths=30, float_precision=2, tbl_width_chars=120):
    print(table)

# %% Do they rank texts alike? Spearman, over so few texts that only a large one means anything (|rho| > .59 at p = .05, n = 12).
names = ["lens depth", "drop TV", "near zero", "entropy"]
print(
    {name: round(table.select(polars.corr("density", name, method="spearman")).item(), 2) for name in names}
)

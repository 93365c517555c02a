"""Writing an importance: from an idea, through models whose answer is known, to texts beside the built-in ones."""

# %% The idea: an edge matters if it is long *and* its node's direction is one that the output head can tell from others. Here the second
# part is a guess: how long the node's normed stream is after the model's own unembedding has been applied, against its length.
import polars
import torch

import densitometer as dm


def readable(forward, seed):
    """|e|_2 |W_U n| / |n| of every edge, level by level, n its target node and W_U the unembedding."""
    unembedding = forward.model.module.lm_head.weight.float()  # (V, D)

    def norm(vectors):
        return vectors.norm(dim=-1)

    for edges in forward.levels():
        seen = norm(edges.node @ unembedding.T) / norm(edges.node).clamp_min(1e-12)  # (T,)
        yield (
            norm(edges.residual) * seen,
            None if edges.weights is None else edges.attention_sizes(norm) * seen[:, None],  # (H, T, S)
            None if edges.units is None else edges.units.sizes(norm) * seen,  # (M, T)
        )


dm.register_importance("readable", readable, local=True)

# %% First, models whose smallest trace is known: 1 is as few edges as are needed.
known = dm.calibrate(["l1", "fisher", "readable"]).pivot("importance", index="step", values="ratio")
print(known.with_columns(polars.selectors.float().round(2)))

# %% Then text. A lower size_at and a lower area mean a tighter trace; no importance may be worse than `random`.
model = dm.load_model("demo")
NAMES = ["l1", "fisher", "readable", "random"]
TEXTS = [
    "The president of the United",
    "The old captain looked at the sea",
    "In the first half of the year the price",
    "The capital of France is a large",
]
rows = []
for text in TEXTS:
    measurement = dm.measure(
        model, text, importance=NAMES, sizes=[0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0], baselines=[]
    )
    rows += [
        {"importance": n, "size_at": d.size_at(0.1), "auc_linear": d.auc_linear}
        for n, d in measurement.density.items()
    ]
medians = polars.DataFrame(rows).group_by("importance", maintain_order=True).median()
print(medians.with_columns(polars.selectors.float().round(3)))

# %% What the numbers say of the idea is for the numbers to say: if it is not below `l1`, it is not worth its name. In a study, register it
# in a module of its own and give `--plugin MODULE`.
assert torch.isfinite(torch.tensor(medians["auc_linear"].to_list())).all()

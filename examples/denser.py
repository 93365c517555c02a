"""Is my fine-tuned or quantised model denser? The same texts under each model, compared text by text.

Three models: the bundled one; the same after a few steps on legal prose; the same with its weights rounded to 4 bits. Put your own in
their place. Six texts show how it is done; a claim needs more (`examples/corpus_study.py`).
"""

# %% The models. Each is a module in memory with the tokenizer of the first.
import copy

import polars
import torch

import densitometer as dm

LAW = (
    "A party that fails to perform its duty under this contract shall be liable for the damage that the other party suffers. "
    "The court may reduce the amount where the other party did not act with due care. No claim may be brought after three years. "
)
base = dm.load_model("demo")


def fine_tuned(steps: int = 5) -> dm.Model:
    """The base model after a few steps of AdamW on one legal text."""
    module = copy.deepcopy(base.module).train()
    ids = torch.tensor([base.encode(LAW)])
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    print(f"fine-tuned to {loss.item():.2f} nats per token of the legal text")
    return dm.load_model(module.eval(), tokenizer=base.tokenizer)


def rounded(bits: int = 4) -> dm.Model:
    """Weights of the blocks rounded to 2 ** bits - 1 levels for each output row, as a quantiser of weights does."""
    module = copy.deepcopy(base.module)
    with torch.no_grad():
        for weight in module.model.layers.parameters():
            if weight.ndim == 2:
                step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
                weight.copy_((weight / step).round() * step)
    return dm.load_model(module, tokenizer=base.tokenizer)


torch.manual_seed(0)
models = {"base": base, "fine-tuned": fine_tuned(), "rounded": rounded()}

# %% A model of one's own making is checked before it is measured.
for name, model in models.items():
    assert dm.check_model(model).passed, name

# %% The same texts under each model.
TEXTS = [
    "The court may reduce the amount where the other",
    "A party that fails to perform its",
    "The old captain looked at the sea",
    "The president of the United",
    "In the first half of the year the price",
    "The capital of France is a large",
]
rows = [
    {
        "model": name,
        "text": text,
        "size_at": measurement.density["l1"].size_at(0.1),
        "entropy": measurement.entropy,
    }
    for text in TEXTS
    for name, model in models.items()
    for measurement in [
        dm.measure(model, text, importance="l1", sizes=[0.05, 0.1, 0.2, 0.4, 0.7, 1.0], baselines=[])
    ]
]
table = polars.DataFrame(rows)

# %% Differences within a text, not between groups: texts differ more than models do.
wide = table.pivot("model", index="text", values=["size_at", "entropy"])
for name in ("fine-tuned", "rounded"):
    change = wide[f"size_at_{name}"] - wide["size_at_base"]
    entropy = wide[f"entropy_{name}"] - wide["entropy_base"]
    print(
        f"{name}: needs more of the edges on {int((change > 0).sum())} of {len(TEXTS)} texts; median change of size_at(0.1) "
        f"{100 * change.median():+.1f} points (from {100 * change.min():+.1f} to {100 * change.max():+.1f}); of entropy "
        f"{entropy.median():+.2f} nats"
    )

# %% Another model makes another prediction, and density is of the prediction that is made. So look at entropy beside it: a change of
# density that goes with a change of entropy may be nothing more.
print(
    f"spread between texts, base: {100 * table.filter(polars.col('model') == 'base')['size_at'].std():.1f} points"
)

"""A first measurement: how much of the model does one prediction need, by which importance, and is the number to be trusted?

Cells for an editor that knows `# %%`; or run it as it is. Seconds on a CPU, no network.
"""

# %% Load the bundled model, and hold it to every identity that the numbers rely on.
import polars

import densitometer as dm

model = dm.load_model("demo")
report = dm.check_model(model)
assert report.passed, report.failed
print(f"{model.architecture}: {len(report.rows)} identities hold, noise floor TV {report.noise:.0e}")

# %% Measure one prediction by the papers' importance and by a tighter one.
text = "The president of the United"
measurement = dm.measure(model, text, importance=["l1", "fisher"])
print(measurement.summary())
print("the model predicts", measurement.prediction.head(3).select("token", "probability").rows())

# %% The same density in three currencies: edges, operations, parameters.
for currency in ("edges", "flops", "parameters"):
    sizes = {name: density.size_at(0.1) for name, density in measurement.density_in(currency).items()}
    print(
        f"{currency:<12}",
        "  ".join(f"{name} {100 * size:.1f} %" for name, size in sizes.items() if size is not None),
    )

# %% Is it these edges, or only their number? As many at random, and everything else.
beside = measurement.curve.filter((polars.col("size") == 0.1) & (polars.col("importance") == "fisher"))
print({kind: round(tv, 2) for kind, tv in beside.select("kind", "tv").iter_rows()})

# %% Which edges? The smallest trace that holds the prediction, by kind and by layer.
trace = measurement.minimal_trace(tv=0.1, importance="fisher")
edges = trace.graph.edges().filter(polars.Series(trace.mask))
print(edges.group_by("kind").len().sort("kind").rows())
print(edges.group_by("layer").len().sort("layer").rows())

# %% Keep it. The file holds everything but the model.
measurement.save("president.json")
assert dm.load_measurement("president.json").density == measurement.density

"""A corpus study: two models, two kinds of text, a folder that survives a kill, and a comparison with its interval."""

# %% A corpus is a file, a folder, a Hub data set, or texts in memory. Columns beyond `text` are carried along.
import numpy
import polars

import densitometer as dm

STORIES = [
    "The old captain looked at the sea and said nothing to his men for a long time",
    "She opened the letter with a knife and read it twice before the window",
    "They walked along the river until the lights of the village were behind them",
]
REPORTS = [
    "The government said on Monday that the tax on fuel will rise by two per cent next year",
    "Prices of wheat fell for the third week while the price of bread did not change at all",
    "The court decided that the company has to pay for the damage to the bridge and the road",
]
corpus = polars.DataFrame(
    {
        "id": [f"story-{i}" for i in range(3)] + [f"report-{i}" for i in range(3)],
        "text": STORIES + REPORTS,
        "domain": ["story"] * 3 + ["report"] * 3,
    }
)

# %% Measured at several places of each text. The same call again measures nothing twice; after a kill it goes on.
SETTINGS = {"window": "sliding:8:8", "importance": "l1", "sizes": [0.1, 0.3, 0.6, 1.0]}
study = dm.run_study(corpus, ["demo", "demo-parallel"], "study", **SETTINGS)
again = dm.run_study(corpus, ["demo", "demo-parallel"], "study", **SETTINGS)
assert again.measurements().equals(study.measurements())

# %% A row per text, piece, model and importance. Failed texts are rows with an error.
rows = study.measurements()
print(rows.height, "measurements,", rows["error"].is_not_null().sum(), "failed")
print(
    study.sql(
        "select model, domain, count(*) as n, round(median(size_at), 3) as median from measurements group by all order by all"
    )
)

# %% Pieces of one text are not independent: average within texts first, then draw *texts* for the interval.
per_text = rows.group_by("model", "domain", "text_id").agg(polars.col("size_at").mean())
generator = numpy.random.default_rng(0)
for (model,), own in per_text.group_by("model", maintain_order=True):
    story, report = (
        own.filter(polars.col("domain") == name)["size_at"].to_numpy() for name in ("story", "report")
    )
    draws = [
        generator.choice(story, story.size).mean() - generator.choice(report, report.size).mean()
        for _ in range(2000)
    ]
    low, high = numpy.quantile(draws, [0.025, 0.975])
    print(
        f"{model}: stories minus reports {100 * (story.mean() - report.mean()):+.1f} points of the edges (95 %: {100 * low:+.1f} to {100 * high:+.1f})"
    )

# %% Three texts of a kind: an interval that holds 0 is no finding, and one that does not is hardly one. `densitometer report study` writes
# all comparisons of a larger study as a page, with corrections for how many there are.

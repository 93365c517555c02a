"""Properties of a prediction and of its text, as columns beside the measurements: what may go with density."""

from __future__ import annotations

import polars

from .statistics import named


def with_frequencies(measurements: polars.DataFrame) -> polars.DataFrame:
    """Add how frequent the predicted and the actual next token are in the study's other texts.

    Counted in each model's own tokens: of each text, its longest piece. The text itself does not count, else each actual
    token would have been seen. log10((count + 1) / (tokens + 1)), no unit; null where there is no next token.
    """
    table = named(measurements)
    longest = (
        table.filter(polars.col("error").is_null(), polars.col("ids").is_not_null())
        .sort(polars.col("ids").list.len(), descending=True, maintain_order=True)
        .unique(["model", "text_id"], keep="first", maintain_order=True)
    )
    own = (
        longest.select("model", "text_id", id="ids")
        .explode("id")
        .group_by("model", "text_id", "id")
        .len("own")
    )
    every = own.group_by("model", "id").agg(every=polars.col("own").sum())
    sizes = own.group_by("model", "text_id").agg(size=polars.col("own").sum())
    sizes = sizes.with_columns(others=polars.col("size").sum().over("model") - polars.col("size"))
    table = table.join(
        sizes.select("model", "text_id", "others"), on=["model", "text_id"], how="left", maintain_order="left"
    )
    for column, name in (("top_id", "predicted_log_frequency"), ("next_id", "actual_log_frequency")):
        table = table.join(
            every, left_on=["model", column], right_on=["model", "id"], how="left", maintain_order="left"
        ).join(
            own, left_on=["model", "text_id", column], right_on=["model", "text_id", "id"], how="left",
            maintain_order="left",
        )  # fmt: skip
        count = polars.col("every").fill_null(0) - polars.col("own").fill_null(0)
        share = ((count + 1) / (polars.col("others") + 1)).log10()
        table = table.with_columns(polars.when(polars.col(column).is_not_null()).then(share).alias(name))
        table = table.drop("every", "own")
    return table.drop("others")

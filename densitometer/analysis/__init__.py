"""Statistics over the tables of a study.

Functions take and return data frames. No model is run.

    distribution                density per model, importance, language and domain
    correlation_across_models   whether the same texts need much of every model
    describe                    measurements with properties of prediction and prompt, which the
                                next three relate to density
    factors                     correlation of each factor with density, and regression on all
    trees                       boosted trees, tested on held-out texts, with SHAP values
    shap_differences            whether SHAP values differ between domains, languages or models
    component_shares            kinds, depths and components of the edges in traces
    resources                   how well traces predict for their share of the operations
    state_geometry              path of the last token's state as traces grow
    unigram_knowledge           correlation of small traces' predictions with unigram frequencies
    aligned_texts               comparison of languages over translations
    training                    comparison of checkpoints of one model
    with_size_between           size_at read between the two traces around it, for correlations

The statistics come from scipy, statsmodels, scikit-learn and shap
(`pip install 'densitometer[analysis]'`). Some properties also need
`pip install 'densitometer[linguistics]'`.

Rows with an `error` have no numbers and are left out; `n_failed` counts them. `size_at` is null if
no size that was evaluated holds the prediction. Such rows are left out too; `n_never` counts them.

A text may be measured in several pieces, which are not independent. If an interval or a test needs
independent units, a text is one unit: its pieces are averaged, drawn together or clustered. Each
docstring says what `n` counts. Intervals are 95 % percentile intervals from seeded bootstraps; for
correlations of many units see `statistics.correlate`. With fewer than `FEWEST` units an interval is
null.
"""

from __future__ import annotations

from .between import with_size_between
from .boosting import FEWEST_TEXTS, FOLDS, MOST_TEXTS, SHUFFLES, Differences, Trees, shap_differences, trees
from .densities import Correlation, correlation_across_models, distribution
from .effects import Factors, factors
from .geometry import Geometry, state_geometry
from .knowledge import unigram_knowledge
from .pairs import Training, aligned_texts, training
from .prompts import installed_pipelines
from .properties import FACTORS, describe, with_classes, with_frequencies, with_properties
from .statistics import FEWEST, LEVEL, RESAMPLES, VALUES, named
from .traces import STATIC, ComponentShares, component_shares, curve_quartiles, resources

__all__ = [
    "FACTORS",
    "FEWEST",
    "FEWEST_TEXTS",
    "FOLDS",
    "LEVEL",
    "MOST_TEXTS",
    "RESAMPLES",
    "SHUFFLES",
    "STATIC",
    "VALUES",
    "ComponentShares",
    "Correlation",
    "Differences",
    "Factors",
    "Geometry",
    "Training",
    "Trees",
    "aligned_texts",
    "component_shares",
    "correlation_across_models",
    "curve_quartiles",
    "describe",
    "distribution",
    "factors",
    "installed_pipelines",
    "named",
    "resources",
    "shap_differences",
    "state_geometry",
    "training",
    "trees",
    "unigram_knowledge",
    "with_classes",
    "with_frequencies",
    "with_properties",
    "with_size_between",
]

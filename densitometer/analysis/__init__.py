"""Statistics over the tables of a study: what its rows, taken together, show.

Frames come in and frames go out. Nothing is run here.

    distribution                how much is needed, per model, score, language, domain
    correlation_across_models   do the same texts need much of every model?
    describe                    measurements with properties of prediction and prompt, which the next three relate to density
    factors                     what goes with it: one factor at a time, and all at once by least squares
    trees                       the same by boosted trees, on texts that they have not seen, with SHAP values
    shap_differences            whether those differ between domains, languages or models
    component_shares            which kinds, depths and components a trace of a size holds
    resources                   what a share of the operations buys
    state_geometry              where the last token's state goes as traces grow
    unigram_knowledge           how far small traces' predictions go with unigram frequencies
    aligned_texts               the same texts in two languages
    training                    the same model over its training

The statistics are those of scipy, statsmodels, scikit-learn and shap (`pip install 'densitometer[analysis]'`); some properties
need `pip install 'densitometer[linguistics]'` too.

What counts: a row with an `error` has no numbers and is left out (`n_failed` says how many). `size_at` is null where no size
evaluated holds the prediction; such rows have no place on the scale and are left out too (`n_never` says how many). A text may be
measured in several pieces, which are not independent; where an interval or a test needs independent units, a text is one
unit (its pieces averaged, drawn together or clustered), and `n` counts what the unit is: each docstring says. Intervals are
at 95 %; bootstraps are seeded, percentile intervals (correlations of many units: `statistics.correlate`). With fewer than `FEWEST` units there is no interval: null.
"""

from __future__ import annotations

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
]

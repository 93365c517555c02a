"""Findings of a study: each question is a function from the evidence to an answer.

The answer is a finding, or the reason why the study's data gives none. To add a question, write
such a function in the file of its subject and add it to `QUESTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from ...study.store import Study
from .amounts import across_models, between_groups, how_much_is_needed
from .explanations import (
    do_domains_explain_alike,
    do_models_explain_alike,
    what_goes_with_it,
    what_trees_make_of_it,
)
from .finding import Evidence, Finding, LeftOut
from .pairs import across_languages, over_training
from .states import what_small_traces_know, where_the_state_goes
from .traces import (
    how_evenly_components_work,
    how_it_comes_back,
    what_operations_buy,
    what_traces_are_made_of,
)

__all__ = ["QUESTIONS", "Evidence", "Finding", "LeftOut", "findings"]

# The questions, in the order of the report.
QUESTIONS: tuple[Callable[[Evidence], Finding | LeftOut], ...] = (
    how_much_is_needed,
    between_groups,
    across_models,
    across_languages,
    over_training,
    how_it_comes_back,
    what_small_traces_know,
    where_the_state_goes,
    what_goes_with_it,
    what_trees_make_of_it,
    do_domains_explain_alike,
    do_models_explain_alike,
    what_traces_are_made_of,
    how_evenly_components_work,
    what_operations_buy,
)


def findings(study: Study | Evidence) -> list[Finding | LeftOut]:
    """Answer all questions from a study's tables, in the order of the report.

    Raises:
        DensitometerError: nothing in the study has been measured.
    """
    evidence = study if isinstance(study, Evidence) else Evidence(study)
    return [ask(evidence) for ask in QUESTIONS]

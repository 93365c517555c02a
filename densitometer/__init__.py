"""densitometer: how much of a language model's computation does a prediction need?

Everything public is here, and is imported when it is first used: importing the package imports neither torch nor
transformers.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import calibrate
    from .check import CheckReport, check_model
    from .comparison import Overlap, Transfer, overlap, transfer
    from .density import Density
    from .errors import DensitometerError, DensitometerWarning
    from .graph import Graph, Trace, build_graph
    from .importance import list_importances, register_importance
    from .means import ReferenceMeans, load_means, reference_means
    from .measurement import Measurement, measure
    from .metrics import list_metrics, register_metric
    from .models.layouts import Layout, register_layout
    from .models.loading import Model, load_model
    from .planning import Plan, plan
    from .positions import measure_generation, measure_positions
    from .reconstruction import reconstruct
    from .reproduction import Difference, difference, replay
    from .sinks import Sinks
    from .store import load_measurement
    from .study import run_study
    from .study_store import Study, open_study

_HOMES = {
    "CheckReport": "check",
    "Density": "density",
    "Difference": "reproduction",
    "DensitometerError": "errors",
    "DensitometerWarning": "errors",
    "Graph": "graph",
    "Layout": "models.layouts",
    "MeasureSettings": "settings",
    "Measurement": "measurement",
    "Model": "models.loading",
    "Overlap": "comparison",
    "Plan": "planning",
    "ReferenceMeans": "means",
    "Sinks": "sinks",
    "Study": "study_store",
    "Trace": "graph",
    "Transfer": "comparison",
    "build_graph": "graph",
    "calibrate": "calibration",
    "check_model": "check",
    "difference": "reproduction",
    "list_importances": "importance",
    "list_metrics": "metrics",
    "load_means": "means",
    "load_measurement": "store",
    "load_model": "models.loading",
    "measure": "measurement",
    "measure_generation": "positions",
    "measure_positions": "positions",
    "open_study": "study_store",
    "overlap": "comparison",
    "plan": "planning",
    "reconstruct": "reconstruction",
    "reference_means": "means",
    "register_importance": "importance",
    "register_layout": "models.layouts",
    "register_metric": "metrics",
    "replay": "reproduction",
    "run_study": "study",
    "transfer": "comparison",
}

__all__ = [
    "CheckReport",
    "DensitometerError",
    "DensitometerWarning",
    "Density",
    "Difference",
    "Graph",
    "Layout",
    "MeasureSettings",
    "Measurement",
    "Model",
    "Overlap",
    "Plan",
    "ReferenceMeans",
    "Sinks",
    "Study",
    "Trace",
    "Transfer",
    "build_graph",
    "calibrate",
    "check_model",
    "difference",
    "list_importances",
    "list_metrics",
    "load_means",
    "load_measurement",
    "load_model",
    "measure",
    "measure_generation",
    "measure_positions",
    "open_study",
    "overlap",
    "plan",
    "reconstruct",
    "reference_means",
    "register_importance",
    "register_layout",
    "register_metric",
    "replay",
    "run_study",
    "transfer",
]

__version__ = _version("densitometer")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'densitometer' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

"""densitometer: how much of a language model's computation does a prediction need?

Every public name is here. It is imported when it is first used, so importing the package imports
neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._util.metrics import list_metrics, register_metric
    from .errors import DensitometerError, DensitometerWarning
    from .graph.graph import Graph, Trace, build_graph
    from .graph.importance.registry import list_importances, register_importance
    from .graph.reference_means import ReferenceMeans, load_means, reference_means
    from .graph.sinks import Sinks
    from .measuring.answers import Answer, measure_answer
    from .measuring.calibration import calibrate
    from .measuring.check import CheckReport, check_model
    from .measuring.density import Density
    from .measuring.json_io import load_measurement
    from .measuring.measurement import Measurement, measure
    from .measuring.planning import Plan, plan
    from .measuring.positions import measure_generation, measure_positions
    from .measuring.reconstruct import reconstruct
    from .measuring.replay import Difference, difference, replay
    from .measuring.settings import MeasureSettings
    from .measuring.transfer import Overlap, Transfer, overlap, transfer
    from .models.layouts import Layout, register_layout
    from .models.loading import Model, load_model
    from .study.bundled_tasks import list_tasks, load_task
    from .study.prompts import Prompt
    from .study.run import run_study
    from .study.store import Study, open_study
    from .study.tasks import TaskMeasurement, measure_task

# the module that each public name is imported from
_HOMES = {
    "Answer": "measuring.answers",
    "CheckReport": "measuring.check",
    "Density": "measuring.density",
    "Difference": "measuring.replay",
    "DensitometerError": "errors",
    "DensitometerWarning": "errors",
    "Graph": "graph.graph",
    "Layout": "models.layouts",
    "MeasureSettings": "measuring.settings",
    "Measurement": "measuring.measurement",
    "Model": "models.loading",
    "Overlap": "measuring.transfer",
    "Plan": "measuring.planning",
    "Prompt": "study.prompts",
    "ReferenceMeans": "graph.reference_means",
    "Sinks": "graph.sinks",
    "Study": "study.store",
    "TaskMeasurement": "study.tasks",
    "Trace": "graph.graph",
    "Transfer": "measuring.transfer",
    "build_graph": "graph.graph",
    "calibrate": "measuring.calibration",
    "check_model": "measuring.check",
    "difference": "measuring.replay",
    "list_importances": "graph.importance.registry",
    "list_metrics": "_util.metrics",
    "list_tasks": "study.bundled_tasks",
    "load_means": "graph.reference_means",
    "load_measurement": "measuring.json_io",
    "load_model": "models.loading",
    "load_task": "study.bundled_tasks",
    "measure": "measuring.measurement",
    "measure_answer": "measuring.answers",
    "measure_generation": "measuring.positions",
    "measure_positions": "measuring.positions",
    "measure_task": "study.tasks",
    "open_study": "study.store",
    "overlap": "measuring.transfer",
    "plan": "measuring.planning",
    "reconstruct": "measuring.reconstruct",
    "reference_means": "graph.reference_means",
    "register_importance": "graph.importance.registry",
    "register_layout": "models.layouts",
    "register_metric": "_util.metrics",
    "replay": "measuring.replay",
    "run_study": "study.run",
    "transfer": "measuring.transfer",
}

__all__ = [
    "Answer",
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
    "Prompt",
    "ReferenceMeans",
    "Sinks",
    "Study",
    "TaskMeasurement",
    "Trace",
    "Transfer",
    "build_graph",
    "calibrate",
    "check_model",
    "difference",
    "list_importances",
    "list_metrics",
    "list_tasks",
    "load_means",
    "load_measurement",
    "load_model",
    "load_task",
    "measure",
    "measure_answer",
    "measure_generation",
    "measure_positions",
    "measure_task",
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

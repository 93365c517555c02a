"""The explorer in a notebook cell: a widget, a frame with the self-contained page, or a picture.

The cell's output has all three, and each program shows the first that it can:

    widget view   JupyterLab and VS Code, while the kernel runs. It sends questions to the kernel.
    text/html     what `jupyter nbconvert --to html` and nbviewer write: the frame, which has no
                  model behind it, over the picture. Where scripts do not run the frame is empty,
                  and the picture shows through. GitHub takes frames and styles out: the picture
                  and the line under it are left.
    image/png     formats without HTML, such as `jupyter nbconvert --to pdf`

The widget (anywidget) comes with the extra `notebook`. Without it the output has the other two. The
widget is also left out if `jupyter nbconvert --execute` or papermill runs the cell: there is no
kernel to answer questions later, and nbconvert would write a widget that loads scripts from the
network.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from functools import cached_property
from typing import Any

from .._util.progress import visible
from ..errors import DensitometerError
from ..measuring.measurement import Measurement
from .answers import Answers
from .page import STATIC, self_contained
from .payload import encode

# Height of the frame in pixels, and width of the picture where no style says it.
HEIGHT = 780
WIDTH = 980
# Edges that the page keeps: more would double the notebook's file, and the page draws 40,000 at
# most.
EDGES = 50_000
# Most edges that the picture draws, and the number of its colours, which keeps its file small.
PICTURE_EDGES = 4_000
COLOURS = 64
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def _of_legend(axes: Any) -> tuple[list[Any], list[str]]:
    """Return the handles and labels of a panel's legend."""
    legend = axes.get_legend()
    return legend.legend_handles, [text.get_text() for text in legend.get_texts()]


def _is_watched() -> bool:
    """Whether a user runs the cell. Programs that run notebooks do not allow input."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", True))


class Explorer:
    """Explorer of one measurement, which notebooks display."""

    def __init__(self, measurement: Measurement) -> None:
        measurement = measurement.with_graphs()
        session = measurement.session
        self._measurement = measurement
        self._answers = Answers([] if session is None else [session.model])
        self._payload = self._answers.payload(measurement, EDGES)
        self._widget: Any = None

    def widget(self) -> Any:
        """Return the widget, or None if anywidget is not installed."""
        if self._widget is None:
            try:
                import anywidget
                import traitlets
            except ImportError:
                return None

            class ExplorerWidget(anywidget.AnyWidget):
                _esm = STATIC / "explorer.js"
                payload = traitlets.Bytes().tag(sync=True)

            self._widget = ExplorerWidget(payload=encode(self._payload))
            self._widget.on_msg(self._answer)
        return self._widget

    def frame(self) -> str:
        """Return the picture, the page in an iframe over it, and a line about both."""
        page = html.escape(self_contained(self._payload, before=""), quote=True)
        picture = base64.b64encode(self.picture).decode("ascii")
        about = html.escape(visible(self._measurement.summary()), quote=True)
        return (
            f'<div style="position:relative;height:{HEIGHT}px;overflow:hidden;background:#fff">'
            f'<img alt="{about}" width="{WIDTH}" style="max-width:100%;height:auto" '
            f'src="data:image/png;base64,{picture}">'
            '<iframe title="densitometer" sandbox="allow-scripts allow-downloads" '
            f'style="position:absolute;left:0;top:0;width:100%;height:100%;border:0" srcdoc="{page}"></iframe></div>'
            "<p><small>Where scripts do not run, this is a picture: open the notebook with "
            '<a href="https://nbviewer.org/">nbviewer</a>, or write it with '
            "<code>jupyter nbconvert --to html</code>, to explore it.</small></p>"
        )

    @cached_property
    def picture(self) -> bytes:
        """The tightest trace where its prediction holds, and the curve, as PNG.

        Only the curve without a model, or where edges are too many to store.
        """
        from matplotlib.figure import Figure
        from PIL import Image

        from ..plots import plot_curve, plot_trace

        measurement = self._measurement
        session = measurement.session
        drawn = session is not None and session.first.stored
        figure = Figure(
            figsize=(12.5 if drawn else 7.2, 8.6 if drawn else 4.8), dpi=100, layout="constrained"
        )
        ratios = [8, 5] if drawn else None
        panels = figure.subplots(1, 1 + drawn, squeeze=False, width_ratios=ratios).ravel()
        if session is not None and drawn:
            name = measurement.tightest() or next(iter(measurement.density))
            size = measurement.density[name].size_at(0.1) or 0.1
            plot_trace(session.graphs[name].trace(size=size), PICTURE_EDGES, ax=panels[0])
        plot_curve(measurement, ax=panels[-1])
        # legends stand below the panels: inside them they would cover lines
        for axes in panels:
            handles, labels = _of_legend(axes)
            axes.legend(
                handles, labels, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.18)
            )
        whole, small = io.BytesIO(), io.BytesIO()
        figure.savefig(whole, format="png")
        Image.open(whole).convert("RGB").quantize(COLOURS).save(small, format="png", optimize=True)
        return small.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> Any:
        shown: dict[str, Any] = {
            "text/plain": repr(self._measurement),
            "text/html": self.frame(),
            "image/png": base64.b64encode(self.picture).decode("ascii"),
        }
        widget = self.widget() if _is_watched() else None
        if widget is None:
            return shown
        # some versions of anywidget return data alone, others with metadata
        bundle = widget._repr_mimebundle_()
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**shown, **{k: v for k, v in (data or {}).items() if k == _WIDGET_VIEW}}, metadata

    def _answer(self, widget: Any, content: Any, _: Any) -> None:
        """Answer a question from the page."""
        if not isinstance(content, dict) or "number" not in content:
            return
        try:
            reply: dict[str, Any] = {
                "answer": self._answers.ask(str(content.get("method")), content.get("parameters"))
            }
        except DensitometerError as error:
            reply = {"error": visible(str(error))}
        except Exception as error:
            reply = {"error": f"the answer could not be computed: {type(error).__name__}"}
        widget.send({"number": content["number"], **reply})

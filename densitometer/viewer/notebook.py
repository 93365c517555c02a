"""The explorer in a notebook cell: a widget, or a frame with the self-contained page.

The cell's output holds both, and the notebook shows the first that it can. The widget (anywidget,
the extra `notebook`) sends questions to the kernel. The frame has no model behind it. Without
anywidget the output is the frame alone.
"""

from __future__ import annotations

import html
from typing import Any

from .._util.progress import visible
from ..errors import DensitometerError
from ..measuring.measurement import Measurement
from .answers import Answers
from .page import STATIC, self_contained
from .payload import encode

# Height of the frame in pixels.
HEIGHT = 780
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Explorer:
    """Explorer of one measurement, which notebooks display."""

    def __init__(self, measurement: Measurement) -> None:
        measurement = measurement.with_graphs()
        session = measurement.session
        self._measurement = measurement
        self._answers = Answers([] if session is None else [session.model])
        self._payload = self._answers.payload(measurement)
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
        """Return an iframe element with the self-contained page in it."""
        page = html.escape(self_contained(self._payload), quote=True)
        return (
            '<iframe title="densitometer" sandbox="allow-scripts allow-downloads" '
            f'style="width:100%;height:{HEIGHT}px;border:0" srcdoc="{page}"></iframe>'
        )

    def _repr_mimebundle_(self, **_: Any) -> Any:
        shown = {"text/plain": repr(self._measurement), "text/html": self.frame()}
        widget = self.widget()
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

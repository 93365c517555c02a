"""Tables of results in notebooks: a class lists facts, and notebooks show them as a table."""

from __future__ import annotations

from html import escape

from .progress import visible


class Described:
    """Base of classes that a notebook shows as a table of facts."""

    def _facts(self) -> dict[str, str]:
        """Return each fact as text, by name."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(visible(name))}</th><td style="text-align:left">{escape(visible(fact))}</td></tr>'
            for name, fact in self._facts().items()
        )
        return f"<table><caption>{escape(type(self).__name__)}</caption>{rows}</table>"

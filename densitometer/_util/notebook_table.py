"""Results that show themselves in a notebook: a class lists facts, and gets a small table of them."""

from __future__ import annotations

from html import escape


class Described:
    """Something with facts worth a line each."""

    def _facts(self) -> dict[str, str]:
        """Name and value of each fact, readable."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(fact)}</td></tr>'
            for name, fact in self._facts().items()
        )
        return f"<table><caption>{escape(type(self).__name__)}</caption>{rows}</table>"

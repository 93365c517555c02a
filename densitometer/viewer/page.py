"""The explorer as one self-contained HTML file, which needs no network, server or model.

The file holds the payload and the program. The payload is in base64, so no token's text can be
parsed as HTML. The file's content security policy allows only its one script, by hash, and no
request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .._util.files import write_file
from ..errors import StorageError
from ..measuring.measurement import Measurement
from .payload import encode, traces_payload

STATIC = Path(__file__).parent / "static"
SCRIPT = "explorer.js"
STYLE = "html,body,#densitometer{height:100%;margin:0}"
# What the page shows until its program runs.
NEEDS_SCRIPTS = "This page needs JavaScript. If this line stays, scripts are off or the file is cut short."

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>densitometer</title>
<style>{style}</style>
</head>
<body>
<div id="densitometer">{before}</div>
{scripts}
</body>
</html>
"""


@cache
def script() -> str:
    """Return the built program."""
    return (STATIC / SCRIPT).read_text(encoding="utf-8")


def measurement_page(measurements: Measurement | Sequence[Measurement]) -> str:
    """Return the explorer with one measurement, or several to compare, as one HTML file's text."""
    return self_contained(traces_payload(measurements))


def save_page(page: str, path: str | Path) -> None:
    """Write a page whole or not at all.

    Raises:
        StorageError: the path cannot be written.
    """
    write_file(path, lambda file: file.write(page.encode("utf-8")))


def self_contained(payload: Mapping[str, Any], before: str = NEEDS_SCRIPTS) -> str:
    """Return one HTML file's text, with the program and the payload in it.

    Args:
        payload: the payload.
        before: text that the page shows until its program runs.
    """
    program = script()
    if "</script" in program:
        raise StorageError(
            "the built explorer contains </script and would end its own element; build it again: "
            "npm run build, in viewer/"
        )
    data = base64.b64encode(encode(payload)).decode("ascii")
    scripts = (
        f'<script type="module">{program}</script>\n'
        f'<script type="text/plain" id="densitometer-payload">{data}</script>'
    )
    return html(scripts, f"'{_hash(program)}'", connect="'none'", before=before)


def policy(scripts: str, connect: str) -> str:
    """Return the content security policy of a page.

    Args:
        scripts: sources from which scripts may run.
        connect: addresses to which requests may go.
    """
    return (
        f"default-src 'none'; script-src {scripts}; style-src '{_hash(STYLE)}'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def html(scripts: str, allowed: str, connect: str, before: str = NEEDS_SCRIPTS) -> str:
    """Return the HTML of the page.

    Args:
        scripts: script elements.
        allowed: sources from which scripts may run.
        connect: addresses to which requests may go.
        before: text that the page shows until its program runs.
    """
    return _PAGE.format(policy=policy(allowed, connect), style=STYLE, scripts=scripts, before=before)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

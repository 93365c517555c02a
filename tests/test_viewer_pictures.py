"""The explorer's main views against pictures that a person has looked at: tests/references/.

Compared at a quarter of the size, so that another font or another antialiasing of the same thing passes: of each picture, at
most DIFFERENT of the pixels may be off by more than OFF. Where a change is meant, look at what
DENSITOMETER_WRITE_REFERENCES=1 writes before it is committed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy
import pytest
from PIL import Image
from test_viewer_browser import EXPLORER, settle
from test_viewer_browser import browser as browser
from test_viewer_browser import file as file
from test_viewer_browser import measured as measured
from test_viewer_browser import open_page as open_page

pytestmark = pytest.mark.browser

REFERENCES = Path(__file__).parent / "references"
SCALE = 4
OFF = 48  # of 255, in any channel
DIFFERENT = 0.02  # another font: .004; no attention edges: .07; no panels: .03


def reduced(picture: bytes) -> Image.Image:
    whole = Image.open(io.BytesIO(picture)).convert("RGB")
    return whole.reduce(SCALE)


def share_off(one: Image.Image, other: Image.Image) -> float:
    """The share of pixels that differ by more than OFF in some channel."""
    gap = numpy.abs(numpy.asarray(one, dtype=int) - numpy.asarray(other, dtype=int)).max(axis=-1)
    return float((gap > OFF).mean())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_main_view_looks_as_it_did(open_page, file, theme):
    page = open_page(f"{file}#theme={theme}&selected=n8,6").page
    settle(page)
    seen = reduced(page.screenshot())
    path = REFERENCES / f"explorer-{theme}.png"
    if os.environ.get("DENSITOMETER_WRITE_REFERENCES") == "1":
        path.parent.mkdir(exist_ok=True)
        seen.save(path, optimize=True)
        return
    with Image.open(path) as reference:
        off = share_off(seen, reference.convert("RGB"))
    assert off <= DIFFERENT, f"{off:.1%} of the pixels of {path.name} are others"
    other = REFERENCES / f"explorer-{'dark' if theme == 'light' else 'light'}.png"
    with Image.open(other) as reference:
        assert share_off(seen, reference.convert("RGB")) > 0.5  # the comparison can tell


def test_a_canvas_of_a_new_size_is_drawn_at_once(open_page, file):
    """Else it is black until the next frame, which a program that takes pictures may never ask for."""
    page = open_page(f"{file}#theme=light").page
    settle(page)
    pixel = page.evaluate(f"""async () => {{
        const canvas = {EXPLORER}.graphs[0].canvas, before = canvas.width;
        window.requestAnimationFrame = () => 0;
        canvas.parentElement.style.width = "500px";
        while (canvas.width === before) await new Promise((done) => setTimeout(done, 10));
        return [...canvas.getContext("2d").getImageData(3, 3, 1, 1).data];
    }}""")
    assert pixel == [255, 255, 255, 255]

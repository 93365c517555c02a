"""The documentation's search: it works where pages are opened as files, and answers come first. A hook of mkdocs (mkdocs.yml).

A browser refuses a page that was opened as a file two things that the theme's search does: to fetch the index, and to start a
worker from a file. Under `file:` the theme reads the index from a script instead, which the hook writes. The worker is then
started from its text, which stands in a second script that comes before the theme's own. Nothing is asked for elsewhere, as the
theme's plugin `offline` would.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCRIPT = "search/worker_from_text.js"
_TEXT = """\
if (location.protocol === "file:") {
  const text = %s;
  const address = URL.createObjectURL(new Blob([text], {type: "text/javascript"}));
  window.Worker = class extends Worker {
    constructor() {
      super(address);
    }
  };
}
"""

# By how much a page's place among the results is raised: one that answers a question over one that mentions its words.
_BOOSTS = {
    "howto/": 3.0,
    "tutorial": 2.0,
    "errors/": 0.7,
    "findings": 0.5,
    "reference/": 0.5,
    "scale": 0.5,
    "changelog": 0.1,
}


def on_config(config: Any) -> None:
    config.extra.setdefault("polyfills", []).append(SCRIPT)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    for start, boost in _BOOSTS.items():
        if page.file.src_uri.startswith(start):
            page.meta["search"] = {"boost": boost}


def on_post_build(config: Any) -> None:
    site = Path(config.site_dir)
    index = (site / "search/search_index.json").read_text("utf-8")
    (site / "search/search_index.js").write_text(f"var __index = {index}", "utf-8")
    (worker,) = (site / "assets/javascripts/workers").glob("search.*.min.js")
    (site / SCRIPT).write_text(_TEXT % json.dumps(worker.read_text("utf-8")), "utf-8")

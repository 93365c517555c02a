"""The built documentation, opened as files: its search finds pages, and asks for nothing elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_viewer_browser import browser  # noqa: F401  (a fixture)

SITE = Path(__file__).parents[1] / "site"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.docs,
    pytest.mark.skipif(
        not (SITE / "search/search_index.json").is_file(), reason="`make docs` builds the site"
    ),
]


def test_search_works_from_files_and_answers_come_first(browser):  # noqa: F811
    page = browser.new_page()
    page.set_default_timeout(60_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((SITE / "howto/large.html").as_uri())
    for words, name in (
        ("GGUF", "own-model.html"),
        ("attention sink", "sinks.html"),
        ("export", "export.html"),
    ):
        box = page.get_by_role("textbox", name="Search")
        box.fill("")
        box.press_sequentially(words)
        first = page.locator(".md-search-result__item").first.get_by_role("link").first
        first.and_(page.locator(f"[href*='howto/{name}']")).wait_for()
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
    page.close()

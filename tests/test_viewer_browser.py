"""The explorer in a real browser: Debian's Chromium, driven by Playwright, against the real command and real files.

Without a browser these tests are skipped with the reason; `.ci/run` sets DENSITOMETER_REQUIRE_BROWSER, and then they fail.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy
import polars as pl
import pytest
import torch
from command import SERVER, command_in
from test_viewer import HOSTILE, hostile, unpack

import densitometer as dm
from densitometer.viewer.page import measurement_page, self_contained
from densitometer.viewer.payload import EDGE_BUDGET, array, encode, tokens_payload, traces_payload

pytestmark = pytest.mark.browser

COMMAND = str(Path(sys.executable).with_name("densitometer"))
TEXT = "The whale swam under the ship and"
OTHER = "The sailor slept under the ship and"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# a sandbox cannot be had as root; the rest keeps the browser from asking its maker for anything
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
EXPLORER = "document.querySelector('#densitometer').shadowRoot.querySelector('.explorer').explorer"
READY = """() => document.querySelector('#densitometer')?.shadowRoot?.querySelector('.explorer')?.explorer.graphs[0]?.frames > 0"""


@pytest.fixture(scope="module")
def browser():
    required = os.environ.get("DENSITOMETER_REQUIRE_BROWSER") == "1"
    if CHROMIUM is None:
        if required:
            pytest.fail("DENSITOMETER_REQUIRE_BROWSER is set, and there is no Chromium on this machine")
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Watched:
    """A page, with what it logged, raised and asked for."""

    def __init__(self, context, allowed: str) -> None:
        self.page = context.new_page()
        self.errors: list[str] = []
        self.refused = 0  # answers that the test asked for and the server refused; the browser logs each
        self.elsewhere: list[str] = []
        self.page.on(
            "console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("dialog", lambda d: self.errors.append(f"dialog {d.message}"))
        self.page.on(
            "request",
            lambda r: (
                self.elsewhere.append(r.url) if not r.url.startswith((allowed, "data:", "blob:")) else None
            ),
        )
        self.page.set_default_timeout(60_000)

    def check(self) -> None:
        logged = [e for e in self.errors if "Failed to load resource" in e]
        assert len(logged) == self.refused, self.errors
        assert [e for e in self.errors if e not in logged] == []
        assert self.elsewhere == []


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Watched]]:
    context = browser.new_context(
        viewport={"width": 1300, "height": 900}, accept_downloads=True, reduced_motion="reduce"
    )
    context.grant_permissions([])
    opened: list[Watched] = []

    def open_(address: str, ready: str | None = READY, offline: bool = False) -> Watched:
        allowed = (
            address.split("#")[0]
            if address.startswith("file:")
            else re.match(r"http://[^/]+/[^/]+/", address)[0]
        )
        watched = Watched(context, allowed)
        opened.append(watched)
        context.set_offline(offline)
        watched.page.goto(address)
        if ready:
            watched.page.wait_for_function(ready)
        return watched

    yield open_
    for watched in opened:
        watched.check()
    context.close()


@contextlib.contextmanager
def explore(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it prints."""
    process = subprocess.Popen(
        [COMMAND, "explore", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        address = None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+/\S+/", line):
                address = found[0]
                break
        assert address, process.stderr.read()
        yield process, address
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@contextlib.contextmanager
def explore_forked(folder: Path, *arguments: str) -> Iterator[tuple[BaseProcess, str]]:
    """The same in a fork of `SERVER`, which has imported everything already."""
    process = SERVER.Process(target=command_in, args=(folder, ["explore", *arguments]))
    process.start()
    try:
        found = None
        while found is None and process.is_alive():
            process.join(0.05)
            printed = (folder / "out").read_text() if (folder / "out").exists() else ""
            found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", printed)
        assert found, (folder / "err").read_text()
        yield process, found[0]
    finally:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
        process.join(30)
        assert process.exitcode is not None


@pytest.fixture(scope="module")
def server():
    with explore(TEXT, "--importance", "l1,l2") as (process, address):
        yield address
        assert process.poll() is None


@pytest.fixture(scope="module")
def measured(demo):
    return dm.measure(demo, TEXT, importance=["l1", "l2"], keep_graphs=True)


@pytest.fixture(scope="module")
def file(measured, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "trace.html"
    path.write_text(measurement_page(measured), encoding="utf-8")
    return f"file://{path}"


def state(page, expression: str):
    return page.evaluate(f"() => {{ const e = {EXPLORER}; return {expression}; }}")


def settle(page) -> None:
    """What was asked for has been drawn, whole."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function(f"() => {EXPLORER}.graphs.every((g) => g.atRest)")


def at_node(page, row: int, token: int, graph: int = 0) -> tuple[float, float]:
    box = page.locator("canvas[role=application]").nth(graph).bounding_box()
    x, y = state(page, f"e.graphs[{graph}].at({row}, {token})")
    return box["x"] + x, box["y"] + y


# --- size, curve, tokens ------------------------------------------------------------------------------


def test_slanted_names_of_tokens_are_whole(open_page, measured, tmp_path):
    tokens = tuple(" Mediterranean" for _ in measured.input.tokens)
    path = tmp_path / "long.html"
    path.write_text(measurement_page(replace(measured, input=replace(measured.input, tokens=tokens))))
    page = open_page(path.as_uri()).page
    below = page.evaluate(f"""() => {{
        const graph = {EXPLORER}.graphs[0];
        graph.scene.resize(300, 380, new Set());
        const holder = document.body.appendChild(document.createElement('div'));
        holder.innerHTML = graph.toSvg();
        const end = holder.firstElementChild.getBoundingClientRect().bottom;
        const slanted = [...holder.querySelectorAll('text')].filter((t) => t.getAttribute('transform').includes('rotate'));
        return slanted.map((t) => t.getBoundingClientRect().bottom - end);
    }}""")
    assert len(below) > 3
    assert max(below) <= 0


def test_the_slider_grows_the_trace_and_the_prediction_comes_back(open_page, file, measured):
    page = open_page(file).page
    slider = page.get_by_role("slider", name="Size of the trace")
    slider.focus()
    page.keyboard.press("Home")
    settle(page)
    assert state(page, "e.state.n") == 1
    assert state(page, "e.graphs[0].drawnEdges") == 1
    page.keyboard.press("End")
    settle(page)
    total = measured.graph["n_edges"]
    assert state(page, "[e.state.n, e.graphs[0].drawnEdges]") == [total, total]
    assert "100 % of the edges" in slider.get_attribute("aria-valuetext")
    assert page.locator("dl.facts dd").first.inner_text() == "0.0000"
    seen = []
    for _ in range(6):
        page.keyboard.press("PageDown")
        settle(page)
        n, drawn = state(page, "[e.state.n, e.graphs[0].drawnEdges]")
        assert n == drawn
        seen.append(n)
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 6
    # with the pointer: a third of the way
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    settle(page)
    assert state(page, "e.state.n") == pytest.approx(total ** (1 / 3), rel=0.4)
    assert state(page, "e.state.n === e.graphs[0].drawnEdges")


def test_it_opens_on_the_tightest_importance_where_its_prediction_holds(open_page, demo, tmp_path):
    both = dm.measure(demo, TEXT, importance=["l1", "fisher"], baselines=(), keep_graphs=True)
    at = {name: both.density[name].size_at(0.1) for name in ("l1", "fisher")}
    assert at["fisher"] < at["l1"]  # else this shows nothing
    (tmp_path / "both.html").write_text(measurement_page(both), encoding="utf-8")
    page = open_page(f"file://{tmp_path}/both.html").page
    assert state(page, "e.state.importance") == "fisher" == both.tightest()
    assert state(page, "e.state.n") == pytest.approx(at["fisher"] * both.graph["n_edges"], abs=1)
    assert state(page, "e.reading().tv") <= 0.1
    page.get_by_label("Importance that chooses").select_option("l1")
    settle(page)
    assert state(page, "e.state.importance") == "l1"


def test_a_measured_size_shows_what_was_measured(open_page, file, measured):
    page = open_page(file).page
    row = measured.curve.filter(measured.curve["kind"] == "trace").row(18, named=True)
    assert row["importance"] == "l1"
    page.evaluate(f"() => {EXPLORER}.setSize({row['n_edges']})")
    settle(page)
    values = page.locator("section[aria-label='What the trace gives and costs'] dd").all_inner_texts()
    assert values[0] == f"{row['tv']:.4f}"
    assert values[1] == f"{row['kl']:.3f} nats"
    assert values[2] == f"{row['entropy']:.2f} nats"
    assert values[5].startswith(f"{100 * row['flops_share']:.3g}"[:3])
    graph = measured.session.graphs["l1"]
    logits = dm.reconstruct(graph.model, graph, [graph.trace(n_edges=row["n_edges"])])[0]
    top = logits.softmax(-1).max()
    shown = page.locator("section[aria-label=Prediction] td.trace").all_inner_texts()
    assert f"{float(top):.3f}" in shown
    page.evaluate(f"() => {EXPLORER}.setSize({EXPLORER}.view.grid[60])")
    settle(page)
    assert (
        page.locator("section[aria-label='What the trace gives and costs'] dd")
        .first.inner_text()
        .startswith("≈")
    )


def test_the_next_tokens_stand_in_the_models_order(open_page, file, measured):
    page = open_page(f"{file}#n=40").page
    names = page.locator("section[aria-label=Prediction] th.token")
    first = names.all_inner_texts()
    bare = [re.sub("[\u2068\u2069]", "", name).replace("\u2423", " ") for name in first]
    assert bare[:8] == measured.prediction["token"].to_list()[:8]
    assert page.get_by_text("in the model's order").is_visible()
    page.evaluate(f"() => {EXPLORER}.setSize({measured.graph['n_edges']})")
    settle(page)
    assert names.all_inner_texts()[:8] == first[:8]  # rows do not jump while the size moves


def test_the_server_measures_the_size_at_which_the_slider_rests(open_page, server, measured):
    page = open_page(server).page
    page.evaluate(f"() => {EXPLORER}.setSize({EXPLORER}.view.grid[61])")
    n = state(page, "e.state.n")
    assert n not in measured.curve["n_edges"].to_list()
    first = page.locator("section[aria-label='What the trace gives and costs'] dd").first
    page.wait_for_function(f"() => {EXPLORER}.reading().exact")
    settle(page)
    graph = measured.session.graphs["l1"]
    logits = dm.reconstruct(graph.model, graph, [graph.trace(n_edges=n)])[0]
    full = graph.model.adapter.logits(graph.forward.ids)
    assert first.inner_text() == f"{0.5 * float((logits.softmax(-1) - full.softmax(-1)).abs().sum()):.4f}"


def test_what_does_not_follow_the_size_live_follows_when_it_rests(open_page, file):
    page = open_page(file).page
    moved = page.evaluate(
        f"""async () => {{
          const e = {EXPLORER}, root = e.element;
          const parts = () => [...root.querySelectorAll('section[aria-label=Prediction] table, .curve path, .matrix, #by')];
          const before = parts();
          let changes = 0;
          const watch = new MutationObserver((records) => (changes += records.length));
          watch.observe(root.querySelector("section[aria-label='What is drawn']"), {{ childList: true, subtree: true }});
          for (let i = 20; i < 60; i++) {{
            e.setSize(e.view.grid[i]);
            await new Promise(requestAnimationFrame);
          }}
          return {{ changes, same: before.length > 5 && parts().every((p, i) => p === before[i]) }};
        }}"""
    )
    assert moved["same"]  # changed in place, not made anew
    assert moved["changes"] < 10  # not at each of the 40 steps
    settle(page)
    shown = page.locator(".explorer").inner_text()
    cells = "(all) => all.map((c) => c.getAttribute('aria-label') + c.style.cssText)"
    squares = page.get_by_role("gridcell").evaluate_all(cells)
    assert state(page, "e.view.grid.indexOf(e.state.n)") == 59
    page.wait_for_function(f"() => location.hash.includes(`n=${{{EXPLORER}.state.n}}`)")
    page.reload()
    page.wait_for_function(READY)
    settle(page)
    assert page.locator(".explorer").inner_text() == shown  # as built from nothing, at this size
    assert page.get_by_role("gridcell").evaluate_all(cells) == squares


def test_a_page_that_is_drawn_as_soon_as_it_is_opened_is_drawn_whole(browser, file):
    page = browser.new_page()
    page.add_init_script("performance.now = () => 50")  # the time since the page was opened
    page.goto(file)
    page.wait_for_function(READY)
    assert state(page, "e.graphs.every((g) => g.atRest)")
    page.close()


# --- the whole graph, zoom, bands ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(measured, tmp_path_factory):
    """A page of thirty layers and thirteen tokens."""
    path = tmp_path_factory.mktemp("pages") / "deep.html"
    path.write_text(self_contained(large(13, 30, measured)), encoding="utf-8")
    return f"file://{path}"


@pytest.mark.parametrize("size", [(1400, 900), (1024, 768), (800, 600), (390, 844)])
def test_the_whole_graph_is_in_sight_at_opening(open_page, deep, size):
    watched = open_page(deep)
    page = watched.page
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.reload()
    page.wait_for_function(READY)
    settle(page)
    corners = state(
        page,
        "[[0, 0], [0, 12], [60, 0], [60, 12]].map(([row, token]) => e.graphs[0].at(row, token))",
    )
    box = page.locator("canvas[role=application]").bounding_box()
    assert box["width"] <= size[0]
    assert all(30 < x < box["width"] and 0 < y < box["height"] - 40 for x, y in corners), corners
    (left, bottom), _, _, (right, top) = corners
    assert right - left > 0.7 * (box["width"] - 110)  # and it fills the panel
    assert bottom - top > 0.9 * (box["height"] - 110)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]


def test_wheel_drag_fingers_keys_and_buttons_zoom(open_page, deep):
    page = open_page(deep).page
    settle(page)
    zoom = "e.state.zoom?.[0] ?? 1"
    small_map = page.get_by_title("The whole graph; click to go there")
    assert not small_map.is_visible()
    x, y = at_node(page, 30, 9)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -500)
    page.wait_for_function(f"() => ({EXPLORER}.state.zoom?.[0] ?? 1) > 1")
    settle(page)
    assert state(page, zoom) == pytest.approx(2)  # a doubling in 500 px
    assert at_node(page, 30, 9) == pytest.approx((x, y), abs=1)  # what is under the pointer stays there
    assert small_map.is_visible()
    page.mouse.down()
    page.mouse.move(x - 70, y + 40, steps=3)
    page.mouse.up()
    settle(page)
    assert at_node(page, 30, 9) == pytest.approx((x - 70, y + 40), abs=5)
    assert state(page, "e.state.selected") is None  # a drag is not a click
    page.get_by_role("button", name="everything").focus()  # the focus may be anywhere
    for key, grows in (("+", True), ("-", False)):
        before = state(page, zoom)
        page.keyboard.press(key)
        assert (state(page, zoom) > before) == grows
    page.keyboard.press("f")
    assert state(page, zoom) == 1
    page.get_by_role("button", name="Zoom in").click()
    assert state(page, zoom) == pytest.approx(1.3)
    page.get_by_role("button", name="Whole graph").click()
    settle(page)
    assert state(page, zoom) == 1
    assert not small_map.is_visible()
    heads = page.get_by_label("Heads that are drawn")
    heads.fill("")
    heads.press("+")
    assert state(page, zoom) == 1  # where one types, keys are text
    session = page.context.new_cdp_session(page)
    fingers = [{"x": x - 20, "y": y, "id": 0}, {"x": x + 20, "y": y, "id": 1}]
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": fingers})
    for apart in (30, 40, 50, 60):
        fingers = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": fingers})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    settle(page)
    assert state(page, zoom) == pytest.approx(3, rel=0.25)


def test_many_layers_are_folded_into_bands_that_open(open_page, deep, measured):
    page = open_page(f"{deep}#n=3000&colour=kind").page
    settle(page)
    n = state(page, "e.state.n")  # the nearest at which the slider stops
    bands = state(page, "e.graphs[0].scene.bands.map((b) => [b.layers, b.open])")
    assert [layer for layers, _ in bands for layer in layers] == list(range(30))
    assert 4 < len(bands) < 16
    assert not any(is_open for _, is_open in bands)
    edges = large(13, 30, measured)["views"][0]["edges"]
    rank = unpack(edges["orders"][state(page, "e.state.importance")]["rank"])
    level, kind, source, target = (
        unpack(edges[name])[rank < n] for name in ("level", "kind", "source", "target")
    )
    each = len(bands[0][0])
    group = numpy.where(kind == 1, 2, numpy.where(kind == 3, 1, 0))  # attention, MLP, residual
    lines = set(zip(level // 2 // each, group, source, target, strict=True))
    assert state(page, "[e.graphs[0].drawnEdges, e.graphs[0].scene.lineCount]") == [n, len(lines)]
    box = page.locator("canvas[role=application]").bounding_box()
    middle = state(page, f"(e.graphs[0].at(0, 0)[1] + e.graphs[0].at({2 * each}, 0)[1]) / 2")
    page.mouse.click(box["x"] + 20, box["y"] + middle)
    settle(page)
    assert state(page, "[...e.state.unfolded]") == list(range(each))
    opened = state(page, "e.graphs[0].scene.lineCount")
    assert opened > len(lines)
    tops = [state(page, f"e.graphs[0].at({row}, 0)[1]") for row in range(2 * each + 1)]
    assert min(numpy.diff(tops[::-1])) > 8
    page.keyboard.press("0")
    settle(page)
    assert state(page, "[e.state.unfolded.size, e.graphs[0].scene.lineCount]") == [0, len(lines)]
    page.get_by_role("button", name="Open all layers").click()
    settle(page)
    assert state(page, "[e.graphs[0].drawnEdges, e.graphs[0].scene.lineCount]") == [n, n]
    page.get_by_role("button", name="Fold layers").click()
    settle(page)
    page.locator("canvas[role=application]").focus()
    page.keyboard.press("o")  # the band at the cursor, the last
    settle(page)
    assert state(page, "[...e.state.unfolded]") == bands[-1][0]


def test_colours_stand_for_what_is_asked_and_the_legend_says_so(open_page, file, tmp_path):
    page = open_page(f"{file}#theme=light").page
    page.evaluate(f"() => {EXPLORER}.setSize({EXPLORER}.view.graph.n_edges)")
    seen = {}
    for name in ("head", "kind", "source", "importance"):
        page.get_by_label("What the colours stand for").select_option(name)
        settle(page)
        with page.expect_download() as download:
            page.evaluate(f"() => {EXPLORER}.export('svg')")
        root = xml.etree.ElementTree.parse(download.value.path()).getroot()
        paths = root.iter("{http://www.w3.org/2000/svg}path")
        seen[name] = {p.get("stroke").lower() for p in paths}
        if name == "importance":
            continue
        marks = page.locator(".scale .swatch").evaluate_all(
            "(all) => all.map((s) => [s.textContent, getComputedStyle(s.querySelector('i')).backgroundColor.match(/\\d+/g).map((v) => Number(v).toString(16).padStart(2, '0')).join('')])"
        )
        assert seen[name] == {f"#{colour}" for _, colour in marks}  # every colour drawn, and no other
        names = [text for text, _ in marks]
        assert names[-2:] == ["MLP", "residual"]
        wanted = {"head": [str(h) for h in range(8)], "kind": ["attention"]}
        if name in wanted:
            assert names[:-2] == wanted[name]
    assert 4 <= len(seen["importance"]) <= 8
    assert page.locator(".scale").inner_text().split() == ["least", "most"]
    page.wait_for_function("() => location.hash.includes('colour=importance')")


# --- hover, click, details ----------------------------------------------------------------------------


def test_hovering_an_edge_tells_its_head_and_every_importance(open_page, file, measured):
    page = open_page(file).page
    page.evaluate(f"() => {EXPLORER}.setSize({EXPLORER}.view.grid.at(-1))")
    settle(page)
    graph = measured.session.graphs["l1"]
    table = graph.edges()
    x, y = at_node(page, 2, 6)
    x2, y2 = at_node(page, 3, 6)
    page.mouse.move((x + x2) / 2, (y + y2) / 2)
    tip = page.get_by_role("tooltip")
    tip.wait_for()
    assert "residual stream of" in tip.inner_text()
    row = table.filter(
        (table["layer"] == 1) & (table["kind"] == "residual_attention") & (table["target"] == 6)
    ).row(0, named=True)
    assert f"l1: importance {row['importance']:.3}"[:20] in tip.inner_text()
    assert "l2: importance" in tip.inner_text()
    page.mouse.move(*at_node(page, 4, 3))
    page.wait_for_function(
        "() => document.querySelector('#densitometer').shadowRoot.querySelector('.tip').textContent.includes('Token 3')"
    )


def test_a_click_on_an_edge_shows_what_it_is_and_what_it_writes(open_page, file, measured):
    page = open_page(file).page
    graph = measured.session.graphs["l1"]
    table = graph.edges()
    page.evaluate(f"() => {EXPLORER}.setSize({graph.n_edges})")
    settle(page)
    edge = table.filter((table["kind"] == "mlp") & (table["layer"] == 2) & (table["target"] == 4)).row(
        0, named=True
    )
    x, y = at_node(page, 5, 4)
    _, y2 = at_node(page, 6, 4)
    bulge = state(page, "Math.min(16, 0.3 * e.graphs[0].scene.columnWidth)")
    page.mouse.click(x + 0.75 * bulge, (y + y2) / 2)
    panel = page.get_by_role("region", name="Selection")
    panel.get_by_text("What it writes").wait_for()
    assert state(page, "e.state.selected") == f"e{edge['edge']}"
    text = panel.inner_text()
    assert "Layer 2, MLP at" in text
    assert f"{edge['importance']:.3}"[:4] in text
    place = int(
        numpy.flatnonzero(
            graph.space.columns(graph.order)["level"].size and graph.order == graph.index[edge["edge"]]
        )[0]
    )
    assert f"{place + 1:,}." in text
    for part in ("promotes", "demotes", "l2"):
        assert part in text


def test_a_click_on_a_node_reads_its_stream_and_lists_its_edges(open_page, file, measured):
    from densitometer.viewer.reading import Node, Reader

    page = open_page(file).page
    page.evaluate(f"() => {EXPLORER}.setSize({measured.graph['n_edges']})")
    settle(page)
    page.mouse.click(*at_node(page, 12, 7))
    panel = page.get_by_role("region", name="Selection")
    panel.get_by_text("Logit lens").wait_for()
    _, probabilities = Reader(measured).nodes([Node(12, 7)])
    assert panel.locator("td.model").all_inner_texts() == [f"{p:.3f}" for p in probabilities[0]]
    assert "Edges in, 2" in panel.inner_text()  # its MLP and its residual
    panel.get_by_role("button", name="MLP at").first.click()
    panel.get_by_text("What it writes").wait_for()


@pytest.mark.parametrize("size", [(1400, 900), (800, 600), (390, 844)])
def test_details_appear_beside_what_was_clicked(open_page, file, measured, size):
    page = open_page(f"{file}#by=l1&n={measured.graph['n_edges']}").page
    page.set_viewport_size({"width": size[0], "height": size[1]})
    card = page.get_by_role("region", name="Selection")
    assert not card.is_visible()
    for token in (1, 7):
        settle(page)
        x, y = at_node(page, 4, token)
        page.mouse.click(x, y)
        card.get_by_text("Logit lens").wait_for()
        box = card.bounding_box()
        x, y = at_node(page, 4, token)  # a narrow page scrolls so that it is not covered
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= size[1]  # in sight, whatever the page is scrolled to
        assert not (box["x"] < x < box["x"] + box["width"] and box["y"] < y < box["y"] + box["height"])
        if size[0] > 700:
            gap = max(box["x"] - x, x - box["x"] - box["width"])
            assert 0 < gap < 60
        page.keyboard.press("Escape")
        card.wait_for(state="hidden")
    page.get_by_role("gridcell", name="Layer 3, head 5").click()
    card.get_by_text("first used").wait_for()
    card.get_by_role("button", name="Close").click()
    assert state(page, "e.state.selected") is None
    if size[0] > 700:  # also where the page opens with something selected
        page = open_page(f"{file}#by=l1&selected=n8,6").page
        settle(page)
        x, _ = at_node(page, 8, 6)
        box = page.get_by_role("region", name="Selection").bounding_box()
        assert 0 < max(box["x"] - x, x - box["x"] - box["width"]) < 60


def test_a_heads_whole_use_is_counted(open_page, file, measured):
    page = open_page(file).page
    n = state(page, "e.state.n")
    page.get_by_role("gridcell", name="Layer 3, head 5").click()
    panel = page.get_by_role("region", name="Selection")
    panel.get_by_text("first used").wait_for()
    graph = measured.session.graphs["l1"]
    table = graph.edges()
    own = ((table["layer"] == 3) & (table["kind"] == "attention") & (table["head"] == 5)).to_numpy()
    on = int((graph.trace(n_edges=n).mask & own).sum())
    assert panel.locator("dd").first.inner_text() == f"{on} of {int(own.sum())}"
    panel.get_by_role("button", name="Draw this head only").click()
    settle(page)
    assert state(page, "e.graphs[0].drawnEdges") == on + int(
        (
            graph.trace(n_edges=n).mask
            & (table["layer"] == 3).to_numpy()
            & (table["kind"] != "attention").to_numpy()
        ).sum()
    )


def test_a_click_on_a_head_lights_its_edges(open_page, file, measured):
    page = open_page(f"{file}#by=l1&theme=light").page
    n = state(page, "e.state.n")
    graph = measured.session.graphs["l1"]
    table = graph.edges().with_columns(on=graph.trace(n_edges=n).mask)
    parts = table.filter(table["on"] & table["kind"].is_in(["attention", "mlp"]))
    shares = parts.group_by("layer", "kind", "head").agg(share=pl.col("importance").sum())
    largest = shares.sort("share", descending=True).row(0, named=True)
    name = f"layer {largest['layer']} " + ("MLP" if largest["head"] is None else f"head {largest['head']}")
    panel = page.get_by_role("region", name="Heads and MLPs")
    assert panel.locator(".most button").first.inner_text() == name
    share = 100 * largest["share"] / shares["share"].sum()
    assert f"{name} {share:.2g}"[: len(name) + 3] in panel.locator(".most").inner_text()
    page.get_by_role("gridcell", name="Layer 3, head 5").click()
    settle(page)
    with page.expect_download() as download:
        page.evaluate(f"() => {EXPLORER}.export('svg')")
    paths = list(
        xml.etree.ElementTree.parse(download.value.path()).getroot().iter("{http://www.w3.org/2000/svg}path")
    )
    accent = state(page, "e.palette.accent")
    lit = [p for p in paths if p.get("stroke") == accent]
    own = table.filter(
        table["on"] & (table["layer"] == 3) & (table["kind"] == "attention") & (table["head"] == 5)
    )
    assert own.height > 0
    assert sum(p.get("d").count("M") for p in lit) == own.height
    assert (
        max(float(p.get("stroke-opacity") or p.get("opacity")) for p in paths if p not in lit) < 0.3
    )  # the rest stands back


def test_kinds_layers_and_heads_are_filtered(open_page, file, measured):
    page = open_page(file).page
    graph = measured.session.graphs["l1"]
    table = graph.edges()
    page.evaluate(f"() => {EXPLORER}.setSize({graph.n_edges})")
    page.get_by_label("residual, past attention").uncheck()
    page.get_by_label("residual, past the MLP").uncheck()
    page.get_by_label("First layer drawn").fill("2")
    page.get_by_label("First layer drawn").press("Enter")
    page.get_by_label("Heads that are drawn").fill("1, 4")
    page.get_by_label("Heads that are drawn").press("Enter")
    settle(page)
    wanted = table.filter((table["layer"] >= 2) & ((table["kind"] == "mlp") | table["head"].is_in([1, 4])))
    assert state(page, "e.graphs[0].drawnEdges") == wanted.height
    page.get_by_role("button", name="Draw everything").click()
    settle(page)
    assert state(page, "e.graphs[0].drawnEdges") == graph.n_edges


def test_sinks_are_named_and_what_serves_them_can_be_left_out(open_page, measured, tmp_path):
    sinks = pl.DataFrame({"token": [0], "text": ["The"], "heads": [0.6], "attention": [0.5]})
    with_sink = replace(measured, sinks=replace(measured.sinks, tokens=sinks))
    (tmp_path / "sink.html").write_text(measurement_page(with_sink), encoding="utf-8")
    page = open_page(f"file://{tmp_path}/sink.html#by=l1").page
    n = state(page, "e.state.n")
    graph = measured.session.graphs["l1"]
    on = graph.edges().filter(graph.trace(n_edges=n).mask)
    serving = on.filter((on["source"] == 0) | (on["target"] == 0)).height
    assert 0 < serving < n
    costs = page.get_by_role("region", name="What the trace gives and costs").inner_text()
    assert re.search(r"of these, serve sinks\s+(\S+) %", costs)[1] == f"{100 * serving / n:.3g}"
    with page.expect_download() as download:
        page.evaluate(f"() => {EXPLORER}.export('svg')")
    texts = [
        e.text
        for e in xml.etree.ElementTree.parse(download.value.path()).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "0 · sink" in texts
    page.get_by_label("edges that serve sinks").uncheck()
    settle(page)
    assert state(page, "e.graphs[0].drawnEdges") == n - serving
    assert "Drawn: no edges that serve sinks." in page.locator(".sentence").inner_text()
    page.wait_for_function("() => location.hash.includes('without=sinks')")


# --- pin, hide, run again -----------------------------------------------------------------------------


def without(graph, n: int, off, on=()) -> float:
    """Total variation of the first n edges without some and with others, by the library."""
    mask = graph.trace(n_edges=n).mask.copy()
    mask[off] = False
    mask[list(on)] = True
    flat = numpy.zeros(graph.space.size, dtype=bool)
    flat[graph.index[mask]] = True
    logits = dm.reconstruct(graph.model, graph, [dm.Trace(graph, flat)])[0]
    full = graph.model.adapter.logits(graph.forward.ids)
    return 0.5 * float((logits.softmax(-1) - full.softmax(-1)).abs().sum())


def test_hidden_edges_are_taken_out_and_the_model_is_run_without_them(open_page, server, measured):
    page = open_page(f"{server}#by=l1").page
    graph = measured.session.graphs["l1"]
    n = state(page, "e.state.n")
    mask = graph.trace(n_edges=n).mask
    hidden = int(numpy.flatnonzero(mask & (graph.edges()["kind"] == "attention").to_numpy())[3])
    pinned = int(numpy.flatnonzero(~mask)[7])
    for edge, button in ((hidden, "Hide"), (pinned, "Pin")):
        page.evaluate(f"() => {EXPLORER}.dispatch({{type: 'select', selected: 'e{edge}'}})")
        page.get_by_role("region", name="Selection").get_by_role("button", name=button, exact=True).click()
    page.wait_for_function(f"() => {EXPLORER}.state.pinned.size && {EXPLORER}.reading().n === {n}")
    page.locator("#ran-tv").wait_for()
    settle(page)
    assert page.locator("#ran-tv").inner_text() == f"{without(graph, n, [hidden], [pinned]):.4f}"
    assert state(page, "e.graphs[0].drawnEdges") == n
    page.get_by_role("button", name="Undo all").click()
    settle(page)
    assert state(page, "[e.state.hidden.size, e.state.pinned.size]") == [0, 0]
    assert page.locator("#ran-tv").count() == 0


def test_the_headline_says_what_the_target_is_and_what_edges_that_are_off_carry(open_page, demo, tmp_path):
    m = dm.measure(
        demo, "He said that", importance="l1", sizes=[0.1, 0.3, 1.0], baselines=(), keep_graphs=True,
        target=(" he", " she"), counterfactual="She said that",
    )  # fmt: skip
    (tmp_path / "target.html").write_text(measurement_page(m), encoding="utf-8")
    row = m.curve.filter(m.curve["size"] == 0.3).row(0, named=True)
    page = open_page(f"file://{tmp_path}/target.html#n={row['n_edges']}").page
    text = re.sub("[\u2068\u2069]", "", page.locator(".sentence").inner_text())
    # as a reader would write them: three digits, and a true minus
    values = (m.target.nothing, m.target.full, row["target"])
    none, full, here = (f"{v:#.3g}".replace("-", "−") for v in values)
    said = f"Target: the logit difference of ␣he against ␣she, {none} with no edge on, {full} in the model, {here} in this trace: "
    assert said in text
    kept = float(re.search(r"(-?[\d.]+) % of the way", text)[1])
    assert kept == pytest.approx(100 * row["faithfulness"], rel=0.006)
    assert "Edges that are off carry what they carry in “She said that” (He → She (0))." in text
    facts = page.locator("section[aria-label='What the trace gives and costs'] dl").inner_text()
    assert f"logit difference\n{here}" in facts
    faithful = m.density["l1"].size_at(0.1, by="faithfulness")
    assert abs(faithful - m.density["l1"].size_at(0.1)) > 0.02  # else this shows nothing
    chip = page.get_by_role("button", name="target kept").inner_text()
    assert float(chip.removeprefix("target kept ").removesuffix(" %")) == pytest.approx(
        100 * faithful, rel=0.006
    )


def test_the_headline_says_what_is_off_and_its_numbers_follow(open_page, server, file, measured):
    page = open_page(f"{server}#by=l1").page
    headline = page.locator(".sentence")
    graph, table = measured.session.graphs["l1"], measured.session.graphs["l1"].edges()
    n = state(page, "e.state.n")
    before = headline.inner_text()
    page.get_by_role("gridcell", name="Layer 3, head 5").click()
    page.get_by_role("button", name="Hide all of it").click()
    headline.get_by_text("Off: attention head 5 of layer 3.").wait_for()
    page.wait_for_function(f"() => {EXPLORER}.reading().n < {n}")
    settle(page)
    own = ((table["layer"] == 3) & (table["kind"] == "attention") & (table["head"] == 5)).to_numpy()
    tv = without(graph, n, own)
    left = n - int((graph.trace(n_edges=n).mask & own).sum())
    text = headline.inner_text()
    assert f"({left:,} of {graph.n_edges:,})" in text
    assert f"{tv:.3f} away" in text
    assert f"{tv:.3f}" not in before  # else this shows nothing
    costs = page.locator("section[aria-label='What the trace gives and costs'] dd")
    assert costs.first.inner_text() == f"{tv:.4f}"
    page.get_by_role("button", name="Put back").click()
    settle(page)
    assert headline.inner_text() == before
    page = open_page(f"{file}#by=l1").page  # no model to run
    page.evaluate(f"() => {EXPLORER}.dispatch({{type: 'hide component', name: '2/mlp/-1'}})")
    page.get_by_text("Off: the MLP of layer 2.").wait_for()
    text = page.locator(".sentence").inner_text()
    assert "The numbers are of the trace before: this page is a file, with no model to run." in text
    assert f"({n:,} of" in text
    page.evaluate(
        f"() => {EXPLORER}.dispatch({{type: 'draw', change: {{layers: [1, 3], heads: new Set([4])}}}})"
    )
    page.get_by_text("Drawn: layers 1 to 3, attention head 4.").wait_for()


def test_another_text_is_measured_and_a_bad_one_told(open_page, server):
    watched = open_page(server)
    page = watched.page
    box = page.get_by_label("Text to measure")
    box.fill(" ")
    page.get_by_role("button", name="Measure").click()
    page.get_by_role("alert").get_by_text("the text is empty").wait_for()
    watched.refused = 1
    box.fill(OTHER)
    page.get_by_role("button", name="Measure").click()
    page.wait_for_function(f"() => {EXPLORER}.view.input.text === {json.dumps(OTHER)}")
    assert page.get_by_role("alert").count() == 0


def test_an_input_no_longer_in_memory_is_told(open_page, server):
    watched = open_page(server)
    page = watched.page
    page.evaluate(f"() => {{ {EXPLORER}.view.id = 'gone'; {EXPLORER}.dispatch({{type: 'hide', edge: 1}}); }}")
    page.get_by_role("alert").get_by_text("no longer in memory").wait_for()
    watched.refused = 1


def test_a_server_stopped_during_a_run_is_told_and_nothing_hangs(open_page, tmp_path):
    with explore_forked(tmp_path, TEXT, "--importance", "l1") as (process, address):
        watched = open_page(address)
        page = watched.page
        page.evaluate(
            f"() => {{ window.asked = {EXPLORER}.host.ask('measure', {{text: {json.dumps(' '.join([TEXT] * 8))}, importance: ['best']}}).catch((e) => {EXPLORER}.dispatch({{type: 'notice', notice: e.message}})); }}"
        )
        settle(page)
        os.kill(process.pid, signal.SIGINT)
        page.get_by_role("alert").get_by_text("stopped").wait_for()
        process.join(30)
        assert process.exitcode is not None
        page.evaluate(f"() => {EXPLORER}.dispatch({{type: 'hide', edge: 1}})")
        page.get_by_role("alert").get_by_text("stopped answering").wait_for()  # and asked once more
        page.get_by_role("button", name="everything").click()
        settle(page)  # the page still works
        assert state(page, "e.state.n === e.view.graph.n_edges")
        watched.refused = sum("Failed to load resource" in e for e in watched.errors)


def test_two_tabs_do_not_get_in_each_others_way(open_page, server):
    pages = [open_page(server).page for _ in range(2)]
    sizes = []
    for i, page in enumerate(pages):
        page.evaluate(
            f"() => {{ {EXPLORER}.setSize({EXPLORER}.view.grid[{50 + 9 * i}]); {EXPLORER}.dispatch({{type: 'hide', edge: {3 + i}}}); }}"
        )
    for page in pages:
        page.locator("#ran-tv").wait_for()
        sizes.append(state(page, "[e.state.n, e.state.ran.point.n_edges]"))
    assert sizes[0] != sizes[1]
    assert all(n - 1 <= ran <= n for n, ran in sizes)


# --- comparison ---------------------------------------------------------------------------------------


def test_two_importances_side_by_side_with_their_overlap(open_page, file, measured):
    page = open_page(file).page
    page.get_by_label("Compare with", exact=True).select_option("0:l2")
    page.locator("#overlap").wait_for()
    settle(page)
    assert page.locator("canvas[role=application]").count() == 2
    n = state(page, "e.state.n")
    first, second = (measured.session.graphs[name].trace(n_edges=n) for name in ("l1", "l2"))
    found = dm.overlap(first, second)
    values = page.locator("#overlap dd").all_inner_texts()
    assert values[0] == f"{found.n_shared:,}"
    assert values[1].startswith(f"{100 * found.jaccard:.3g}")
    assert values[2].startswith(f"{100 * found.jaccard_components:.3g}")
    assert state(page, "e.graphs.map((g) => g.drawnEdges)") == [n, n]


def test_two_texts_side_by_side(open_page, server, measured, demo):
    page = open_page(server).page
    page.get_by_label("Another text to compare with").fill(OTHER)
    page.get_by_role("button", name="Compare").click()
    page.locator("#overlap").wait_for()
    settle(page)
    n, m = state(page, "e.sides().map((s) => s.n)")
    other = dm.build_graph(demo, OTHER)
    found = dm.overlap(measured.session.graphs["l1"].trace(n_edges=n), other.trace(n_edges=m))
    values = page.locator("#overlap dd").all_inner_texts()
    assert values[0] == f"{found.n_shared:,}"
    assert values[1].startswith(f"{100 * found.jaccard:.3g}")


def test_two_models_side_by_side(open_page, demo, tmp_path):
    folder = tmp_path / "same-shape"
    with torch.no_grad():
        other = copy.deepcopy(demo.module)
        for parameter in other.parameters():
            parameter.mul_(1.02)
    other.save_pretrained(folder)
    demo.tokenizer.save_pretrained(folder)
    arguments = (TEXT, "--beside", str(folder), "--importance", "l1")
    with explore_forked(tmp_path, *arguments) as (_, address):
        page = open_page(address).page
        page.locator("#overlap").wait_for()
        settle(page)
        names = page.locator(".side-name").all_inner_texts()
        assert names[0].startswith("demo ")
        assert names[1].startswith(f"{folder.name} ")
        n, m = state(page, "e.sides().map((s) => s.n)")
        first = dm.build_graph(demo, TEXT).trace(n_edges=n)
        second = dm.build_graph(dm.load_model(str(folder)), TEXT).trace(n_edges=m)
        shared = int((first.mask & second.mask).sum())
        assert page.locator("#overlap dd").first.inner_text() == f"{shared:,}"
        box = page.get_by_label("Text to measure")
        box.fill(OTHER)
        page.get_by_role("button", name="Measure").click()
        page.wait_for_function(f"() => {EXPLORER}.view.input.text === {json.dumps(OTHER)}")
        assert state(page, "e.views.map((v) => v.model.name)") == ["demo", folder.name]


def test_measurements_can_be_compared_in_a_file(open_page, demo, measured, tmp_path):
    other = dm.measure(demo, OTHER, importance="l1", sizes=[0.1, 1.0], baselines=(), keep_graphs=True)
    (tmp_path / "two.html").write_text(measurement_page([measured, other]), encoding="utf-8")
    page = open_page(f"file://{tmp_path}/two.html").page
    page.locator("#overlap").wait_for()
    assert page.locator(".side-name").count() == 2


# --- keyboard, labels, contrast -----------------------------------------------------------------------


def test_the_keyboard_alone_selects_pins_hides_and_moves(open_page, file, measured):
    page = open_page(file).page
    for _ in range(30):
        page.keyboard.press("Tab")
        if (
            page.evaluate(
                "() => document.querySelector('#densitometer').shadowRoot.activeElement?.getAttribute('role')"
            )
            == "application"
        ):
            break
    else:
        pytest.fail("the graph cannot be reached with Tab")
    outline = page.evaluate(
        "() => getComputedStyle(document.querySelector('#densitometer').shadowRoot.activeElement).outlineStyle"
    )
    assert outline != "none"
    live = page.locator("[role=status]")
    last = len(measured.input["tokens"]) - 1
    assert f"Token {last}," in live.inner_text()
    page.keyboard.press("ArrowDown")
    assert "layer 5, after attention" in live.inner_text()
    page.keyboard.press("Enter")
    settle(page)
    assert state(page, "e.state.selected") == f"n11,{last}"
    page.keyboard.press("e")
    settle(page)
    assert state(page, "e.state.selected").startswith("e")
    page.keyboard.press("h")
    assert state(page, "e.state.hidden.size") == 1
    page.keyboard.press("p")
    assert state(page, "[e.state.hidden.size, e.state.pinned.size]") == [0, 1]
    n = state(page, "e.state.n")
    page.keyboard.press("]")
    assert state(page, "e.state.n") > n
    zoom = state(page, "e.state.zoom?.[0] ?? 1")
    page.keyboard.press("+")
    assert state(page, "e.state.zoom[0]") > zoom
    page.keyboard.press("0")
    assert state(page, "e.state.zoom[0]") == 1
    page.keyboard.press("Escape")
    assert state(page, "e.state.selected") is None
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0


UNNAMED = """() => {
  const root = document.querySelector('#densitometer').shadowRoot;
  const named = (e) => e.getAttribute('aria-label') || e.textContent.trim() || e.title || e.labels?.length || e.getAttribute('aria-hidden');
  return [...root.querySelectorAll('button, input, select, summary, canvas, svg[role=img], [role=grid], [tabindex]')].filter((e) => !named(e)).map((e) => e.outerHTML.slice(0, 120));
}"""
CONTRAST = """() => {
  const root = document.querySelector('#densitometer').shadowRoot;
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return c.startsWith('color(srgb') ? [m[0] * 255, m[1] * 255, m[2] * 255, m[3] ?? 1] : [m[0], m[1], m[2], m[3] ?? 1]; };
  const lum = ([r, g, b]) => { const f = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const ground = (e) => { const layers = []; for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor)); return layers.reverse().reduce((b, a) => over(a, b), [255, 255, 255, 1]); };
  const bad = [];
  for (const e of root.querySelectorAll('*')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('.sr') || e.closest(':disabled')) continue;
    const style = getComputedStyle(e);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const under = ground(e instanceof SVGElement ? e.closest('svg').parentElement : e);
    const [a, b] = [lum(over(ink, under)), lum(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push([e.tagName, e.className?.baseVal ?? e.className, e.textContent.slice(0, 30), ratio.toFixed(2)].join(' '));
  }
  return bad;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_is_named_and_every_text_can_be_read(open_page, file, theme):
    page = open_page(f"{file}#theme={theme}").page
    assert page.evaluate(UNNAMED) == []
    page.get_by_role("gridcell").nth(3).click()
    settle(page)
    assert page.evaluate(CONTRAST) == []
    assert state(page, "e.palette.dark") == (theme == "dark")


# --- export, address ----------------------------------------------------------------------------------


def test_pictures_and_data_are_exported_and_the_data_open_again(open_page, file, measured, tmp_path):
    page = open_page(file).page
    found = {}
    for name in ("Picture, SVG", "Picture, PNG", "Data, JSON"):
        if not page.get_by_role("button", name=name).is_visible():
            page.get_by_text("Export", exact=True).click()
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        found[path.suffix] = path
    svg = xml.etree.ElementTree.parse(found[".svg"]).getroot()
    texts = [e.text for e in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert any("whale" in t for t in texts)
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}path"))) > 3
    assert found[".png"].read_bytes().startswith(b"\x89PNG")
    document = json.loads(found[".json"].read_text())
    assert document["views"] == json.loads(json.dumps(traces_payload(measured)["views"]))
    page.set_input_files("input[type=file]", found[".json"])
    page.locator("#overlap").wait_for()
    assert page.locator("#overlap dd").nth(1).inner_text() == "100 %"


def test_a_link_brings_the_view_back(open_page, file):
    first = open_page(file).page
    first.evaluate(f"() => {EXPLORER}.setSize({EXPLORER}.view.grid[70])")
    first.get_by_label("Importance that chooses").select_option("l2")
    first.get_by_role("gridcell", name="Layer 2, head 1").click()
    first.get_by_label("residual, past attention").uncheck()
    first.locator("canvas[role=application]").focus()
    first.keyboard.press("+")
    first.wait_for_function(
        "() => location.hash.includes('zoom') && location.hash.includes('selected') && location.hash.includes('by=l2')"
    )
    kept = "[e.state.n, e.state.importance, e.state.selected, [...e.state.kinds], e.state.zoom.map((v) => v.toPrecision(5))]"
    want, drawn = state(first, kept), state(first, "e.graphs[0].drawnEdges")
    second = open_page(first.url).page
    settle(second)
    assert state(second, kept) == want
    assert state(second, "e.graphs[0].drawnEdges") == drawn


def test_actions_make_new_states_and_leave_the_old_ones_as_they_were(open_page, file):
    page = open_page(file).page
    actions = [
        {"type": "size", "n": 9}, {"type": "step", "by": 2}, {"type": "importance", "importance": "l2"},
        {"type": "compare", "compare": {"view": 0, "importance": "l1"}}, {"type": "select", "selected": "c5"},
        {"type": "pin", "edge": 3}, {"type": "hide", "edge": 3}, {"type": "hide component", "name": "2/mlp/-1"},
        {"type": "draw", "change": {"layers": [1, 2]}}, {"type": "zoom", "zoom": [2, -9, -9]}, {"type": "next theme"},
        {"type": "notice", "notice": "x"}, {"type": "choose nothing"},
    ]  # fmt: skip
    seen = page.evaluate(
        f"""(actions) => {{
          const e = {EXPLORER};
          const shown = (state) => JSON.stringify(state, (k, v) => k === "traces" ? v.views.length : v instanceof Set ? [...v] : v);
          return actions.map((action) => {{
            const before = e.state, was = shown(before);
            e.dispatch(action);
            const changed = e.state !== before && shown(e.state) !== was;
            const again = e.state;
            if (["size", "select", "notice"].includes(action.type)) e.dispatch(action); // changes nothing
            return [action.type, changed, shown(before) === was, e.state === again];
          }});
        }}""",
        actions,
    )
    assert seen == [[action["type"], True, True, True] for action in actions]
    assert state(page, "[e.state.hidden.size, e.state.pinned.size]") == [0, 0]


@pytest.mark.parametrize(
    "hash_",
    [
        "#n=-3&by=%00&view=77&with=9:x&zoom=a b c&selected=e99999999&layers=9-1&heads=x",
        "#%%%",
        "#n=1e9&pinned=1 2 x 99999999999",
        "#selected=n99,99&with=0:l1",
    ],
)
def test_an_address_that_makes_no_sense_does_no_harm(open_page, file, hash_):
    page = open_page(file + hash_).page
    assert page.get_by_role("slider", name="Size of the trace").is_visible()


# --- files --------------------------------------------------------------------------------------------


def test_the_file_works_offline_and_hostile_tokens_are_text(open_page, measured, tmp_path):
    path = tmp_path / "hostile.html"
    path.write_text(measurement_page(hostile(measured)), encoding="utf-8")
    page = open_page(f"file://{path}", offline=True).page
    assert page.evaluate("() => window.hacked") is None
    assert (
        page.evaluate(
            "() => document.querySelector('#densitometer').shadowRoot.querySelectorAll('script, img, iframe').length"
        )
        == 0
    )
    shown = page.locator("section[aria-label=Prediction] th.token").all_inner_texts()
    assert any("<script>window.hacked=1</script>" in t for t in shown)
    assert any("\\u202eright\\u202c" in t for t in shown)  # a turned direction is written out, not obeyed
    page.mouse.click(*at_node(page, 12, 6))
    page.get_by_role("region", name="Selection").get_by_text("␀␇").first.wait_for()
    with page.expect_download() as download:
        page.evaluate(f"() => {EXPLORER}.export('svg')")
    root = xml.etree.ElementTree.parse(download.value.path()).getroot()
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    assert any("script" in (e.text or "") for e in root.iter("{http://www.w3.org/2000/svg}text"))


def test_another_schema_and_a_cut_file_are_told(open_page, measured, tmp_path):
    page = measurement_page(measured)
    cases = {
        "schema.html": (self_contained({"schema": "densitometer.payload/9"}), "densitometer.payload/9"),
        "cut.html": (page[: page.index('id="densitometer-payload"') + 4000], "cut short or damaged"),
        "empty.html": (re.sub(r'(id="densitometer-payload">)[^<]*', r"\1", page), "cut short or damaged"),
        "early.html": (page[: len(page) // 4], "the file is cut short"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        own = open_page(f"file://{tmp_path}/{name}", ready=None).page
        own.get_by_text(message).wait_for()


def test_a_file_that_is_no_payload_is_told_when_it_is_opened(open_page, file, tmp_path):
    page = open_page(file).page
    (tmp_path / "bad.json").write_text('{"schema": "densitometer.measurement/1"}')
    page.set_input_files("input[type=file]", tmp_path / "bad.json")
    page.get_by_role("alert").get_by_text("bad.json").wait_for()
    (tmp_path / "cut.json").write_bytes(
        b"\x1f\x8b" + encode(traces_payload([dm.load_measurement(_saved(file, tmp_path))]))[2:900]
    )
    page.set_input_files("input[type=file]", tmp_path / "cut.json")
    page.get_by_role("alert").get_by_text("cut short or damaged").wait_for()


def _saved(file: str, folder: Path) -> Path:
    model = dm.load_model("demo")
    dm.measure(model, OTHER, importance="l1", sizes=[1.0], baselines=()).save(folder / "m.json")
    return folder / "m.json"


def test_a_measurement_without_its_model_opens_with_its_curve(open_page, measured, tmp_path):
    measured.save(tmp_path / "m.json")
    (tmp_path / "m.html").write_text(
        measurement_page(dm.load_measurement(tmp_path / "m.json")), encoding="utf-8"
    )
    page = open_page(f"file://{tmp_path}/m.html", ready=None).page
    page.get_by_text("There is no trace to draw").wait_for()
    page.get_by_role("button", name="TV ≤ 0.1").click()
    settle(page)
    assert (
        page.locator("section[aria-label='What the trace gives and costs'] dd").first.inner_text()[:2] == "0."
    )


def test_a_wrong_address_is_told(open_page, server):
    watched = open_page(server.rsplit("/", 2)[0] + "/wrong-token/", ready=None)
    watched.page.get_by_text("not found; give the whole address that").wait_for()
    watched.refused = 1


def test_a_measurement_file_is_explored_with_its_model(open_page, measured, tmp_path):
    measured.save(tmp_path / "m.json")
    with explore_forked(tmp_path, str(tmp_path / "m.json")) as (_, address):
        page = open_page(address).page
        assert state(page, "e.view.importances") == ["l1", "l2"]
        assert state(page, "e.view.graph.n_edges") == measured.graph["n_edges"]


# --- density along a text -----------------------------------------------------------------------------


def test_tokens_are_coloured_by_what_is_chosen_and_open_their_trace(open_page, demo, tmp_path):
    table = dm.measure_positions(demo, TEXT)
    traces = {
        5: dm.measure(
            demo, TEXT, importance="l1", position=5, sizes=[0.1, 1.0], baselines=(), keep_graphs=True
        )
    }
    (tmp_path / "t.html").write_text(
        self_contained(tokens_payload(table, label=TEXT, traces=traces)), encoding="utf-8"
    )
    page = open_page(f"file://{tmp_path}/t.html", ready=None, offline=True).page
    words = page.get_by_role("listbox").get_by_role("option")
    words.first.wait_for()
    assert words.count() == table.height + 1  # and what comes next

    def colours() -> list[str]:
        return words.evaluate_all("(all) => all.map((w) => w.style.backgroundColor)")

    density = colours()
    # a word is coloured by the prediction of it, which was made after the word before
    wanted = table["size_at"].to_list()
    ramp = page.evaluate(
        """() => {
          const key = document.querySelector('#densitometer').shadowRoot.querySelector('canvas:not(.strip)');
          const { data } = key.getContext('2d').getImageData(0, 5, 220, 1);
          return [[...data.slice(0, 4)], [...data.slice(-4)]];
        }"""
    )
    low, high = (f"rgb({r}, {g}, {b})" for r, g, b, _ in ramp)
    assert [density[1 + wanted.index(extreme(wanted))] for extreme in (min, max)] == [low, high]
    assert "hatched" in words.first.get_attribute("class")  # nothing comes before it
    page.get_by_label("Contrast").fill("90")
    contrast = colours()
    assert contrast != density
    page.get_by_label("Colour by").select_option("surprisal")
    assert colours() != contrast
    assert "hatched" in words.last.get_attribute("class")  # it is not known yet
    words.first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    facts = page.locator("aside dd").all_inner_texts()
    row = table.row(4, named=True)
    assert facts[-2:] == [f"{row['entropy']:.2f}", f"{row['surprisal']:.2f}"]
    assert row["token"].strip() in page.locator("#after").inner_text()
    assert "before" in words.nth(4).get_attribute("class")
    assert page.get_by_text("Its trace is not in this file").is_visible()
    assert f"traces of 1 of {table.height} predictions" in page.locator("#open").inner_text()
    assert words.evaluate_all(
        "(all) => all.flatMap((w, i) => w.classList.contains('openable') ? [i] : [])"
    ) == [6]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_role("slider", name="Size of the trace").wait_for()
    page.get_by_role("button", name="Back to the text").click()
    assert words.nth(6).get_attribute("aria-selected") == "true"
    assert page.evaluate(CONTRAST) == []


def test_the_server_leads_from_a_trace_to_the_text_and_to_any_token(open_page, server):
    page = open_page(server).page
    page.get_by_role("button", name="Along the text").click()
    word = page.get_by_role("listbox").get_by_role("option").nth(5)
    word.click()
    page.get_by_role("slider", name="Size of the trace").wait_for()
    assert (
        page.evaluate(
            "() => document.querySelector('#densitometer').shadowRoot.querySelector('.explorer .explorer').explorer.view.nTokens"
        )
        == 5
    )
    page.get_by_role("button", name="Back to the text").click()
    page.get_by_role("button", name="Back to the trace").click()
    page.get_by_role("button", name="Along the text").wait_for()


def test_the_address_is_that_of_the_page_in_sight(open_page, server):
    page = open_page(f"{server}#n=200&by=l2&selected=n4,4").page
    settle(page)
    kept = "[e.state.n, e.state.importance, e.state.selected]"
    left = state(page, kept)
    page.clock.install()
    page.get_by_role("button", name="Along the text").click()
    page.get_by_role("listbox").wait_for()
    page.clock.run_for(1000)  # longer than a page waits before it writes to the address
    assert page.evaluate("() => location.hash").startswith("#colour=")
    page.get_by_role("button", name="Back to the trace").click()
    page.wait_for_function(READY)
    assert state(page, kept) == left  # the view that was left
    page.get_by_label("Text to measure").fill(OTHER)
    page.get_by_role("button", name="Measure").click()
    page.wait_for_function(f"() => {EXPLORER}.view.input.text === {json.dumps(OTHER)}")
    page.clock.run_for(1000)
    n = state(page, "e.state.n")
    assert n != left[0]
    assert f"n={n}" in page.evaluate("() => location.hash")  # not the one of the text before
    assert "selected" not in page.evaluate("() => location.hash")


def test_hostile_tokens_of_a_text_are_text(open_page, demo, tmp_path):
    table = dm.measure_positions(demo, TEXT)
    names = [t.encode("utf-8", "replace").decode() for t in (HOSTILE * 2)[: table.height]]
    (tmp_path / "h.html").write_text(
        self_contained(
            tokens_payload(table.with_columns(token=numpy.array(names, dtype=object)), label="<b>x</b>")
        ),
        encoding="utf-8",
    )
    page = open_page(f"file://{tmp_path}/h.html", ready=None).page
    page.get_by_role("listbox").get_by_role("option").first.wait_for()
    assert page.evaluate("() => window.hacked") is None
    assert page.get_by_text("<b>x</b>").is_visible()
    assert (
        "<script>window.hacked=1</script>"
        in page.get_by_role("listbox").get_by_role("option").first.inner_text()
    )


# --- large inputs -------------------------------------------------------------------------------------


def large(n_tokens: int, n_layers: int, measured: dm.Measurement) -> dict:
    """A payload of the largest shape that is promised to open: real in form, drawn at random in content."""
    payload = traces_payload(measured)
    view = payload["views"][0]
    generator = numpy.random.default_rng(0)
    n_heads, kept = 8, EDGE_BUDGET
    levels = [
        level
        for layer in range(n_layers)
        for level in (
            {"layer": layer, "residual": "residual_attention", "n_heads": n_heads, "mlp": False},
            {"layer": layer, "residual": "residual_mlp", "n_heads": 0, "mlp": True},
        )
    ]
    components = [
        (i, kind, head)
        for i, level in enumerate(levels)
        for kind, head in (
            [(0, -1), *((1, h) for h in range(n_heads))] if level["n_heads"] else [(2, -1), (3, -1)]
        )
    ]
    total = n_layers * (n_heads * n_tokens * (n_tokens + 1) // 2 + 3 * n_tokens)
    total = min(total, 2**31 - 1)
    level = generator.integers(0, len(levels), kept)
    attention = level % 2 == 0
    head = numpy.where(attention, generator.integers(0, n_heads, kept), -1)
    kind = numpy.where(attention, 1, 3)
    target = generator.integers(0, n_tokens, kept)
    source = numpy.where(attention, (target * generator.random(kept)).astype(int), target)
    grid = numpy.unique(numpy.geomspace(1, total, 240).astype("<i4"))
    counts = numpy.minimum.outer(grid, numpy.full(len(components), total // len(components))).astype("<i4")
    names = view["importances"][:1]
    rank = generator.permutation(kept).astype("<i4")
    view |= {
        "importances": names, "levels": levels, "n_tokens_run": n_tokens, "grid": array(grid, delta=True), "readings": None,
        "kinds": ["residual_attention", "attention", "residual_mlp", "mlp"],
        "input": {**view["input"], "text": None, "ids": [1] * n_tokens, "tokens": [f" token{i}" for i in range(n_tokens)], "position": n_tokens - 1},
        "graph": {**view["graph"], "n_edges": total, "n_layers": n_layers, "n_tokens": n_tokens},
        "edges": {
            "kept": kept, "exact_to": kept, "edge": array(numpy.arange(kept, dtype="<i4"), delta=True), "level": array(level.astype("<u2")),
            "kind": array(kind.astype("<u1")), "head": array(head.astype("<i2")), "source": array(source.astype("<u4")),
            "target": array(target.astype("<u4")),
            "orders": {n: {"rank": array(rank), "importance": array(generator.random(kept).astype("<f4"))} for n in names},
        },
        "components": {
            "level": [c[0] for c in components], "kind": [c[1] for c in components], "head": [c[2] for c in components],
            "n_edges": [total // len(components)] * len(components), "counts": {n: array(counts, delta=True) for n in names},
        },
        "costs": {n: {"flops": array((grid / total).astype("<f4")), "parameters": array((grid / total).astype("<f4"))} for n in names},
        "histograms": {n: {"from": -6.0, "to": 0.0, "all": [total // 40] * 40, "kept": [kept // 40] * 40, "zero": 0} for n in names},
    }  # fmt: skip
    return payload


def test_two_thousand_tokens_and_32_layers_stay_light(open_page, measured, tmp_path):
    payload = large(2000, 32, measured)
    assert len(encode(payload)) < 5_000_000
    (tmp_path / "large.html").write_text(self_contained(payload), encoding="utf-8")
    page = open_page(f"file://{tmp_path}/large.html#n={EDGE_BUDGET}").page
    x, y = state(page, "e.graphs[0].at(e.graphs[0].scene.rows - 1, 1999)")
    assert 0 < x < 900  # the output is in sight
    assert 0 < y < 100
    assert "100,000 of" in page.locator("#kept").inner_text()
    assert "the most important are drawn" in page.locator("#drawn").inner_text() or state(
        page, "e.state.n <= e.view.edges.exactTo"
    )
    moving = page.evaluate(
        f"() => {{ const g = {EXPLORER}.graphs[0]; g.fit(); g.draw(); return g.scene.lineCount; }}"
    )
    assert moving <= 6000  # while it moves, the most important alone
    page.wait_for_function(
        f"() => {EXPLORER}.graphs[0].scene.lineCount > {moving}"
    )  # at rest, all that can be seen


def test_a_long_input_measured_by_tiles_opens_with_what_is_known_of_it(
    open_page, demo, tmp_path, monkeypatch
):
    from densitometer.graph.tiled import tiles

    monkeypatch.setattr(tiles, "STORED_EDGES", 1)
    long = dm.measure(demo, TEXT, importance="l1", sizes=[0.1, 0.4, 1.0], baselines=(), keep_graphs=True)
    budget = 300
    text = self_contained(traces_payload(long, edge_budget=budget))
    (tmp_path / "tiled.html").write_text(text, encoding="utf-8")
    page = open_page(f"file://{tmp_path}/tiled.html").page
    page.get_by_role("button", name="everything").click()
    settle(page)
    assert state(page, "[e.state.n, e.graphs[0].drawnEdges]") == [long.graph["n_edges"], budget]
    assert "costs at those measured" in page.locator("#kept").inner_text()
    costs = page.locator("section[aria-label='What the trace gives and costs'] dd")
    assert costs.nth(5).inner_text() == "100 %"
    page.evaluate(f"() => {EXPLORER}.setSize({EXPLORER}.view.grid[{EXPLORER}.view.grid.length - 2])")
    settle(page)
    assert costs.nth(5).inner_text() == "–"
    page.evaluate(f"() => {EXPLORER}.dispatch({{type: 'select', selected: 'n12,4'}})")
    page.get_by_text("measured tile by tile").wait_for()

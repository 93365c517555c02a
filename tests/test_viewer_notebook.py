"""`measurement.show()` in a notebook: the widget in a real Jupyter server, and the frame where there are no widgets."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
import types

import numpy
import pytest
from PIL import Image
from test_viewer_browser import browser, open_page  # noqa: F401  (fixtures)

import densitometer as dm
from densitometer.viewer.notebook import Explorer
from densitometer.viewer.payload import decode

pytestmark = pytest.mark.browser

TEXT = "The whale swam under the ship and"
CELL = f"""import densitometer as dm
measurement = dm.measure(dm.load_model("demo"), {TEXT!r}, importance="l1", sizes=[0.05, 0.4, 1.0], baselines=(), keep_graphs=True)
measurement.show()"""
IN_CELL = "document.querySelector('.densitometer').shadowRoot.querySelector('.explorer').explorer"


@pytest.fixture(scope="module")
def measured(demo):
    return dm.measure(demo, TEXT, importance="l1", sizes=[0.05, 0.4, 1.0], baselines=(), keep_graphs=True)


@pytest.fixture(scope="module")
def explorer(measured):
    return measured.show()


def test_what_is_displayed_holds_the_widget_the_frame_and_the_picture(explorer, measured):
    data, _ = explorer._repr_mimebundle_()
    assert set(data) == {
        "application/vnd.jupyter.widget-view+json", "text/html", "image/png", "text/plain",
    }  # fmt: skip
    assert data["text/plain"] == repr(measured)
    assert '<iframe title="densitometer" sandbox="allow-scripts' in data["text/html"]
    assert "allow-same-origin" not in data["text/html"]


def test_without_anywidget_there_is_the_frame(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    assert set(Explorer(measured)._repr_mimebundle_()) == {"text/html", "image/png", "text/plain"}


def test_a_notebook_that_is_run_without_anybody_holds_no_widget(explorer, monkeypatch):
    explorer.widget()  # made while IPython is what it is
    shell = types.SimpleNamespace(kernel=types.SimpleNamespace(_allow_stdin=False))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert set(explorer._repr_mimebundle_()) == {"text/html", "image/png", "text/plain"}
    shell.kernel._allow_stdin = True
    assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()[0]


def test_the_page_is_answered_by_the_kernel(measured):
    explorer = Explorer(measured)
    sent: list[dict] = []
    widget = explorer.widget()
    widget.send = sent.append
    name = decode(widget.payload)["views"][0]["id"]
    explorer._answer(
        widget,
        {"number": 4, "method": "run", "parameters": {"id": name, "importance": "l1", "n_edges": 9}},
        None,
    )
    explorer._answer(widget, {"number": 5, "method": "run", "parameters": {}}, None)
    explorer._answer(widget, "nonsense", None)
    assert sent[0]["number"] == 4
    assert sent[0]["answer"]["n_edges"] == 9
    assert sent[1] == {"number": 5, "error": "id must be of type str, got None"}
    assert len(sent) == 2


@pytest.fixture(scope="module")
def page_of_it(explorer, tmp_path_factory):
    """A page with the output's text/html in it, as nbconvert writes it, and the output."""
    data, _ = explorer._repr_mimebundle_()
    path = tmp_path_factory.mktemp("shown") / "n.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{data['text/html']}", encoding="utf-8")
    return path, data


def test_the_frame_works_by_itself(open_page, page_of_it):  # noqa: F811
    page = open_page(f"file://{page_of_it[0]}", ready=None, offline=True).page
    frame = page.frame_locator("iframe")
    frame.get_by_role("slider", name="Size of the trace").press("End")
    frame.get_by_text("100 % of the edges are on").wait_for()


@pytest.mark.slow
def test_nbconvert_takes_the_frame_and_pdf_the_picture(page_of_it):
    import nbformat
    from nbconvert import HTMLExporter, LatexExporter

    data = page_of_it[1]
    shown = nbformat.v4.new_output("display_data", data)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("m.show()", outputs=[shown])])
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert page.count("<iframe") == page.count("densitometer-payload&quot;") == 1
    assert f"data:image/png;base64,{data['image/png']}" in page
    assert "widget-view" not in page
    _, resources = LatexExporter().from_notebook_node(notebook)
    assert [*resources["outputs"].values()] == [base64.b64decode(data["image/png"])]


def test_where_scripts_do_not_run_the_picture_is_seen(browser, page_of_it):  # noqa: F811
    path, data = page_of_it
    # A page that forbids scripts forbids them in its frames too. `java_script_enabled=False` of
    # playwright reaches a frame of another process late: on a slow machine its script runs.
    shut, alone = path.with_name("shut.html"), path.with_name("alone.html")
    policy = """<meta http-equiv="Content-Security-Policy" content="script-src 'none'">"""
    text = path.read_text("utf-8").replace("<body>", f"{policy}<body>")
    shut.write_text(text, "utf-8")
    # without scripts the frame cannot be taken out of a page, so a second page is written without it
    alone.write_text(re.sub("<iframe.*?</iframe>", "", text, flags=re.DOTALL), "utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(f"file://{shut}")
    picture = page.get_by_role("img")
    assert picture.get_attribute("src") == "data:image/png;base64," + data["image/png"]
    covered = picture.screenshot()
    page.goto(f"file://{alone}")
    seen = page.get_by_role("img").screenshot()
    assert covered == seen
    pixels = numpy.asarray(Image.open(io.BytesIO(seen)).convert("RGB"))
    assert (pixels.min(axis=-1) < 128).mean() > 0.005  # and there is something on it
    assert page.get_by_role("link", name="nbviewer").is_visible()
    context.close()


def test_the_picture_of_a_measurement_without_its_model_is_its_curve(explorer, measured, tmp_path):
    measured.save(tmp_path / "m.json")
    bare = Explorer(dm.load_measurement(tmp_path / "m.json"))
    sizes = [Image.open(io.BytesIO(each.picture)).size for each in (explorer, bare)]
    assert sizes == [(1250, 860), (720, 480)]


@pytest.fixture
def jupyter(tmp_path):
    """A Jupyter server on a folder with one notebook: the notebook's address, and the file in which the server logs."""
    notebook = {
        "cells": [{"cell_type": "code", "id": "one", "execution_count": None, "metadata": {}, "outputs": [], "source": CELL}],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4, "nbformat_minor": 5,
    }  # fmt: skip
    (tmp_path / "n.ipynb").write_text(json.dumps(notebook))
    log = tmp_path / "server.log"  # a pipe that nobody reads stops the server once it is full
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--IdentityProvider.token=t",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=", "--LabApp.expose_app_in_browser=True",
                f"--ServerApp.root_dir={tmp_path}",
            ],
            stdout=output, stderr=output,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_DATA_DIR": str(tmp_path / "data")},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(log.read_text())
            time.sleep(0.1)
        yield f"http://127.0.0.1:{found[1]}/lab/tree/n.ipynb?token=t", log
    finally:
        process.terminate()
        process.wait(timeout=60)


# Keys that are pressed before the notebook has its kernel, or while it lays out its cells, reach nothing.
RUN = """() => {
    const run = async () => {
        const notebook = window.jupyterapp.shell.currentWidget;
        await notebook.context.ready;
        await notebook.sessionContext.ready;
        await window.jupyterapp.commands.execute("notebook:run-all-cells");
        return notebook.content.widgets[0].model.outputs.toJSON().filter(output => output.output_type === "error");
    };
    return Promise.race([run(), new Promise(resolve => setTimeout(() => resolve("the cell has not run in 180 s"), 180000))]);
}"""


def test_the_widget_in_a_real_notebook(browser, jupyter):  # noqa: F811
    address, log = jupyter
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda r: (
            None if re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:", r.url) else elsewhere.append(r.url)
        ),
    )
    page.set_default_timeout(180_000)
    page.goto(address)
    page.locator(".jp-CodeCell .cm-content").first.wait_for()
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext")
    assert page.evaluate(RUN) == [], log.read_text()
    page.get_by_role("slider", name="Size of the trace").wait_for()
    page.wait_for_function(f"() => {IN_CELL}.graphs[0].frames > 0")
    n = page.evaluate(f"() => {{ const e = {IN_CELL}; e.setSize(e.view.grid[60]); return e.state.n; }}")
    page.wait_for_function(f"() => {IN_CELL}.reading().exact")  # the kernel was asked, and answered
    assert page.evaluate(f"() => {IN_CELL}.state.asked.values().next().value.n_edges") == n
    assert elsewhere == []
    context.close()

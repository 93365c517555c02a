"""Make the gallery: one page of pictures of the explorer, the figures and a report, of real models.

    python tools/gallery.py [--folder out/gallery] [--docs] [PART ...]

Parts: measure, figures, explorer, report, notebook; all by default. What was measured is kept under the folder, one file a text
and model, and is measured again where that file is deleted. Pictures and the page, index.html, are made anew at every run. It
needs the models of `make real-models`, and Chromium. With --docs the pictures of the documentation are written too.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bleach
import polars
from PIL import Image
from playwright.sync_api import sync_playwright

import densitometer as dm
from densitometer import plots
from densitometer.report.page import report
from densitometer.viewer.page import self_contained
from densitometer.viewer.payload import TracesOfTokens, decode, encode, tokens_payload, traces_payload

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "gallery"
MODELS = ("smollm2", "gemma3", "qwen05")
STUDY = ROOT / "findings" / "passages"
NAMES = {
    "SmolLM2-135M-Instruct-Q4_1": "SmolLM2 135M",
    "gemma-3-270m-Q4_K_M": "Gemma 3 270M",
    "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M": "Qwen2.5-Coder 0.5B",
}
PARTS = ("measure", "figures", "explorer", "report", "notebook")
# Tokens of the page along a text whose traces open.
TRACES = 4
# Most bytes of a picture of the documentation.
DOCS_BYTES = 150_000
SIZES = {1400: 900, 1024: 768, 800: 600, 390: 844}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]
PAGE = "document.querySelector('#densitometer').shadowRoot.querySelector('.explorer').explorer"


@dataclass(frozen=True)
class Prompt:
    """A text, and what is asked of it besides its whole prediction."""

    text: str
    target: tuple[str, str] | None = None
    counterfactual: str | None = None


PROMPTS = {
    "whale": Prompt("The old captain looked at the sea and said that the white whale"),
    "names": Prompt(
        "When Mary and John went to the store, John gave a drink to",
        (" Mary", " John"),
        "When Mary and John went to the store, Mary gave a drink to",
    ),
    "nile": Prompt(
        "The Nile flows north through eleven countries before it reaches the Mediterranean Sea. For thousands of years its "
        "yearly flood left dark soil on the fields, and the farmers of Egypt counted"
    ),
    "code": Prompt("def mean(values):\n    return sum(values) / len("),
}


def _load(model: str) -> dm.Model:
    return dm.load_model(str(ROOT / ".models" / model))


def measure(folder: Path) -> None:
    """Measure every text by every model, and one text along its tokens."""
    (folder / "measured").mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        loaded = None
        for name, prompt in PROMPTS.items():
            path = folder / "measured" / f"{model}-{name}.gz"
            if path.exists():
                continue
            loaded = loaded or _load(model)
            print(f"measuring {name} by {model}", flush=True)
            found = dm.measure(
                loaded, prompt.text, importance=["l1", "fisher"], target=prompt.target, counterfactual=prompt.counterfactual,
                keep_graphs=True,
            )  # fmt: skip
            found.save(path.with_suffix(".json"))
            path.write_bytes(encode(traces_payload(found)))
        path = folder / "measured" / f"{model}-tokens.gz"
        if model == "smollm2" and not path.exists():
            loaded = loaded or _load(model)
            print(f"measuring along the text by {model}", flush=True)
            text = PROMPTS["whale"].text
            settings = dm.MeasureSettings(importance="l1", baselines=())
            table = dm.measure_positions(loaded, text, importance="l1")
            behind = TracesOfTokens(loaded, table, settings, TRACES)
            path.write_bytes(encode(tokens_payload(table, label=text, traces=behind)))
            table.write_parquet(path.with_suffix(".parquet"))


def draw_figures(folder: Path) -> None:
    """Draw what densitometer.plots draws of a measurement."""
    (folder / "figures").mkdir(exist_ok=True)
    loaded = None
    for model in MODELS:
        for name in PROMPTS:
            measured = dm.load_measurement(folder / "measured" / f"{model}-{name}.json")
            drawn = {"curve": plots.plot_curve(measured)}
            if model == "smollm2":
                loaded = loaded or _load(model)
                graphs = measured.with_model(loaded)
                fisher = graphs.density["fisher"].size_at(0.1) or 0.1
                drawn["trace"] = plots.plot_trace(graphs.minimal_trace(tv=0.1, importance="fisher"))
                drawn["components"] = plots.plot_components(graphs.components("fisher", size=fisher))
            for kind, figure in drawn.items():
                plots.save_plot(figure, folder / "figures" / f"{model}-{name}-{kind}.png")
    table = polars.read_parquet(folder / "measured" / "smollm2-tokens.parquet")
    plots.save_plot(plots.plot_tokens(table), folder / "figures" / "smollm2-tokens.png")


@dataclass(frozen=True)
class Shot:
    """A picture of a page of the explorer.

    Args:
        page: name of what was measured.
        name: name of the picture.
        ready: what the picture waits for.
        act: what is done before, a function of the page.
        look: what the page's address says besides the theme.
    """

    page: str
    name: str
    act: Any = None
    look: str = ""
    ready: str = f"() => {PAGE}?.graphs[0]?.frames > 0"


def _shots() -> Iterator[Shot]:
    """The pictures of the explorer, each of which is taken in every size, light and dark."""
    for model in MODELS:
        for name in PROMPTS:
            yield Shot(f"{model}-{name}", "graph")
    yield Shot("smollm2-names", "head", act=_most_used)
    yield Shot("smollm2-whale", "by-head", look="colour=head")
    yield Shot(
        "smollm2-tokens",
        "tokens",
        ready="() => document.querySelector('#densitometer').shadowRoot.querySelector('.tokens')",
    )


def _most_used(page: Any) -> None:
    page.locator("section[aria-label='Heads and MLPs'] button.link").first.click()


def photograph(browser: Any, folder: Path) -> None:
    """Take pictures of the explorer's pages, light and dark, at four widths."""
    pages, pictures = folder / "pages", folder / "explorer"
    for made in (pages, pictures):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
    for path in sorted((folder / "measured").glob("*.gz")):
        (pages / f"{path.stem}.html").write_text(self_contained(decode(path.read_bytes())), encoding="utf-8")
    for shot in _shots():
        for width, height in SIZES.items():
            for theme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
                )
                page.goto((pages / f"{shot.page}.html").as_uri() + (f"#{shot.look}" if shot.look else ""))
                page.wait_for_function(shot.ready)
                if shot.act:
                    shot.act(page)
                page.wait_for_timeout(400)
                page.screenshot(path=pictures / f"{shot.page}-{shot.name}-{width}-{theme}.png")
                page.close()


def photograph_report(browser: Any, folder: Path) -> None:
    """Write the report of the study of passages, and take pictures of it and of its figures."""
    shutil.rmtree(folder / "report", ignore_errors=True)
    figures = folder / "report" / "figures"
    written = report(STUDY, folder / "report.html", figures=figures, names=NAMES)
    for width, height in SIZES.items():
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            page.goto(written.resolve().as_uri())
            page.screenshot(path=folder / "report" / f"report-{width}-{theme}.png", full_page=True)
            page.close()


# What GitHub's static view is taken to leave of HTML: no frame, no script, no style.
GITHUB = {"div": (), "p": (), "small": (), "code": (), "a": ("href",), "img": ("src", "alt", "width")}


def convert(browser: Any, folder: Path) -> None:
    """Run a notebook that shows a measurement, convert it, and take pictures with and without scripts."""
    made = folder / "notebook"
    made.mkdir(exist_ok=True)
    measured = folder / "measured" / "smollm2-nile.json"
    source = (
        f"import densitometer as dm\nmeasurement = dm.load_measurement({str(measured.resolve())!r})\n"
        f"measurement.with_model(dm.load_model({str(ROOT / '.models' / 'smollm2')!r})).show()"
    )
    cell = {
        "cell_type": "code",
        "id": "one",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": source,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (made / "asked.ipynb").write_text(json.dumps(notebook))
    command = [sys.executable, "-m", "nbconvert", "--log-level=ERROR", f"--output-dir={made}"]
    run = ["--to", "notebook", "--execute", "--output=ran"]
    subprocess.run([*command, *run, str(made / "asked.ipynb")], check=True)
    subprocess.run([*command, "--to", "html", str(made / "ran.ipynb")], check=True)
    ran = json.loads((made / "ran.ipynb").read_text())
    shown = ran["cells"][0]["outputs"][0]["data"]
    sizes = {name: len("".join(of) if isinstance(of, list) else json.dumps(of)) for name, of in shown.items()}
    print(f"notebook {(made / 'ran.ipynb').stat().st_size / 1e6:.2f} MB, of which {sizes}", flush=True)
    (made / "picture.png").write_bytes(base64.b64decode("".join(shown["image/png"])))
    left = "".join(shown["text/html"])
    cleaned = bleach.clean(left, tags=set(GITHUB), attributes=GITHUB, protocols={"https", "data"}, strip=True)
    (made / "github.html").write_text(f"<!doctype html><meta charset=utf-8>{cleaned}", encoding="utf-8")
    for name, page_name, scripts in (
        ("nbconvert", "ran", True), ("nbconvert-no-scripts", "ran", False), ("github", "github", False),
    ):  # fmt: skip
        for width in (1400, 800, 390):
            context = browser.new_context(
                viewport={"width": width, "height": 1000}, java_script_enabled=scripts, offline=True
            )
            page = context.new_page()
            page.goto((made / f"{page_name}.html").as_uri())
            if scripts:
                page.frame_locator("iframe").get_by_role("slider", name="Size of the trace").wait_for()
            page.wait_for_timeout(700)
            page.screenshot(path=made / f"{name}-{width}.png")
            context.close()


def write_index(folder: Path) -> Path:
    """Write the page with all pictures."""
    lines = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>densitometer, gallery</title>",
        f"<style>{_STYLE}</style>",
    ]
    for part in ("explorer", "notebook", "report", "report/figures", "figures"):
        pictures = [path for path in sorted((folder / part).glob("*")) if path.suffix in (".png", ".svg")]
        lines.append(f"<h1>{part}, {len(pictures)} pictures</h1>")
        for path in pictures:
            name = path.relative_to(folder)
            lines.append(
                f"<figure><a href='{name}'><img loading=lazy src='{name}'></a><figcaption>{html.escape(path.stem)}</figcaption></figure>"
            )
    index = folder / "index.html"
    index.write_text("\n".join(lines), encoding="utf-8")
    return index


_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:20px}figure{display:inline-block;margin:8px;vertical-align:top}"
    "img{max-width:440px;max-height:440px;border:1px solid #ccc}h1{font-size:18px}"
)

# Pictures of the documentation: of which of the gallery's, and the part that is cut out of it (left, top, right, bottom).
FOR_DOCS = {
    "explorer": ("explorer/smollm2-whale-graph-1400-light.png", None),
    "explorer-target": ("explorer/smollm2-names-graph-1400-light.png", None),
    "explorer-head": ("explorer/smollm2-names-head-1400-light.png", None),
    "explorer-tokens": ("explorer/smollm2-tokens-tokens-800-light.png", (0, 0, 800, 330)),
    "report": ("report/report-800-light.png", (0, 0, 800, 1080)),
    "notebook-picture": ("notebook/picture.png", None),
}


def write_docs(folder: Path) -> None:
    """Write the pictures of the documentation."""
    DOCS.mkdir(exist_ok=True)
    for name, (source, box) in FOR_DOCS.items():
        with Image.open(folder / source) as whole:
            part = whole.convert("RGB").crop(box) if box else whole.convert("RGB")
            for quality in (90, 80, 70, 60, 50):
                file = io.BytesIO()
                part.save(file, format="webp", quality=quality, method=6)
                if file.tell() < DOCS_BYTES:
                    break
            else:
                raise SystemExit(
                    f"{name} takes {file.tell():,} bytes at the lowest quality; cut a smaller part out of it"
                )
            (DOCS / f"{name}.webp").write_bytes(file.getvalue())


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the parts that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "gallery")
    parser.add_argument("--docs", action="store_true", help="write the pictures of the documentation too")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; expected {', '.join(PARTS)}")
    parts = given.parts or PARTS
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("there is no Chromium on this machine (Debian: apt-get install chromium)")
    if "measure" in parts:
        measure(given.folder)
    if "figures" in parts:
        draw_figures(given.folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for part, make in (("explorer", photograph), ("report", photograph_report), ("notebook", convert)):
            if part in parts:
                make(browser, given.folder)
        browser.close()
    if given.docs:
        write_docs(given.folder)
    print(f"gallery written to {write_index(given.folder)}")


if __name__ == "__main__":
    main()

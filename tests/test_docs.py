"""The documentation holds: every block of code and every command runs and prints what the page says; nothing is left out."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from pathlib import Path

import matplotlib
import pytest
import yaml
from snippets import assert_printed, blocks_of, commands_of, registries_kept, run_page

import densitometer as dm
from densitometer import errors

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted(DOCS.rglob("*.md"))
ERRORS = [
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.DensitometerError | errors.DensitometerWarning)
]


def _short_study() -> None:
    """The study that docs/studies.md reads, of two short texts."""
    texts = ["The captain looked at the sea and", "One two three four five six seven"]
    dm.run_study(texts, "demo", "out", sizes=[0.2, 1.0])


# What a page takes to be there already.
BEFORE = {"docs/studies.md": _short_study}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", [p for p in PAGES if blocks_of(p.read_text())], ids=_name)
def test_a_page_runs_and_prints_what_it_says(path, tmp_path, monkeypatch):
    if path == DOCS / "reference" / "command-line.md":
        pytest.skip("held to --help below")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    matplotlib.use("agg")
    BEFORE.get(_name(path), lambda: None)()
    with registries_kept():
        run_page(path.read_text(), {"__name__": "__page__"})


@pytest.mark.real
def test_the_readme_says_of_smollm2_what_is_measured():
    folder = ROOT / ".models" / "smollm2"
    if not (folder / "config.json").is_file():
        pytest.skip("smollm2 is not there; make real-models fetches it")
    page = " ".join((ROOT / "README.md").read_text().split())
    text = re.search(r"SmolLM2-135M reads \*(.*?)\* and predicts \*was\*", page)[1]
    measured = dm.measure(dm.load_model(str(folder)), text, importance=("l1", "fisher"))
    assert measured.prediction["token"][0] == " was"
    by_both = r"from (\d+) % of the edges \(fisher; (\d+) % by l1\).* ([\d,]+) edges\)"
    fisher, l1, edges = re.search(by_both, measured.summary()).groups()
    for words in (f"{edges} vectors can reach", f"With {fisher} % of them on", f"that takes {l1} %"):
        assert words in page


def test_the_command_reference_is_what_help_says():
    module = _tool("command_reference")
    assert module.PAGE.read_text() == module.command_reference(), "run tools/command_reference.py"


def test_the_pictures_are_what_the_product_draws(tmp_path):
    module = _tool("draw_idea")
    module.draw(tmp_path)
    drawn = sorted(tmp_path.iterdir())
    assert [p.name for p in drawn] == sorted(p.name for p in module.FOLDER.iterdir())
    for path in drawn:
        words, committed = (
            re.findall(r"<text[^>]*>(.*?)</text>", p.read_text(), re.DOTALL)
            for p in (path, module.FOLDER / path.name)
        )
        assert words
        assert words == committed, f"run tools/draw_idea.py: {path.name} says something else now"


def test_every_how_to_ends_with_what_can_go_wrong():
    for path in sorted((DOCS / "howto").glob("*.md")):
        headings = re.findall(
            r"^## (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE
        )
        assert headings[-1] == "What can go wrong", path.name


def test_the_pictures_of_real_models_are_those_of_the_gallery_and_small():
    tree = ast.parse((ROOT / "tools" / "gallery.py").read_text())
    names = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    made = {ast.literal_eval(key) for key in names["FOR_DOCS"].keys}
    pictures = {path.stem: path for path in (DOCS / "gallery").iterdir()}
    assert pictures.keys() == made
    pages = "".join(path.read_text() for path in PAGES)
    for name, path in pictures.items():
        assert path.stat().st_size < ast.literal_eval(names["DOCS_BYTES"])
        assert f"gallery/{path.name})" in pages, name


def test_the_edges_of_the_papers_models_are_those_of_the_formula():
    module = _tool("papers_study")
    rows = (DOCS / "howto" / "papers.md").read_text()
    t = module.LENGTH
    for name, config, parameters in module.MODELS:
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        everything = layers * (heads * t * (t + 1) // 2 + 3 * t)
        edges = everything - (2 * (t - 1) + heads * t * (t - 1) // 2 + (t - 1))
        assert f"| {name} | {parameters / 1e9:.2f} billion | {edges:,} | {2 * layers / edges:.1e} |" in rows


@pytest.mark.slow
def test_the_table_of_the_papers_models_is_what_plans_say():
    table = "\n".join(_tool("papers_study").table())
    assert table in (DOCS / "howto" / "papers.md").read_text()


def test_every_public_name_is_in_the_reference():
    page = (DOCS / "reference" / "python.md").read_text()
    shown = re.findall(r"^::: densitometer\.(\w+)$", page, re.MULTILINE)
    assert sorted(shown) == sorted({*dm.__all__} - set(ERRORS))


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_a_page_with_cause_and_cure(name):
    page = (DOCS / "errors" / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert "## Causes and cures" in page
    assert f"]({name}.md)" in (DOCS / "errors" / "index.md").read_text()


def test_an_error_on_the_command_line_ends_with_the_name_of_its_page():
    from typer.testing import CliRunner

    from densitometer.cli.commands import app

    said = CliRunner().invoke(app, ["measure", ""])
    assert said.exit_code == 2
    assert said.output.rstrip().endswith("[InputError]")


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def paths(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [
            path for value in (entry.values() if isinstance(entry, dict) else entry) for path in paths(value)
        ]

    listed = paths(nav)
    assert len(listed) == len(set(listed))
    assert {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")} <= set(listed)


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == dm.__version__
    assert f"## {dm.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    ids = {i["value"] for reference in cited["references"] for i in reference.get("identifiers", [])}
    assert ids == {"arXiv:2601.22795", "arXiv:2605.27033"}


def test_ci_runs_the_script_under_every_python_of_the_package():
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["run"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    declared = [c.rsplit(" ", 1)[1] for c in classifiers if re.search(r"Python :: 3\.\d+$", c)]
    assert job["strategy"]["matrix"]["python"] == declared
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "$ make test " in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("expected", "printed", "holds"),
    [
        (["TV 0.10 from 18 % (l1)"], "TV 0.101 from 18 %  (l1)\n", True),
        (["TV 0.10"], "TV 0.12", False),
        (["TV 0.10"], "KL 0.10", False),
        (["3,942 edges"], "3942 edges", True),
        (["3 edges"], "4 edges", False),
        (["first", "..."], "first\nsecond\nthird", True),
        (["first"], "first\nsecond", False),
        (["...", "third"], "first\nsecond\nthird", True),
        (["...", "second"], "first\nsecond\nthird", False),
        (["took 0.4 ..."], "took 0.4 s on this machine", True),
        (["1e-07"], "3e-07", False),
    ],
)
def test_what_is_printed_is_held_to_what_is_shown(expected, printed, holds):
    if holds:
        assert_printed(expected, printed, "here")
    else:
        with pytest.raises(AssertionError):
            assert_printed(expected, printed, "here")


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\n1 / 0\n```", "division"),
        ("```\nls\n```", "not marked"),
        ("    ls\n", "not marked"),
        ("```bash\nls\n```", "not marked"),
        ("```text\nhello\n```", "neither"),
        ("```console\n$ rm x\n```", "only densitometer"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```", "expected the line"),
        ("<!-- not run: why -->\n\nwords between\n\n```bash\nls\n```", "not marked"),
        ("<!-- not run: -->\n\n```bash\nls\n```", "not marked"),
    ],
)
def test_a_page_that_does_not_hold_fails(page, message):
    with pytest.raises((AssertionError, ZeroDivisionError), match=message):
        run_page(page, {})


def test_blocks_and_commands_are_read_as_they_are_written():
    page = '<!-- not run: a reason -->\n\n```bash\nls\n```\n\n```jsonl title="a.jsonl"\n{}\n```\n'
    one, other = blocks_of(page)
    assert (one.not_run, other.not_run) == ("a reason", None)
    assert (other.language, other.title, other.content) == ("jsonl", "a.jsonl", "{}\n")
    assert commands_of("$ a \\\n  b\nout\n$ c") == [("a    b", ["out"]), ("c", [])]

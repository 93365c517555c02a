"""The report as its reader gets it: from a real study, whole, escaped, without network; and what cannot be reported."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy
import polars
import pytest
from command import call
from studies import save_model

import densitometer as dm
from densitometer import analysis
from densitometer.errors import DensitometerError, InputError, StorageError
from densitometer.measuring.density import DEFAULT_SIZES
from densitometer.report.figures import Lines, draw_lines, save
from densitometer.report.findings import QUESTIONS, Evidence, Finding, LeftOut, findings
from densitometer.report.findings.finding import short_names
from densitometer.report.page import _all_of, escape, report
from densitometer.study.part_files import part_of
from densitometer.study.store import StudyStore

WORDS = ("the", "sea", "was", "cold", "and", "a", "whale", "came", "under", "ship", "la", "mer", "de", "nuit")
EVIL = "<script>alert(1)</script> & $x^2$"


def corpus(n, languages=("en", "fr"), domains=("law", EVIL)):
    texts = [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(5, 11 + i % 3)) for i in range(n)]
    return polars.DataFrame(
        {
            "id": [f"<b>{i}" for i in range(n)], "text": texts, "language": [languages[i % len(languages)] for i in range(n)],
            "domain": [domains[i // 2 % len(domains)] for i in range(n)],
        }
    )  # fmt: skip


SETTINGS = {"window": "words:5", "sizes": (0.001, 0.01, 0.1, 0.4, 1.0)}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    models = [save_model(folder / f"tiny-{seed}", seed) for seed in (0, 1)]
    return dm.run_study(corpus(21), [*models, str(folder / "missing <i>")], folder / "s", **SETTINGS)


@contextlib.contextmanager
def answers_kept():
    """The answers that a report made meanwhile is written from."""
    kept = []

    def answering(evidence):
        kept.extend(findings(evidence))
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("densitometer.report.page.findings", answering)
        yield kept


@pytest.fixture(scope="module")
def reported(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    options = ["-o", folder / "r.html", "--tables", folder / "t", "--figures", folder / "f"]
    with answers_kept() as kept:
        result = call("report", study.folder, *options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert str(folder / "r.html") in result.stdout
    return (folder / "r.html").read_text(), folder, kept


@pytest.fixture(scope="module")
def page(reported):
    return reported[:2]


@pytest.fixture(scope="module")
def found(reported):
    return reported[2]


@pytest.fixture
def asked(monkeypatch):
    """Put only the questions of these names."""

    def ask(*names):
        chosen = [question for question in QUESTIONS if question.__name__ in names]
        assert len(chosen) == len(names)
        monkeypatch.setattr("densitometer.report.findings.QUESTIONS", chosen)

    return ask


class _Checker(HTMLParser):
    VOID = ("meta", "path", "use", "rect", "stop", "image")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("href", "src", "xlink:href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_escaped_and_asks_for_nothing(page):
    text, _ = page
    checker = _Checker()
    checker.feed(text)
    assert checker.open == []
    assert not {"script", "link", "img", "iframe", "b1", "i"} & set(checker.tags)
    assert all(link.startswith("#") for link in checker.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x^2$" in text


def test_each_finding_has_its_claim_figure_reading_and_refutation(page, found):
    text, _ = page
    shown = [f for f in found if isinstance(f, Finding)]
    assert len(shown) >= 7
    assert text.count("<section id=") == text.count("<svg ") == len(shown)
    assert text.count("How to read it.") == text.count("What would have refuted it.") == len(shown)
    for finding in shown:
        assert finding.tables
        assert finding.reading
        assert finding.refuted.endswith(".")
        assert "would have refuted" in finding.refuted
        assert len(finding.claim) <= 2 * 120  # two lines of the page
        assert finding.claim[-1] == "."


def test_the_numbers_are_those_of_the_store(page, study):
    text, folder = page
    table = study.measurements().filter(polars.col("error").is_null())
    for model in table["model"].unique():
        median = table.filter(model=model)["size_at"].median()
        assert f"{float(f'{100 * median:.2g}'):g}\u00a0%" in text
    written = polars.read_csv(folder / "t" / "how-much-is-needed-1.csv")
    expected = analysis.distribution(
        study.measurements(), ["model", "importance"], ["size_at", "flops_at", "auc_log"]
    )
    assert written["median"].to_list() == pytest.approx(expected["median"].to_list())
    assert (
        "21 pieces of text failed (21 rows, one for each importance), which are left out everywhere" in text
    )


def test_figures_are_files_for_a_paper(page, found, study, tmp_path):
    _, folder = page
    again = QUESTIONS[0](Evidence(study))
    shown = [f for f in found if isinstance(f, Finding)]
    names = {f.name.lower().replace(" ", "-") for f in shown}
    assert {p.name for p in (folder / "f").iterdir()} == {
        f"{n}.{form}" for n in names for form in ("svg", "pdf")
    }
    for name in names:
        ElementTree.parse(folder / "f" / f"{name}.svg")
        content = (folder / "f" / f"{name}.pdf").read_bytes()
        assert content.startswith(b"%PDF-")
        assert content.rstrip().endswith(b"%%EOF")
        assert b"/Type3" not in content  # journals want fonts that can be embedded and searched
    caption = re.search(
        r"<dc:description>(.*?)</dc:description>", (folder / "f" / "how-much-is-needed.svg").read_text()
    )[1]
    for said in (
        "Half of the predictions hold",
        "window words:5",
        "(21 texts)",
        f"densitometer {dm.__version__}",
    ):
        assert said in caption
    assert (
        ">share of the full trace from which TV stays"
        in (folder / "f" / "how-much-is-needed.svg").read_text()
    )
    for form in ("svg", "pdf"):
        save(again.figure, tmp_path / f"again.{form}", again.caption(Evidence(study).measured_by))
        assert (tmp_path / f"again.{form}").read_bytes() == (
            folder / "f" / f"how-much-is-needed.{form}"
        ).read_bytes()


def test_the_page_opens_with_what_each_model_needs(page, study):
    text, folder = page
    opening = text[text.index("<h1>") : text.index("<nav>")]
    facts = json.loads((folder / "t" / "findings.json").read_text())
    table = study.measurements().with_columns(model=polars.col("model").replace(facts["names"]))
    assert set(facts["names"].values()) == {"tiny-0", "tiny-1", "missing <i>"}
    for row in facts["densities"]:
        own = table.filter(model=row["model"], importance=row["importance"])
        measured = own.filter(polars.col("error").is_null())
        assert row["texts"] == measured["text_id"].n_unique() == 21 - row["without"]
        assert row["median"] == (pytest.approx(measured["size_at"].median()) if len(measured) else None)
        assert row["held"] == (len(measured["size_at"].drop_nulls()) or None)
        if len(measured):
            percent = float(f"{100 * row['median']:.2g}")
            assert f"<td>{percent:g}\u00a0%</td>" in opening
    claims = [
        f["claim"]
        for f in facts["findings"]
        if f["name"] in ("How much is needed", "Across models", "What goes with it")
    ]
    assert len(claims) == opening[opening.index("<ul class") :].count("<li>") == 3
    assert all(f"<li>{escape(claim)}</li>" in opening for claim in claims)
    for finding in facts["findings"]:
        for caption, file in finding["tables"].items():
            assert caption
            assert (folder / "t" / file).exists()
    settings = dict(facts["settings"])
    assert settings["window"] == "words:5"
    assert settings["states"] == "no"
    assert settings["corpus: n texts"] == "21"
    assert not [value for value in settings.values() if re.search(r"[{\[']|None|True|False", value)]


def test_models_are_named_for_the_report(study, asked, tmp_path):
    asked("how_much_is_needed")
    one, other, _ = study.measurements()["model"].unique().sort(descending=True)
    text = report(study, tmp_path / "r.html", names={one: "large", other: "small"}).read_text()
    assert "<td>large by l1</td>" in text
    assert "tiny-1 by l1" not in text
    # and the command that repeats the report names them so; it names no model that keeps its name
    again = html.unescape(text[text.index("densitometer report") :].split("</pre>")[0])
    assert shlex.split(again)[3:] == ["-m", f"small={other}", "-m", f"large={one}"]
    result = call(
        "report", study.folder, "-o", tmp_path / "s.html", "-m", f"large={one}", "-m", f"small={other}"
    )
    assert result.returncode == 0
    assert "<td>small by l1</td>" in (tmp_path / "s.html").read_text()
    with pytest.raises(InputError, match="would both be called 'tiny-0'"):
        report(study, tmp_path / "r.html", names={one: "tiny-0"})
    with pytest.raises(InputError, match="the study has no model 'nobody'"):
        report(study, tmp_path / "r.html", names={"nobody": "x"})
    assert "expected NAME=MODEL" in fails(study.folder, "-o", tmp_path / "t.html", "-m", "large")


def test_lines_of_models_stand_in_the_order_of_their_names():
    table = polars.DataFrame(
        {"model": ["b", "a", "b", "a"], "importance": "l1", "size": [0.1, 0.1, 0.2, 0.2], "rho": [1.0, 2.0, 3.0, 4.0]}
    )  # fmt: skip
    figure = draw_lines(table, "size", "share", [Lines("correlation", "rho")])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[2.0, 4.0], [1.0, 3.0]]


def test_models_whose_names_end_alike_keep_their_names():
    assert short_names(["a/x", "b/x", "c/y", "demo"]) == {
        "a/x": "a/x",
        "b/x": "b/x",
        "c/y": "y",
        "demo": "demo",
    }


def test_few_texts_are_read_of_a_model_with_many_components(study, monkeypatch):
    assert Evidence(study).composed is None
    measured = Evidence(study).measured
    rows = int((measured["n_layers"] * (measured["n_heads"] + 3)).sum()) * 2 * len(DEFAULT_SIZES)
    monkeypatch.setattr("densitometer.report.findings.finding.MOST_COMPONENTS", rows // 2)
    evidence = Evidence(study)
    assert len(evidence.composed) == 10  # of 21
    assert set(evidence.components["text_id"]) == set(evidence.composed)
    assert set(evidence.curves["text_id"]) == set(measured["text_id"])


def test_what_the_data_cannot_answer_is_left_out_and_said(tmp_path):
    model = save_model(tmp_path / "tiny", 0)
    one = dm.run_study(corpus(4, ("en",), ("law",)), [model], tmp_path / "s", **SETTINGS)
    with answers_kept() as answers:
        path = report(one, tmp_path / "r.html")
    left_out = {f.name: f.why for f in answers if isinstance(f, LeftOut)}
    assert set(left_out) == {
        "Between languages and domains", "Across models", "What goes with it", "What trees make of it",
        "Whether domains differ in it", "Whether models differ in it",
        "The same text in two languages", "Over training", "Where the last token's state goes",
    }  # fmt: skip
    assert "What this study cannot say" in path.read_text()
    assert left_out["Across models"] in path.read_text()


def test_curves_of_large_studies_are_those_of_drawn_texts(study, asked, tmp_path, monkeypatch):
    monkeypatch.setattr("densitometer.report.findings.finding.MOST_TRACED", 9)
    asked("how_much_is_needed", "what_traces_are_made_of", "what_operations_buy")
    with answers_kept() as answers:
        page = report(study, tmp_path / "r.html").read_text()
    found = {f.name: f for f in answers}
    n = 9 * 21 // 42  # of 21 texts under two models
    assert set(found["What operations buy"].tables["By size"]["n"]) == {n}
    assert set(found["How much is needed"].tables["Median, its interval and quartiles"]["n"]) == {0, 21}
    some = ["<b>3", "<b>8"]
    assert study.components(some).equals(study.components().filter(polars.col("text_id").is_in(some)))
    assert set(study.curves(some)["text_id"]) == set(some)
    assert (
        f"Curves and operations are those of {n} texts; Components are those of {n} texts, drawn at random"
        in page
    )


def fails(*arguments):
    result = call("report", *arguments)
    assert result.returncode in (1, 2)
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_bad_input_is_one_clear_line_and_nothing_is_written(tmp_path, study):
    page = tmp_path / "r.html"
    assert "is not a study" in fails(tmp_path / "nowhere", "-o", page)
    assert "there is no such folder" in fails(study.folder, "-o", tmp_path / "no" / "r.html")
    page.write_text("kept")
    (tmp_path / "file").write_text("")
    assert "cannot write tables" in fails(study.folder, "-o", page, "--tables", tmp_path / "file")
    assert "cannot write figures" in fails(study.folder, "-o", page, "--figures", tmp_path / "file")
    assert page.read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "r.html"]


def test_empty_and_failed_studies_are_refused(tmp_path):
    texts = dm.run_study(corpus(3), [save_model(tmp_path / "tiny", 0)], tmp_path / "s", **SETTINGS).texts()
    settings = {"eps": 0.1, "importance": ["l1"]}
    store = StudyStore.create(tmp_path / "e", settings, {"name": "c", "sha256": "0", "n_texts": 3}, texts, {})
    with pytest.raises(DensitometerError, match="has no measurement yet"):
        report(tmp_path / "e", tmp_path / "r.html")
    rows = [
        {"cell": i, "text_id": f"{i}", "piece": 0, "model": "m", "importance": "l1", "error": "no memory"}
        for i in (0, 1)
    ]
    store.write("m", 0, 2, part_of(rows, [{}, {}]))
    with pytest.raises(DensitometerError, match=r"all 2 rows .* failed.*no memory"):
        report(tmp_path / "e", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "e" / "manifest.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        report(tmp_path / "e", tmp_path / "r.html")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """Twelve texts of one model, two of them of another."""
    folder = tmp_path_factory.mktemp("unfinished")
    one, other = (save_model(folder / f"tiny-{seed}", seed) for seed in (0, 1))
    dm.run_study(corpus(12), [one], folder / "s", **SETTINGS)
    return dm.run_study(corpus(12), [other], folder / "s", shard="1/6", **SETTINGS)


def test_what_is_missing_is_said_first(unfinished, asked, tmp_path):
    asked("how_much_is_needed", "what_goes_with_it")
    text = report(unfinished, tmp_path / "r.html").read_text()
    assert text.index("What is missing") < text.index("</h1>") + 100
    assert re.search(r"tiny-1: 2 of 12 texts were tried, so the study is unfinished\.", text)
    assert _all_of(["a", "b", "c"], 3) == "All 3 models"
    assert [_all_of(["a", "b"], n) for n in (2, 3)] == ["a, b", "a, b"]
    assert re.search(r"tiny-1: 2 texts were measured, fewer than the 8 that intervals and tests need\.", text)
    assert "<p>2 to 12 of 12 texts, 2 models" in text
    assert "<p>12 of 12 texts, 2 models" not in text
    # the panels of "What goes with it" have no row of the model of two texts
    section = text[text.index("What goes with it</h2>") :]
    section = section[: section.index("</section>")]
    assert re.search(r"Not in it:</b> [^<]*tiny-1 by l1 \(2 texts\)<", section)
    assert "tiny-0 by l1" not in re.search(r"Not in it:</b> [^<]*<", section)[0]


def test_a_whole_study_says_nothing_is_missing(unfinished, asked, tmp_path):
    """The same study, gone on with until it is whole."""
    folder = shutil.copytree(unfinished.folder, tmp_path / "s")
    models = [str(unfinished.folder.parent / f"tiny-{seed}") for seed in (0, 1)]
    whole = dm.run_study(corpus(12), models, folder, **SETTINGS)
    asked("how_much_is_needed")
    text = report(whole, tmp_path / "r.html").read_text()
    assert "What is missing" not in text
    assert "<p>12 of 12 texts, 2 models" in text


def test_a_fit_that_is_saturated_is_withheld_with_its_reason(unfinished, asked):
    asked("what_goes_with_it")
    (found,) = findings(unfinished)
    for name, table in found.tables.items():
        if name.startswith("Least squares"):
            assert (table["r_squared"] < 1 - 1e-9).all()
            assert (table["p"] > 1e-50).all()
            assert "texts" not in set(table["effects"])


def test_sizes_between_traces_are_those_of_the_line_in_log_size(study):
    table = analysis.with_size_between(study, study.measurements())
    assert table.drop("size_between").equals(study.measurements())
    curves = study.curves().filter(kind="trace")
    moved = 0
    for row in table.filter(polars.col("size_at").is_not_null()).iter_rows(named=True):
        own = curves.filter(
            text_id=row["text_id"], model=row["model"], importance=row["importance"], piece=row["piece"]
        )
        tv = dict(own.select("size", "tv").iter_rows())
        low, high = row["size_below"], row["size_at"]
        if not low:
            assert row["size_between"] == high
            continue
        place = numpy.interp(-0.1, [-tv[low], -tv[high]], numpy.log([low, high]))
        assert row["size_between"] == pytest.approx(numpy.exp(place), rel=1e-9)
        assert low <= row["size_between"] <= high
        moved += row["size_between"] < high
    assert moved > 5
    assert table["size_between"].drop_nulls().n_unique() >= table["size_at"].drop_nulls().n_unique()
    failed = table.filter(polars.col("error").is_not_null())
    assert len(failed)
    assert failed["size_between"].null_count() == len(failed)

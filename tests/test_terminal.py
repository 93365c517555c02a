"""What is printed: the first screen and the full one, at any width and in any encoding, of any text."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess

import polars
import pytest
from command import COMMAND, call
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

import densitometer as dm
from densitometer.cli import commands as cli
from densitometer.cli import terminal
from densitometer.cli.terminal import Column, Columns, Printed, show_measurement, show_positions, show_report
from densitometer.measuring import settings
from densitometer.measuring.check import CheckReport, CheckRow

TEXT = "The old captain looked at the sea and said that the white whale"
TEXTS = (
    "values = array[i",
    "for i in range(n): total += values[i",
    "[bold]x[/bold] and [red",
    "[/] closing tag",
    "[bold]x[/bold] [",
    "it is :warning: \\frac{a}{b} [link=x]",
    "عاصمة فرنسا هي",
    "می‌خواهم بروم",
    "I ♥ 🐍 and 👩‍👩‍👧",
    "法国的首都是",
    "फ्रांस की राजधानी",
)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?")


@pytest.fixture(scope="module")
def demo() -> dm.Model:
    return dm.load_model("demo")


@pytest.fixture(scope="module")
def measured(demo) -> dm.Measurement:
    return dm.measure(demo, TEXT)


@pytest.fixture(scope="module")
def by_threshold(demo) -> dm.Measurement:
    return dm.measure(demo, TEXT, by="threshold")


@pytest.fixture(scope="module")
def positions(demo):
    return dm.measure_positions(demo, TEXT, sizes=[0.3, 1.0])


def printed(what: object, width: int = 80, markup: bool = True) -> str:
    """On a console that would read markup, which nothing that is shown is."""
    console = Console(file=io.StringIO(), width=width, markup=markup)
    console.print(Printed(what))
    return console.file.getvalue()  # type: ignore[attr-defined]


def tables_of(lines: list[str]) -> list[list[dict[str, str]]]:
    """The tables among printed lines, whose first column is called size: each row by its column's head.

    Heads and cells are two blanks or more apart; a cell belongs to the head that it overlaps.
    """
    found = []
    for i, line in enumerate(lines):
        if not line.strip().startswith("size  "):
            continue
        heads = [(m[0], m.start(), m.end()) for m in re.finditer(r"\S+(?: \S+)*", line)]
        rows = []
        for row in lines[i + 1 :]:
            cells = [(m[0], m.start(), m.end()) for m in re.finditer(r"\S+(?: \S+)*", row)]
            if not row.strip() or row.startswith("baselines"):
                break
            own: list[tuple[str, str]] = []
            for text, start, end in cells:
                under = [head for head, a, b in heads if a < end and start < b]
                assert len(under) == 1, (text, under)
                own.append((under[0], text))
            rows.append(own)
        found.append(rows)
    return found


def sizes_of(cell: str) -> tuple[float, float]:
    ends = [float(number) / 100 for number in NUMBER.findall(cell)]
    return ends[0], ends[-1]


def in_span(table: polars.DataFrame, cell: str) -> polars.DataFrame:
    low, high = sizes_of(cell)
    return table.filter(
        (polars.col("size") > low * 0.994 - 1e-12) & (polars.col("size") < high * 1.006 + 1e-12)
    )


def traces(m: dm.Measurement, name: str) -> polars.DataFrame:
    return m.curve.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))


# --- the first screen ---------------------------------------------------------------------------------


def test_the_first_line_is_the_one_to_quote(measured):
    lines = printed(show_measurement(measured)).splitlines()
    facts = next(i for i, line in enumerate(lines) if line.startswith("model "))
    assert " ".join(lines[:facts]) == measured.summary()
    assert "(fisher; " in measured.summary()
    assert " % by l1)" in measured.summary()
    assert 20 <= len(lines) <= 25


@pytest.mark.parametrize("width", [80, 100, 132])
def test_every_number_of_the_first_screen_is_whole_and_that_of_the_curve(measured, width):
    lines = printed(show_measurement(measured), width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "…" not in "".join(lines)
    (table,) = tables_of(lines)
    assert 3 <= len({head for row in table for head, _ in row}) <= 6
    *rows, holds = table
    for row in rows:
        (_, size), (_, edges), *cells = row
        values = iter(cells)
        for name in ("l1", "fisher"):
            own = in_span(traces(measured, name), size)
            assert len(own) > 0
            counts = [int(n.replace(",", "")) for n in NUMBER.findall(edges)]
            assert (counts[0], counts[-1]) == (own["n_edges"].min(), own["n_edges"].max())
            head, tv = next(values)
            assert head == f"TV by {name}"
            assert {f"{value:.2f}" for value in own["tv"]} == {tv}
            head, token = next(values)
            assert head == "predicts"
            uniform = own["top_probability"].max() < 1e-3
            assert token == "(uniform)" if uniform else {token} == {repr(t) for t in own["top_token"]}
    for name, (_, cell) in zip(("l1", "fisher"), holds[1:], strict=True):
        low, high = measured.density[name].bracket(0.1)
        assert cell == f"{100 * low:.2g} to {100 * high:.2g} %"
        assert high / low < 1.06


def test_sizes_at_which_nothing_changes_are_one_row(measured):
    (table,) = tables_of(printed(show_measurement(measured)).splitlines())
    first = table[0][0][1]
    assert sizes_of(first)[0] == pytest.approx(1e-5)
    assert len(in_span(traces(measured, "l1"), first)) > 8
    flat = measured.curve.with_columns(tv=0.05, top_token=polars.lit("x"), entropy=1.0)
    (table,) = tables_of(printed(show_measurement(dataclasses.replace(measured, curve=flat))).splitlines())
    assert [row[0][1] for row in table[:-1]] == ["0.001 to 80 %", "100 %"]  # the full trace stands apart


def test_few_sizes_are_all_shown(demo):
    m = dm.measure(demo, TEXT, importance=["l1"], sizes=[0.05, 0.15, 0.33, 0.71, 1.0])
    (table,) = tables_of(printed(show_measurement(m)).splitlines())
    assert [row[0][1] for row in table[:-1]] == ["5 %", "15 %", "33 %", "71 %", "100 %"]
    heads = [head for head, _ in table[0]]
    assert heads == ["size", "edges", "operations", "parameters", "TV by l1", "predicts"]


def test_traces_of_thresholds_are_those_of_the_tightest_score(by_threshold):
    text = printed(show_measurement(by_threshold))
    assert "TV by fisher" in text
    assert "TV by l1" not in text
    assert "more: --full" in text
    (table,) = tables_of(text.splitlines())
    for row in table[:-1]:
        cells = dict(row)
        own = in_span(traces(by_threshold, "fisher"), cells["size"])
        assert {f"{value:.2f}" for value in own["tv"]} == {cells["TV by fisher"]}


def test_more_scores_than_fit_leave_the_tightest(demo):
    names = ["l1", "l2", "random", "proximity", "fisher"]
    m = dm.measure(demo, "The captain looked at the sea", importance=names, baselines=())
    lines = printed(show_measurement(m)).splitlines()
    (table,) = tables_of(lines)
    heads = [head for head, _ in table[0]]
    assert len(heads) <= 6
    at = {name: m.density[name].size_at(0.1) or 2.0 for name in names}
    left_out = {name for name in names if f"TV by {name}" not in heads}
    assert left_out == {max(names, key=lambda name: at[name])}
    assert max(map(cell_len, lines)) <= 80


def test_noise_and_baselines_are_told(measured):
    text = printed(show_measurement(measured))
    assert f"by rounding alone {measured.noise:.1g}" in text
    size = 0.4  # of those that baselines are run at, the next above size_at
    own = measured.curve.filter((polars.col("importance") == "fisher") & (polars.col("size") == size))
    tv = dict(own.select("kind", "tv").iter_rows())
    line = f"random 40 %: TV {tv['random']:.2f}; all but fisher's 40 %: TV {tv['inverse']:.2f}; more: --full"
    assert line in text


def test_a_size_that_noise_blurs_is_a_range(measured):
    noisy = {name: dataclasses.replace(d, noise=0.05) for name, d in measured.density.items()}
    m = dataclasses.replace(measured, density=noisy)
    low, high = noisy["fisher"].bracket(0.1)
    assert high > 1.5 * low
    assert f"from {100 * low:.2g} to {100 * high:.2g} % of the edges (fisher; " in m.summary()
    assert f"{100 * low:.2g} to {100 * high:.2g} %" in printed(show_measurement(m))


def test_almost_everything_is_100_per_cent(measured):
    whole = dm.Density((0.5, 0.997, 1.0), (0.9, 0.05, 0.0), (0.96,), (0.4,))
    m = dataclasses.replace(measured, density={"l1": whole})
    assert m.summary().startswith("TV <= 0.1 from 100 % of the edges (l1)")
    assert "e+02" not in printed(show_measurement(m))


def test_the_next_token_and_what_a_file_holds_are_named(demo):
    m = dm.measure(demo, TEXT, importance=["l1"], sizes=[0.5, 1.0], position=3)
    described = dataclasses.replace(m.model, file="/models/smollm2.gguf", quantization="Q4_1")
    m = dataclasses.replace(m, model=described)
    text = printed(show_measurement(m))
    assert "float32, Q4_1 in smollm2.gguf, cpu" in text
    n = m.next_token
    assert f"{n['token']!r} in the text: surprisal {n['surprisal']:.2f} nats, rank {n['rank']}" in text
    assert repr("".join(m.input["tokens"][:4])) in text


# --- everything ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 200])
def test_in_full_every_number_is_there_and_whole(measured, width):
    lines = printed(show_measurement(measured, full=True), width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "…" not in "".join(lines)
    heads = {
        "n_edges": "edges", "threshold": "threshold", "flops_share": "operations", "parameter_share": "parameters",
        "tv": "TV", "kl": "KL", "js": "JS", "top1": "top-1", "nucleus": "nucleus", "nucleus_unordered": "as set",
        "entropy": "entropy",
    }  # fmt: skip
    for name in ("l1", "fisher"):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"traces by {name}"))
        stop = next(
            i
            for i, line in enumerate(lines[start + 1 :], start + 1)
            if line.startswith(("traces", "without"))
        )
        parts = tables_of(lines[start:stop])
        assert (len(parts) == 1) == (width == 200)
        rows: dict[str, dict[str, str]] = {}
        for part in parts:
            for row in part:
                rows.setdefault(row[0][1], {}).update(row)
        seen = 0
        for size, cells in rows.items():
            own = in_span(traces(measured, name), size)
            seen += len(own)
            assert own["n_edges"].n_unique() == 1
            value = own.row(-1, named=True)
            for column, head in heads.items():
                exact, cell = value[column], cells[head]
                if isinstance(exact, bool):
                    assert cell == ("yes" if exact else "no")
                elif column.startswith("nucleus"):
                    assert cell == (f"{exact} %" if exact else "-")
                else:
                    (number,) = NUMBER.findall(cell)
                    shown = float(number.replace(",", "")) / (100 if cell.endswith(" %") else 1)
                    assert shown == pytest.approx(exact, rel=0.06, abs=6e-4), column
            for kind in ("inverse", "random"):
                other = measured.curve.filter(
                    (polars.col("importance") == name)
                    & (polars.col("kind") == kind)
                    & polars.col("size").is_in(own["size"].to_list())
                )
                assert cells[kind] == (f"{other['tv'][0]:.3f}" if len(other) else "-")
        assert seen == len(traces(measured, name))
    text = "\n".join(lines)
    for kind in measured.baselines["kind"]:
        assert kind.split("_")[0] in text or "residual edges" in text
    for row in measured.noise_runs.iter_rows(named=True):
        assert f"{row['noise']:.1e}" in text
    for density in measured.density.values():
        assert f"{density.auc_log:.3f}" in text
        assert f"{density.auc_linear:.3f}" in text


def test_a_registered_metric_has_a_column(measured):
    more = measured.curve.with_columns(margin=polars.col("tv") * 7)
    text = printed(show_measurement(dataclasses.replace(measured, curve=more), full=True))
    assert "margin" in text
    assert f"{more.filter(polars.col('kind') == 'trace')['margin'][20]:.2g}" in text


@pytest.mark.parametrize("width", [30, 40, 50, 80])
def test_a_table_that_is_too_wide_is_parted_and_no_number_is_cut(width):
    table = Columns([Column("name", right=False), *(Column(f"column {i}") for i in range(7))])
    for row in range(3):
        table.add(f"row {row}", *(f"{1_000_000 + 10 * row + i:,}" for i in range(7)))
    lines = printed(table, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    for row in range(3):
        own = " ".join(line for line in lines if line.startswith(f"row {row}"))
        assert re.findall(r"1,\d{3},\d{3}", own) == [f"{1_000_000 + 10 * row + i:,}" for i in range(7)]


@pytest.mark.parametrize("width", [31, 47, 80])
def test_a_number_stands_with_its_unit(positions, width):
    assert not [
        line for line in printed(show_positions(positions, "l1"), width).splitlines() if line.startswith("%")
    ]


# --- texts from anywhere ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_printed_whole(demo, text):
    m = dm.measure(demo, text, importance=["l1"], sizes=[0.3, 1.0], baselines=())
    shown = printed(show_measurement(m))
    assert f"text      '{text}'" in shown
    assert "\npredicts  '" in shown
    assert "…" not in shown
    m.prediction[0, "token"] = text
    assert f"predicts  '{text}'" in printed(show_measurement(m), 120)
    told = m.curve.with_columns(top_token=polars.lit(text))
    full = printed(show_measurement(dataclasses.replace(m, curve=told), full=True), 200)
    assert full.count(f"'{text}'") >= 3


def test_what_steers_a_terminal_is_shown_and_does_nothing(measured):
    steering = "a\x1b[31m\u202e\u2066b\nc\td"
    m = dataclasses.replace(
        measured,
        input=dataclasses.replace(measured.input, text=steering),
        curve=measured.curve.with_columns(top_token=polars.lit(steering)),
        model=dataclasses.replace(measured.model, name=f"[red]{steering}"),
    )
    for full in (False, True):
        shown = printed(show_measurement(m, full), 160)
        assert "'a\\x1b[31m\\u202e\\u2066b\\nc\\td'" in shown
        assert "[red]a\\x1b[31m" in shown
        assert not set(shown) & set("\x1b\u202e\u2066\t")


def test_backslashes_are_doubled_only_beside_an_escape():
    assert terminal._quoted("a\\nb") == "'a\\nb'"
    assert terminal._quoted("a\\n\n") == "'a\\\\n\\n'"
    assert terminal._quoted("it's") == '"it\'s"'
    assert terminal._quoted("\\xe6") == "'\\xe6'"  # a piece of a character


def test_wide_and_right_to_left_tokens_leave_the_columns_where_they_are(measured):
    tokens = ["日本語", "هي", "🐍", "é", "👩‍👩‍👧", " a"]
    own = [tokens[i % len(tokens)] for i in range(len(measured.curve))]
    m = dataclasses.replace(measured, curve=measured.curve.with_columns(polars.Series("top_token", own)))
    lines = printed(show_measurement(m)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith("size  "))
    ends = set()
    for line in lines[start + 1 : start + 7]:
        second = re.match(r".*?%.*?\d\.\d\d.*?(\d\.\d\d)  ", line)
        ends.add(cell_len(line[: second.end(1)]))
    assert len(ends) == 1
    # and what stands after a token that is written from right to left is not drawn into it
    assert all("'هي'\u200e" in line for line in lines if "'هي'" in line)


def test_no_name_is_markup():
    row = CheckRow("an identity [red]", "detail [/] [", 1e-9, "at most", 1e-4)
    report = (
        CheckReport("a [bold]model[", ("[x]",), (row,), {"layout [": "[bold]y[/bold]"}) if False else None
    )
    report = CheckReport("a [bold]model[", ("[x",), (row,))
    shown = printed(show_report(report))
    for part in ("a [bold]model[", "an identity [red]", "detail [/] ["):
        assert part in shown


# --- the command --------------------------------------------------------------------------------------


def test_the_default_scores_are_those_of_measure(monkeypatch):
    asked = []
    real = dm.measure

    def measure(*arguments, **keywords):
        asked.append(keywords)
        return real(*arguments, **keywords)

    monkeypatch.setattr("densitometer.measuring.measurement.measure", measure)
    said = CliRunner().invoke(cli.app, ["measure", "The captain"])
    assert said.exit_code == 0, said.output
    assert "importance" not in asked[0]
    for name in settings.DEFAULT_IMPORTANCE:
        assert f"TV by {name}" in said.output
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["measure", "--help"]).output
    assert f"[default: ({','.join(settings.DEFAULT_IMPORTANCE)})]" in " ".join(shown.split())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_result_is_lost_to_a_terminal_s_encoding(tmp_path, encoding):
    text = "日本 ♥ é [i"
    arguments = ["measure", text, "--json", str(tmp_path / "mé.json")]
    if encoding == "ascii":  # in a real process
        result = subprocess.run(
            [*COMMAND, *arguments], capture_output=True, check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, b"")
        said = result.stdout.decode(encoding)
    else:
        result = call(*arguments, encoding=encoding)
        assert (result.returncode, result.stderr) == (0, "")
        said = result.stdout
    shown = {"ascii": "'???? ? ? [i'", "latin-1": "'???? ? é [i'", "utf-8": f"'{text}'"}[encoding]
    assert f"text      {shown}" in said
    marks = ("●", "▲", "┤") if encoding == "utf-8" else ("o", "^", "|")
    assert f"{marks[0]} l1   {marks[1]} fisher" in said
    assert f"TV 1 {marks[2]}" in said
    assert json.loads((tmp_path / "mé.json").read_text())["input"]["text"] == text
    (table,) = tables_of(said.splitlines())
    assert len(table) > 5


@pytest.mark.parametrize(
    "command",
    [
        ["measure", TEXT],
        ["measure", TEXT, "--full"],
        ["tokens", "The captain [looked"],
        ["doctor", "demo"],
        ["plan", "demo", "--length", "20"],
        ["calibrate", "--importance", "l1,fisher,random,proximity,cosine"],
    ],
    ids=lambda command: " ".join(command[:1] + command[2:]),
)
@pytest.mark.parametrize("columns", [60, 80])
def test_nothing_is_wider_than_the_terminal_and_nothing_cut(command, columns):
    said = CliRunner(env={"COLUMNS": str(columns), "TERM": "dumb"}).invoke(cli.app, command)
    assert said.exit_code == 0, said.output
    assert max(map(cell_len, said.stdout.splitlines())) <= columns
    assert "…" not in said.stdout


@pytest.mark.parametrize("width", [24, 40, 80])
def test_words_are_broken_over_lines_and_none_is_lost(width):
    table = Columns([Column("n"), Column("words", right=False, folds=9), Column("m")])
    words = [f"word{i}" for i in range(20)]
    table.add("1,234", " ".join(words), "5,678")
    shown = printed(table, width)
    assert max(map(cell_len, shown.splitlines())) <= width
    assert re.findall(r"word\d+", shown) == words
    assert "1,234" in shown
    assert "5,678" in shown

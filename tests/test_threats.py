"""What comes from elsewhere may be hostile: model folders, corpora, measurements, studies, payloads, tokens. Each threat of
docs/threats.md that no other test tries is tried here: a clear error of ours or no harm, never a crash, a prompt or a file touched."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import struct
from pathlib import Path
from xml.etree import ElementTree

import polars
import pytest
import torch
from markdown_it import MarkdownIt
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import densitometer as dm
from densitometer._util.files import write_file
from densitometer.cli.commands import app
from densitometer.cli.terminal import show_measurement, show_positions
from densitometer.errors import InputError, ModelError, OutOfMemoryError, StorageError
from densitometer.measuring.records import Provenance
from densitometer.models.source import DEMO_FOLDER
from densitometer.plots import plot_densities, save_plot
from densitometer.report import figures
from densitometer.study.corpus import Corpus, read_corpus
from densitometer.study.store import slug
from densitometer.viewer.answers import Answers
from densitometer.viewer.payload import decode
from densitometer.viewer.server import application

ROOT = Path(__file__).parents[1]
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "1" * 5000  # digits; Python reads 4,300
TEXTS = ["The captain looked at the sea", "One two three four five six"]
SIZES = [0.2, 1.0]
MISSING = object()
HUGE = 10**30
ESCAPES = "\x1b]0;owned\x07\x1b[31mred"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(DEMO_FOLDER / "demo", tmp_path / "m"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def changed(path: Path, way: tuple[str | int, ...], value: object) -> None:
    """Put another value at a place of a JSON file, or take it out."""
    document = place = json.loads(path.read_text())
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = value
    if value is MISSING:
        del place[way[-1]]
    path.write_text(json.dumps(document))


# --- model folders ------------------------------------------------------------------------------------


def header(text: str, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        header("{}", claimed=2**62),
        header('{"a": {"dtype": "F32", "shape": [1000000000, 1000000000], "data_offsets": [0, 4]}}')
        + b"0000",
        header('{"a":' * 100_000),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400000000000]}}'),
    ],
    ids=[
        "a header longer than memory",
        "a shape beyond counting",
        "a header nested deeply",
        "data beyond the file",
    ],
)
def test_a_lying_header_of_weights_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        dm.load_model(folder)


@pytest.mark.parametrize(
    "elsewhere", ["../outside.safetensors", "/outside.safetensors", "sub/../../outside.safetensors"]
)
def test_an_index_may_not_name_files_outside_of_its_folder(folder, elsewhere):
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    names = load_file(folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, elsewhere)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside of its folder"):
        dm.load_model(folder)


@pytest.mark.parametrize("index", ["[1]", '{"weight_map": 3}', "{", DEEP])
def test_a_broken_index_is_no_crash(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError):
        dm.load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [DEEP, f'{{"vocab_size": {LONG}}}'], ids=["deep", "long number"])
def test_json_beyond_what_python_reads_is_refused(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=r"\.json|tokenizer"):
        dm.load_model(folder)
    if name == "config.json":
        with pytest.raises(ModelError, match="config"):
            dm.plan(folder, 10)


def test_a_config_that_asks_for_more_than_memory_is_refused_before_it_is_taken(folder):
    edit(folder / "config.json", intermediate_size=10**12)
    with pytest.raises((ModelError, OutOfMemoryError)):
        dm.load_model(folder)


def test_code_of_a_model_is_neither_run_nor_asked_about_by_a_plan(folder, monkeypatch):
    edit(
        folder / "config.json",
        model_type="strange",
        auto_map={"AutoConfig": "configuration_strange.StrangeConfig"},
    )
    ran = folder.parent / "ran"
    (folder / "configuration_strange.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    )

    asked = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")
    with pytest.raises(ModelError, match="code of its own"):
        dm.plan(folder, 10)
    assert not asked
    assert not ran.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch OWNED') }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ messages.clear() }}",
    ],
)
def test_a_chat_template_is_run_in_a_sandbox(folder, template, monkeypatch):
    monkeypatch.chdir(folder.parent)
    edit(folder / "tokenizer_config.json", chat_template=template)
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(InputError, match="chat template"):
        dm.load_model(folder).text_of(messages)
    assert messages == [{"role": "user", "content": "hello"}]
    assert not Path("OWNED").exists()


# --- corpora ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.jsonl", '{"text": ' + DEEP + "}\n"),
        ("long.jsonl", '{"text": "a b c", "n": ' + LONG + "}\n"),
        ("zero.txt", "a\0b\n"),
    ],
)
def test_a_hostile_line_of_a_corpus_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(name)):
        read_corpus(tmp_path / name)


@pytest.mark.parametrize("table", [{"txt": ["a b"]}, {"text": [1, 2]}, {"text": [["a"], ["b"]]}])
def test_a_parquet_corpus_of_another_schema_is_refused(tmp_path, table):
    polars.DataFrame(table).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match="text"):
        read_corpus(tmp_path / "c.parquet")


def test_formulas_are_texts_and_stay_what_they_are(tmp_path):
    formula = "=HYPERLINK(A1) and some more"
    (tmp_path / "c.csv").write_text(f"id,text\n1,{formula}\n")
    assert read_corpus(tmp_path / "c.csv").texts["text"].to_list() == [formula]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study whose corpus has a column whose name is SQL."""
    place = tmp_path_factory.mktemp("study") / 'it\'s "one"'
    column = 'id", (select 1) as "injected'
    corpus = polars.DataFrame({"text": TEXTS, column: ["a", "b"]})
    dm.run_study(corpus, "demo", place, sizes=SIZES)
    return place


def test_a_column_name_is_no_sql(study):
    table = dm.open_study(study).sql("select * from measurements")
    assert "injected" not in table.columns
    assert table['id", (select 1) as "injected'].sort().to_list() == ["a", "b"]


# --- studies ------------------------------------------------------------------------------------------


def copied(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "s"))


@pytest.mark.parametrize(
    "manifest",
    [
        DEEP,
        LONG,
        '{"schema": "densitometer.study/1"}',
        '{"schema": "densitometer.study/1", "settings": 3, "corpus": [], "versions": "x"}',
        '{"schema": "densitometer.study/\u00b2", "settings": {}, "corpus": {}}',
        '{"schema": ["densitometer.study/1"]}',
    ],
    ids=["deep", "number", "empty", "types", "superscript", "list"],
)
def test_a_hostile_manifest_is_refused(study, tmp_path, manifest):
    place = copied(study, tmp_path)
    (place / "manifest.json").write_text(manifest)
    with pytest.raises(StorageError):
        dm.open_study(place)
    with pytest.raises(StorageError):
        dm.run_study(TEXTS, "demo", place, sizes=SIZES)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("schema",), f"densitometer.study/{LONG}"), (("versions",), MISSING), (("versions",), [3]),
        (("versions",), {"torch": "2"}), (("corpus", "name"), MISSING), (("corpus", "sha256"), MISSING),
        (("corpus", "sha256"), 3), (("corpus", "n_texts"), "x"), (("corpus", "n_texts"), 10**30), (("settings", "eps"), MISSING),
        (("settings", "eps"), "x"), (("settings", "eps"), math.nan), (("settings", "importance"), MISSING),
        (("settings", "importance"), 3), (("settings", "unigrams"), {"x": 1}), (("settings", "window"), 3),
        (("settings", "plugins"), [3]), (("settings", "options"), {"a": "\ud800"}), (("corpus", "name"), "\ud800"),
    ],
    ids=lambda part: ".".join(part) if isinstance(part, tuple) else ascii(part)[:20],
)  # fmt: skip
def test_a_manifest_with_another_value_in_it_is_refused(study, tmp_path, way, value):
    place = copied(study, tmp_path)
    changed(place / "manifest.json", way, value)
    expected = "schema" if way == ("schema",) else r"manifest\.json.*damaged"
    for read in (dm.open_study, lambda place: dm.run_study(TEXTS, "demo", place, sizes=SIZES)):
        with pytest.raises(StorageError, match=expected) as told:
            read(place)
        assert len(str(told.value)) < 500


@pytest.mark.parametrize("what", ["file", "link"])
@pytest.mark.parametrize("of_model", [False, True])
def test_parts_are_folders_of_the_study_and_no_links(study, tmp_path, what, of_model):
    place = copied(study, tmp_path)
    (folder,) = (place / "parts").iterdir() if of_model else [place / "parts"]
    outside = tmp_path / "outside"
    shutil.move(folder, outside)
    temporary = next(outside.rglob("*.parquet")).with_name(".manifest.json.abcdefgh")
    temporary.touch()
    os.utime(temporary, (0, 0))
    if what == "file":
        folder.touch()
    else:
        folder.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    corpus = dm.open_study(place).texts().select(polars.exclude("language", "domain", "next", "problem"))
    reads = [lambda: dm.run_study(corpus, "demo", place, sizes=SIZES)]
    reads += [dm.open_study(place).measurements] if of_model or what == "link" else []
    for read in reads:
        with pytest.raises(StorageError, match=re.escape(folder.name)) as told:
            read()
        assert "link" in str(told.value) or "not a folder" in str(told.value)
    assert sorted(outside.rglob("*")) == before


def test_a_part_of_another_schema_is_refused(study, tmp_path):
    place = copied(study, tmp_path)
    part = next((place / "parts").rglob("*.parquet"))
    file = io.BytesIO()
    polars.DataFrame({"x": [1]}).write_parquet(file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:12]
    part.unlink()
    (part.parent / f"00000000-00000002-{digest}.parquet").write_bytes(file.getvalue())
    opened = dm.open_study(place)
    for read in (
        opened.measurements,
        opened.curves,
        opened.components,
        lambda: opened.sql("from measurements"),
    ):
        with pytest.raises(dm.DensitometerError):
            read()
    corpus = opened.texts().select(polars.exclude("id", "language", "domain", "next", "problem"))
    with pytest.raises(StorageError, match="as a part of a study"):
        dm.run_study(corpus, "demo", place, sizes=SIZES)


def test_texts_of_another_schema_are_refused(study, tmp_path):
    place = copied(study, tmp_path)
    polars.DataFrame({"a": [1]}).write_parquet(place / "texts.parquet")
    for read in (dm.open_study(place).texts, dm.open_study(place).measurements):
        with pytest.raises(StorageError, match=r"texts\.parquet"):
            read()


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", "a/../../b", "..", "x" * 500, "a\0b", "\u202eb"]
)
def test_a_model_name_is_one_folder_inside_the_study(tmp_path, name):
    place = tmp_path / "parts" / slug(name)
    place.mkdir(parents=True)
    assert place.resolve().parent == (tmp_path / "parts").resolve()


# --- measurements, means, payloads --------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(demo):
    return dm.measure(demo, f"The {ESCAPES} $x_{{$ <b>", sizes=SIZES)


@pytest.mark.parametrize("name", ["model", "input", "graph", "provenance", "curves", "prediction"])
@pytest.mark.parametrize("value", [3, None, [3], "x"])
def test_a_measurement_with_something_else_in_it_is_refused(measured, tmp_path, name, value):
    path = tmp_path / "m.json"
    measured.save(path)
    edit(path, **{name: value})
    with pytest.raises(StorageError, match=r"m\.json"):
        dm.load_measurement(path)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("curves", 0, "n_edges"), HUGE), (("refined", 0, "rank"), HUGE), (("prediction", 0, "id"), HUGE),
        (("baselines", 0, "nucleus"), 2**63), (("provenance", "seed"), HUGE), (("entropy",), HUGE), (("entropy",), "x"),
        (("input", "ids"), MISSING), (("input", "ids"), ["x"]), (("input", "position"), 10**6), (("model", "name"), MISSING),
        (("model", "dtype"), ["float32"]), (("model", "dtype"), "float31"), (("refined", 0, "kl"), MISSING),
        (("refined", 0, "tv"), None), (("curves", 0, "tv"), None), (("curves", 1, "flops_share"), None),
        (("baselines", 0, "parameter_share"), None), (("curves", 0, "tv"), 1e300), (("curves", 0, "kind"), 3),
        (("provenance", "torch"), "\ud800"), (("provenance", "seed"), "x"), (("provenance", "eps"), [1]),
        (("graph", "n_edges"), "x"), (("graph", "n_edges"), math.nan), (("graph", "n_edges"), math.inf),
        (("graph", "landmarks"), {"a": None}), (("provenance", "check"), {"tolerance": -math.inf}),
        (("full_trace_tv",), None), (("next_token",), {"id": 3}), (("prediction",), []),
    ],
    ids=lambda part: ".".join(map(str, part)) if isinstance(part, tuple) else ascii(part)[:20],
)  # fmt: skip
def test_a_measurement_with_another_value_in_it_is_refused_by_its_name(measured, tmp_path, way, value):
    path = tmp_path / "m.json"
    measured.save(path)
    changed(path, way, value)
    with pytest.raises(StorageError, match=r"m\.json") as told:
        dm.load_measurement(path)
    assert str(way[-1]) in str(told.value) or "it holds" in str(told.value)


def test_a_number_beyond_a_double_is_refused(measured, tmp_path):
    path = tmp_path / "m.json"
    measured.save(path)
    path.write_text(re.sub(r'"entropy": [0-9.]+,\n "next', '"entropy": 1e999,\n "next', path.read_text()))
    with pytest.raises(StorageError, match="1e999"):
        dm.load_measurement(path)


def test_a_measurement_of_an_older_version_or_of_a_strange_folder_is_read(measured, tmp_path):
    path = tmp_path / "m.json"
    strange = dataclasses.replace(
        measured,
        model=dataclasses.replace(measured.model, name="/m/\udcff"),
        provenance=Provenance(settings={"seed": 0}),
    )
    strange.save(path)
    read = dm.load_measurement(path)
    assert read.model["name"] == "/m/\udcff"
    assert "\\udcff" in dm.difference(measured, read).asked["other"][0]


@pytest.mark.parametrize(
    "content", [DEEP, f'{{"schema": {LONG}}}', "3", "null"], ids=["deep", "long", "3", "null"]
)
def test_json_that_is_no_measurement_is_refused(tmp_path, content):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(StorageError, match=r"m\.json"):
        dm.load_measurement(tmp_path / "m.json")


def test_lying_means_are_refused(tmp_path):
    path = tmp_path / "means.safetensors"
    path.write_bytes(header("{}", claimed=2**62))
    with pytest.raises(StorageError, match="means"):
        dm.load_means(path)
    save_file({"0.mlp": torch.ones(3)}, path, {"schema": "densitometer.means/1", "provenance": DEEP})
    with pytest.raises(StorageError, match="damaged"):
        dm.load_means(path)


@pytest.fixture(scope="module")
def averaged(demo):
    return dm.reference_means(demo, TEXTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.mlp", torch.tensor(1.0)), ("0.mlp", torch.ones(2, 2)), ("0.attention", torch.ones(2, 2, 2)),
        ("0.residual_mlp", torch.ones(3, dtype=torch.int32)), ("0.residual_mlp", torch.tensor([math.nan])), ("1.mlp", None),
        ("400000000.mlp", torch.ones(3)), ("-1.mlp", torch.ones(3)), ("00.mlp", torch.ones(3)), ("0.gate", torch.ones(3)),
        ("x", torch.ones(3)), ("6.mlp", torch.ones(3)),
    ],
    ids=lambda part: part if isinstance(part, str) else "None" if part is None else str(part.dtype),
)  # fmt: skip
def test_means_of_another_form_are_refused(averaged, tmp_path, name, value):
    path = tmp_path / "means.safetensors"
    averaged.save(path)
    tensors = load_file(path) | {name: value}
    metadata = {
        "schema": "densitometer.means/1",
        "provenance": json.dumps(averaged.provenance),
    }
    save_file({n: t for n, t in tensors.items() if t is not None}, path, metadata)
    with pytest.raises(StorageError, match=rf"damaged.*'{name[:2]}"):
        dm.load_means(path)
    save_file({name: torch.ones(3)}, path, metadata)  # alone: no more blocks are made than it has tensors
    with pytest.raises(StorageError, match="damaged"):
        dm.load_means(path)


@pytest.mark.parametrize(
    "provenance", ["{}", "[]", "3", '{"model": 3}', '{"model": {}}', '{"model": NaN}', LONG], ids=ascii
)
def test_means_that_do_not_say_of_what_are_refused(averaged, tmp_path, provenance):
    path = tmp_path / "means.safetensors"
    averaged.save(path)
    save_file(load_file(path), path, {"schema": "densitometer.means/1", "provenance": provenance})
    with pytest.raises(StorageError, match="damaged"):
        dm.load_means(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("residual_attention", None), ("residual_attention", torch.ones(3)), ("attention", torch.ones(8, 3)),
        ("attention", None), ("residual_mlp", torch.ones(3)), ("mlp", torch.ones(1, 1, 1)), ("mlp", torch.tensor(1.0)),
    ],
    ids=lambda part: part if isinstance(part, str) else "None" if part is None else str(tuple(part.shape)),
)  # fmt: skip
def test_means_of_another_shape_than_the_model_are_refused(demo, averaged, name, value):
    blocks = (*averaged.blocks[:-1], dataclasses.replace(averaged.blocks[-1], **{name: value}))
    for means in (
        dataclasses.replace(averaged, blocks=blocks),
        dataclasses.replace(averaged, blocks=averaged.blocks[:-1]),
        dataclasses.replace(averaged, provenance={}),
        dataclasses.replace(averaged, provenance=3),
    ):
        with pytest.raises(InputError, match="of another model"):
            dm.measure(demo, TEXTS[0], sizes=SIZES, ablation=means)


@pytest.mark.parametrize("content", [DEEP, LONG, "3"], ids=["deep", "long", "3"])
def test_a_hostile_payload_is_refused(content):
    with pytest.raises(StorageError):
        decode(gzip.compress(content.encode()))


# --- tokens -------------------------------------------------------------------------------------------


def printed(what: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_tokens_do_not_steer_the_terminal(measured):
    hostile = dataclasses.replace(
        measured,
        prediction=measured.prediction.with_columns(token=polars.lit(ESCAPES)),
        curve=measured.curve.with_columns(top_token=polars.lit(ESCAPES)),
    )
    said = printed(show_measurement(hostile))
    assert said.count("\\x1b") > 3
    assert "\x1b" not in said


def test_tokens_of_a_text_do_not_steer_the_terminal(demo):
    table = dm.measure_positions(demo, f"The {ESCAPES}", sizes=SIZES)
    said = printed(show_positions(table, "l1"))
    assert said.count("\\x1b") > 3
    assert "\x1b" not in said


@pytest.mark.parametrize("token", ["$\\frac{$", "\\$x", "<script>alert(1)</script>", ESCAPES])
def test_tokens_are_drawn_as_text(measured, tmp_path, token):
    own = measured.prediction.with_columns(polars.lit(token).alias("token"))
    save_plot(dataclasses.replace(measured, prediction=own), tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    assert "<script" not in drawn
    assert "\x1b" not in drawn


def test_a_token_that_is_a_formula_is_written_as_it_is(tmp_path):
    text = '=1+1, "@x"'
    said = CliRunner().invoke(app, ["tokens", text, "--csv", str(tmp_path / "t.csv")])
    assert said.exit_code == 0, said.output
    assert "".join(polars.read_csv(tmp_path / "t.csv")["token"]) == text


# --- the page -----------------------------------------------------------------------------------------


def test_every_threat_of_the_page_names_a_test_that_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "threats.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert named
    assert named <= there
    rows = MarkdownIt("commonmark").enable("table").parse((ROOT / "docs" / "threats.md").read_text())
    cells = [token.content for token in rows if token.type == "inline" and token.level > 3]
    assert sum("test_" in cell for cell in cells) >= 25


# --- what is shown ------------------------------------------------------------------------------------

STEERING = "e\x1b]0;PWN\x07\x1b[2J\x1b[31mRED\u202e"


def test_names_and_errors_do_not_steer_the_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": STEERING, "text": ""}, {"id": "2", "text": "The captain looked"}]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "d.jsonl").write_text(json.dumps({f"{STEERING}": "a"}))
    dm.measure(dm.load_model("demo"), "The captain", sizes=[1.0], baselines=()).save("m.json")
    document = json.loads(Path("m.json").read_text())
    document["provenance"]["torch"] = STEERING
    Path("n.json").write_text(json.dumps(document))
    for line in (
        ["study", "c.jsonl", "-m", "demo", "-o", "s"],
        ["study", "d.jsonl", "-m", "demo", "-o", "t"],
        ["diff", "m.json", "n.json"],
    ):
        said = CliRunner().invoke(app, line)
        assert "RED" in said.output, line
        assert not set(said.output) & {"\x1b", "\x07", "\u202e"}, line


def test_a_text_is_shown_as_it_is():
    said = CliRunner().invoke(app, ["measure", "it is :warning: and [red]so"])
    assert "it is :warning: and [red]so" in said.output


def test_a_folder_s_name_is_no_pattern(tmp_path):
    dm.run_study(["A secret of another study"], "demo", tmp_path / "stabx", sizes=[1.0])
    for name in ("st*x", "st[ab]", "st?bx"):
        study = dm.run_study(["The captain looked"], "demo", tmp_path / name, sizes=[1.0])
        assert study.texts()["text"].to_list() == ["The captain looked"]
        assert study.sql("select text from texts")["text"].to_list() == ["The captain looked"]
        assert study.sql("select count(*) from measurements").item() == len(study.measurements()) == 1


def test_a_study_does_not_sweep_through_a_link(tmp_path):
    dm.run_study(["The captain looked"], "demo", tmp_path / "s", sizes=[1.0])
    home = tmp_path / "home"
    home.mkdir()
    (home / ".manifest.json.a1b2c3d4").write_text("x")
    os.utime(home / ".manifest.json.a1b2c3d4", (0, 0))
    (tmp_path / "s" / "parts" / "model=evil").symlink_to(home)
    with contextlib.suppress(dm.DensitometerError):
        dm.run_study(["The captain looked"], "demo", tmp_path / "s", sizes=[1.0])
    assert (home / ".manifest.json.a1b2c3d4").exists()


def test_questions_of_a_study_write_nothing_here(tmp_path, monkeypatch):
    study = dm.run_study(["The captain looked"], "demo", tmp_path / "s", sizes=[1.0])
    monkeypatch.chdir(tmp_path)
    where = study.sql("select current_setting('temp_directory') as place").item()
    assert not Path(where).is_relative_to(tmp_path)
    assert Path(where).is_absolute()


def test_a_long_name_can_be_written(tmp_path):
    write_file(tmp_path / ("x" * 250), lambda file: file.write(b"1"))
    assert (tmp_path / ("x" * 250)).read_bytes() == b"1"


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_figure_whose_labels_hold_controls_is_xml(tmp_path):
    table = polars.DataFrame(
        {"model": ["a\x00\x1b[31mb\u202e"] * 3, "importance": ["l1"] * 3, "size_at": [0.1, 0.2, 0.3]}
    )
    figure = plot_densities(table)
    save_plot(figure, tmp_path / "d.svg")
    for text in ((tmp_path / "d.svg").read_text(), figures.svg(figure)):
        assert "\\x1b[31mb\\u202e" in "".join(ElementTree.fromstring(text).itertext())


# --- model folders, what else lies in them ------------------------------------------------------------


def sharded(folder: Path, index: str, elsewhere: str) -> None:
    """Have the weights of a folder named by an index that `transformers_weights` names."""
    outside = folder.parent / "outside.safetensors"
    shutil.move(folder / "model.safetensors", outside)
    edit(folder / "config.json", transformers_weights=index)
    (folder / index).parent.mkdir(exist_ok=True)
    weight_map = dict.fromkeys(load_file(outside), elsewhere.format(outside=outside))
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("index", ["sub/x.safetensors.index.json", ".safetensors.index.json"])
@pytest.mark.parametrize("elsewhere", ["{outside}", "../outside.safetensors", "../../outside.safetensors"])
def test_a_config_may_not_name_an_index_of_files_outside(folder, index, elsewhere):
    sharded(folder, index, elsewhere)
    with pytest.raises(ModelError, match="outside of its folder"):
        dm.load_model(folder)


@pytest.mark.parametrize(
    "name", ["sub/x.safetensors", "/x.safetensors", "../x.safetensors", "sub/x.safetensors.index.json", 3]
)
def test_a_config_names_its_weights_by_a_plain_file_name(folder, name):
    edit(folder / "config.json", transformers_weights=name)
    with pytest.raises(ModelError, match="transformers_weights"):
        dm.load_model(folder)
    edit(folder / "config.json", transformers_weights="model.safetensors")
    assert dm.load_model(folder).architecture


def put_folder(path: Path) -> None:
    path.mkdir()


def put_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


STRAY = pytest.mark.parametrize("put", [put_folder, put_dangling, put_pipe])


@STRAY
def test_what_is_no_file_beside_a_broken_config_is_passed_over(folder, put):
    put(folder / "a.json")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        dm.load_model(folder)


@STRAY
def test_what_is_no_file_beside_broken_weights_is_passed_over(folder, put):
    put(folder / "a.safetensors")
    (folder / "model.safetensors").write_bytes(header("{}", claimed=2**62))
    with pytest.raises(ModelError, match=r"model\.safetensors \("):
        dm.load_model(folder)


@STRAY
def test_what_is_no_file_beside_the_weights_is_passed_over(folder, put):
    commit = dm.load_model(folder).commit
    for name in ("x.bin", "x.safetensors", "x.safetensors.index.json"):
        put(folder / name)
    assert dm.load_model(folder).commit == commit


@pytest.mark.parametrize("entry", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("name", ["owner/kernel", "owner/kernel@main:forward", {"": "owner/kernel"}])
def test_a_config_may_not_name_code_for_attention(folder, entry, name):
    edit(folder / "config.json", **{entry: name})
    for use in (dm.load_model, lambda folder: dm.plan(folder, 10)):
        with pytest.raises(ModelError, match="code from the Hub"):
            use(folder)


def test_a_user_may_name_another_attention_than_the_config(folder):
    edit(folder / "config.json", attn_implementation="owner/kernel")
    assert dm.load_model(folder, attn_implementation="eager").module.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="cannot load"):  # transformers is asked for it
        dm.load_model(folder, attn_implementation="owner/kernel")
    edit(
        folder / "config.json", _attn_implementation="owner/kernel"
    )  # transformers prefers this one to the user's
    with pytest.raises(ModelError, match="code from the Hub"):
        dm.load_model(folder, attn_implementation="eager")


# --- corpora, what their values are -------------------------------------------------------------------


def test_a_number_beyond_128_bits_is_carried_as_text(tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "a b c", "n": 10**60}) + "\n")
    assert read_corpus(tmp_path / "c.jsonl").texts["n"].to_list() == [str(10**60)]


def far(dtype: object, value: int) -> polars.DataFrame:
    number = polars.Series([value], dtype=polars.Int32 if dtype == polars.Date else polars.Int64)
    return polars.DataFrame({"text": ["a b"], "when": number.cast(dtype)})


@pytest.mark.parametrize(
    "table",
    [
        far(polars.Date, 10**9),
        far(polars.Datetime("us"), 2**62),
        far(polars.Datetime("ms"), 2**62),
        far(polars.Duration("ms"), 2**62),
    ],
    ids=["date", "microseconds", "milliseconds", "duration"],
)
def test_dates_beyond_what_python_reads_are_refused(tmp_path, table):
    table.write_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet"):
        read_corpus(tmp_path / "c.parquet")
    with pytest.raises(InputError, match="cannot be read"):
        read_corpus(table)
    with pytest.raises(InputError, match="cannot be read"):
        _ = Corpus("own", table).sha256


def test_parquet_with_flipped_bits_is_read_or_refused(tmp_path):
    table = polars.DataFrame({"text": ["a b c", "x" * 100] * 20, "n": range(40), "l": [[1, 2], []] * 20})
    table.write_parquet(tmp_path / "c.parquet", compression="uncompressed")
    content = (tmp_path / "c.parquet").read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        flipped = bytearray(content)
        for _ in range(4):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        (tmp_path / "c.parquet").write_bytes(flipped)
        with contextlib.suppress(InputError):
            read_corpus(tmp_path / "c.parquet")


@pytest.mark.parametrize("names", [["text_id"], ["entropy", "entropy_of_text"]])
def test_columns_that_results_have_of_their_own_are_refused_before_the_work(names):
    corpus = polars.DataFrame({"text": TEXTS} | {name: ["a", "b"] for name in names})
    with pytest.raises(InputError, match=names[-1]):
        read_corpus(corpus)
    assert len(read_corpus(corpus, columns={"id": names[0]})) == 2


def test_columns_that_are_called_as_results_are_carry_on(tmp_path):
    corpus = polars.DataFrame({"text": TEXTS, "entropy": ["a", "b"], "x_of_text": ["a", "b"]})
    table = dm.run_study(corpus, "demo", tmp_path / "s", sizes=SIZES).measurements()
    assert table["entropy_of_text"].to_list() == ["a", "b"]
    assert table["entropy"].dtype == polars.Float64


@pytest.mark.parametrize("nested", ["[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900])
def test_values_nested_deeply_are_refused_at_once(tmp_path, nested):
    (tmp_path / "c.jsonl").write_text(f'{{"text": "a b", "k": {nested}}}\n')
    with pytest.raises(InputError, match="nested more than 64 deep in the column 'k'"):
        read_corpus(tmp_path / "c.jsonl")
    shallow = "[" * 64 + "]" * 64
    (tmp_path / "c.jsonl").write_text(f'{{"text": "a b", "k": {shallow}}}\n')
    assert len(read_corpus(tmp_path / "c.jsonl")) == 1


@pytest.mark.parametrize("name", ["text", "note"])
def test_two_columns_of_one_name_are_refused(tmp_path, name):
    (tmp_path / "c.csv").write_text(f"text,{name},note,,\na b,c d,e,,\n")
    with pytest.raises(InputError, match=f"more than one column '{name}'"):
        read_corpus(tmp_path / "c.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_line_ends_are_alike_in_every_encoding(tmp_path, encoding, end):
    (tmp_path / "c.txt").write_bytes(f"a b{end}c d{end}".encode(encoding))
    assert read_corpus(tmp_path / "c.txt").texts["text"].to_list() == ["a b", "c d"]


# --- the explorer -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(demo) -> tuple[Answers, dict]:
    """Answers of the explorer, and the payload of what they are about."""
    answers = Answers([demo])
    return answers, answers.payload(dm.measure(demo, TEXTS[0], sizes=SIZES))


@pytest.mark.parametrize("number", [-1, 2**31, 2**63, -(2**63) - 1, 10**30])
def test_an_edge_beyond_64_bits_is_refused(asked, number):
    answers, payload = asked
    own = {"id": payload["views"][0]["id"]}
    run = own | {"importance": "l1", "n_edges": 3}
    for method, parameters in (
        ("edge", own | {"edge": number}),
        ("run", run | {"pinned": [1, number]}),
        ("run", run | {"hidden": [number]}),
        ("run", run | {"n_edges": number}),
        ("node", own | {"row": number, "token": 0}),
        ("trace_at", own | {"importance": "l1", "position": number - 10**3}),
    ):
        with pytest.raises(InputError, match=r"got -?\d|no node in row -?\d|position -?\d"):
            answers.ask(method, parameters)
    component = [[number, "head", number]]
    assert answers.ask("run", run | {"hidden_components": component})["n_edges"] == 3


def test_who_hangs_up_is_no_error(asked):
    answers, payload = asked
    path = "/token/ask/run"
    headers = [(b"host", b"127.0.0.1:1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    received = [
        {"type": "http.request", "body": b'{"id"', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent = []

    async def receive() -> dict:
        return received.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(application(payload, answers, "token")(scope, receive, send))
    assert not received
    assert sent[0]["status"] == 400

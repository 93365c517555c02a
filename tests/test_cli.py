"""The command as a user runs it: output, files, exit codes, one line on stderr."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import polars
import pytest
from command import COMMAND, SERVER, call, command_in, run
from typer.testing import CliRunner

import densitometer as dm
from densitometer.cli.commands import app
from densitometer.models.source import DEMO_FOLDER

TEXT = "The whale swam under the ship and"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    result = run("measure", "-", "--json", folder / "m.json", "--plot", folder / "m.png", stdin=TEXT)
    return result, folder


def test_measure_prints_the_density_the_curve_and_the_tokens(measured):
    result, _ = measured
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for part in (
        "demo",
        "TV by l1",
        "0.1 from",
        "residual chain",
        "●",
        "predicts",
        "more: --full",
    ):
        assert part in result.stdout
    assert "auc_linear" not in result.stdout


def test_measure_prints_everything_where_it_is_asked_for():
    result = call("measure", TEXT, "--full")
    assert (result.returncode, result.stderr) == (0, "")
    for part in (
        "auc_linear",
        "traces by l1",
        "traces by fisher",
        "nucleus",
        "random",
        "inverse",
        "threshold",
    ):
        assert part in result.stdout


def test_json_has_the_schema_of_the_contract(measured):
    _, folder = measured
    document = json.loads((folder / "m.json").read_text())
    assert document["schema"] == "densitometer.measurement/1"
    assert {"name", "revision", "architecture", "dtype", "device"} <= set(document["model"])
    assert {"text", "ids", "tokens", "position"} <= set(document["input"])
    assert document["input"]["text"] == TEXT
    graph = document["graph"]
    assert {"n_edges", "n_layers", "n_heads", "n_tokens", "landmarks"} <= set(graph)
    assert set(graph["landmarks"]) == {"residual_chain", "residual_mlp_chain"}
    row = document["curves"][0]
    names = "importance kind size n_edges flops_share parameter_share tv kl js top1 nucleus entropy"
    assert set(names.split()) <= set(row)
    assert {r["kind"] for r in document["curves"]} == {"trace", "inverse", "random"}
    assert isinstance(row["top1"], bool)
    density = document["density"]["l1"]
    assert {"auc_log", "auc_linear", "size_at"} <= set(density)
    assert 0 < density["size_at"]["0.1"] <= 1
    names = "densitometer torch transformers python platform seed attention ablation created"
    assert set(names.split()) <= set(document["provenance"])
    assert dm.load_measurement(folder / "m.json").density["l1"].auc_log == density["auc_log"]


def test_plot_is_a_picture_of_the_kind_its_name_says(measured, tmp_path):
    _, folder = measured
    assert (folder / "m.png").read_bytes().startswith(b"\x89PNG")
    from densitometer.plots import save_plot

    loaded = dm.load_measurement(folder / "m.json")
    save_plot(loaded, tmp_path / "m.svg")
    assert "<svg" in (tmp_path / "m.svg").read_text()[:2000]
    with pytest.raises(ValueError, match=r"\.png, \.svg, \.pdf"):
        save_plot(loaded, tmp_path / "m.gif")


def test_text_comes_from_a_file_or_from_standard_input(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT + "\n")
    from_file = call("measure", f"@{tmp_path / 't.txt'}", "--json", tmp_path / "a.json")
    from_stdin = call("measure", "-", "--json", tmp_path / "b.json", stdin=TEXT)
    assert from_file.returncode == from_stdin.returncode == 0
    one, other = (json.loads((tmp_path / n).read_text()) for n in ("a.json", "b.json"))
    assert one["input"] == other["input"]
    assert one["curves"] == other["curves"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["measure", ""], 2, "empty"),
        (["measure", "a"], 2, "one token"),
        (["measure", "word " * 2000], 2, "512"),
        (["measure", TEXT, "--position", "99"], 2, "position 99"),
        (["measure", TEXT, "--importance", "l7"], 2, "l7"),
        (["measure", TEXT, "-m", "no-such-model"], 1, "no-such-model"),
        (["measure", TEXT, "-m", "."], 1, "config.json"),
        (["measure", TEXT, "--plot", "out.gif"], 2, ".png"),
        (["measure", TEXT, "--device", "cuda:77"], 2, "cuda:77"),
        (["measure", TEXT, "--seed", "-1"], 2, "seed"),
        (["tokens", TEXT, "--importance", "random", "--seed", "-1"], 2, "seed"),
        (["explore", "no-such.json"], 1, "no-such.json"),
        (["measure", TEXT, "--json", "no/such/folder/m.json"], 1, "cannot write"),
    ],
)
def test_errors_are_one_clear_line(arguments, code, message):
    assert_one_line(call(*arguments), code, message)


def test_an_error_of_a_real_process_is_one_clear_line():
    assert_one_line(run("measure", "@no-such-file"), 2, "no-such-file")


def test_an_error_after_everything_is_imported_is_one_clear_line(tmp_path):
    process = SERVER.Process(target=command_in, args=(tmp_path, ["doctor", "no-such-model"]))
    process.start()
    process.join()
    told = [(tmp_path / name).read_text() for name in ("out", "err")]
    assert_one_line(subprocess.CompletedProcess([], process.exitcode, *told), 1, "no-such-model")


def assert_one_line(result, code, message):
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert result.stderr.startswith("densitometer: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments", [["measure"], ["measure", TEXT, "--no-such-option"], ["no-such-command"]]
)
def test_wrong_usage_is_one_line_and_exits_with_2(arguments):
    result = run(*arguments)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("densitometer: ")
    assert line.endswith("--help")


def test_without_arguments_there_is_help_and_every_command_in_full():
    result = run()
    assert result.returncode == 2
    assert "..." not in result.stderr.split("Commands:")[1]
    assert run("--version").stdout == f"densitometer {dm.__version__}\n"


def test_debug_shows_the_traceback():
    result = call("measure", "", "--debug")
    assert "Traceback" in result.stderr
    assert result.returncode == 2


def test_doctor_prints_every_identity():
    result = call("doctor", "demo-parallel")
    assert result.returncode == 0, result.stderr
    assert "every identity holds" in result.stdout
    assert "parallel" in result.stdout


def test_doctor_exits_with_1_where_an_identity_fails(monkeypatch):
    from typer.testing import CliRunner

    from densitometer.cli import commands as cli
    from densitometer.measuring import check

    row = check.CheckRow("a broken one", "", 1.0, "at most", 0.5)
    monkeypatch.setattr(check, "check_model", lambda model: check.CheckReport("demo", ("x",), (row,)))
    result = CliRunner().invoke(cli.app, ["doctor", "demo"])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout


def test_tokens_shows_each_token_and_writes_the_table(tmp_path):
    path = tmp_path / "tokens.csv"
    result = call("tokens", "The harbour was [quiet]", "--csv", path)
    assert result.returncode == 0, result.stderr
    table = dm.measure_positions(dm.load_model("demo"), "The harbour was [quiet]")
    written = polars.read_csv(path)
    assert written["token"].to_list() == table["token"].to_list()
    assert written["auc_log"].to_list() == pytest.approx(table["auc_log"].to_list(), abs=1e-5)
    for row in table.iter_rows(named=True):
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == [str(row["position"])])
        assert repr(row["token"]) in line
        assert f"{row['auc_log']:.3f}" in line


def test_tokens_are_drawn_while_the_model_writes_and_kept_as_json(tmp_path):
    path = tmp_path / "tokens.json"
    result = call("tokens", "The harbour was", "--generate", "5", "--json", str(path))
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(path.read_text())
    model = dm.load_model("demo")
    table = polars.concat(dm.measure_generation(model, "The harbour was", n_tokens=5))
    assert document["input"]["ids"] == table["token_id"].to_list()
    assert document["positions"]["size_at"] == pytest.approx(table["size_at"].to_list())
    assert document["provenance"]["generate"] == 5
    drawn = "".join(table["token"]).replace("\n", "⏎")
    assert result.stdout.startswith(drawn)
    assert result.stdout.count(drawn) == 1  # not once more above the table
    assert "; light is 0 %, dark 100 %\n" in result.stdout


def test_an_interrupted_generation_leaves_what_was_measured(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from densitometer.cli import commands as cli
    from densitometer.measuring import positions

    whole = positions.measure_generation

    def interrupted(*arguments, **keywords):
        for i, frame in enumerate(whole(*arguments, **keywords)):
            if i == 3:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(positions, "measure_generation", interrupted)
    csv, page = tmp_path / "t.csv", tmp_path / "t.html"
    command = ["tokens", "The harbour was", "--generate", "30", "--importance", "l1,l2", "--traces", "1"]
    result = CliRunner().invoke(cli.app, [*command, "--csv", str(csv), "--html", str(page)])
    assert result.exit_code == 130
    table = polars.read_csv(csv)
    n = len(dm.load_model("demo").encode("The harbour was")) + 2
    assert table["position"].to_list() == [*range(n)] * 2
    assert table["importance"].to_list() == ["l1"] * n + ["l2"] * n
    assert f"traces of 1 of {n} tokens" in result.stdout
    assert page.read_text().endswith("</html>\n")


def test_tokens_refuses_a_path_that_cannot_be_written(tmp_path):
    result = call("tokens", "a text", "--csv", str(tmp_path / "none" / "x.csv"))
    assert result.returncode == 1
    assert "cannot write" in result.stderr


def invoke(*arguments: str, stdin: str | bytes = "") -> tuple[int, str]:
    """Run in this process: exit code and what stands on stderr."""
    from typer.testing import CliRunner

    from densitometer.cli import commands as cli

    result = CliRunner().invoke(cli.app, arguments, input=stdin)
    return result.exit_code, result.stderr


def test_texts_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "binary").write_bytes(b"abc\xff\xfe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(10_000_001)
    (tmp_path / "marked").write_bytes("\ufeff".encode())
    for argument, stdin, message in (
        ("-", b"abc\xff", "standard input is not UTF-8 text (byte 3)"),
        ("-", b"", "empty"),
        (f"@{tmp_path / 'binary'}", b"", "is not UTF-8 text (byte 3)"),
        (f"@{tmp_path / 'huge'}", b"", "more than 10,000,000 bytes"),
        ("@/dev/zero", b"", "more than 10,000,000 bytes"),
        (f"@{tmp_path / 'missing'}", b"", "cannot read"),
        (f"@{tmp_path}", b"", "cannot read"),
        (f"@{tmp_path / 'marked'}", b"", "empty"),
        ("a\udcff b", b"", "not valid Unicode"),
    ):
        code, told = invoke("measure", argument, stdin=stdin)
        assert code == 2, (argument, told)
        assert message in told
        assert told.count("\n") == 1


def test_closed_streams_are_one_line_or_none():
    for redirect, code, message in (("<&-", 2, "standard input is closed"), (">&- <&-", 2, "closed")):
        result = subprocess.run(
            ["sh", "-c", f'"$0" measure - {redirect}', *COMMAND], capture_output=True, text=True, check=False
        )
        assert result.returncode == code, result.stderr
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_full_disk_under_standard_output_is_one_line(tmp_path):
    (tmp_path / "out").symlink_to("/dev/full")
    process = SERVER.Process(target=command_in, args=(tmp_path, ["doctor", "demo"]))
    process.start()
    process.join()
    assert process.exitcode == 1
    said = (tmp_path / "err").read_text()
    assert said == "densitometer: cannot write to standard output: No space left on device\n"


def test_a_warning_is_one_line_without_its_source(tmp_path):
    folder = Path(shutil.copytree(DEMO_FOLDER / "demo", tmp_path / "m"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, told = invoke("measure", "The Whale", "-m", str(folder))
    assert code == 0
    assert told.startswith(
        "densitometer: warning: the tokenizer does not give the text back: from character 0"
    )
    assert told.count("\n") == 1


def test_a_model_that_is_refused_is_one_line_and_exit_code_1(tmp_path):
    folder = Path(shutil.copytree(DEMO_FOLDER / "demo", tmp_path / "m"))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9999])
    for command in (["measure", TEXT, "-m", str(folder)], ["doctor", str(folder)]):
        code, told = invoke(*command)
        assert code == 1
        assert "model.safetensors (9,999 bytes)" in told
        assert told.count("\n") == 1


def test_a_page_by_a_finer_grain_is_refused_before_the_work(tmp_path):
    page = tmp_path / "page.html"
    code, told = invoke("measure", TEXT, "--granularity", "neuron", "--html", str(page))
    assert code == 2
    assert "--html shows graphs by block" in told
    assert not page.exists()


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_ours_is_one_line_too(monkeypatch, debug):
    def broken(*_, **__):
        raise RuntimeError("the unforeseen\nhappened")

    monkeypatch.setattr("densitometer.measuring.measurement.measure", broken)
    result = CliRunner().invoke(app, ["measure", TEXT, *["--debug"] * debug])
    assert result.exit_code == 1
    *frames, line = result.stderr.strip().splitlines()
    assert line.startswith(
        "densitometer: a fault of densitometer, RuntimeError: the unforeseen happened; run it with --debug"
    )
    assert bool(frames) == debug

"""What people give in place of one text, a model's name or a path: measured as it is meant, or refused by name."""

from __future__ import annotations

import json
import warnings

import numpy
import polars
import pytest
import torch
from command import call
from studies import save_model
from typer.main import get_command

import densitometer as dm
from densitometer.cli.commands import app
from densitometer.errors import ArgumentTypeError, DensitometerWarning, InputError, ModelError

TEXT = "The whale swam under the ship and"
TEXTS = ["The captain looked", "One two three"]
CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris is."},
]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>\n' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)
LOADING = {"dtype", "device", "tokenizer", "quantization", "subfolder", "trust_remote_code"}


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """Folder of a tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    save_model(folder, 0)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


# One text, and not several


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TEXTS, "list of 2 texts"),
        (tuple(TEXTS), "list of 2 texts"),
        (numpy.array(TEXTS), "list of 2 texts"),
        (polars.Series(TEXTS), "list of 2 texts"),
        ([CHAT, CHAT], "list of 2 chats"),
    ],
)
def test_a_list_of_texts_names_run_study(demo, given, message):
    for call_ in (
        lambda: dm.measure(demo, given),
        lambda: dm.measure_positions(demo, given),
        lambda: dm.build_graph(demo, given, importance="l1"),
    ):
        with pytest.raises(ArgumentTypeError, match=rf"{message}.*run_study\("):
            call_()


def test_rows_of_ids_are_given_one_at_a_time(demo):
    for rows in ([[5, 6], [7, 8]], torch.tensor([[5, 6], [7, 8]])):
        with pytest.raises(dm.DensitometerError, match="rows one at a time, without padding"):
            demo.encode(rows)


def test_messages_call_ids_ids_and_bytes_bytes(demo):
    with pytest.raises(InputError, match="the list of token ids is empty"):
        demo.encode([])
    with pytest.raises(InputError, match=r"the list of token ids \[5\] is one token long"):
        demo.encode([5])
    with pytest.raises(ArgumentTypeError, match=r"\(bytes\); decode it"):
        demo.encode(b"The captain")


@pytest.mark.parametrize(
    "ids", [[2, 2, 2, 40, 41, 42], [40, 41, 42, 2, 2], {"input_ids": [9, 9, 40, 41], "attention_mask": [0, 0, 1, 1]}]
)  # fmt: skip
def test_padded_ids_are_warned_of(demo, monkeypatch, ids):
    monkeypatch.setattr(type(demo.tokenizer), "pad_token_id", 2, raising=False)
    n = 3 if isinstance(ids, list) and ids[0] == 2 else 2
    with pytest.warns(
        DensitometerWarning, match=rf"padded: {n} of {len(ids) if isinstance(ids, list) else 4}"
    ):
        demo.encode(ids)


def test_ids_that_only_begin_or_end_a_sequence_are_not_padded(demo):
    end = demo.tokenizer.eos_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.encode([end, 40, 41])
        demo.encode([40, 41, end])
        demo.encode({"input_ids": [40, 41], "attention_mask": [1, 1]})
    with pytest.warns(DensitometerWarning, match="padded: 2 of 4"):
        demo.encode([end, end, 40, 41])


# A model's name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://huggingface.co/owner/name", "Give 'owner/name'$"),
        ("huggingface.co/owner/name/", "Give 'owner/name'$"),
        ("https://huggingface.co/owner/name/tree/v2", "Give 'owner/name', with the revision 'v2'"),
        ("https://hf.co/owner/name/blob/main/x.gguf", r"Give 'owner/name/x\.gguf'$"),
        ("https://huggingface.co/datasets/owner/name", "datasets, not of a model"),
        ("http://example.com/model", "Download it"),
        ("a\0b", "null character"),
        ("x" * 5000, "4,096 bytes"),
    ],
)
def test_an_address_or_no_name_says_what_to_give(name, message):
    for load in (dm.load_model, lambda given: dm.plan(given, length=5)):
        with pytest.raises(ModelError, match=message):
            load(name)


def test_a_training_run_names_its_last_checkpoint(tmp_path):
    for step in (500, 1000, 90):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"3 checkpoints \(checkpoint-90, .*give one of them: '.*checkpoint-1000'"
    ):
        dm.load_model(tmp_path)
    (tmp_path / "run" / "checkpoint-7").mkdir(parents=True)
    with pytest.raises(ModelError, match="without the model's config"):
        dm.load_model(tmp_path / "run" / "checkpoint-7")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_weights_of_a_wrapped_module_name_the_prefix(tmp_path, prefix):
    from safetensors.torch import load_file, save_file

    save_model(tmp_path, 0)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {prefix + name: value for name, value in weights.items()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match=f"wrapped module.*begin with '{prefix}'.*removeprefix"):
        dm.load_model(tmp_path)


# Chats in a study


def test_a_study_measures_chats_at_the_first_token_of_the_answer(chat_model, tmp_path):
    corpus = [
        {"id": "0", "messages": CHAT},
        {"id": "1", "messages": CHAT[:1]},
        {"id": "2", "messages": "[1]"},
    ]
    study = dm.run_study(corpus, [str(chat_model), "demo"], tmp_path / "study", sizes=[0.3, 1.0])
    model = dm.load_model(chat_model)
    table = study.measurements()
    assert "chat_messages" not in table.columns
    assert "chat_messages" not in study.sql("select * from measurements").columns
    own = table.filter(polars.col("model") == str(chat_model)).sort("text_id").to_dicts()
    ids = model.encode(CHAT[:1])
    answer = model.encode(CHAT)[len(ids)]
    assert own[0]["ids"] == [*ids, answer]
    assert own[1]["ids"] == ids
    assert own[0]["position"] == own[1]["position"] == len(ids) - 1
    assert (own[0]["next_id"], own[1]["next_id"]) == (answer, None)
    expected = dm.measure(model, CHAT[:1], importance="l1", sizes=[0.3, 1.0], baselines=())
    assert own[0]["auc_log"] == pytest.approx(expected.density["l1"].auc_log, abs=1e-6)
    assert "not an object" in own[2]["error"]
    others = table.filter(polars.col("model") == "demo").sort("text_id")["error"]
    assert "no chat template" in others[0]


def test_windows_of_chats_are_of_tokens(chat_model, tmp_path):
    words = dm.run_study([CHAT], str(chat_model), tmp_path / "w", sizes=[1.0], window="words:3")
    assert "window of words cannot cut a chat" in words.measurements()["error"][0]
    tokens = dm.run_study([CHAT], str(chat_model), tmp_path / "t", sizes=[1.0], window="tokens:5")
    ids = dm.load_model(chat_model).encode(CHAT[:1])
    assert tokens.measurements()["ids"][0].to_list() == ids[:6]


def test_reference_means_take_chats_by_the_template(chat_model, tmp_path):
    from densitometer.study.corpus import read_corpus

    model = dm.load_model(chat_model)
    usable = read_corpus([CHAT, [{"role": "x"}]]).usable()
    assert usable == [CHAT]
    assert dm.reference_means(model, usable).provenance["n_tokens"] == len(model.encode(CHAT))
    dm.run_study([CHAT], str(chat_model), tmp_path / "s", sizes=[1.0], means=[CHAT])


# The command line


@pytest.mark.parametrize(
    "command", ["measure", "explore", "tokens", "doctor", "plan", "means", "study", "replay"]
)
def test_every_command_that_loads_a_model_says_how(command):
    options = {parameter.name for parameter in get_command(app).commands[command].params}
    assert options >= (LOADING - {"tokenizer", "quantization"} if command == "plan" else LOADING)


def test_loading_options_reach_the_model(tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text(TEXT)
    call("measure", TEXT, "--sizes", "1.0", "--json", tmp_path / "m.json")
    seen = []

    def load(name, **keywords):
        seen.append(keywords)
        raise InputError("seen")

    monkeypatch.setattr("densitometer.models.loading.load_model", load)
    given = [
        "--tokenizer",
        "demo",
        "--quantization",
        "nf4",
        "--subfolder",
        "sub",
        "--trust-remote-code",
        "--dtype",
        "float32",
    ]
    for arguments in (
        ["measure", TEXT], ["tokens", TEXT], ["explore", TEXT], ["doctor", "demo"], ["replay", tmp_path / "m.json"],
        ["means", tmp_path / "t.txt", "-o", tmp_path / "m.safetensors"],
        ["study", tmp_path / "t.txt", "-m", "demo", "-o", tmp_path / "study"],
    ):  # fmt: skip
        call(*arguments, *given)
    expected = {
        "tokenizer": "demo", "subfolder": "sub", "trust_remote_code": True, "dtype": "float32",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    }  # fmt: skip
    assert seen == [expected] * 7
    manifest = json.loads((tmp_path / "study" / "manifest.json").read_text())
    assert manifest["settings"]["options"] == {k: v for k, v in expected.items() if k != "dtype"}
    wrong = call("measure", TEXT, "--quantization", "q4")
    assert (wrong.returncode, "nf4, fp4, int8" in wrong.stderr) == (2, True)


def test_a_subfolder_of_a_folder(tmp_path):
    save_model(tmp_path / "models" / "tiny", 0)
    assert dm.load_model(tmp_path / "models", subfolder="tiny").name == str(tmp_path / "models" / "tiny")
    assert dm.plan(tmp_path / "models", length=5, subfolder="tiny").n_edges > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "@no-such-file"], "A text that begins with @ comes by standard input"),
        (["measure", "@" + "x" * 5000], "too long for a path"),
        (["measure", "-5 degrees"], "densitometer measure -- TEXT"),
        (["tokens", "--5 degrees"], "densitometer tokens -- TEXT"),
        (["explore", "-x"], "densitometer explore -- TEXT"),
    ],
)
def test_texts_that_look_like_something_else_say_how_they_are_given(arguments, message):
    result = call(*arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_an_unknown_option_where_there_is_no_text_says_nothing_of_texts():
    assert "begins with -" not in call("doctor", "demo", "--nope").stderr


def test_a_text_behind_two_dashes_is_measured():
    result = call("measure", "--sizes", "1.0", "--", "-5 degrees below zero")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_study_of_standard_input_with_a_delimiter(tmp_path):
    table = "id^content\na^The captain looked\nb^One two three\n"
    result = call(
        "study", "-", "-m", "demo", "-o", tmp_path / "s", "--sizes", "1.0", "--column", "text=content", "--delimiter", "^",
        stdin=table,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert dm.open_study(tmp_path / "s").texts()["text"].to_list() == ["The captain looked", "One two three"]


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "a/" * 3000, "x" * 300])
def test_what_no_file_can_be_called_is_refused(demo, path, tmp_path):
    measurement = dm.measure(demo, TEXT, importance="l1", sizes=[1.0], baselines=())
    for use in (
        measurement.save, dm.load_measurement, dm.open_study, dm.load_means,
        lambda p: dm.run_study([TEXT], "demo", p),
        lambda p: dm.run_study(p, "demo", tmp_path / "s"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="path"):
            use(path)
    if "\0" not in path:
        result = call("measure", TEXT, "--json", path)
        assert (result.returncode, "Give a shorter path" in result.stderr) == (2, True)

"""From texts, chats and token ids to what the model reads, with real tokenizers of each kind, trained on a few sentences."""

from __future__ import annotations

import json
import warnings

import numpy
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import densitometer as dm
from densitometer.cli.terminal import _joined
from densitometer.models.tokenization import first_difference

SENTENCES = [
    "The whale swam under the ship, and the captain didn't look at it.",
    "La baleine nage sous le navire ; le capitaine ne la regarde pas.",
    "Naïve coöperation costs 12.5 % of déjà vu.",
    "(All of it): x - y, once - 12.5 %, or (none).",
] * 20
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'robot' %}{{ raise_exception('no robots here') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
CHAT = [{"role": "user", "content": "Where is the whale?"}]


def with_bos(backend: tokenizers.Tokenizer, bos: str = "<s>") -> None:
    place = backend.token_to_id(bos)
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, place)]),
        ]
    )


def byte_level() -> transformers.PreTrainedTokenizerFast:
    """As Llama 3 and Qwen: bytes written as characters, a beginning-of-sequence token, a chat template that writes it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet),
    )
    with_bos(backend)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


def unigram() -> transformers.PreTrainedTokenizerFast:
    """As Llama 2, Gemma and T5: spaces written as a low line, bytes for what is not in the vocabulary."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    backend.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(vocab_size=380, special_tokens=["<s>", "<unk>", *pieces], unk_token="<unk>"),
    )
    state = json.loads(backend.to_str())
    state["model"]["byte_fallback"] = True
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def metaspace() -> transformers.PreTrainedTokenizerFast:
    """Without bytes: what is not in the vocabulary is unknown; é is a piece, and no byte."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>")
    backend.train_from_iterator(SENTENCES, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def word_piece() -> transformers.PreTrainedTokenizerFast:
    """As BERT: lower case, no accents, ## inside words, [CLS] first."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=130, special_tokens=special))
    with_bos(backend, "[CLS]")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


MAKERS = {f.__name__: f for f in (byte_level, unigram, metaspace, word_piece)}


@pytest.fixture(scope="module")
def models_by_kind() -> dict[str, dm.Model]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=96,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config)
    return {kind: dm.load_model(module, tokenizer=make()) for kind, make in MAKERS.items()}


def said(model: dm.Model, text: object) -> list[str]:
    """The warnings that encoding gives, all of them ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.encode(text)  # type: ignore[arg-type]
    assert {w.category for w in caught} <= {dm.DensitometerWarning}
    return [str(w.message) for w in caught]


# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "metaspace"])
def test_pieces_are_the_text(models_by_kind, kind):
    model = models_by_kind[kind]
    text = "The captain didn't look, naïve: 12.5 % of déjà vu."
    shown = [p for p in model.pieces(model.encode(text)) if p != "<s>"]
    assert _joined(shown).removeprefix(" ") == text
    assert len(shown) > 8
    assert any(p.startswith(" ") for p in shown)


@pytest.mark.parametrize("kind", ["byte_level", "unigram"])
def test_characters_split_over_tokens_are_shown_as_their_bytes(models_by_kind, kind):
    model = models_by_kind[kind]
    shown = model.pieces(model.encode("whale 日"))
    assert shown[-3:] == ["\\xe6", "\\x97", "\\xa5"]
    assert said(model, "whale 日 ☃ 🐳") == []


def test_a_split_character_is_whole_again_in_the_headline(models_by_kind):
    model = models_by_kind["byte_level"]
    assert _joined(model.pieces(model.encode("whale 日本 é"))) == "<s>whale 日本 é"
    assert _joined(["a", "\\xe6", "\\x97"]) == "a\\xe6\\x97"  # half a character stays what it is


def test_word_pieces_are_shown_without_their_marks(models_by_kind):
    model = models_by_kind["word_piece"]
    shown = model.pieces(model.encode("the captain looked, x"))
    assert shown[0] == "[CLS]"
    assert "".join(shown[1:]) == " the captain looked , x"
    assert not any("#" in p for p in shown)


def test_ids_without_an_entry_have_a_name(models_by_kind):
    assert models_by_kind["word_piece"].pieces([399]) == ["<id 399>"]


def test_what_round_trips_is_not_warned_about(models_by_kind):
    for kind in ("byte_level", "unigram"):
        for text in (SENTENCES[0], SENTENCES[1], "a  b\n\tc", "x = {'a': [1, 2]}  # y"):
            assert said(models_by_kind[kind], text) == [], (kind, text)
    for text in ("the whale, under the ship; it didn't.", "(costs) 12.5 % of it - all."):
        assert said(models_by_kind["word_piece"], text) == [], text  # spaces of the decoder are no loss


@pytest.mark.parametrize(
    ("kind", "text", "parts"),
    [
        ("metaspace", "the whale 日 swam", ("character 10", "'日 swam'", "'<unk> swam'", "unknown to it")),
        ("word_piece", "the Whale swam", ("character 4", "'Whale swam'", "'whale swam'", "lower case")),
        ("word_piece", "the whale is déjà vu", ("character 14", "'éjà vu'", "'eja vu'")),
        ("word_piece", "the  whale\nswam", ("character 4", "' whale\\nswam'")),
    ],
)
def test_a_text_that_does_not_round_trip_is_said_so(models_by_kind, kind, text, parts):
    (warning,) = said(models_by_kind[kind], text)
    for part in parts:
        assert part in warning


def test_another_unicode_form_is_named_and_visible(models_by_kind):
    model = models_by_kind["byte_level"]
    backend = tokenizers.Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFC()
    nfc = dm.load_model(
        model.module,
        tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"),
    )
    assert said(nfc, "de\u0301ja vu") != []
    assert "another Unicode form" in said(nfc, "de\u0301ja vu")[0]
    assert "\\u0301" in said(nfc, "de\u0301ja vu")[0]
    assert said(nfc, "d\u00e9ja vu") == []


@pytest.mark.parametrize(
    ("text", "read", "place"),
    [
        ("a b", "a b", None),
        ("hello, world", "hello , world", None),
        ("don't", "don ' t", None),
        ("hello", " hello", None),
        ("日本", "日 本", None),
        ("a b", "a  b", (2, 2)),
        ("ab", "a b", (1, 1)),
        (" ab", "ab", (0, 0)),
        ("abc", "ab", (2, 2)),
        ("ab", "abc", (2, 2)),
        ("a, b", "a ,c", (3, 3)),
    ],
)
def test_where_a_text_differs(text, read, place):
    assert first_difference(text, read) == place


# ----------------------------------------------------------------------------------------------------


def test_a_doubled_start_is_warned_about_and_measured_as_it_is(models_by_kind):
    model = models_by_kind["byte_level"]
    assert said(model, "The whale") == []
    (warning,) = said(model, "<s>The whale")
    assert "doubled '<s>'" in warning
    assert "the tokenizer adds one more" in warning
    assert "begin with it twice" in said(model, [0, 0, 5, 6])[0]
    assert said(model, [0, 5, 5]) == said(model, [5, 5, 0]) == []
    with pytest.warns(dm.DensitometerWarning):
        ids = model.encode("<s>The whale")
    assert ids[:2] == [0, 0]
    assert "[CLS]" in said(models_by_kind["word_piece"], "[CLS] the whale")[0]


def test_a_chat_is_written_by_its_template_up_to_the_answer(models_by_kind):
    model = models_by_kind["byte_level"]
    assert said(model, CHAT) == []  # the template writes the start, the tokenizer adds none
    ids = model.encode(CHAT)
    assert ids == model.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert model.tokenizer.decode(ids) == "<s>[user] Where is the whale?\n[assistant] "
    assert "doubled" in said(model, model.text_of(CHAT))[0]  # rendered by hand, it gets a second one

    begun = [*CHAT, {"role": "assistant", "content": "Under the"}]
    assert model.tokenizer.decode(model.encode(begun)).endswith("[assistant] Under the")


def test_a_chat_is_measured_at_the_first_token_of_the_answer(models_by_kind):
    model = models_by_kind["byte_level"]
    measured = dm.measure(model, CHAT, sizes=[0.1, 1.0], baselines=())
    assert measured.input["text"] == "<s>[user] Where is the whale?\n[assistant] "
    assert measured.input["position"] == len(measured.input["ids"]) - 1
    assert dm.build_graph(model, CHAT).input_ids == tuple(measured.input["ids"])


@pytest.mark.parametrize(
    ("kind", "chat", "message"),
    [
        ("word_piece", CHAT, "no chat template"),
        ("byte_level", [{"role": "robot", "content": "hm"}], "no robots here"),
        ("byte_level", [{"text": "hm"}], "'role'"),
        ("byte_level", [*CHAT, "hm"], "'role'"),
    ],
)
def test_chats_that_cannot_be_written_are_refused(models_by_kind, kind, chat, message):
    with pytest.raises(dm.DensitometerError, match=message):
        models_by_kind[kind].encode(chat)


# ----------------------------------------------------------------------------------------------------


def test_token_ids_are_taken_in_every_usual_form(demo):
    ids = [7, 300, 11, 25]
    forms = [
        tuple(ids), numpy.array(ids), numpy.array([ids], dtype=numpy.int32), [numpy.int64(i) for i in ids],
        torch.tensor(ids), torch.tensor([ids]), list(torch.tensor(ids)), numpy.array(ids, dtype=numpy.uint16),
    ]  # fmt: skip
    for form in forms:
        assert demo.encode(form) == ids, form
    assert dm.measure(demo, torch.tensor([ids]), sizes=[1.0], baselines=()).input["ids"] == ids
    assert dm.build_graph(demo, numpy.array(ids)).input_ids == tuple(ids)


@pytest.mark.parametrize(
    ("ids", "kind", "message"),
    [
        (b"whale", TypeError, "bytes"),
        (3, TypeError, "int"),
        (None, TypeError, "NoneType"),
        ({3, 4}, TypeError, "set"),
        ({"ids": [3, 4]}, TypeError, "dict"),
        ([1, 2.0], TypeError, "2.0"),
        ([1, True], TypeError, "True"),
        (["a", "b"], TypeError, "'a'"),
        (numpy.array([1.5, 2.5]), TypeError, "1.5"),
        (numpy.array([True, False]), TypeError, "True"),
        ([numpy.float32(3.7), 4], TypeError, "3.7"),
        (torch.ones(2, 3, dtype=torch.long), ValueError, r"\(2, 3\)"),
        (numpy.ones((1, 2, 3), dtype=int), ValueError, r"\(1, 2, 3\)"),
        ([5, 4096], ValueError, "4096 is outside"),
        ([5, -1], ValueError, "-1 is outside"),
        ([], ValueError, "empty"),
        ([5], ValueError, "one token"),
        ("a\udcff b", ValueError, "not valid Unicode"),
    ],
)
def test_what_is_no_text_is_refused(demo, ids, kind, message):
    with pytest.raises(kind, match=message) as caught:
        demo.encode(ids)
    assert isinstance(caught.value, dm.DensitometerError)


def test_another_models_tokenizer_is_refused_where_its_ids_end(demo, make_model):
    module = make_model("llama").module  # 101 rows
    with pytest.warns(dm.DensitometerWarning, match="4096 entries but the embedding of .* only 101"):
        model = dm.load_model(module, tokenizer=demo.tokenizer)
    with pytest.raises(ValueError, match="do not belong together"):
        model.encode("The white whale swam")


def test_a_tokenizer_is_named_by_a_folder_a_bundled_model_or_none(tmp_path, make_model, demo):
    module = demo.module
    demo.tokenizer.save_pretrained(tmp_path)
    for name in ("demo-parallel", tmp_path, str(tmp_path)):
        assert dm.load_model(module, tokenizer=name).encode("The whale") == demo.encode("The whale")
    assert dm.load_model(module, tokenizer=False).tokenizer is None
    assert dm.load_model("demo", tokenizer=False).tokenizer is None
    with pytest.raises(dm.DensitometerError, match="tokenizer=\\.\\.\\."):
        dm.load_model(module, tokenizer=False).encode("The whale")
    with pytest.raises(TypeError, match="tokenizer"):
        dm.load_model(module, tokenizer=7)
    with pytest.raises(dm.DensitometerError, match="no-such-folder"):
        dm.load_model(module, tokenizer=str(tmp_path / "no-such-folder"))

"""The findings: a verdict follows its rule, what holds others is a partial correlation, parts come equal across models, and the
pages are what the command writes from the stored studies."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy
import polars
import pytest
import torch
from conftest import make_module
from scipy import stats

import densitometer as dm
from densitometer.study import part_files

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools/findings"

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def tool():
    """The modules of the tool, by name."""
    before = set(sys.modules)
    sys.path.insert(0, str(TOOLS))
    try:
        yield lambda name: importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))
        for name in set(sys.modules) - before:
            if str(TOOLS) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def estimates(tool, *values):
    """An estimate of each real model: (rho, p_holm)."""
    names = tool("evidence").REAL
    return [
        {"model": m, "rho": rho, "low": rho - 0.1, "high": rho + 0.1, "p_holm": p}
        for m, (rho, p) in zip(names, values, strict=False)
    ]


def test_a_verdict_follows_its_rule(tool):
    judged = tool("questions").judged
    up, down = (0.5, 0.001), (-0.5, 0.001)
    open_, missing = (0.5, 0.2), ()
    yes, no, mixed = (estimates(tool, *three) for three in ((up,) * 3, (down, open_, open_), (up, up, open_)))
    for theirs in (yes, no, mixed, missing):
        assert judged(theirs, yes, 1) == "holds"
        # that ours is not clear says nothing, whatever theirs says
        assert (
            judged(theirs, mixed, 1)
            == judged(theirs, missing, 1)
            == judged(theirs, yes[:2], 1)
            == "not decidable here"
        )
    both = estimates(tool, up, down, down)
    assert judged(yes, both, 1) == "not decidable here"
    assert judged(yes, no, 1) == "holds only the published way"
    assert judged(mixed, no, 1) == judged(no, no, 1) == judged(no, yes, -1) == "contradicted"


def test_an_estimate_without_a_test_is_judged_by_its_interval(tool):
    side = tool("questions").side
    assert side({"rho": 0.3, "low": 0.1, "high": 0.5}, 1) == 1
    assert side({"rho": 0.3, "low": 0.1, "high": 0.5}, -1) == -1
    assert side({"rho": 0.3, "low": -0.1, "high": 0.5}, 1) == 0
    assert side({"rho": 0.3, "low": None, "high": None}, 1) == 0


def test_holding_others_is_the_partial_correlation_of_ranks(tool):
    held = tool("evidence").held
    drawn = numpy.random.default_rng(3).normal(size=(4, 41))
    drawn[0] += drawn[1] + 2 * drawn[2]
    drawn[1] += drawn[3]
    found = held(drawn[0], drawn[1], [drawn[2], drawn[3]])
    # oracle: from the inverse of the matrix of all correlations
    inverse = numpy.linalg.inv(numpy.corrcoef([stats.rankdata(column) for column in drawn]))
    assert found["rho"] == pytest.approx(
        -inverse[0, 1] / numpy.sqrt(inverse[0, 0] * inverse[1, 1]), abs=1e-12
    )
    assert found["low"] < found["rho"] < found["high"]
    plain, oracle = held(drawn[0], drawn[1], []), stats.spearmanr(drawn[0], drawn[1])
    assert plain["rho"] == pytest.approx(oracle.statistic, abs=1e-12)
    assert plain["p"] == pytest.approx(oracle.pvalue, rel=1e-9)


def test_a_language_is_compared_at_equal_entropy_and_length(tool):
    """Sizes made by the formula, with a known ratio to English: it is found whatever the entropies and lengths are."""
    drawn = numpy.random.default_rng(5)
    rows = []
    for article in range(11):
        for language, ratio in (("en", 1.0), ("de", 1.5), ("fr", 0.8)):
            entropy, length = (
                drawn.uniform(0.2, 4),
                int(drawn.integers(7, 50)) + (30 if language == "de" else 0),
            )
            size = 0.02 * ratio * (entropy + 0.1) ** 0.7 * length**-0.4
            rows.append(
                {
                    "pair": f"a{article}",
                    "language": language,
                    "entropy": entropy,
                    "n_tokens": length,
                    "size_between": size,
                }
            )
    found = tool("questions").ratios_to_english(polars.DataFrame(rows))
    assert {name: round(row["rho"], 9) for name, row in found.items()} == {"de": 1.5, "fr": 0.8}
    assert found["de"]["low"] == pytest.approx(1.5)
    assert tool("questions").ratios_to_english(polars.DataFrame(rows[:15])) == {}


def test_a_size_at_one_entropy_and_length_is_the_formula_s(tool):
    drawn = numpy.random.default_rng(7)
    x = drawn.uniform(-1, 1, size=(2, 13))
    design = numpy.column_stack([numpy.ones(13), *x])
    found = tool("questions").constant(design, numpy.log(0.13) + 0.6 * x[0] - 0.3 * x[1])
    assert found["rho"] == pytest.approx(0.13, rel=1e-9)
    assert found["low"] == pytest.approx(found["high"], rel=1e-6)
    noisy = tool("questions").constant(design, numpy.log(0.13) + drawn.normal(size=13))
    assert noisy["low"] < noisy["rho"] < noisy["high"]


def test_models_have_the_same_texts_wherever_the_work_stops(tool):
    studies = tool("stored_studies")
    done, shown = {}, set()
    for step in studies.steps():
        assert (step.study, step.model, step.shard) not in shown
        shown.add((step.study, step.model, step.shard))
        done.setdefault(step.study, dict.fromkeys(step.kind.models, 0))[step.model] += 1
        counts = done[step.study].values()
        assert max(counts) - min(counts) <= 1
    for name, kind in studies.KINDS.items():
        assert {kind.first + kind.shard * n for n in done[name].values()} == {kind.count}, name


def test_weights_are_rounded_to_the_nearest_of_fifteen_levels(tool, tmp_path):
    models = tool("changed_models")
    weight = torch.tensor(numpy.random.default_rng(11).normal(size=(3, 77)), dtype=torch.float32)
    found = models.rounded(weight)
    for row in range(3):
        for first in (0, 32, 64):
            group, own = weight[row, first : first + 32], found[row, first : first + 32]
            levels = group.abs().max() * torch.arange(-7, 8) / 7
            nearest = levels[(group[:, None] - levels).abs().argmin(1)]
            assert torch.allclose(own, nearest, atol=1e-6)
    place = models.make("demo-rounded", tmp_path, None)
    before, after = (dm.load_model(model).module for model in ("demo", str(place)))
    assert torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    part = [m.model.layers[4].mlp.down_proj.weight for m in (before, after)]
    assert torch.allclose(part[1], models.rounded(part[0]), atol=1e-6)
    assert not torch.allclose(part[1], part[0], atol=1e-3)


def test_a_model_that_cannot_be_made_is_named(tool, tmp_path):
    lacks = tool("changed_models").lacks
    assert lacks("demo-rounded", tmp_path, None) == ""
    assert "make real-models" in lacks("SmolLM2-135M-rounded-again", tmp_path, None)
    assert "wikitext2-valid.txt" in lacks("demo-anew-step50", tmp_path, None)
    (tmp_path / "wikitext2-valid.txt").touch()
    assert lacks("demo-anew-step50", tmp_path, str(tmp_path)) == ""


def test_training_stops_where_a_checkpoint_is_kept(tool):
    model = make_module("llama")
    first = model.lm_head.weight.clone()
    ids = numpy.random.default_rng(2).integers(0, 90, size=80)
    kept = {}
    for step in tool("changed_models")._fit_and_stop(model, ids, (2, 9), (3, 5), 1e-3):
        assert not model.training
        kept[step] = model.lm_head.weight.clone()
    assert list(kept) == [3, 5]
    assert not torch.equal(first, kept[3])
    assert not torch.equal(kept[3], kept[5])


def test_bits_a_character_are_the_surprisal_of_all_prompts(tool):
    rows = {
        "importance": ["l1", "fisher"] * 2,
        "prompt_surprisal": [2.0, 2.0, 3.0, 3.0],
        "n_tokens": [5, 5, 8, 8],
        "prompt_characters": [11, 11, 30, 30],
    }
    found = tool("questions").bits_a_character(polars.DataFrame(rows))
    assert found == pytest.approx((2 * 4 + 3 * 7) / numpy.log(2) / 41)


def test_words_are_cut_as_they_are_written(tool):
    first = tool("texts").first
    assert first("def f(x):\n    return x + 1", 3) == {"text": "def f(x):\n    return", "next": "x"}
    # a text that is too short keeps a word to be predicted
    assert first("one two three", 20) == {"text": "one two", "next": "three"}


def test_a_dry_run_names_what_is_missing_and_what_is_left(tool, tmp_path):
    studies = tool("stored_studies")
    out = studies.outlook(tmp_path / "findings", tmp_path / "models", None)
    named = "\n".join(out.missing)
    assert "SmolLM2-135M-Instruct-Q4_1 is not in" in named
    assert "make real-models" in named
    assert "the study passages: wikitext2-test.txt is needed to begin; no data folder is given" in named
    # nothing can be begun but the code, which is this package's own, and that is only for the real models
    assert out.left == []


def test_a_study_goes_on_with_the_texts_that_are_stored(tool, tmp_path):
    """`kept` measures the passages: those of `passages` serve, and no data is needed."""
    (tmp_path / "passages").mkdir()
    polars.DataFrame({"id": ["a"], "text": ["one two"]}).write_parquet(
        tmp_path / "passages" / "texts.parquet"
    )
    found = tool("stored_studies").corpus_of("kept", tmp_path, None)
    assert found.name == "passages"
    assert found.texts["text"].to_list() == ["one two"]
    with pytest.raises(tool("texts").MissingTexts, match=r"udhr\.jsonl is needed to begin"):
        tool("stored_studies").corpus_of("languages", tmp_path, None)


def test_parts_are_done_by_the_command_and_the_page_names_the_rest(tool, tmp_path, monkeypatch):
    """One step on a bundled model, from texts in a folder; stopped; the page is written from it."""
    studies, texts = tool("stored_studies"), tool("texts")
    settings = {"importance": "l1", "sizes": (0.01, 1.0), "components": False}
    monkeypatch.setattr(
        studies, "KINDS", {"code": studies.Kind("code", 2, settings, (1, 1, 1, 1), ("demo",), shard=1)}
    )
    monkeypatch.setattr(studies, "ROUNDS", (("code", 2),))
    monkeypatch.setattr(texts, "WORDS_OF_CODE", 5)
    monkeypatch.setattr(texts, "FUNCTIONS", 3)
    before = Path.cwd()
    left = studies.measure(tmp_path, tmp_path / "none", None, told=lambda line: None)
    assert Path.cwd() == before
    assert left.left == []
    rows = dm.open_study(tmp_path / "code").measurements()
    assert rows["error"].is_null().all()
    assert rows["text_id"].n_unique() == len(rows) == 2
    monkeypatch.undo()
    page = tool("page").page(tmp_path)
    assert "| `code` | functions of this package, 16 words | 0 |" in page
    assert "`passages`: of 100 texts are left: SmolLM2 135M 100" in page
    assert "holds" in page
    assert page.count("**Not decidable here**") == 15


def test_a_compact_part_is_smaller_and_says_the_same(tool, tmp_path):
    compact = tool("compact")
    draw = numpy.random.default_rng(3)
    floats = [name for name, dtype in part_files.CURVE.items() if dtype == polars.Float64]
    curves = [polars.DataFrame({name: draw.random(26) for name in floats}) for _ in range(7)]
    curves = [
        c.with_columns(
            polars.lit(None, dtype=t).alias(n) for n, t in part_files.CURVE.items() if n not in floats
        )
        for c in curves
    ]
    content = part_files.part_of(
        [{"text_id": f"a{i}", "auc_log": draw.random()} for i in range(7)], [{"curve": c} for c in curves]
    )
    before = tmp_path / f"00000000-00000007-{part_files.digest_of(content)}.parquet"
    before.write_bytes(content)
    compact.compact(tmp_path)
    (after,) = tmp_path.iterdir()
    assert after != before
    assert after.stat().st_size < 0.8 * len(content)
    (part,) = part_files.list_parts(tmp_path)
    assert part.digest == part_files.digest_of(after.read_bytes())
    old, new = polars.read_parquet(content), polars.read_parquet(after)
    assert new.schema == old.schema
    assert new.drop("curve").equals(old.drop("curve"))
    old, new = (table.select("curve").explode("curve").unnest("curve") for table in (old, new))
    assert new.drop(compact.ROUNDED).equals(old.drop(compact.ROUNDED))
    for name in compact.ROUNDED:
        numpy.testing.assert_array_equal(new[name], old[name].to_numpy().astype(numpy.float32))
    compact.compact(tmp_path)
    assert [after] == list(tmp_path.iterdir())


STORED = sorted(path.parent for path in (ROOT / "findings").glob("*/manifest.json"))


@pytest.mark.skipif(not STORED, reason="the studies come with the repository, not with the package")
def test_the_stored_studies_open_and_name_no_place_of_a_machine(tool):
    assert sum(path.stat().st_size for path in (ROOT / "findings").rglob("*") if path.is_file()) < 12e6
    kinds = tool("stored_studies").KINDS
    for folder in STORED:
        rows = dm.open_study(folder).measurements()
        assert rows["error"].is_null().all()
        assert set(rows["model"]) <= set(kinds[folder.name].models)
        for path in folder.rglob("*"):
            if path.is_file():
                assert not re.search(rb"/(home|root|tmp|work|Users)/", path.read_bytes()), path


@pytest.mark.skipif(not STORED, reason="the studies come with the repository, not with the package")
def test_unseen_passages_are_those_from_the_named_one_on(tool):
    evidence = tool("evidence")
    every, unseen = (evidence.Evidence(evidence.stored_studies.FOLDER, unseen=only) for only in (False, True))
    ids = {text for text in every.rows("more")["text_id"] if text >= evidence.UNSEEN}
    assert ids
    assert set(unseen.rows("more")["text_id"]) == set(unseen.curves("more")["text_id"]) == ids
    assert len(unseen.rows("code")) == len(every.rows("code")) > 0


@pytest.mark.slow
@pytest.mark.skipif(not STORED, reason="the studies come with the repository, not with the package")
def test_the_pages_are_what_the_command_writes(tool):
    page = tool("page")
    for path, text in page.pages(page.stored_studies.FOLDER).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"run python tools/findings --write: {path.name} says something else now"
        )

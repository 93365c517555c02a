"""Unigram counts by hand, and their correlation with predictions held to scipy's."""

from __future__ import annotations

import numpy
import polars
import pytest
from scipy import stats

from densitometer.study import unigrams
from densitometer.study.corpus import read_corpus
from densitometer.study.unigrams import Sample, Unigrams, correlations


def encode(text):
    return [ord(letter) - ord("a") for letter in text.replace(" ", "")]


TEXTS = {"x": "aab", "y": "abc z", "z": "e"}


def test_counts_leave_out_the_text_that_is_measured():
    own = Unigrams(Sample(TEXTS, own=True), encode, 7)  # z is beyond the vocabulary
    assert own.without("x").tolist() == [1, 1, 1, 0, 1, 0, 0]
    assert own.without("y").tolist() == [2, 1, 0, 0, 1, 0, 0]
    assert own.without("another").tolist() == [3, 2, 1, 0, 1, 0, 0]
    reference = Unigrams(
        Sample(TEXTS, own=False), encode, 7
    )  # of another corpus, whose ids mean nothing here
    assert reference.without("x").tolist() == [3, 2, 1, 0, 1, 0, 0]


def test_a_sample_is_spread_over_the_readable_texts(monkeypatch):
    corpus = read_corpus(polars.DataFrame({"text": ["", *(f"text {i}" for i in range(9))]}))
    assert len(Sample.of(corpus.texts, own=True).texts) == 9
    monkeypatch.setattr(unigrams, "MOST_TEXTS", 3)
    monkeypatch.setattr(unigrams, "MOST_CHARACTERS", 5)
    sample = Sample.of(corpus.texts, own=True)
    assert sample.texts == {"2": "text ", "6": "text ", "10": "text "}
    assert sample == Sample.of(corpus.texts, own=True)
    unreadable = polars.DataFrame(
        {"id": ["1"], "text": [None], "problem": ["no"]}, schema_overrides={"text": polars.String}
    )
    assert Sample.of(unreadable, own=True).texts == {}


def test_correlations_are_scipys_over_the_tokens_that_occur():
    rng = numpy.random.default_rng(5)
    counts = rng.poisson(1.5, 83)
    assert (counts == 0).any()
    logits = rng.normal(size=(4, 83)).astype(numpy.float32)
    logits[1] += 0.7 * numpy.log1p(counts)
    logits[2] = logits[2].round()  # ties
    logits[3] = -counts
    found = correlations(counts, logits)
    occurs = counts > 0
    for rho, row in zip(found, logits, strict=True):
        assert rho == pytest.approx(stats.spearmanr(counts[occurs], row[occurs]).statistic, abs=1e-12)
    assert found[1] > found[0] + 0.2
    assert found[3] == pytest.approx(-1)
    shifted = correlations(
        counts, logits + numpy.float32(3) * (counts == 0)
    )  # what never occurs is of no account
    assert shifted == pytest.approx(found, abs=1e-12)


def test_what_cannot_be_correlated_is_none():
    uniform = numpy.zeros((1, 5), dtype=numpy.float32)
    rising = numpy.arange(5, dtype=numpy.float32)[None]
    assert correlations(numpy.array([1, 2, 3, 4, 5]), uniform) == [None]
    assert correlations(numpy.array([2, 0, 2, 2, 0]), rising) == [None]
    assert correlations(numpy.zeros(5, dtype=int), rising) == [None]
    assert correlations(numpy.array([0, 0, 4, 0, 0]), rising) == [None]

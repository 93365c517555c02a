"""Token frequencies in a corpus, and their rank correlation with a prediction.

The correlation shows how much of the prediction needs no context at all.

    rho = Spearman correlation between log q(token) and how often the token occurs, over the tokens that occur at all

Of a text that is measured its own tokens do not count, else what it copies from its context would look like frequency. Tokens
that occur nowhere are left out: no smoothing could tell them apart, and most of a vocabulary would be one tie. A uniform
prediction, as of an empty trace, has no correlation.

The source of the question is arXiv 2605.27033: small traces encode unigram frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy
import polars

MOST_TEXTS = 10_000  # whose tokens are counted, spread evenly over the corpus
MOST_CHARACTERS = 2_000  # of one text


@dataclass(frozen=True)
class Sample:
    """Texts whose tokens are counted.

    Args:
        texts: by id.
        own: whether they are the texts that are measured; each is then left out of what it is compared with.
    """

    texts: Mapping[str, str]
    own: bool

    @classmethod
    def of(cls, texts: polars.DataFrame, own: bool) -> Sample:
        """The readable texts of a corpus, or `MOST_TEXTS` of them, from their beginnings.

        Args:
            texts: columns id, text and problem (`corpus.Corpus.texts`).
        """
        readable = texts.filter(polars.col("problem").is_null(), polars.col("text").is_not_null())
        n = min(MOST_TEXTS, len(readable))
        places = numpy.linspace(0, max(0, len(readable) - 1), n).astype(numpy.int64)
        kept = readable.select("id", polars.col("text").str.slice(0, MOST_CHARACTERS))[places]
        return cls(dict(kept.iter_rows()), own)


class Unigrams:
    """Counts of tokens over a sample, in one model's own tokens.

    Args:
        sample: the texts.
        encode: from a text to its token ids, without those that a tokenizer puts first or last.
        n_tokens: of the vocabulary; ids beyond it are not counted.
    """

    def __init__(self, sample: Sample, encode: Callable[[str], Sequence[int]], n_tokens: int) -> None:
        self._sample, self._encode, self._n_tokens = sample, encode, n_tokens
        self.counts = numpy.zeros(n_tokens, dtype=numpy.int64)
        for text in sample.texts.values():
            self.counts += self._count(text)

    def without(self, text_id: str) -> numpy.ndarray:
        """Count of each token in the other texts, (vocabulary,) int64."""
        text = self._sample.texts.get(text_id) if self._sample.own else None
        return self.counts if text is None else self.counts - self._count(text)

    def _count(self, text: str) -> numpy.ndarray:
        ids = numpy.asarray(self._encode(text), dtype=numpy.int64)
        return numpy.bincount(ids[ids < self._n_tokens], minlength=self._n_tokens)


def correlations(counts: numpy.ndarray, logits: numpy.ndarray) -> list[float | None]:
    """rho of each prediction.

    None where it is uniform, or the tokens that occur are all as frequent.

    Args:
        counts: (vocabulary,), how often each token occurs.
        logits: (K, vocabulary).
    """
    occurs = counts > 0
    if not occurs.any():
        return [None] * len(logits)
    expected = _centred(_ranks(counts[occurs]))
    found: list[float | None] = []
    for row in logits[:, occurs]:
        ranks = _centred(_ranks(row))
        size = float(numpy.linalg.norm(ranks) * numpy.linalg.norm(expected))
        found.append(float(ranks @ expected) / size if size else None)
    return found


def _ranks(values: numpy.ndarray) -> numpy.ndarray:
    """Ranks in rising order. Equal values share the mean of theirs."""
    _, place, count = numpy.unique(values, return_inverse=True, return_counts=True)
    return (numpy.cumsum(count) - (count - 1) / 2)[place]


def _centred(ranks: numpy.ndarray) -> numpy.ndarray:
    return ranks - ranks.mean()

"""Token frequencies in a corpus, and their rank correlation with a prediction.

The correlation shows how much of the prediction needs no context at all.

    rho = Spearman correlation between log q(token) and the token's count, over tokens that occur

The tokens of the measured text itself are not counted. Otherwise tokens that the model copies from
the context would look frequent. Tokens that occur nowhere are left out: they would all be tied, and
they are most of a vocabulary. A uniform prediction, such as that of an empty trace, has no
correlation.

The question comes from arXiv 2605.27033, which reports that small traces encode unigram
frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy
import polars

# Most texts whose tokens are counted, spread evenly over the corpus, and most characters of each.
MOST_TEXTS = 10_000
MOST_CHARACTERS = 2_000


@dataclass(frozen=True)
class Sample:
    """Texts whose tokens are counted.

    Args:
        texts: texts by id.
        own: whether these are the study's texts. If so, the counts for each text leave that text
            out.
    """

    texts: Mapping[str, str]
    own: bool

    @classmethod
    def of(cls, texts: polars.DataFrame, own: bool) -> Sample:
        """Take a sample of a corpus: the beginnings of at most `MOST_TEXTS` readable texts.

        Args:
            texts: table with the columns id, text and problem (`corpus.Corpus.texts`).
            own: whether these are the study's texts.
        """
        readable = texts.filter(polars.col("problem").is_null(), polars.col("text").is_not_null())
        n = min(MOST_TEXTS, len(readable))
        places = numpy.linspace(0, max(0, len(readable) - 1), n).astype(numpy.int64)
        kept = readable.select("id", polars.col("text").str.slice(0, MOST_CHARACTERS))[places]
        return cls(dict(kept.iter_rows()), own)


class Unigrams:
    """Token counts over a sample of texts, for one model's tokenizer.

    Args:
        sample: the texts.
        encode: function from a text to its token ids, without special tokens.
        n_tokens: size of the vocabulary. Larger ids are not counted.
    """

    def __init__(self, sample: Sample, encode: Callable[[str], Sequence[int]], n_tokens: int) -> None:
        self._sample, self._encode, self._n_tokens = sample, encode, n_tokens
        self.counts = numpy.zeros(n_tokens, dtype=numpy.int64)
        for text in sample.texts.values():
            self.counts += self._count(text)

    def without(self, text_id: str) -> numpy.ndarray:
        """Count of each token in the texts other than this one, (vocabulary,) int64."""
        text = self._sample.texts.get(text_id) if self._sample.own else None
        return self.counts if text is None else self.counts - self._count(text)

    def _count(self, text: str) -> numpy.ndarray:
        ids = numpy.asarray(self._encode(text), dtype=numpy.int64)
        return numpy.bincount(ids[ids < self._n_tokens], minlength=self._n_tokens)


def correlations(counts: numpy.ndarray, logits: numpy.ndarray) -> list[float | None]:
    """Spearman correlation of each prediction with token frequencies.

    None if the prediction is uniform, or all tokens that occur are equally frequent.

    Args:
        counts: (vocabulary,) int64, how often each token occurs.
        logits: (K, vocabulary), one prediction per row.

    Returns:
        K correlations.
    """
    occurs = counts > 0
    if not occurs.any():
        return [None] * len(logits)
    expected = _centred(_ranks(counts[occurs]))
    rhos: list[float | None] = []
    for row in logits[:, occurs]:
        ranks = _centred(_ranks(row))
        size = float(numpy.linalg.norm(ranks) * numpy.linalg.norm(expected))
        rhos.append(float(ranks @ expected) / size if size else None)
    return rhos


def _ranks(values: numpy.ndarray) -> numpy.ndarray:
    """Ranks in increasing order. Equal values share the mean of their ranks."""
    _, place, count = numpy.unique(values, return_inverse=True, return_counts=True)
    return (numpy.cumsum(count) - (count - 1) / 2)[place]


def _centred(ranks: numpy.ndarray) -> numpy.ndarray:
    return ranks - ranks.mean()

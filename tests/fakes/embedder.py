"""An `Embedder` and a `Reader` without a model: texts that share words lie near each other."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import numpy as np

from nightfill.answers.embed import DIMENSIONS
from nightfill.errors import ReaderUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.answers.embed import Vectors


class WordEmbedder:
    """The sum of one fixed random vector per word, at length 1. Deterministic over processes; counts its calls."""

    identity = "words"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.calls.append(list(texts))
        out = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()) or [""]:
                out[row] += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(DIMENSIONS, np.float32)
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        return out


class WordReader:
    """A `Reader` that minds one danger, "not", unless it is `careless`. While `away`, it raises ReaderUnavailable until
    it has been mended `mends` times.
    """

    def __init__(self, embedder: WordEmbedder | None = None, *, careless: bool = False) -> None:
        self.embedder = embedder or WordEmbedder()
        self.careless = careless
        self.away = False
        self.mends = 1
        self.closed = False

    @property
    def identity(self) -> str:
        return self.embedder.identity

    def embed(self, texts: Sequence[str]) -> Vectors:
        self._check()
        return self.embedder.embed(texts)

    def judge(self, asked: str, stored: Sequence[str]) -> tuple[int | None, str]:
        self._check()
        minds = "not" in asked.split()
        passing = (place for place, text in enumerate(stored) if self.careless or minds == ("not" in text.split()))
        place = next(passing, None)
        return place, "negation" if place is None and stored else ""

    def mend(self) -> None:
        if self.away:
            self.mends -= 1
            self.away = self.mends > 0

    def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        if self.away:
            raise ReaderUnavailable("is gone")

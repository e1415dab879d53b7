"""An `Embedder` without a model: texts that share words lie near each other."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import numpy as np

from nightfill.answers.embed import DIMENSIONS

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

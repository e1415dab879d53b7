"""How alike questions are: by their embeddings, or where there are none by their words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.sleep.predict import normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.answers.embed import Embedder

ALIKE: Final = 0.95
"""Cosine from which two questions are taken for one. What may serve is the guard's affair; this spares work."""


class Likeness:
    """Of a list of texts. Embeds each once, in the calling thread: milliseconds for each."""

    def __init__(self, texts: Sequence[str], embedder: Embedder | None) -> None:
        self._words = [normal(text) for text in texts]
        self._vectors = embedder.embed(texts) if embedder is not None and texts else None
        self._digits = [[word for word in words.split() if not word.isalpha()] for words in self._words]
        self.least = ALIKE

    def alike(self, one: int, other: int) -> float:
        """Of two places, from 0 to 1: 1 for the same words, below `least` when numbers differ."""
        if self._words[one] == self._words[other]:
            return 1.0
        if self._vectors is None or self._digits[one] != self._digits[other]:
            return 0.0
        return float(self._vectors[one] @ self._vectors[other])

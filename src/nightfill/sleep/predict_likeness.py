"""How alike questions are: by their words, and where there is an embedding, by what near answers would be served to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.sleep.predict import normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.answers.embed import Embedder

ALIKE: Final = 0.8
"""Cosine from which the guard is asked whether one answer serves both questions: it takes a tenth of a millisecond, and
passes few pairs below.
"""


class Likeness:
    """Of a list of texts. Embeds each once, in the calling thread: milliseconds for each."""

    def __init__(self, texts: Sequence[str], embedder: Embedder | None) -> None:
        self._texts = texts
        self._words = [normal(text) for text in texts]
        self._vectors = embedder.embed(texts) if embedder is not None and texts else None

    def alike(self, one: int, other: int) -> float:
        """Of two places, 1 for the same words; 0 where an answer to one may not serve the other."""
        if self._words[one] == self._words[other]:
            return 1.0
        if self._vectors is None:
            return 0.0
        cosine = float(self._vectors[one] @ self._vectors[other])
        if cosine < ALIKE:
            return 0.0
        from nightfill.answers.guard import agree  # reads its lists of words; needed by few

        return cosine if agree(self._texts[one], self._texts[other]) is None else 0.0

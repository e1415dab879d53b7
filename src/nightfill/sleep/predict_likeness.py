"""How alike questions are: by their words, and where there is an embedding, by what near answers would be served to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.sleep.predict import normal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.answers.embed import Vectors

ALIKE: Final = 0.8
"""Cosine from which the guard is asked whether one answer serves both questions: it takes a tenth of a millisecond, and
passes few pairs below.
"""


class Likeness:
    """Of a list of texts, whose embeddings `vectors` has; None where only the same words are alike."""

    def __init__(self, texts: Sequence[str], vectors: Mapping[str, Vectors] | None) -> None:
        self._texts = texts
        self._words = [normal(text) for text in texts]
        self._vectors = vectors

    def alike(self, one: int, other: int) -> float:
        """Of two places, 1 for the same words; 0 where an answer to one may not serve the other."""
        if self._words[one] == self._words[other]:
            return 1.0
        if self._vectors is None:
            return 0.0
        cosine = float(self._vectors[self._texts[one]] @ self._vectors[self._texts[other]])
        if cosine < ALIKE:
            return 0.0
        from nightfill.answers.guard import agree  # reads its lists of words; needed by few

        return cosine if agree(self._texts[one], self._texts[other]) is None else 0.0

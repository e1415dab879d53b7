"""Embeddings of questions, made a few at a time between live requests, and kept from one job to the next."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nightfill.answers.embed import Embedder, Vectors
    from nightfill.sleep.gatekeeper import Gatekeeper

_log = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""Embedded between two looks at the gate: some hundredths of a second of one core."""
_MOST: Final = 4096
"""Kept; 1.5 KB each."""


class Embeddings:
    """For one event loop; loads and embeds in threads. `load` may raise BadSetting: then there are none."""

    def __init__(self, load: Callable[[], Embedder] | None) -> None:
        self._load = load
        self._embedder: Embedder | None = None
        self._known: dict[str, Vectors] = {}

    async def there(self) -> bool:
        """Whether there are any; loads what makes them when it is first needed."""
        if self._load is not None and self._embedder is None:
            try:
                self._embedder = await asyncio.to_thread(self._load)
            except BadSetting as exc:
                self._load = None
                _log.warning("questions are told apart by their words alone: %s", exc)
        return self._embedder is not None

    async def of(self, texts: Sequence[str], gate: Gatekeeper | None) -> Mapping[str, Vectors] | None:
        """Those of `texts`; None when the worker is to stop. Only where they are `there`."""
        assert self._embedder is not None
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), AT_ONCE):
            if gate is not None and not await gate.opens():
                return None
            some = new[start : start + AT_ONCE]
            self._known.update(zip(some, await asyncio.to_thread(self._embedder.embed, some), strict=True))
        found = {text: self._known[text] for text in texts}
        while len(self._known) > _MOST:
            del self._known[next(iter(self._known))]
        return found

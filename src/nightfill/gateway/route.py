"""Which engine serves a request. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.engines.engine import Description


def choose(model: str | None, engines: Sequence[Description]) -> int:
    """The index of the engine that serves `model`; without a name, that of the only model there is.

    Raises NotFound with the names that there are; BadRequest when a name is needed.
    """
    names = sorted({engine.model for engine in engines})
    if model is None:
        if len(names) > 1:
            raise BadRequest(f"model is required; there are {', '.join(names)}", param="model")
        return 0
    for index, engine in enumerate(engines):
        if engine.model == model:
            return index
    raise NotFound(f"model {model[:80]!r} is not served here; there are: {', '.join(names)}", param="model")

"""Foreseeing from all sources at once. Pure, but for the embedding, which takes its time: call it in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.sleep.predict import ranked
from nightfill.sleep.predict_likeness import Likeness
from nightfill.sleep.predict_log import from_log, recurring
from nightfill.sleep.predict_model import from_model
from nightfill.sleep.predict_structure import from_structure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.answers.embed import Embedder
    from nightfill.sleep.predict import Candidate
    from nightfill.state.answers import Asked, Origin


def foresee(
    text: str,
    *,
    asked: Sequence[Asked],
    others: Sequence[Sequence[Asked]],
    written: str,
    structure: bool,
    limits: Mapping[Origin, int],
    most: int,
    embedder: Embedder | None,
    now_s: float,
) -> list[Candidate]:
    """The `most` questions about `text` with the most expected uses, at most `limits` of each source.

    `asked` of it, of `others` of its tenant, and `written` by a model; with `structure`, its own. Of those that one
    answer may serve, one is taken; without an `embedder` these are the ones in the same words.
    """
    log = Likeness([one.text for one in asked], embedder)
    sources = [
        from_log(asked, log.alike, now_s=now_s),
        recurring(others, text),
        from_structure(text) if structure else [],
        from_model(written, text),
    ]
    # Only what may be taken is worth an embedding.
    wide = ranked(sources, {origin: 2 * limit for origin, limit in limits.items()}, 2 * most)
    likeness, place = Likeness([one.text for one in wide], embedder), {one: at for at, one in enumerate(wide)}

    def alike(one: Candidate, other: Candidate) -> bool:
        return likeness.alike(place[one], place[other]) > 0

    return ranked([wide], limits, most, alike=alike)

"""Foreseeing from all sources at once. Pure; both steps take up to a second, so call them in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.sleep.predict import ranked
from nightfill.sleep.predict_likeness import Likeness
from nightfill.sleep.predict_log import from_log, recurring
from nightfill.sleep.predict_model import from_model
from nightfill.sleep.predict_structure import from_structure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.answers.embed import Vectors
    from nightfill.sleep.predict import Candidate
    from nightfill.state.answers import Asked, Origin


def gathered(
    text: str,
    *,
    asked: Sequence[Asked],
    others: Sequence[Sequence[Asked]],
    written: str,
    structure: bool,
    limits: Mapping[Origin, int],
    most: int,
    vectors: Mapping[str, Vectors] | None,
    now_s: float,
) -> list[Candidate]:
    """Questions about `text` that may come, more than are wanted, the likeliest first: from what was `asked` of it and
    of `others` of its tenant, from what a model has `written`, and with `structure` from the text itself.

    `vectors` are the embeddings of what was asked; None where only the same words count as one question.
    """
    log = Likeness([one.text for one in asked], vectors)
    sources = [
        from_log(asked, log.alike, now_s=now_s),
        recurring(others, text),
        from_structure(text) if structure else [],
        from_model(written, text),
    ]
    # Only what may be chosen is worth an embedding.
    return ranked(sources, {origin: 2 * limit for origin, limit in limits.items()}, 2 * most)


def chosen(
    candidates: Sequence[Candidate],
    *,
    limits: Mapping[Origin, int],
    most: int,
    vectors: Mapping[str, Vectors] | None,
) -> list[Candidate]:
    """The `most` with the most expected uses, at most `limits` of each source; one of those that one answer serves.

    `vectors` are the embeddings of all.
    """
    likeness = Likeness([one.text for one in candidates], vectors)
    place = {one: at for at, one in enumerate(candidates)}
    return ranked([candidates], limits, most, alike=lambda a, b: likeness.alike(place[a], place[b]) > 0)

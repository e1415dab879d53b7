"""Extractive distilling: those sentences of a text that answer most questions, in their order. Pure.

The same text, vectors and ratio give the same result. Memory is bounded by `MAX_SEGMENTS`: longer texts are distilled
in stretches, each by the same ratio.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import numpy as np

from nightfill.contexts.distil_score import Cover, priorities, weights_of
from nightfill.contexts.distil_segments import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from nightfill.contexts.distil_segments import Segment

    Floats = NDArray[np.float32]

MAX_SEGMENTS: Final = 20_000
"""Compared with each other; about 600,000 tokens of prose."""
_ALIKE: Final = 0.75
"""Cosine from which on a segment says again what another one has said."""
_AGAIN: Final = 6.0
"""How much an increase of the cosine by 1 beyond `_ALIKE` lowers a priority."""
_SECTION_SHARE: Final = 0.3
"""Of the budget goes to sections by their length; the rest to the best segments, wherever they are."""


def distilled(text: str, segments: Sequence[Segment], vectors: Sequence[Floats], *, ratio: float) -> str:
    """The segments that matter: at most as many bytes of UTF-8 as `text` has, over `ratio`.

    `vectors`: float32[n, d] of the segments' embeddings at length 1, in pieces of any n, in order; empty where
    `needs_vectors` says so, or there are none.
    """
    parts = []
    rows = np.concatenate(vectors) if vectors else np.zeros((len(segments), 1), np.float32)
    for low in range(0, len(segments), MAX_SEGMENTS):
        some = segments[low : low + MAX_SEGMENTS]
        budget = int(len(text[some[0].start : some[-1].end].encode()) / ratio)
        parts.append(rendered(text, some, chosen(text, some, rows[low : low + MAX_SEGMENTS], budget)))
    return "\n".join(part for part in parts if part)


def chosen(text: str, segments: Sequence[Segment], vectors: Floats, budget: int) -> set[int]:
    """The indices of the segments to keep, whose rendering has at most `budget` bytes.

    A heading is kept with the first segment of its section. Greedy by priority, less for what is kept already
    (Carbonell and Goldstein 1998, maximal marginal relevance).
    """
    if not segments:
        return set()
    weights = weights_of(segments)
    gaps = [1, *(max(1, len(_gap(text, *pair))) for pair in itertools.pairwise(segments))]
    sizes = np.array(
        [len((one.lead + text[one.start : one.end]).encode()) + gap for one, gap in zip(segments, gaps, strict=True)]
    )
    section = np.array([one.section for one in segments])
    heading = {one.section: place for place, one in enumerate(segments) if one.kind is Kind.HEADING}
    share = _SECTION_SHARE * budget / int(sizes.sum())
    due = {one: int(share * int(sizes[section == one].sum())) for one in set(section.tolist())}
    priority = priorities(text, segments, vectors, weights)
    cover = Cover(text, segments) if weights.cover else None
    alike = np.full(len(segments), -1.0, np.float32)
    left_out = np.array([one.kind is not Kind.HEADING for one in segments])
    kept: set[int] = set()
    left = budget
    # First what each section is due, then what is best, wherever it is.
    for strict in (True, False):
        waiting = left_out.copy()
        while waiting.any():
            now = priority - _AGAIN * np.maximum(alike - _ALIKE, 0)
            if cover is not None:
                now = now + weights.cover * cover.priorities
            place = int(np.argmax(np.where(waiting, now, -np.inf)))
            waiting[place] = False
            home = int(section[place])
            title = heading.get(home)
            cost = int(sizes[place]) + (int(sizes[title]) if title is not None and title not in kept else 0)
            if cost > (min(left, due[home]) if strict else left):
                continue
            left -= cost
            due[home] -= cost
            left_out[place] = False
            kept.update({place} if title is None else {place, title})
            alike = np.maximum(alike, vectors @ vectors[place])
            if cover is not None:
                cover.take(place)
            waiting &= sizes <= left
    return kept


def _gap(text: str, before: Segment, after: Segment) -> str:
    gap = text[before.end : after.start]
    return "\n\n" if gap.count("\n") > 1 else "\n" if "\n" in gap else " " if gap else ""


def rendered(text: str, segments: Sequence[Segment], kept: AbstractSet[int]) -> str:
    """The kept segments in their order. Neighbours are parted as they were, by a blank, a line end or an empty line;
    where something is left out, by a line end, or a blank inside of a line.
    """
    parts: list[str] = []
    last: int | None = None
    for place in sorted(kept):
        one = segments[place]
        cut = last is None or place != last + 1
        if last is not None:
            gap = _gap(text, segments[last], one)
            parts.append(("\n" if "\n" in gap or one.lead else " ") if cut else gap)
        parts.append((one.lead if cut else "") + text[one.start : one.end])
        last = place
    return "".join(parts)

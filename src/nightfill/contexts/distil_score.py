"""How likely each segment of a text answers a question: centrality, facts, cues of form, and place. Pure.

The weights are of a Poisson model (questions answered by a segment, of features that are standardised within the text),
fitted to one half of the articles of COVID-QA and of the meetings of QMSum, and checked on the other half: see
docs/results.md.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nightfill.contexts.distil_segments import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from nightfill.contexts.distil_segments import Segment

    Floats = NDArray[np.float32]

NEIGHBOURS: Final = 8
"""Segments to each side that count as what a segment is in the middle of."""
_LONG: Final = 120
"""Characters of a segment in which somebody explains something."""
_WORD: Final = re.compile(r"[^\W\d_][\w'’-]*")
_NUMBER: Final = re.compile(r"(?<![\w\[])\d+(?:[.,]\d+)*(?!\])")
_NAME: Final = re.compile(r"(?<=\s)[(\"'“]?[A-Z][\w-]+")
_FACT: Final = re.compile(
    r"\b(?:because|due to|caused?(?: by)?|leads? to|led to|results?(?: in|ed)?|found|shows?|shown|suggests?|indicat\w+|"
    r"conclu\w+|demonstrat\w+|reveal\w*|associated|known as|called|defined|refers? to|means?|consists?|includ\w+|"
    r"such as|main|most|major|first|only|important|effective|estimated|required|must|increas\w+|decreas\w+|reduc\w+|compared|"
    r"(?:is|are|was|were) (?:an?|the|one|not)|can(?:not)?|may)\b",
    re.IGNORECASE,
)
_PLAN: Final = re.compile(
    r"\b(?:should|would|could|need(?:s|ed)?|have to|want(?:s|ed)?|decid\w+|decision|propos\w+|suggest\w*|recommend\w*|"
    r"agree\w*|disagree\w*|problem\w*|issue\w*|idea\w*|plan\w*|important|because|think|believe|concern\w*|prefer\w*|"
    r"instead|better|how about|what if|why|use[ds]?|make sure)\b",
    re.IGNORECASE,
)
_ASIDE: Final = re.compile(
    r"https?://|\bdoi\b|et al\.?\s*[,(]|[\w.]+@[\w.]+|\bLicense\b|\{\w+\}|\b(?:um|uh|hmm|mm)\b", re.IGNORECASE
)

FEATURES: Final = (
    "central", "local", "around", "numbers", "names", "facts", "plans", "keys", "asides", "length", "length2",
    "long_around", "asks_around", "place", "place2", "first", "last",
)  # fmt: skip


def features_of(text: str, segments: Sequence[Segment], vectors: Floats) -> Floats:
    """float32[len(segments), len(FEATURES)], not standardised. `vectors` are the segments' embeddings, of length 1 or
    0.
    """
    pieces = [text[one.start : one.end] for one in segments]
    words = [[word.lower() for word in _WORD.findall(piece)] for piece in pieces]
    count = len(pieces)
    size = np.array([len(piece) for piece in pieces], np.float32) + 1
    mean = _unit(vectors.mean(axis=0, keepdims=True))
    windows = _unit(_around(vectors))
    log_size = np.log(size)
    place = _places(text, segments)
    columns = {
        "central": vectors @ mean[0],
        "local": np.einsum("ij,ij->i", vectors, windows),
        "around": windows @ mean[0],
        "numbers": _counts(_NUMBER, pieces),
        "names": _counts(_NAME, pieces),
        "facts": _counts(_FACT, pieces),
        "plans": _counts(_PLAN, pieces),
        "keys": _keys(words),
        "asides": _counts(_ASIDE, pieces),
        "length": log_size,
        "length2": np.square(log_size - np.float32(4.6)),
        "long_around": _around((size > _LONG)[:, None])[:, 0],
        "asks_around": _around(np.array([["?" in piece] for piece in pieces]))[:, 0],
        "place": place,
        "place2": np.square(place),
        "first": place < np.float32(0.03),
        "last": place > np.float32(0.93),
    }
    assert tuple(columns) == FEATURES
    return np.stack(list(columns.values()), axis=1).astype(np.float32).reshape(count, len(FEATURES))


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-6))


def _around(rows: NDArray[Any]) -> Floats:
    """The mean of each row's neighbourhood."""
    sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0, dtype=np.float64)])
    at = np.arange(len(rows))
    low, high = np.maximum(at - NEIGHBOURS, 0), np.minimum(at + NEIGHBOURS + 1, len(rows))
    return ((sums[high] - sums[low]) / (high - low)[:, None]).astype(np.float32)


def _counts(pattern: re.Pattern[str], pieces: Sequence[str]) -> Floats:
    return np.log1p(np.array([sum(1 for _ in pattern.finditer(piece)) for piece in pieces], np.float32))


def _keys(words: Sequence[Sequence[str]]) -> Floats:
    """Mean weight of the words: those weigh most that the text uses again and again, in few places."""
    uses = Counter(word for row in words for word in row)
    places = Counter(word for row in words for word in set(row))
    weight = {word: math.log1p(uses[word]) * math.log(len(words) / places[word] + 1) for word in uses if uses[word] > 1}
    return np.array([sum(weight.get(word, 0.0) for word in row) / max(len(row), 4) for row in words], np.float32)


def _places(text: str, segments: Sequence[Segment]) -> Floats:
    """0 at the beginning to 1 at the end: of the text, or of its file where it has several."""
    bounds = [0]
    for place, one in enumerate(segments):
        if one.kind is Kind.HEADING and text.startswith("# file: ", one.start) and place:
            bounds.append(place)
    places = np.zeros(len(segments), np.float32)
    for low, high in zip(bounds, [*bounds[1:], len(segments)], strict=True):
        places[low:high] = np.arange(high - low, dtype=np.float32) / max(high - low, 1)
    return places


@dataclass(frozen=True, slots=True)
class Weights:
    """How a kind of text is weighed. `size` is the share of a segment's length, as a power, that its priority is per:
    0 takes the best segments however long, 1 those with most in each byte.
    """

    of: tuple[float, ...]
    """By `FEATURES`."""
    size: float


PROSE: Final = Weights(
    (0.03, 0.03, -0.06, 0.16, 0.09, 0.28, -0.09, -0.06, -0.32, 0.1, -0.08, 0.03, 0.15, -0.54, -0.24, -0.07, -0.1), 0.85
)
TALK: Final = Weights(
    (0.03, 0.03, -0.06, 0.16, 0.09, 0.28, -0.09, -0.06, -0.32, 0.1, -0.08, 0.03, 0.15, -0.54, -0.24, -0.07, -0.1), 0.3
)
_DEFINES: Final = re.compile(
    r"^\s*(?:async def|def|class|func|fn|pub|struct|enum|interface|type|export|public)\b", re.MULTILINE
)
_DEFINITION: Final = 0.7
"""Added for code that defines something."""


def priorities(text: str, segments: Sequence[Segment], vectors: Floats) -> Floats:
    """float32[len(segments)]: the higher, the sooner a segment is kept. Logarithms, so that differences count."""
    if not segments:
        return np.zeros(0, np.float32)
    features = features_of(text, segments, vectors)
    spread = features.std(axis=0)
    standard = np.where(spread > 1e-6, (features - features.mean(axis=0)) / np.maximum(spread, 1e-6), 0.0)
    talk = sum(one.kind is Kind.TURN for one in segments) > len(segments) / 2
    weights = TALK if talk else PROSE
    sizes = np.array([one.end - one.start + 1 for one in segments], np.float32)
    defines = np.array(
        [one.kind is Kind.CODE and _DEFINES.search(text, one.start, one.end) is not None for one in segments]
    )
    found = standard @ np.array(weights.of, np.float32) - weights.size * np.log(sizes) + _DEFINITION * defines
    return found.astype(np.float32)

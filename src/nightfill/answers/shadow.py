"""Shadow mode: what stored answers would have done, and how often they would have been wrong. Pure.

The model serves each request; afterwards its reply is compared with the one that would have served. Two replies that do
not say the same are a *false hit*: of equal words they are the same, else the cosine of their embeddings decides. That
errs on the safe side where a model words things freely, and on the other where a number is all that differs: look at
some before you trust the rate.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nightfill.answers.look import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nightfill.state.access import Access

ALIKE: Final = 0.85
"""Replies with a smaller cosine do not say the same."""
_WORD: Final = "shadow"
_Z95: Final = 1.96
_KINDS: Final = {kind.value: kind for kind in Kind}


def shadow_word(kind: Kind | None, alike: float | None) -> str:
    """`shadow:near:0.9312`, `shadow:exact:?` where it could not be told, `shadow:none` where nothing would have served:
    the end of what the access log says of such a request.
    """
    if kind is None:
        return f"{_WORD}:none"
    return f"{_WORD}:{kind}:{'?' if alike is None else f'{alike:.4f}'}"


def outcome(alike: float | None, *, least: float = ALIKE) -> str:
    """`same`, `different` or `unknown`; a label of metrics."""
    if alike is None:
        return "unknown"
    return "same" if alike >= least else "different"


@dataclass(slots=True)
class Judged:
    """Would-be hits of one kind."""

    same: int = 0
    different: int = 0
    unknown: int = 0

    @property
    def hits(self) -> int:
        """All of them."""
        return self.same + self.different + self.unknown

    @property
    def false_rate(self) -> float | None:
        """Of those that could be judged, the share that would have been wrong; None when there are none."""
        judged = self.same + self.different
        return self.different / judged if judged else None

    @property
    def false_rate_bound(self) -> float | None:
        """The upper end of that rate's 95 % interval (Wilson): with few cases, a rate of 0 says little."""
        judged = self.same + self.different
        return _upper(self.different, judged) if judged else None


@dataclass(slots=True)
class ShadowReport:
    """What the rows of an access log say together."""

    requests: int = 0
    """In shadow mode, that stored answers have to do with."""
    judged: dict[Kind, Judged] = field(default_factory=lambda: {kind: Judged() for kind in Kind})
    served: Counter[Kind] = field(default_factory=Counter)
    """Requests that a stored answer did serve: not in shadow mode."""
    looked: Counter[str] = field(default_factory=Counter)
    """`near:guard/number` and the like: look-ups by what came of them."""
    seconds: dict[Kind, list[float]] = field(default_factory=lambda: {kind: [] for kind in Kind})
    """Of each look-up, in no order."""

    @property
    def hit_rate(self) -> float | None:
        """The share of the requests in shadow mode that a stored answer would have served, rightly or not."""
        hits = sum(one.hits for one in self.judged.values())
        return hits / self.requests if self.requests else None


def shadow_report(rows: Iterable[Access], *, least: float = ALIKE) -> ShadowReport:
    """Sum up. Rows that say nothing of stored answers are left aside, as are words that are not known."""
    found = ShadowReport()
    for row in rows:
        for word in row.looked.split():
            match word.split(":"):
                case [name, "none"] if name == _WORD:
                    found.requests += 1
                case [name, kind, alike] if name == _WORD and kind in _KINDS:
                    found.requests += 1
                    judged = found.judged[_KINDS[kind]]
                    told = outcome(None if alike == "?" else float(alike), least=least)
                    setattr(judged, told, getattr(judged, told) + 1)
                case [kind, result, ms] if kind in _KINDS:
                    found.looked[f"{kind}:{result}"] += 1
                    found.seconds[_KINDS[kind]].append(float(ms) / 1000)
                    if result == "hit" and row.layer == "answer":
                        found.served[_KINDS[kind]] += 1
    return found


def _upper(hits: int, of: int) -> float:
    share, z2 = hits / of, _Z95 * _Z95
    middle = share + z2 / (2 * of)
    spread = _Z95 * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return min(1.0, (middle + spread) / (1 + z2 / of))

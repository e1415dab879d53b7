"""What was tried of stored answers for one request, and what the reply's headers say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nightfill.answers.look import Found, Kind, Look, Result

if TYPE_CHECKING:
    from nightfill.answers.question import Bar, Ground, Question
    from nightfill.engines.engine import Description
    from nightfill.gateway.cache_control import Wishes
    from nightfill.gateway.exchange import Header
    from nightfill.gateway.layers import Plan

_NAME: Final = "nightfill"


@dataclass(slots=True, kw_only=True)
class Tried:
    """One request on its way through this layer."""

    mode: str
    """`shadow`, `exact` or `near`."""
    wishes: Wishes
    ground: Ground
    engine: Description
    """Whose answer was looked for."""
    question: Question | None = None
    bar: Bar | None = None
    """Why there is no question."""
    looks: list[Look] = field(default_factory=list)
    found: Found | None = None

    @property
    def shown(self) -> bytes:
        """As peers call it."""
        if self.found is not None:
            return b"HIT" if self.found.kind is Kind.EXACT else b"SEMANTIC-HIT"
        return b"MISS" if self.looks else b"BYPASS"

    @property
    def _detail(self) -> str:
        if self.bar is not None:
            return self.bar
        if not self.looks:
            return "shadow" if self.mode == "shadow" else "request"
        return self.looks[-1].detail or self.looks[-1].result

    def head(self) -> list[Header]:
        """What the reply's headers say of it."""
        head = [(b"x-nightfill-cache", self.shown), (b"cache-status", self._status().encode())]
        if self.found is not None:
            head.append((b"age", b"%d" % self.found.age_s))
            if self.found.similarity is not None:
                head.append((b"x-nightfill-cache-similarity", b"%.4f" % self.found.similarity))
        return head

    def _status(self) -> str:
        """RFC 9211."""
        found = self.found
        if found is not None:
            left_s = max(0, int(found.answer.ttl_s - found.age_s))
            return f"{_NAME}; hit; ttl={left_s}; detail={'exact' if found.similarity is None else 'semantic'}"
        forward = "miss" if self.looks else ("bypass" if self.bar is not None or self.mode == "shadow" else "request")
        return f"{_NAME}; fwd={forward}" + (f"; detail={self._detail}" if self._detail != Result.MISS else "")

    def timing(self) -> bytes:
        """Entries of `server-timing`, each with a comma before it."""
        return b"".join(
            b', %s;dur=%.3f;desc="%s"' % (look.kind.encode(), 1000 * look.seconds, look.result.encode())
            for look in self.looks
        )


def context_head(plan: Plan) -> list[Header]:
    """Which version of which context is in front."""
    if plan.context is None or plan.fingerprint is None:
        return []
    return [
        (b"x-nightfill-context", f"{plan.context}@{plan.fingerprint[:12]}".encode()),
        (b"x-nightfill-mode", b"distilled" if plan.distilled else b"full"),
    ]

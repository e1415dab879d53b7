"""What is remembered of a tenant's live prompts: hashes, and which were dealt with. Pure, but for a random secret."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nightfill.contexts.discovery import NODE_BYTES, Sketch, quantile, short_name, worth_showing
from nightfill.contexts.discovery_prompt import (
    BLOCK_TOKENS,
    BYTES_PER_TOKEN,
    GOES_ON,
    About,
    Shared,
    chain,
    found_name,
    prompt_of,
)
from nightfill.contexts.fingerprint import content_bytes, fingerprint_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec

    from nightfill.contexts.context import Content, ContextName, Form, Tenant
    from nightfill.contexts.discovery import Key

_DECIDED: Final = 4096
_SHOWN: Final = 100
_BLOCK_BYTES: Final = round(BLOCK_TOKENS * BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A prefix that recurred often enough to be a context."""

    key: Key
    name: ContextName
    form: Form
    content: Content
    requests: int


class Mind:
    """Of one tenant, in `max_bytes` of memory at most; its keys can be compared with no other one's.

    For one thread at a time.
    """

    def __init__(self, tenant: Tenant, *, max_bytes: int, least_bytes: int, requests: int, most_bytes: int) -> None:
        """least_bytes: shorter prefixes are of no interest. requests: so many make a candidate of what they share, if
        that has at most `most_bytes`.
        """
        self._tenant = tenant
        self._least_bytes, self._requests, self._most_bytes = least_bytes, requests, most_bytes
        self._secret = os.urandom(32)
        self._sketch: Sketch[About] = Sketch(max_nodes=max(64, max_bytes // NODE_BYTES))
        self._decided: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        """Prefixes."""
        return len(self._sketch)

    def look(self, members: Mapping[str, msgspec.Raw], at_s: float) -> Candidate | None:
        """Count a request, and say what of it has recurred often enough and was not decided about.

        Of a chat that goes on it is the system message at most: all else of it is its own.
        """
        prompt = prompt_of(members)
        if prompt is None:
            return None
        steps, places = chain(prompt, self._secret, least_bytes=self._least_bytes, block_bytes=_BLOCK_BYTES)
        self._sketch.add(steps, About(self._tenant, prompt.model, prompt.form), at_s)
        goes_on = False
        for step, place in zip(reversed(steps), reversed(places), strict=True):
            node = self._sketch.get(step.key)
            if node is None or node.requests < self._requests or (goes_on and place.whole > 1):
                continue
            if step.key in self._decided:
                return None
            content = Shared(prompt, place).content(least_bytes=self._least_bytes)
            if content == GOES_ON:
                goes_on = True
                continue
            if isinstance(content, str) or content_bytes(content) > self._most_bytes:
                return None
            return Candidate(
                key=step.key,
                name=found_name(fingerprint_of(content)),
                form=prompt.form,
                content=content,
                requests=node.requests,
            )
        return None

    def decide(self, candidate: Candidate) -> None:
        """It was dealt with, and is not to come again."""
        self._decided[candidate.key] = None
        while len(self._decided) > _DECIDED:
            self._decided.popitem(last=False)

    def reconsider(self) -> None:
        """What was decided may be decided otherwise by now."""
        self._decided.clear()

    def prefixes(self) -> list[dict[str, Any]]:
        """What recurs, as JSON without any text."""
        return [
            {
                "name": short_name(one.key),
                "within": short_name(one.within) if one.within is not None else None,
                "model": one.about.model,
                "form": one.about.form,
                "tokens": round(one.size / BYTES_PER_TOKEN),
                "requests": one.requests,
                "interval_p50_s": quantile(one.gaps, 0.5),
                "interval_p90_s": quantile(one.gaps, 0.9),
                "last_at": one.last_s,
                "stake_tokens": round(one.stake / BYTES_PER_TOKEN),
            }
            for one in worth_showing(self._sketch.findings(), top=_SHOWN)
        ]

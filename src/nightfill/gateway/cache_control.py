"""What a request wishes of stored answers: HTTP's `Cache-Control`, our own members, and LiteLLM's `cache`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nightfill.gateway.openai import CacheOptions, Extension

_DIRECTIVE: Final = re.compile(r'\s*([A-Za-z0-9_-]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^,\s]*))?\s*(?:,|$)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Several ways to say the same add up: the strictest counts."""

    serve: bool = True
    """A stored answer may serve."""
    store: bool = True
    """The reply may be kept."""
    only_stored: bool = False
    """A stored answer or none."""
    max_age_s: float | None = None
    """A stored answer may be so old."""
    ttl_s: float | None = None
    """The reply may be kept for so long."""
    namespace: str = ""
    """Answers are shared within it alone."""


NO_WISHES: Final = Wishes()


def wishes_of(extension: Extension, cache: CacheOptions | None, cache_control: bytes | None) -> Wishes:
    """`cache_control` is the header's value (RFC 9111, 5.2.1). A directive that is not known is left aside, and an age
    that is no number is none at all, as it should not be trusted.
    """
    skips = "answer" in extension.skip
    if cache is None and cache_control is None:
        if not skips and extension.max_age_s is None:
            return NO_WISHES
        return Wishes(serve=not skips, max_age_s=extension.max_age_s)
    said = _directives(cache_control or b"")
    ages = [extension.max_age_s, _age(said["max-age"]) if "max-age" in said else None]
    if cache is not None:
        ages.append(cache.s_maxage)
    return Wishes(
        serve=not (skips or "no-cache" in said or (cache is not None and cache.no_cache)),
        store=not ("no-store" in said or (cache is not None and cache.no_store)),
        only_stored="only-if-cached" in said,
        max_age_s=min((age for age in ages if age is not None), default=None),
        ttl_s=cache.ttl if cache is not None else None,
        namespace=cache.namespace if cache is not None else "",
    )


def _directives(value: bytes) -> dict[str, str]:
    return {name.lower(): argument.strip('"') for name, argument in _DIRECTIVE.findall(value.decode("latin-1"))}


def _age(argument: str) -> float:
    return float(argument) if argument.isascii() and argument.isdigit() else 0.0

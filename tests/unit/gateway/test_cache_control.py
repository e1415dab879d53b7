from __future__ import annotations

import pytest

from nightfill.gateway.cache_control import NO_WISHES, Wishes, wishes_of
from nightfill.gateway.openai import CacheOptions, Extension


@pytest.mark.parametrize(
    ("header", "wishes"),
    [
        (b"no-cache", Wishes(serve=False)),
        (b"no-store", Wishes(store=False)),
        (b"No-Store , NO-CACHE", Wishes(serve=False, store=False)),
        (b"only-if-cached", Wishes(only_stored=True)),
        (b"max-age=60", Wishes(max_age_s=60)),
        (b'max-age="60", foo="a, no-store"', Wishes(max_age_s=60)),
        (b"max-age=-5", Wishes(max_age_s=0)),
        (b"max-age", Wishes(max_age_s=0)),
        (b"max-stale=5, private", NO_WISHES),
        (b"", NO_WISHES),
        (b",,;;=\xff", NO_WISHES),
    ],
)
def test_the_standard_directives_are_read_and_others_left_aside(header: bytes, wishes: Wishes) -> None:
    assert wishes_of(Extension(), None, header) == wishes


def test_our_own_members_say_the_same() -> None:
    assert wishes_of(Extension(skip=("answer",), max_age_s=5), None, None) == Wishes(serve=False, max_age_s=5)
    assert wishes_of(Extension(skip=("fill",)), None, None) == NO_WISHES


def test_what_litellm_calls_them_is_understood() -> None:
    cache = CacheOptions(ttl=9, s_maxage=4, no_cache=True, no_store=True, namespace="n")
    assert wishes_of(Extension(), cache, None) == Wishes(serve=False, store=False, max_age_s=4, ttl_s=9, namespace="n")


def test_the_strictest_of_several_counts() -> None:
    found = wishes_of(Extension(max_age_s=50), CacheOptions(s_maxage=70), b"max-age=60, no-store")
    assert found == Wishes(store=False, max_age_s=50)

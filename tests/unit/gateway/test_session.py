from __future__ import annotations

import msgspec
import pytest

from nightfill.contexts import DEFAULT_TENANT, Tenant
from nightfill.gateway.session import SESSION_HEADERS, session_of


def members(**given: object) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in given.items()}


def test_the_first_header_that_is_there_counts_then_the_body() -> None:
    headers = {name: b"%d" % n for n, name in enumerate(SESSION_HEADERS)}
    seen = []
    while headers:
        seen.append(session_of(DEFAULT_TENANT, headers, members(user="u")))
        del headers[next(name for name in SESSION_HEADERS if name in headers)]
    seen += [
        session_of(DEFAULT_TENANT, {}, members(prompt_cache_key="k", user="u")),
        session_of(DEFAULT_TENANT, {}, members(user="u")),
    ]
    assert None not in seen
    assert len(set(seen)) == len(SESSION_HEADERS) + 2


def test_the_name_counts_and_not_where_it_stands() -> None:
    in_header = session_of(DEFAULT_TENANT, {b"thread-id": b"7"}, {})
    assert in_header == session_of(DEFAULT_TENANT, {b"x-session-id": b"7"}, members(user="u"))
    assert in_header == session_of(DEFAULT_TENANT, {}, members(prompt_cache_key="7"))


@pytest.mark.parametrize(
    "given", [{}, {"user": None}, {"user": ""}, {"prompt_cache_key": 7}, {"prompt_cache_key": ["a"]}]
)
def test_what_names_no_session_is_none(given: dict[str, object]) -> None:
    assert session_of(DEFAULT_TENANT, {b"x-session-id": b""}, members(**given)) is None


def test_tenants_with_the_same_word_have_other_sessions() -> None:
    ours, theirs = (session_of(tenant, {b"x-session-id": b"1"}, {}) for tenant in (DEFAULT_TENANT, Tenant("b")))
    assert ours != theirs
    assert session_of(Tenant("b"), {b"x-session-id": b"1"}, {}) == theirs


@pytest.mark.parametrize("raw", [b'"\\ud800"', b"[" * 100_000])
def test_what_cannot_be_read_is_passed_over(raw: bytes) -> None:
    session = session_of(DEFAULT_TENANT, {}, {"prompt_cache_key": msgspec.Raw(raw), "user": msgspec.Raw(b'"u"')})
    assert session == session_of(DEFAULT_TENANT, {}, members(user="u"))

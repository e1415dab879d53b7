from __future__ import annotations

import pytest

from nightfill.contexts.names import parse_name, parse_tenant, parse_user
from nightfill.errors import BadInput


@pytest.mark.parametrize("name", ["a", "0", "repo.v1_x-y", "a" * 64])
def test_allowed_names_pass_unchanged(name: str) -> None:
    assert parse_name(name) == name
    assert parse_tenant(name) == name
    assert parse_user(name) == name


@pytest.mark.parametrize("name", ["", "A", ".a", "-a", "a/b", "a b", "a\n", "..", "ü", "a" * 65, "a" * 10_000])
def test_other_names_are_refused_and_told_what_is_allowed(name: str) -> None:
    for parse in (parse_name, parse_tenant, parse_user):
        with pytest.raises(BadInput, match="1 to 64 of a-z") as caught:
            parse(name)
        assert caught.value.param in {"context", "tenant", "user"}
        assert len(str(caught.value)) < 300

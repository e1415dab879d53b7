from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.contexts.context import Content, Message, Messages, Text
from nightfill.contexts.fingerprint import (
    content_bytes,
    decode_messages,
    fingerprint_of,
    messages_content,
    normalise,
    text_content,
)
from nightfill.errors import BadSource

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS)
def test_normalising_drops_a_byte_order_mark_and_nothing_else(text: str) -> None:
    assert normalise("\ufeff" + text) == text
    assert normalise(b"\xef\xbb\xbf" + text.encode()) == text
    if not text.startswith("\ufeff"):
        assert normalise(text) == text
        assert normalise(text.encode()) == text


def test_line_ends_and_unicode_forms_make_different_versions() -> None:
    texts = ["a\n", "a\r\n", "a", "a \n", "\u00fc", "u\u0308"]
    assert len({fingerprint_of(text_content(text)) for text in texts}) == len(texts)


def test_bytes_that_are_not_utf8_are_refused_with_their_place() -> None:
    with pytest.raises(BadSource, match="byte 2 is 0xff"):
        normalise(b"ab\xff")


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(BadSource, match="surrogate"):
        normalise("a\ud800")


def test_empty_contents_are_refused() -> None:
    with pytest.raises(BadSource, match="empty"):
        text_content(b"\xef\xbb\xbf")
    with pytest.raises(BadSource, match="empty"):
        messages_content([])


def test_fingerprints_are_fixed() -> None:
    """They name versions in stored books, so they may never change by accident."""
    assert fingerprint_of(Text("hello")) == "5628cc4923d88bd0d513beda2bff6ee0efe80aa3210705c6d5cd052b821dcc79"
    assert (
        fingerprint_of(Messages((Message("user", "hello"),)))
        == "3a396317eb8beba3202716f80e064664a9f975a7ec287bc94d20bcf27f0e3ea3"
    )


def test_kind_role_and_boundaries_are_part_of_a_fingerprint() -> None:
    contents: list[Content] = [
        Messages((Message("user", "ab"),)),
        Messages((Message("system", "ab"),)),
        Messages((Message("user", "a"), Message("user", "b"))),
        Text("ab"),
        Text('[["user","ab"]]'),
    ]
    assert len({fingerprint_of(content) for content in contents}) == len(contents)


def test_bytes_are_counted_as_utf8() -> None:
    assert content_bytes(Text("ü")) == 2
    assert content_bytes(Messages((Message("user", "ü"), Message("user", "a")))) == 3


def test_messages_are_read_from_a_list_or_an_object() -> None:
    rows = [{"role": "user", "content": "\ufeffa"}]
    assert decode_messages(msgspec.json.encode(rows)) == decode_messages(msgspec.json.encode({"messages": rows}))
    assert decode_messages(msgspec.json.encode(rows)).messages[0].content == "a"


@pytest.mark.parametrize("data", [b"", b"[", b"[1]", b'[{"role":"tool","content":"x"}]', b"{}", b'["\xff"]'])
def test_messages_of_another_shape_are_refused(data: bytes) -> None:
    with pytest.raises(BadSource, match="messages are not"):
        decode_messages(data)

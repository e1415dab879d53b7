from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.engines.sse import EventSplitter, payloads
from nightfill.errors import EngineError

LINE_ENDS = st.sampled_from([b"\n", b"\r\n"])
LINES = st.sampled_from(
    [b"data: {}", b"data:x", b"data: ", b": ping", b"event: e", b"id: 7", b"data: \xc3\xa9", b"data: a\rb"]
)
STREAMS = st.lists(st.lists(st.tuples(LINES, LINE_ENDS), min_size=1, max_size=4), max_size=6).flatmap(
    lambda events: st.tuples(st.just(events), st.lists(LINE_ENDS, min_size=len(events), max_size=len(events)))
)


def test_a_chunk_of_whole_events_passes_through_as_the_same_object() -> None:
    chunk = b"data: 1\n\ndata: 2\n\n"
    assert EventSplitter(engine="e").feed(chunk) is chunk


@given(
    stream=STREAMS, cuts=st.lists(st.integers(0, 200)), rest=st.sampled_from([b"", b"data: cut", b"data: cut\n", b"\r"])
)
def test_any_chunking_gives_the_same_events(
    stream: tuple[list[list[tuple[bytes, bytes]]], list[bytes]], cuts: list[int], rest: bytes
) -> None:
    whole = b"".join(b"".join(a + b for a, b in lines) + end for lines, end in zip(*stream, strict=True))
    text = whole + rest
    at = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    splitter = EventSplitter(engine="e")
    out = [splitter.feed(text[a:b]) for a, b in itertools.pairwise(at)]
    assert b"".join(out) == whole
    assert splitter.rest == rest
    assert [p for events in out for p in payloads(events)] == payloads(whole)
    expected = [
        b"\n".join(line[5:].removeprefix(b" ") for line, _ in lines if line.startswith(b"data:"))
        for lines in stream[0]
        if any(line.startswith(b"data:") for line, _ in lines)
    ]
    assert payloads(whole) == expected


def test_an_event_may_be_cut_between_carriage_return_and_line_feed() -> None:
    splitter = EventSplitter(engine="e")
    assert [splitter.feed(bytes([byte])) for byte in b"data: 1\r\n\r\n"][-1] == b"data: 1\r\n\r\n"
    assert splitter.rest == b""


def test_an_event_without_end_is_refused_before_it_fills_the_memory() -> None:
    splitter = EventSplitter(engine="e", max_event_bytes=100)
    splitter.feed(b"data: " + b"x" * 90)
    with pytest.raises(EngineError, match="more than 100 bytes"):
        splitter.feed(b"x" * 90)

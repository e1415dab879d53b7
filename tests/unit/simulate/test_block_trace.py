from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nightfill.errors import BadInput
from nightfill.simulate.block_trace import BlockTrace, read_blocks

DATA = Path(__file__).parent / "data"


def read(folder: Path, *lines: object) -> BlockTrace:
    path = folder / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return read_blocks(path)


def line(at_ms: float = 0, tokens: int = 600, ids: tuple[int, ...] = (7, 9), **more: object) -> dict[str, object]:
    return {"timestamp": at_ms, "input_length": tokens, "output_length": 5, "hash_ids": list(ids), **more}


def test_a_conversation_trace_is_read_whole() -> None:
    trace = read_blocks(DATA / "mooncake_conversation_first_1000.jsonl.gz")
    assert (len(trace.requests), trace.prompt_blocks, trace.block_tokens) == (1000, 27_305, 512)
    first = trace.requests[0]
    assert (first.at_s, first.tokens, len(first.blocks), first.partial) == (0.0, 6758, 14, True)
    assert all(len(key) == 32 for key in first.blocks)


def test_lines_that_count_in_characters_have_blocks_of_64_tokens(tmp_path: Path) -> None:
    trace = read(tmp_path, line(tokens=100, input_chars=400), line(3000, 128, (7, 9), input_chars=512))
    assert trace.block_tokens == 64
    assert [request.partial for request in trace.requests] == [True, False]
    assert trace.prompt_tokens == 228


def test_requests_come_in_the_order_of_their_times_and_else_of_their_lines(tmp_path: Path) -> None:
    trace = read(tmp_path, line(2000), line(1500, 1, (1,)), line(2000, 2, (1,)))
    assert [(request.at_s, request.tokens) for request in trace.requests] == [(1.5, 1), (2.0, 600), (2.0, 2)]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (line(tokens=0, ids=()), "0 tokens do not fit"),
        (line(tokens=1025), "do not fit its 2 blocks of 512"),
        (line(ids=(7, 7)), "twice"),
        (line(ids=(9, 7)), "another prefix"),
        (line(ids=(-1, 2)), "no request with blocks"),
        (line(ids=(1 << 256, 2)), "no request with blocks"),
        (line(at_ms=-1), "before the trace begins"),
        ({"timestamp": 0, "hash_ids": [1]}, "input_length"),
        ("text", "Expected"),
    ],
)
def test_what_is_no_request_is_refused_with_its_line(tmp_path: Path, bad: object, why: str) -> None:
    with pytest.raises(BadInput, match=f"line 2: .*{why}"):
        read(tmp_path, line(), bad)


def test_an_empty_trace_and_half_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no requests"):
        read(tmp_path)
    half = tmp_path / "half.gz"
    half.write_bytes(gzip.compress(json.dumps(line()).encode() * 100)[:-20])
    with pytest.raises(BadInput, match="cannot read"):
        read_blocks(half)

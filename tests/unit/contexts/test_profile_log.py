from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.contexts import DEFAULT_TENANT, Form
from nightfill.contexts.discovery_prompt import Piece, Prompt
from nightfill.contexts.profile_log import Asked, Bad, Blocks, block_tokens_of, parse_line, read_log, time_of
from nightfill.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
PROMPT = Prompt(Form.CHAT, "", (Piece("user", "hi", plain=True),))


def line(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("value", "tenant", "at_s"),
    [
        (CHAT, "default", None),
        ({**CHAT, "created": 1700000000}, "default", 1.7e9),
        ({"request": CHAT, "timestamp": 1700000000123, "tenant": "acme"}, "acme", 1700000000.123),
        ({"body": CHAT, "time": "2023-11-14T22:13:20Z"}, "default", 1.7e9),
        ({"body": json.dumps(CHAT), "time": "2023-11-14T23:13:20+01:00"}, "default", 1.7e9),
        ({"request": {"body": {**CHAT, "created": 1700000000}, "method": "POST"}}, "default", 1.7e9),
        ({"custom_id": "1", "url": "/v1/chat/completions", "body": CHAT}, "default", None),
        ({"body": CHAT, "timestamp": "yesterday"}, "default", None),
    ],
)
def test_requests_are_read_bare_and_wrapped(value: dict[str, Any], tenant: str, at_s: float | None) -> None:
    assert parse_line(line(value)) == Asked(PROMPT, tenant, at_s)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"garbage", "no JSON object"),
        (b"\xff\xfe", "no JSON object"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b"{}", "has neither"),
        (b'{"request": 3}', "no JSON object"),
        (b'{"body": "not json"}', "no JSON object"),
        (b'{"body":' * 5 + b'{"prompt": "x"}' + b"}" * 5, "no text"),
        (b'{"prompt": [1, 2]}', "no text"),
        (b'{"prompt": "x", "tenant": "No such!"}', "not allowed"),
        (b'{"prompt": "x", "tenant": 3}', "tenant"),
        (b'{"hash_ids": "x"}', "no numbers"),
        (b'{"hash_ids": [], "input_length": 5}', "no blocks"),
        (b'{"hash_ids": [1], "input_length": 0}', "no blocks"),
        (b'{"hash_ids": [1], "input_length": 5, "timestamp": -1}', "no blocks"),
    ],
)
def test_a_line_that_is_no_request_says_why_without_its_text(raw: bytes, why: str) -> None:
    found = parse_line(raw)
    assert isinstance(found, Bad)
    assert why in found.why


@given(st.binary(max_size=200))
def test_no_bytes_raise(raw: bytes) -> None:
    assert isinstance(parse_line(raw), Asked | Blocks | Bad)


@given(
    st.sampled_from(["messages", "prompt", "hash_ids", "request", "body", "timestamp", "tenant", "model"]),
    st.sampled_from([{}, {"prompt": "x"}, {"hash_ids": [1], "input_length": 4}]),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3)
    ),
)
def test_no_values_raise(name: str, others: dict[str, Any], value: object) -> None:
    assert isinstance(parse_line(line({**others, name: value})), Asked | Blocks | Bad)


def test_a_line_of_a_trace_is_its_blocks() -> None:
    found = parse_line(b'{"timestamp": 1500, "input_length": 700, "hash_ids": [4, 9], "output_length": 3}')
    assert found == Blocks((4, 9), 700, 1.5)


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b"12.5", 12.5),
        (b"1700000000", 1.7e9),
        (b"1700000000000", 1.7e9),
        (b"1700000000000000", 1.7e9),
        (b'"1700000000"', 1.7e9),
        (b'"2023-11-14 22:13:20"', 1.7e9),
        (b'"nan"', None),
        (b'"inf"', None),
        (b"-5", None),
        (b"1e400", None),
        (b"null", None),
        (b"[]", None),
        (b'"99999-01-01"', None),
    ],
)
def test_times_are_told_by_their_size_or_read_as_iso(raw: bytes, seconds: float | None) -> None:
    assert time_of(msgspec.Raw(raw)) == seconds


@pytest.mark.parametrize(
    ("requests", "block"),
    [
        ([(700, 2), (512, 1), (3, 1)], 512),
        ([(1359, 22), (1370, 22)], 64),
        ([(300, 3), (301, 4)], 100),
        ([(5, 1)], 5),
        ([(100, 1), (10, 2)], None),
        ([], None),
    ],
)
def test_the_size_of_blocks_follows_from_the_lengths(requests: list[tuple[int, int]], block: int | None) -> None:
    assert block_tokens_of([Blocks(tuple(range(count)), tokens, 0.0) for tokens, count in requests]) == block


@pytest.mark.parametrize("packed", [False, True])
def test_files_are_read_line_by_line_packed_or_not(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "log"
    data = line(CHAT) + b"\n\n  \nbad\n" + line(CHAT)
    path.write_bytes(gzip.compress(data) if packed else data)
    told: list[int] = []
    assert list(read_log(path, advanced=told.append)) == [
        (1, Asked(PROMPT, DEFAULT_TENANT, None)),
        (4, Bad("no JSON object")),
        (5, Asked(PROMPT, DEFAULT_TENANT, None)),
    ]
    assert told[-1] == path.stat().st_size


def test_a_line_without_an_end_is_skipped_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightfill.contexts.profile_log.MAX_LINE_BYTES", 100)
    path = tmp_path / "log"
    path.write_bytes(b"x" * 350 + b"\n" + line(CHAT) + b"\n")
    (number, first), (_, second) = read_log(path)
    assert isinstance(first, Bad)
    assert (number, "longer" in first.why) == (1, True)
    assert isinstance(second, Asked)


@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda data: data[:40] + b"\0" * 20 + data[60:]])
def test_a_damaged_archive_ends_with_a_bad_line(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "log.gz"
    data = b"".join(line({"prompt": f"{n} {n * 7919}"}) + b"\n" for n in range(500))
    path.write_bytes(damage(gzip.compress(data)))
    *_, (_, last) = read_log(path)
    assert isinstance(last, Bad)
    assert "damaged" in last.why


def test_a_file_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none: No such file"):
        list(read_log(tmp_path / "none"))

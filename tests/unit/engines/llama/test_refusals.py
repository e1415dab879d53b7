"""What llama.cpp refuses, as clients of OpenAI's API read it."""

from __future__ import annotations

import msgspec
import pytest

from nightfill.engines.llama.refusals import in_openais_shape

CHAT = "/v1/chat/completions"


def llama_error(status: int, message: str, kind: str, **more: object) -> bytes:
    return msgspec.json.encode({"error": {"code": status, "message": message, "type": kind, **more}})


def shaped(status: int, body: bytes, path: str = CHAT) -> tuple[int, dict[str, object]]:
    status, body = in_openais_shape(status, body, path=path)
    return status, msgspec.json.decode(body)["error"]


def test_a_prompt_that_is_too_long_has_openais_code() -> None:
    message = "request (40000 tokens) exceeds the available context size (32768 tokens), try increasing it"
    body = llama_error(400, message, "exceed_context_size_error", n_prompt_tokens=40000, n_ctx=32768)
    assert shaped(400, body) == (
        400,
        {"message": message, "type": "invalid_request_error", "param": None, "code": "context_length_exceeded"},
    )


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("Field 'n_probs': [json.exception.type_error.302] type must be number, but is string", "n_probs"),
        ("'input' is required", "input"),
        ("top_logprobs requires logprobs to be set to true", None),
    ],
)
def test_the_member_that_is_wrong_is_named(message: str, param: str | None) -> None:
    status, error = shaped(400, llama_error(400, message, "invalid_request_error"))
    assert (status, error["message"], error["param"], error["code"]) == (400, message, param, None)


@pytest.mark.parametrize(
    "message",
    [
        "Failed to parse messages: [json.exception.type_error.302] type must be string, but is object",
        "Failed to parse messages: Missing tool call type: {}",
        'Failed to parse tools: Unsupported tool type: {"type":"web_search"}; tools = [\n  {}\n]',
        "'messages' is required",
        "Unknown reasoning format: nonsense",
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "[json.exception.out_of_range.403] key 'text' not found",
    ],
)
def test_a_500_that_the_request_alone_decides_is_a_400(message: str) -> None:
    status, error = shaped(500, llama_error(500, message, "server_error"))
    assert (status, error["type"], error["code"]) == (400, "invalid_request_error", None)
    assert error["message"] == message


@pytest.mark.parametrize(
    "message",
    [
        "Compute error.",
        "vector::_M_range_check: __n (which is 7) >= this->size() (which is 2)",
        "[json.exception.type_error.316] invalid UTF-8 byte at index 2: 0xFF",
        "the messages: 'messages' is required by the engine",
    ],
)
def test_a_500_that_may_be_the_engines_fault_stays_one(message: str) -> None:
    status, error = shaped(500, llama_error(500, message, "server_error"))
    assert (status, error["type"], error["code"]) == (500, "server_error", "engine_error")


def test_an_id_beyond_the_vocabulary_is_the_requests_fault() -> None:
    body = llama_error(500, "vector::_M_range_check: __n (which is 7) >= this->size() (which is 2)", "server_error")
    assert shaped(500, body, "/detokenize") == (
        400,
        {
            "message": "tokens: an id is not in the model's vocabulary",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        },
    )


def test_what_the_engine_was_not_started_for_is_no_server_error() -> None:
    body = llama_error(501, "This server does not support reranking.", "not_supported_error")
    status, error = shaped(501, body, "/v1/rerank")
    assert (status, error["code"], error["type"]) == (400, "not_supported", "invalid_request_error")


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[]", b'{"error": 7}', b'{"error": {"message": 7}}'])
def test_an_error_in_no_known_shape_has_openais_all_the_same(body: bytes) -> None:
    status, error = shaped(503, body)
    assert (status, error["message"]) == (503, "no reason given")
    assert set(error) == {"message", "type", "param", "code"}


def test_a_message_without_end_is_cut() -> None:
    _, error = shaped(400, llama_error(400, "a" * 100_000, "invalid_request_error"))
    assert len(str(error["message"])) == 2000

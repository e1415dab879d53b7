"""The official client against a running server, with a named context and without."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, Final

import openai
import pytest

from serving import Serve, eventually, source_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from openai.types.chat import ChatCompletionMessageParam

pytestmark = pytest.mark.e2e

CONTEXT: Final = "code"
KEY: Final = "k-0123456789abcdef"
NAMED: Final = {"nightfill": {"context": CONTEXT}}
QUESTION: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "What is it for?"}]
LONG: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": source_text(99, functions=600)}]
ENDLESS: Final = 8000
"""Output tokens that take many times as long as a test waits."""


@pytest.fixture(scope="module")
def server(shared_serve: Serve) -> Serve:
    """Without keys, with one context that is filled."""
    shared_serve.put(CONTEXT, source_text(1, functions=40), forms=("chat", "completion"))
    shared_serve.wait_ready(CONTEXT)
    return shared_serve


@pytest.fixture(scope="module")
def guarded(serve_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """With a key, one request at a time, and embeddings."""
    settings = {"gateway": {"api_keys": {"acme": KEY}, "max_in_flight": 1}}
    serve = Serve(tmp_path_factory.mktemp("guarded"), home=serve_home, settings=settings, arguments=("--embeddings",))
    try:
        yield serve.start()
    finally:
        serve.close()


def client_of(serve: Serve, key: str = "none", **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serve.url}/v1", api_key=key, max_retries=0, timeout=60, **more)


@pytest.fixture
def client(server: Serve) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.fixture
async def async_client(server: Serve) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def cpu_s(pid: int | None) -> float:
    """Processor time that a process has taken."""
    assert pid is not None
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def of_fill(server: Serve, form: str = "chat") -> int:
    return next(int(fill["tokens"]) for fill in server.fills(CONTEXT) if fill["form"] == form)


@pytest.mark.parametrize("named", [False, True])
def test_a_chat_is_answered_whole_and_in_a_stream_alike(server: Serve, client: openai.OpenAI, named: bool) -> None:
    extra = NAMED if named else {}
    raw = client.chat.completions.with_raw_response.create(
        model=server.model, messages=QUESTION, max_tokens=12, temperature=0, extra_body=extra
    )
    whole = raw.parse()
    assert raw.headers["x-nightfill-layer"] == ("fill" if named else raw.headers["x-nightfill-layer"])
    text, usage, finish = "", None, None
    with client.chat.completions.create(
        model=server.model,
        messages=QUESTION,
        max_tokens=12,
        temperature=0,
        extra_body=extra,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert whole.object == "chat.completion"
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    if named:
        assert whole.usage.prompt_tokens_details is not None
        assert (whole.usage.prompt_tokens_details.cached_tokens or 0) >= of_fill(server)
        assert raw.headers["x-nightfill-context"].startswith(f"{CONTEXT}@")


async def test_the_asynchronous_client_streams_many_at_once(server: Serve, async_client: openai.AsyncOpenAI) -> None:
    async def ask(n: int) -> tuple[str, int]:
        text, cached = "", 0
        stream = await async_client.chat.completions.create(
            model=server.model,
            messages=QUESTION,
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-nightfill-context": CONTEXT} if n % 2 else {},
        )
        async for chunk in stream:
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
                cached = chunk.usage.prompt_tokens_details.cached_tokens or 0
        return text, cached

    found = await asyncio.gather(*(ask(n) for n in range(6)))
    assert all(text for text, _ in found)
    assert all(cached >= of_fill(server) for _, cached in found[1::2])


def test_options_of_chats_go_through_to_the_engine(server: Serve, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=server.model,
        messages=QUESTION,
        max_tokens=5,
        temperature=0,
        n=2,
        logprobs=True,
        top_logprobs=3,
        extra_body=NAMED,
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content == answer.choices[1].message.content
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in logprobs.content)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 10
    assert answer.usage.prompt_tokens < 2 * of_fill(server)
    # The second choice was computed in a slot of the engine's choice: what that held is not counted on any more.
    broken = server.metric("nightfill_broken_promises_total")
    for _ in range(4):
        assert server.ask(context=CONTEXT).layer == "fill"
    assert server.metric("nightfill_broken_promises_total") == broken


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_keeps_to_a_json_schema(server: Serve, client: openai.OpenAI, stream: bool) -> None:
    shape = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "kind": {"type": "string", "enum": ["a", "b"]}},
        "required": ["ok", "kind"],
        "additionalProperties": False,
    }
    asked: dict[str, Any] = {
        "model": server.model,
        "messages": QUESTION,
        "max_tokens": 400,
        "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": shape}},
        "extra_body": NAMED,
    }
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    else:
        text = client.chat.completions.create(**asked).choices[0].message.content or ""
    assert set(json.loads(text)) == {"ok", "kind"}


def test_tools_are_accepted(server: Serve, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=server.model,
        messages=QUESTION,
        max_tokens=4,
        tools=[{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}],
        extra_body=NAMED,
    )
    assert answer.choices[0].message.role == "assistant"


def test_completions_take_text_tokens_and_lists(server: Serve, client: openai.OpenAI) -> None:
    def text_of(prompt: Any, **more: Any) -> list[str]:
        answer = client.completions.create(model=server.model, prompt=prompt, max_tokens=4, temperature=0, **more)
        assert answer.object == "text_completion"
        return [choice.text for choice in answer.choices]

    (alone,) = text_of("def f(")
    assert text_of(["def f(", "class A:"])[0] == alone
    (by_tokens,) = text_of([5, 6, 7])
    assert text_of([[5, 6, 7], [8, 9]])[0] == by_tokens
    answer = client.completions.create(model=server.model, prompt="# Q", max_tokens=4, temperature=0, extra_body=NAMED)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) >= of_fill(server, "completion")
    pieces = client.completions.create(
        model=server.model, prompt="# Q", max_tokens=4, temperature=0, extra_body=NAMED, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in pieces if chunk.choices) == answer.choices[0].text


def test_models_are_listed(server: Serve, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [server.model]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "code", "param"),
    [
        ({"model": "gpt-x"}, openai.NotFoundError, "model_not_found", "model"),
        ({"extra_body": {"nightfill": {"context": "nope"}}}, openai.NotFoundError, "context_not_found", None),
        ({"temperature": 7}, openai.BadRequestError, None, "temperature"),
        ({"messages": []}, openai.BadRequestError, None, "messages"),
        ({"messages": [{"role": "user", "content": "x y " * 40000}]}, openai.BadRequestError,
         "context_length_exceeded", None),
        ({"extra_body": {"lora": [{"id": 0, "scale": 1.0}]}}, openai.BadRequestError, None, "lora"),
        ({"extra_body": {"lora": []}}, openai.BadRequestError, None, "lora"),
        ({"extra_body": {"id_slot": 1}}, openai.BadRequestError, None, "id_slot"),
    ],
)  # fmt: skip
def test_errors_come_as_the_client_s_own(
    server: Serve,
    client: openai.OpenAI,
    change: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str | None,
    param: str | None,
    stream: bool,
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(
            **{"model": server.model, "messages": QUESTION, "max_tokens": 3, "stream": stream, **change}
        )
    assert raised.value.request_id
    assert isinstance(raised.value.body, dict)
    if code is not None:
        assert raised.value.code == code
    if param is not None:
        assert raised.value.param == param


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
        ("/v1/responses", {"input": "a"}),
    ],
)
def test_no_route_lets_a_client_choose_an_adapter(server: Serve, path: str, body: dict[str, Any]) -> None:
    """llama.cpp keeps KV that one adapter made for requests under another."""
    raw = json.dumps({"model": server.model, **body, "lora": [{"id": 0, "scale": 0.5}]})
    for spelling in (raw, raw.replace('"lora"', '"lor\\u0061"')):
        answer = server.request("POST", path, spelling.encode())
        assert (answer.status, answer.error["param"]) == (400, "lora")


def test_without_a_known_key_nobody_is_served(guarded: Serve) -> None:
    with client_of(guarded, "wrong") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model=guarded.model, messages=QUESTION, max_tokens=1)
    with client_of(guarded, KEY) as client:
        assert client.chat.completions.create(model=guarded.model, messages=QUESTION, max_tokens=1).choices


def test_one_request_too_many_is_told_when_to_come_again(guarded: Serve) -> None:
    with client_of(guarded, KEY) as client:
        with client.chat.completions.create(
            model=guarded.model, messages=QUESTION, max_tokens=ENDLESS, stream=True
        ) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as raised:
                client.chat.completions.create(model=guarded.model, messages=QUESTION, max_tokens=1)
        assert int(raised.value.response.headers["retry-after"]) >= 1
        eventually(lambda: _answers(client, guarded), within_s=20, what="the place is free again")


def _answers(client: openai.OpenAI, serve: Serve) -> bool:
    try:
        client.chat.completions.create(model=serve.model, messages=QUESTION, max_tokens=1)
    except openai.RateLimitError:
        return False
    return True


def test_embeddings_have_one_length_and_tell_texts_apart(guarded: Serve) -> None:
    with client_of(guarded, KEY) as client:
        answer = client.embeddings.create(model=guarded.model, input=["a cat", "the market fell by a tenth", "a cat"])
        one, two, three = (item.embedding for item in answer.data)
        assert len(one) == len(two) > 8
        assert one == pytest.approx(three, abs=1e-3)
        assert one != pytest.approx(two, abs=1e-3)
        assert answer.usage.prompt_tokens > 0
        floats = client.embeddings.create(model=guarded.model, input="a cat", encoding_format="float")
        assert floats.data[0].embedding == pytest.approx(one, abs=1e-3)


def test_a_server_without_embeddings_says_so(server: Serve, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        client.embeddings.create(model=server.model, input="a")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("during", ["prompt", "answer"])
def test_the_engine_stops_when_the_client_leaves(server: Serve, stream: bool, named: bool, during: str) -> None:
    """What the engine takes afterwards is next to nothing beside what it would have taken."""
    left = server.metric("nightfill_clients_left_total")
    before_s = cpu_s(server.live_pid)
    messages = LONG if during == "prompt" else QUESTION
    asked: dict[str, Any] = {
        "model": server.model,
        "messages": messages,
        "max_tokens": ENDLESS,
        "extra_body": {"ignore_eos": True, **(NAMED if named else {})},
        "stream": stream,
    }
    if stream and during == "answer":
        with client_of(server) as client, client.chat.completions.create(**asked) as chunks:
            next(iter(chunks))
    else:
        with client_of(server).with_options(timeout=0.7) as client, pytest.raises(openai.APITimeoutError):
            for _ in client.chat.completions.create(**asked):
                pass
    eventually(
        lambda: server.metric("nightfill_clients_left_total") == left + 1, within_s=20, what="the client's leaving"
    )
    assert cpu_s(server.live_pid) > before_s
    left_at_s = cpu_s(server.live_pid)
    # Both slots answer: neither works for the one that left.
    for _ in range(2):
        assert server.ask(max_tokens=2).status == 200
    assert cpu_s(server.live_pid) - left_at_s < 2.0
    eventually(lambda: server.metric("nightfill_in_flight_requests") == 0, within_s=5, what="nothing in flight")

"""A small OpenAI-like server on a real socket, which does as it is told and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@dataclass
class Answer:
    """One scripted reply: its parts are sent one by one; an event among them is waited for."""

    parts: list[bytes | asyncio.Event]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Pieces:
    """What replies are made of."""

    done = b"data: [DONE]\n\n"

    @staticmethod
    def event(value: object) -> bytes:
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    @classmethod
    def delta(cls, **members: object) -> bytes:
        return cls.event({"choices": [{"index": 0, "delta": members, "finish_reason": None}]})

    @classmethod
    def finish(cls, *, prompt: int = 1000, cached: int | None = 990, output: int = 3) -> bytes:
        details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
        usage = {"prompt_tokens": prompt, "completion_tokens": output, **details}
        last = cls.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        return last + cls.event({"choices": [], "usage": usage}) + cls.done

    @classmethod
    def whole(cls, text: str = "hello") -> Answer:
        return Answer([cls.delta(role="assistant", content=None), cls.delta(content=text), cls.finish()])

    @classmethod
    def context(cls, **fill: object) -> Answer:
        chat = {"form": "chat", "state": "ready", "stored_tokens": 990, "tokens": 990, "fill_seconds": 30.0} | fill
        return cls.of(json.dumps({"name": "repo", "fills": [chat | {"form": "completion"}, chat]}).encode())

    @staticmethod
    def of(*parts: bytes | asyncio.Event, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        return Answer(list(parts), status=status, headers=headers or {})


class OpenAiServer:
    """Answers each question by `answer`; `asked` holds the decoded bodies, `keys` the authorization headers."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: Callable[[dict[str, Any]], Answer] = lambda _: Pieces.whole()
        self.models: Answer = Answer([b'{"data": [{"id": "tiny"}, {"id": "other"}]}'])
        self.context = Pieces.context(state="ready")
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            self.keys.append(headers.get("authorization", ""))
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if head[0].startswith("GET /v1/models "):
                await self._send(writer, self.models)
            elif head[0].startswith("GET /v1/nightfill/contexts/"):
                await self._send(writer, self.context)
            else:
                assert head[0].startswith("POST /v1/chat/completions "), head[0]
                self.asked.append(json.loads(body))
                await self._send(writer, self.answer(self.asked[-1]))
        except ConnectionError:
            pass  # the client left, as some tests want it to
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        lines = [f"HTTP/1.1 {answer.status} X", "connection: close", "content-type: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        for part in answer.parts:
            if isinstance(part, asyncio.Event):
                await part.wait()
            else:
                writer.write(part)
            await writer.drain()


@pytest.fixture
def pieces() -> type[Pieces]:
    return Pieces


@pytest.fixture
async def server() -> AsyncIterator[OpenAiServer]:
    openai = OpenAiServer()
    listening = await asyncio.start_server(openai.serve, "127.0.0.1", 0)
    openai.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield openai


@pytest.fixture
def unused_address() -> Iterator[str]:
    """An address that nobody listens on, and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"

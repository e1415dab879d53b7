from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from fakes.engine import SIGNATURE, FakeEngine
from fakes.sleeper import FakeSleeper
from fakes.virtual_time import now_s, virtual
from nightfill.config import ByteSize, DeviceSettings, LifecycleSettings
from nightfill.contexts import Front
from nightfill.contexts.context import Form, Message, Messages, Text
from nightfill.engines.adapted import AdaptedEngine, Adapter
from nightfill.engines.engine import Call, Prefix
from nightfill.engines.lifecycle.lifecycle import Lifecycle, Managed
from nightfill.engines.lifecycle.sleeping import SleepingEngine
from nightfill.engines.lifecycle.state import ModelState
from nightfill.engines.signature import adapted
from nightfill.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nightfill.contexts.context import Content
    from nightfill.engines.engine import Engine, PrefixFill

PLAIN: Final = Adapter(name="legal", path=Path("/a"), digest="ab" * 32)
TALKS: Final = Adapter(
    name="legal",
    path=Path("/a"),
    digest="ab" * 32,
    system="Be a lawyer.",
    prompt_prefix="<law>",
    prompt_suffix="</law>",
)
OWN: Final = {"role": "system", "content": "Be brief."}
ASKED: Final = {"role": "user", "content": "Why?"}


class Noting(FakeEngine):
    """Notes the prefixes that it is asked about."""

    def __init__(self) -> None:
        super().__init__(name="v1", model="base", embeddings=True)
        self.seen: list[tuple[str, str]] = []

    def near(self, prefix: Prefix) -> int | None:
        self.seen.append(("near", prefix.adapter))
        return 1

    @contextlib.asynccontextmanager
    async def fill(self, prefix: Prefix) -> AsyncIterator[PrefixFill]:
        self.seen.append(("fill", prefix.adapter))
        async with super().fill(prefix) as fill:
            yield fill

    def sampler(self, prefix: Prefix) -> contextlib.AbstractAsyncContextManager[Any]:
        self.seen.append(("sampler", prefix.adapter))
        return contextlib.nullcontext()


def call(path: str = "/v1/chat/completions", *, prefix: Prefix | None = None, **members: object) -> Call:
    body = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in members.items()}
    return Call(path=path, body=body, stream=False, prefix=prefix)


async def sent(adapter: Adapter, asked: Call) -> Call:
    """What reaches the engine."""
    engine = FakeEngine()
    async with AdaptedEngine(engine, adapter).open(asked):
        (found,) = engine.calls
        return found


def member(found: Call, name: str) -> Any:
    return msgspec.json.decode(found.body[name])


async def test_it_is_a_model_of_its_own_with_a_signature_of_its_own() -> None:
    engine = FakeEngine(name="v1", model="base", embeddings=True)
    said = await AdaptedEngine(engine, PLAIN).describe()
    assert (said.engine, said.model, said.embeddings) == ("v1:legal", "legal", False)
    assert said.signature == adapted(SIGNATURE, digest=PLAIN.digest)
    assert said.context_length == (await engine.describe()).context_length


async def test_its_name_and_path_are_no_part_of_the_signature_but_its_content_and_scale_are() -> None:
    async def signature(adapter: Adapter) -> str:
        return (await AdaptedEngine(FakeEngine(), adapter).describe()).signature

    ours = await signature(PLAIN)
    assert await signature(replace(PLAIN, name="tax", path=Path("/b"), system="x")) == ours
    assert await signature(replace(PLAIN, digest="ac" * 32)) != ours
    assert await signature(replace(PLAIN, scale=0.5)) != ours


async def test_the_engine_is_told_which_adapter_whatever_it_is_asked() -> None:
    engine, prefix = Noting(), Prefix(tokens=(1, 2), salt=b"s", stamp=7.0)
    under: Engine = AdaptedEngine(engine, PLAIN)
    async with under.open(call(prefix=prefix, messages=[ASKED])) as reply:
        assert reply.status == 200
    assert (engine.calls[0].adapter, engine.calls[0].prefix) == (
        "legal",
        Prefix(tokens=(1, 2), salt=b"s", stamp=7.0, adapter="legal"),
    )
    assert under.near(prefix) == 1
    async with under.fill(prefix), under.sampler(prefix):
        pass
    assert engine.seen == [("near", "legal"), ("fill", "legal"), ("sampler", "legal")]


async def test_without_texts_of_its_own_it_sends_requests_on_as_they_are() -> None:
    for asked in (call(messages=[ASKED]), call("/v1/completions", prompt=[[1, 2], [3]])):
        assert (await sent(PLAIN, asked)).body == asked.body


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        ([ASKED], [{"role": "system", "content": "Be a lawyer."}, ASKED]),
        ([OWN, ASKED], [{"role": "system", "content": "Be a lawyer.\n\nBe brief."}, ASKED]),
    ],
)
async def test_its_system_message_opens_every_chat(chat: list[Any], expected: list[Any]) -> None:
    found = await sent(TALKS, call(messages=chat, temperature=0))
    assert member(found, "messages") == expected
    assert member(found, "temperature") == 0


async def test_its_texts_go_around_each_prompt_of_a_completion() -> None:
    assert member(await sent(TALKS, call("/v1/completions", prompt="a")), "prompt") == "<law>a</law>"
    both = await sent(TALKS, call("/v1/completions", prompt=["a", "b"]))
    assert member(both, "prompt") == ["<law>a</law>", "<law>b</law>"]


async def test_prompts_that_are_no_text_cannot_have_text_around_them() -> None:
    with pytest.raises(BadRequest, match="puts text around it") as refused:
        await sent(TALKS, call("/v1/completions", prompt=[1, 2]))
    assert refused.value.param == "prompt"


class Rendering(FakeEngine):
    """Renders chats: tokens are bytes."""

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        front = Front(content)
        if form is Form.COMPLETION:
            ends = ['"x"', '"the y"', '""']
            return _shared([msgspec.json.decode(front.completion(msgspec.Raw(end.encode()))) for end in ends])
        chats = [[ASKED], [{"role": "user", "content": "How?"}], [OWN, ASKED]]
        return _shared([_rendered(front.chat(_raw(chat))) for chat in chats])


@pytest.mark.parametrize(
    "content",
    [
        Text("A long manual."),
        Messages((Message("user", "Read this."), Message("assistant", "I have."))),
        Messages((Message("system", "The manual."), Message("user", "Read this."), Message("assistant", "I have."))),
        Messages((Message("developer", "The manual."),)),
    ],
)
async def test_what_is_filled_of_a_context_is_how_every_chat_about_it_begins(content: Content) -> None:
    tokens = await AdaptedEngine(Rendering(), TALKS).prefix_tokens(content, Form.CHAT)
    text = content.text if isinstance(content, Text) else content.messages[-1].content
    assert b"Be a lawyer." in bytes(tokens)
    assert text.encode() in bytes(tokens)
    for chat in _chats():
        placed = [msgspec.json.decode(one) for one in Front(content).chat(_raw(chat))]
        found = await sent(TALKS, call(messages=placed))
        rendered = _rendered(_raw(member(found, "messages")))
        assert rendered.encode()[: len(tokens)] == bytes(tokens), chat


async def test_what_is_filled_of_a_context_is_how_every_prompt_about_it_begins() -> None:
    content = Text("A long manual.")
    tokens = await AdaptedEngine(Rendering(), TALKS).prefix_tokens(content, Form.COMPLETION)
    assert bytes(tokens) == b"<law>A long manual."
    placed = msgspec.json.decode(Front(content).completion(msgspec.Raw(b'" Why?"')))
    found = await sent(TALKS, call("/v1/completions", prompt=placed))
    assert member(found, "prompt") == "<law>A long manual. Why?</law>"


@virtual
async def test_an_adapter_of_a_model_that_sleeps_wakes_it() -> None:
    settings = LifecycleSettings(devices=(DeviceSettings(name="gpu", max_bytes=ByteSize(100)),))
    sleeper, engine = FakeSleeper(), FakeEngine()
    async with Lifecycle([Managed(name="m", device="gpu", sleeper=sleeper)], settings, clock=now_s) as lifecycle:
        under = AdaptedEngine(SleepingEngine(engine, lifecycle, name="m"), PLAIN)
        assert (await under.describe()).model == "legal"
        await lifecycle.sleep("m")
        assert await under.healthy(), "it can be asked"
        async with under.open(call(messages=[ASKED])):
            assert lifecycle.state("m") is ModelState.AWAKE
            assert engine.calls[-1].adapter == "legal"
        assert sleeper.log.count("wake") == 2


def _chats() -> Iterator[list[Any]]:
    yield [ASKED]
    yield [OWN, ASKED]
    yield [{"role": "developer", "content": "Be kind."}, ASKED, {"role": "assistant", "content": "So."}, ASKED]


def _raw(chat: list[Any]) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode(one)) for one in chat]


def _rendered(chat: list[msgspec.Raw]) -> str:
    decoded = [msgspec.json.decode(one) for one in chat]
    return "".join(f"<{one['role']}>{one['content']}</>" for one in decoded)


def _shared(texts: list[str]) -> tuple[int, ...]:
    low, high = min(texts).encode(), max(texts).encode()
    count = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return tuple(low[:count])

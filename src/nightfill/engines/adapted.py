"""A LoRA adapter of an engine's model as an engine of its own: with a model name and a signature of its own.

So nothing above has to know of adapters: they are listed, routed to and filled like any model, and what is stored under
one is found under no other. The engine below is told by name which one a request is for, and sees to it that it has it.

Texts that an adapter puts around what is asked go in front of everything, a context included. Were they put behind it,
or only where a chat brings no system message of its own, prompts with one context would not all begin alike, and there
would be nothing to fill.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts import Front
from nightfill.contexts.context import Form, Message, Messages, Text
from nightfill.engines.signature import adapted
from nightfill.errors import BadRequest

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nightfill.contexts.context import Content
    from nightfill.engines.engine import Call, Description, Engine, Prefix, PrefixFill, Reply, Sampler

_CHAT: Final = "/v1/chat/completions"
_COMPLETION: Final = "/v1/completions"
_BLANK_LINE: Final = "\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter, registered."""

    name: str
    """What requests call it."""
    path: Path
    digest: str
    """Of its content, 64 hex digits: what it is, wherever it lies and whatever it is called."""
    scale: float = 1.0
    system: str = ""
    prompt_prefix: str = ""
    prompt_suffix: str = ""


class AdaptedEngine:
    """Implements `engines.engine.Engine` by another one that was made with this adapter, which is the caller's."""

    def __init__(self, engine: Engine, adapter: Adapter) -> None:
        self._engine = engine
        self._adapter = adapter
        self._front = Front(Text(adapter.system)) if adapter.system else None

    async def describe(self) -> Description:
        """What the engine says of itself, under the adapter's name and signature."""
        said, ours = await self._engine.describe(), self._adapter
        return replace(
            said,
            engine=f"{said.engine}:{ours.name}",
            model=ours.name,
            signature=adapted(said.signature, digest=ours.digest, scale=ours.scale),
            embeddings=False,
        )

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        """Of the content with the adapter's own text in front."""
        return await self._engine.prefix_tokens(_behind(self._adapter, content, form), form)

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of the text as it is."""
        return await self._engine.tokenize(text)

    def open(self, call: Call) -> AbstractAsyncContextManager[Reply]:
        """Answer a request under the adapter. Raises BadRequest besides, where its texts cannot be put around it."""
        body, ours = dict(call.body), self._adapter
        if call.path == _CHAT and self._front is not None:
            messages = self._front.chat(msgspec.json.decode(body["messages"], type=list[msgspec.Raw]))
            body["messages"] = msgspec.Raw(b"[" + b",".join(map(bytes, messages)) + b"]")
        elif call.path == _COMPLETION and (ours.prompt_prefix or ours.prompt_suffix):
            body["prompt"] = _around(ours, body["prompt"])
        prefix = self._prefix(call.prefix) if call.prefix is not None else None
        return self._engine.open(replace(call, body=body, prefix=prefix, adapter=ours.name))

    def near(self, prefix: Prefix) -> int | None:
        """As the engine says."""
        return self._engine.near(self._prefix(prefix))

    def fill(self, prefix: Prefix) -> AbstractAsyncContextManager[PrefixFill]:
        """Fill under the adapter."""
        return self._engine.fill(self._prefix(prefix))

    def sampler(self, prefix: Prefix) -> AbstractAsyncContextManager[Sampler]:
        """Compare under the adapter."""
        return self._engine.sampler(self._prefix(prefix))

    def _prefix(self, prefix: Prefix) -> Prefix:
        return replace(prefix, adapter=self._adapter.name)

    def freeze(self) -> None:
        """Freeze the engine."""
        self._engine.freeze()

    def thaw(self) -> None:
        """Thaw the engine."""
        self._engine.thaw()

    @property
    def freezes(self) -> bool:
        """Whether the engine can be frozen."""
        return self._engine.freezes

    async def healthy(self) -> bool:
        """Whether the engine answers."""
        return await self._engine.healthy()

    async def aclose(self) -> None:
        """Does nothing: who made the engine closes it."""


def _behind(adapter: Adapter, content: Content, form: Form) -> Content:
    """The content that begins as prompts under the adapter do that have `content` in front."""
    match form, content:
        case Form.COMPLETION, Text(text=text):
            return Text(adapter.prompt_prefix + text)
        case Form.CHAT, Text(text=text) if adapter.system:
            return Text(adapter.system + _BLANK_LINE + text)
        case Form.CHAT, Messages(messages=messages) if adapter.system:
            first, *rest = messages
            if first.role in ("system", "developer"):
                return Messages((Message("system", adapter.system + _BLANK_LINE + first.content), *rest))
            return Messages((Message("system", adapter.system), *messages))
    return content


def _around(adapter: Adapter, prompt: msgspec.Raw) -> msgspec.Raw:
    try:
        asked = msgspec.json.decode(prompt, type=str | list[str])
    except msgspec.DecodeError as exc:
        raise BadRequest(
            f"prompt must be a string or a list of strings: model {adapter.name!r} puts text around it", param="prompt"
        ) from exc
    before, behind = adapter.prompt_prefix, adapter.prompt_suffix
    texts = [before + text + behind for text in ([asked] if isinstance(asked, str) else asked)]
    return msgspec.Raw(msgspec.json.encode(texts[0] if isinstance(asked, str) else texts))

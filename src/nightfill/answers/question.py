"""What a request asks, as stored answers are looked up by it: an exact key, and a scope that near answers stay within.

The key is a hash over everything that shapes the reply: who asks, the route, the engine's signature, version and model
name, the context with its version and mode, and every member of the body but those that shape only its transport. JSON
is brought into one form first, so that neither the order of members nor blanks count; numbers stay as they are written
(`0` and `0.0` are two). The hash is keyed with a secret of the tenant's, so that no other tenant's request can meet it.

The scope is the same without the words of the last user message, and without those sampling members that say how far a
reply may stray: near requests are answered only where a low temperature is asked for, and then they do not matter.
"""

from __future__ import annotations

import enum
import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.kv.key import salt_of
from nightfill.state.answers import AnswerKey, AnswerScope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightfill.contexts.context import ContextName, Fingerprint, Tenant
    from nightfill.engines.engine import Description

CHAT: Final = "/v1/chat/completions"
COMPLETION: Final = "/v1/completions"
MAX_QUESTION_BYTES: Final = 600
"""Of UTF-8. An embedding sees the first 256 tokens alone, so that longer texts could differ where nobody looks."""
TRANSPORT: Final = frozenset(
    {"stream", "stream_options", "user", "metadata", "safety_identifier", "nightfill", "cache", "cache_prompt"}
    | {"cache_salt", "prompt_cache_key", "prompt_cache_retention", "return_progress", "model"}
)
"""Members that do not shape the reply, or that come in by another way (model, salt)."""
SAMPLING: Final = frozenset({"temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "max_completion_tokens"})
"""Members that may differ between near requests. A bound on tokens is looked at when an answer is found."""
_NOT_SAID: Final = {"n": 1, "best_of": 1, "logprobs": False, "echo": False, "tools": [], "logit_bias": {}}
"""As good as left out; so is `null`."""
_SINGLE: Final = frozenset({"n", "best_of"})
_BARE: Final = ("text", "json_object")
# Nesting too deep to decode, a surrogate that is half a character.
_MALFORMED: Final = (msgspec.DecodeError, UnicodeError, RecursionError, ValueError)
_KEY_BYTES: Final = 32


class Bar(enum.StrEnum):
    """Why a request is not answered from store: not at all, or not by a near answer."""

    ROUTE = "route"
    """Neither a chat nor a completion."""
    TEMPERATURE = "temperature"
    """It asks for variety, or (near) does not say that it wants none."""
    TOOLS = "tools"
    CHOICES = "choices"
    LOGPROBS = "logprobs"
    FORMAT = "format"
    PARTS = "parts"
    """Something other than one text: images, token ids, several prompts, nothing."""
    LENGTH = "length"
    """More words than an embedding sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request, as far as answers go."""

    key: AnswerKey
    scope: AnswerScope
    text: str | None
    """The last user message; None where a near answer may not serve (tools, high temperature, several choices, parts
    that are no text).
    """
    bar: Bar | None = None
    """Why `text` is None."""
    max_tokens: int | None = None
    """So many tokens a reply may have; None for no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a reply rests on beside the request's own members."""

    tenant: Tenant
    context: ContextName | None = None
    fingerprint: Fingerprint | None = None
    """The version that is put in front, or that the request was recognised to carry."""
    mode: str = "full"
    """`full` or `distilled`: which form of the version."""
    salt: str = ""
    """The client's own: whom it shares with, within its tenant."""


class Questions:
    """Makes questions. Thread-safe."""

    def __init__(self, *, secret: bytes = b"", max_temperature: float) -> None:
        """`secret`: at most 64 bytes that only gateways of one state know; with none, keys rest on the tenant's name.

        `max_temperature`: requests that state a higher one are not answered from store, unless they state a seed.
        """
        self._max_temperature = max_temperature
        self._secret_of = functools.lru_cache(maxsize=4096)(
            lambda tenant: hashlib.blake2b(salt_of(tenant), key=secret, person=b"nightfill answer").digest()
        )

    def of(
        self, ground: Ground, *, path: str, members: Mapping[str, msgspec.Raw], engine: Description
    ) -> Question | Bar:
        """The question that a request for `path` asks `engine`, or why no stored answer has to do with it.

        `members` are the client's own, without the context's text.
        """
        if path not in (CHAT, COMPLETION):
            return Bar.ROUTE
        try:
            said = _said(members)
            temperature = said.get("temperature")
            low = temperature is None or temperature <= self._max_temperature
            if not low and said.get("seed") is None:
                return Bar.TEMPERATURE
            bar = _bar(path, said) if low and temperature is not None else Bar.TEMPERATURE
            text = None
            if bar is None:
                text, bar = _words(path, said)
            sampling = {name: said.pop(name) for name in SAMPLING & said.keys()}
            shape = _canonical(_without_words(path, said) if text is not None else said)
        except _MALFORMED:
            return Bar.PARTS  # the engine says what is wrong with it
        secret = self._secret_of(ground.tenant)
        scope = _digest(
            secret,
            b"scope" if text is not None else b"whole",
            path.encode(),
            engine.signature.encode(),
            engine.version.encode(),
            engine.model.encode(),
            (ground.context or "").encode(),
            (ground.fingerprint or "").encode(),
            ground.mode.encode(),
            ground.salt.encode(),
            shape,
        )
        return Question(
            key=AnswerKey(_digest(secret, b"key", scope, (text or "").encode(), _canonical(sampling))),
            scope=AnswerScope(scope),
            text=text,
            bar=bar,
            max_tokens=_most(sampling),
        )


def _digest(secret: bytes, *parts: bytes) -> bytes:
    """Keyed, and each part with its length, so that none runs into the next."""
    hasher = hashlib.blake2b(key=secret, digest_size=_KEY_BYTES)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def _said(members: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    said = {name: msgspec.json.decode(raw) for name, raw in members.items() if name not in TRANSPORT}
    return {
        name: value
        for name, value in said.items()
        if value is not None and (name not in _NOT_SAID or value != _NOT_SAID[name])
    }


def _canonical(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _bar(path: str, said: Mapping[str, Any]) -> Bar | None:
    """What of the members forbids a near answer."""
    if said.get("tools") or said.get("functions"):
        return Bar.TOOLS
    if not _SINGLE.isdisjoint(said):
        return Bar.CHOICES
    if "logprobs" in said or said.get("top_logprobs"):
        return Bar.LOGPROBS
    if said.get("response_format", {}).get("type", "text") not in _BARE:
        return Bar.FORMAT
    if path == CHAT and any(
        one.get("tool_calls") or one.get("role") in ("tool", "function") for one in said["messages"]
    ):
        return Bar.TOOLS
    return None


def _words(path: str, said: Mapping[str, Any]) -> tuple[str | None, Bar | None]:
    """The one text that is asked, or why there is none."""
    if path == CHAT:
        last = said["messages"][-1]
        asked = last.get("content") if last.get("role") == "user" else None
        if isinstance(asked, list) and len(asked) == 1 and asked[0].keys() == {"type", "text"}:
            asked = asked[0]["text"]
    else:
        asked = said.get("prompt")
    if not isinstance(asked, str) or not asked.strip():
        return None, Bar.PARTS
    if len(asked.encode()) > MAX_QUESTION_BYTES:
        return None, Bar.LENGTH
    return asked, None


def _without_words(path: str, said: Mapping[str, Any]) -> dict[str, Any]:
    if path == COMPLETION:
        return {**said, "prompt": None}
    *before, last = said["messages"]
    # A text and a part with a text are two shapes: templates may render them differently.
    hole = None if isinstance(last["content"], str) else [None]
    return {**said, "messages": [*before, {**last, "content": hole}]}


def _most(sampling: Mapping[str, Any]) -> int | None:
    bounds = [sampling.get("max_tokens"), sampling.get("max_completion_tokens")]
    return min((bound for bound in bounds if isinstance(bound, int) and bound >= 0), default=None)

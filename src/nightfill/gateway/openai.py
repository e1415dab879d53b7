"""OpenAI's wire records: what a request may say, checked before an engine sees it.

Known members have the types and ranges that OpenAI documents; nonsense is refused with the member's name and what is
allowed, because engines answer some of it with an error of their own and some of it with anything at all. Unknown
members go on untouched, as the bytes that came.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from nightfill.errors import BadRequest
from nightfill.gateway.explanation import explained

Probability = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
CacheSalt = Annotated[str, Meta(min_length=1, max_length=1024)]
"""Keeps a client's KV apart from that of others of its tenant, as at vLLM."""
Members = dict[str, msgspec.Raw]
Mode = Literal["full", "distilled", "auto"]
"""Which text of a context is put in front: its own, the distilled version, or the one that is filled."""
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, Meta(ge=0)]


class Extension(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a request may say to nightfill, as the member `nightfill`."""

    context: str | None = None
    """Name of the context to put in front."""
    mode: Mode | None = None
    """None for `full`. A context without a distilled version is put in front in full, whatever is asked for."""
    skip: tuple[Literal["answer", "fill"], ...] = ()
    """Layers that may not serve this request; without `fill` the whole prompt is computed anew."""
    max_age_s: Seconds | None = None
    """Bounds the age of a stored answer; a context's text is always the current version's."""


class CacheOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may say of stored answers in the way of LiteLLM, as the member `cache`; see `cache_control`."""

    ttl: Seconds | None = None
    s_maxage: Seconds | None = msgspec.field(default=None, name="s-maxage")
    no_cache: bool = msgspec.field(default=False, name="no-cache")
    no_store: bool = msgspec.field(default=False, name="no-store")
    namespace: Annotated[str, Meta(max_length=1024)] = ""


class Part(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a chat."""

    role: Annotated[str, Meta(pattern="^[A-Za-z_-]{1,32}$")]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a stream."""

    include_usage: bool | None = None


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """What chats and completions share. `null` means not given, as at OpenAI."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """-1 is llama.cpp's «no bound but the context»."""
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: str | Annotated[list[str], Meta(max_length=64)] | None = None
    seed: Int64 | None = None
    user: str | None = None
    logit_bias: dict[str, float] | list[list[Any]] | None = None
    cache_prompt: bool | None = None
    return_progress: bool | None = None
    cache_salt: CacheSalt | None = None
    cache: CacheOptions | None = None
    nightfill: Extension | None = None


class ChatRequest(Common, frozen=True, kw_only=True):
    """`/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class CompletionRequest(Common, frozen=True, kw_only=True):
    """`/v1/completions`."""

    prompt: str | Annotated[list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`/v1/embeddings`."""

    input: str | Annotated[list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    user: str | None = None
    cache_salt: CacheSalt | None = None
    nightfill: Extension | None = None


class OtherRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Any other route: its members are the engine's own affair."""

    model: Name | None = None
    stream: bool | None = None
    cache_prompt: bool | None = None
    cache_salt: CacheSalt | None = None
    nightfill: Extension | None = None


Record = TypeVar("Record", bound=msgspec.Struct)

REFUSED: Final = frozenset({"id_slot", "slot_id", "lora", "n_cache_reuse", "n_keep", "n_discard", "slot_save_path"})
"""Members by which a client would reach into slots, adapters or caches that others share."""
DROPPED: Final = frozenset({"nightfill", "cache", "cache_prompt", "cache_salt", "kv_transfer_params"})
"""Members that nightfill says to the engine itself, having read them or not."""

_MEMBERS: Final = msgspec.json.Decoder(Members)
_KEY: Final = re.compile(rb'[ \t\n\r]*"((?:[^"\\]|\\.)*)"[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_NEXT: Final = re.compile(rb"[ \t\n\r]*([,}])")
_OPEN: Final = re.compile(rb"[ \t\n\r]*\{")


def decode_members(body: bytes) -> Members:
    """The members of the JSON object `body`, raw.

    Raises BadRequest for what is not JSON in UTF-8, not an object, nested too deeply, or has a member twice.
    """
    try:
        body.decode("utf-8")
        members = _MEMBERS.decode(body)
    except UnicodeDecodeError as exc:
        raise BadRequest(f"the body is not UTF-8: byte {exc.start} is 0x{body[exc.start]:02x}") from exc
    except msgspec.ValidationError as exc:
        raise BadRequest("the body must be a JSON object") from exc
    except msgspec.DecodeError as exc:
        raise BadRequest(f"the body is not valid JSON: {exc}") from exc
    except RecursionError as exc:
        raise BadRequest("the body is nested too deeply") from exc
    _refuse_duplicates(body, members)
    return members


def decode_record(body: bytes, record: type[Record]) -> Record:
    """`body` as `record`, unknown members left aside. Raises BadRequest that names the member and what is allowed."""
    try:
        return msgspec.json.decode(body, type=record)
    except msgspec.ValidationError as exc:
        raise explained(exc, record) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadRequest(f"the body is not valid JSON: {exc}") from exc
    except RecursionError as exc:
        raise BadRequest("the body is nested too deeply") from exc


def refuse_reserved(members: Members) -> None:
    """Raises BadRequest for members that only nightfill may send to an engine."""
    for name in REFUSED & members.keys():
        raise BadRequest(f"{name} is not allowed: nightfill chooses slots, adapters and caches itself", param=name)


def _refuse_duplicates(body: bytes, members: Members) -> None:
    """Raises BadRequest when a member comes twice.

    What we check and what the engine reads must be the same, and parsers differ on which of two members counts. The
    values are known by now, so walking over the body is one comparison per member; a value that is not the known one
    belongs to a member that comes again later.
    """
    # Most clients write no blank between members. Then each byte is accounted for: no room for another.
    if len(body) == 1 + sum(len(name) + memoryview(raw).nbytes + 4 for name, raw in members.items()):
        return
    opened = _OPEN.match(body)
    assert opened is not None  # it was decoded as an object
    at = opened.end()
    for _ in range(len(members)):
        key = _KEY.match(body, at)
        assert key is not None
        name = msgspec.json.decode(b'"' + key[1] + b'"', type=str)
        value = bytes(members[name])
        after = _NEXT.match(body, key.end() + len(value)) if body.startswith(value, key.end()) else None
        if after is None:
            raise BadRequest(f"{name[:80]} comes twice in the body", param=name[:80])
        at = after.end()
        if after[1] == b"}":
            return
    if members:
        raise BadRequest("a member comes twice in the body")

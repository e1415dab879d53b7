"""What a request asks, decoded and checked: the input of all decisions that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from nightfill.contexts.context import Form
from nightfill.contexts.names import parse_name
from nightfill.errors import BadRequest
from nightfill.gateway.cache_control import NO_WISHES, Wishes, wishes_of
from nightfill.gateway.openai import (
    DROPPED,
    ChatRequest,
    Common,
    CompletionRequest,
    EmbeddingRequest,
    Extension,
    Members,
    Mode,
    OtherRequest,
    decode_members,
    decode_record,
    refuse_reserved,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec

    from nightfill.contexts.context import ContextName

GENERATING: Final[dict[str, type[msgspec.Struct]]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
}
PASSED_THROUGH: Final = frozenset(
    {
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/input_tokens",
        "/v1/responses/input_tokens",
        "/v1/rerank",
        "/tokenize",
        "/detokenize",
        "/apply-template",
    }
)
"""Routes of engines beyond OpenAI's that are safe to open: they touch no slot, adapter or setting."""
ENGINE_ROUTES: Final = PASSED_THROUGH | GENERATING.keys()
_FORMS: Final = {"/v1/chat/completions": Form.CHAT, "/v1/completions": Form.COMPLETION}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for an engine."""

    path: str
    form: Form | None
    """How a context can be put in front; None where it cannot."""
    model: str | None
    stream: bool
    context: ContextName | None
    """Named by the client."""
    mode: Mode
    """Which text of that context is put in front."""
    reuse: bool
    """False: compute everything anew."""
    cache_salt: str | None
    """Of the client's own choice: its KV is to be kept apart from that of others of its tenant."""
    members: Members
    """What goes to the engine, but for the context's text."""
    wishes: Wishes = NO_WISHES
    """Of stored answers."""
    usage: bool = False
    """A stream is to end with the usage."""


def decode_ask(path: str, body: bytes, headers: Mapping[bytes, bytes]) -> Ask:
    """Check a request for `path`, one of `ENGINE_ROUTES`. Raises BadRequest."""
    members = decode_members(body)
    refuse_reserved(members)
    record = decode_record(body, GENERATING.get(path, OtherRequest))
    assert isinstance(record, ChatRequest | CompletionRequest | EmbeddingRequest | OtherRequest)
    form = _FORMS.get(path)
    extension = record.nightfill or Extension()
    context = _context_of(extension, headers)
    if context is not None and form is None:
        allowed = ", ".join(sorted(_FORMS))
        raise BadRequest(f"a context cannot be put in front on {path}; use one of {allowed}", param="nightfill.context")
    stream, cached = (None, None) if isinstance(record, EmbeddingRequest) else (record.stream, record.cache_prompt)
    common = record if isinstance(record, Common) else None
    options = common.stream_options if common is not None else None
    return Ask(
        path=path,
        form=form,
        model=record.model,
        stream=bool(stream),
        context=context,
        mode=_mode_of(extension, headers),
        reuse="fill" not in extension.skip and cached is not False,
        cache_salt=record.cache_salt,
        members={name: raw for name, raw in members.items() if name not in DROPPED},
        wishes=wishes_of(extension, common.cache if common is not None else None, headers.get(b"cache-control")),
        usage=options is not None and bool(options.include_usage),
    )


def _mode_of(extension: Extension, headers: Mapping[bytes, bytes]) -> Mode:
    in_header = headers.get(b"x-nightfill-mode")
    if in_header is None:
        return extension.mode or "full"
    modes: dict[bytes, Mode] = {name.encode(): name for name in get_args(Mode)}
    if in_header not in modes:
        raise BadRequest(
            f"the header x-nightfill-mode must be one of {', '.join(get_args(Mode))}", param="nightfill.mode"
        )
    if extension.mode not in (None, modes[in_header]):
        raise BadRequest("the body's nightfill.mode and the header x-nightfill-mode differ", param="nightfill.mode")
    return modes[in_header]


def _context_of(extension: Extension, headers: Mapping[bytes, bytes]) -> ContextName | None:
    in_header = headers.get(b"x-nightfill-context")
    named = extension.context
    if in_header is not None:
        by_header = in_header.decode("latin-1")
        if named is not None and named != by_header:
            raise BadRequest(
                "the body's nightfill.context and the header x-nightfill-context differ", param="nightfill.context"
            )
        named = by_header
    return parse_name(named, param="nightfill.context") if named is not None else None

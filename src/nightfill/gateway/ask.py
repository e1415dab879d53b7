"""What a request asks, decoded and checked: the input of all decisions that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.contexts.context import Form
from nightfill.contexts.names import parse_name
from nightfill.errors import BadRequest
from nightfill.gateway.openai import (
    DROPPED,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Extension,
    Members,
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
    reuse: bool
    """False: compute everything anew."""
    cache_salt: str | None
    """Of the client's own choice: its KV is to be kept apart from that of others of its tenant."""
    members: Members
    """What goes to the engine, but for the context's text."""


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
    return Ask(
        path=path,
        form=form,
        model=record.model,
        stream=bool(stream),
        context=context,
        reuse="fill" not in extension.skip and cached is not False,
        cache_salt=record.cache_salt,
        members={name: raw for name, raw in members.items() if name not in DROPPED},
    )


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

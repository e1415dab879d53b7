"""What is known of each request while vLLM has it: its block keys, its wish, and what the store did for it."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.engines.vllm.wire import NAME, Decision, Wish
from nightfill.kv.key import Span, spans

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from nightfill.contexts.context import Signature

_log: Final = logging.getLogger(__name__)
_NO_SALT: Final = hashlib.sha256(b"nightfill.salt.vllm.1\0").digest()


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request. Owned by the scheduler's thread, but for `looking`."""

    request_id: str
    signature: Signature
    """The server's, under the request's adapter."""
    salt: bytes
    spans: tuple[Span, ...]
    """Of the prompt's whole blocks; empty when it cannot be keyed."""
    keyed: bool
    wish: Wish
    stores: bool
    arrived_s: float
    """On the monotonic clock, as all times here."""
    looking: Future[int] | None = None
    """The look-up under way; its result is the number of leading blocks that are stored."""
    looked_s: float = 0.0
    found: int | None = None
    """Leading blocks that are stored; None until known."""
    usable: int = 0
    """Leading blocks that may be loaded: those found, unless computing them is quicker or loading failed."""
    cached_tokens: int = 0
    loaded_tokens: int = 0
    lookup_s: float = 0.0
    decision: Decision = "absent"
    restore_s: float = 0.0
    recompute_s: float = 0.0
    decided: bool = False
    """Whether restoring was weighed against computing; once, for what is loaded meanwhile must not be thrown away."""
    loading: int = 0
    """Jobs under way that load blocks."""
    failed: set[int] = field(default_factory=set)
    """Blocks that could not be loaded, by their place."""


def salt_from(cache_salt: str | None) -> bytes:
    """The salt of a request's block keys, 32 bytes.

    64 hex digits are taken as they are: so gateway and worker, who choose them, can compute the same keys. Any other
    text is hashed, and requests without a salt share one of their own.
    """
    if not cache_salt:
        return _NO_SALT
    if len(cache_salt) == 64:
        try:
            return bytes.fromhex(cache_salt)
        except ValueError:
            pass
    return hashlib.sha256(b"nightfill.salt.vllm.1\0" + cache_salt.encode()).digest()


def whole_spans(tokens: Sequence[int], *, signature: Signature, salt: bytes, block_tokens: int) -> tuple[Span, ...]:
    """The spans of all whole blocks."""
    whole = len(tokens) - len(tokens) % block_tokens
    return spans(tokens[:whole], signature=signature, salt=salt, block_tokens=block_tokens)


def wish_of(params: dict[str, Any] | None) -> Wish | None:
    """The wish in a request's `kv_transfer_params`; None when there is none, or none that can be read."""
    raw = (params or {}).get(NAME)
    if raw is None:
        return None
    try:
        return msgspec.convert(raw, Wish)
    except msgspec.ValidationError as error:
        _log.warning("a request's wish is passed over: %s", error)
        return None

"""The engine protocol: what nightfill needs of an inference server, whether it is llama.cpp here or vLLM in a fleet.

An engine is used in one of two ways. A *serving* engine answers requests (`open`); told which prefix was filled, it
loads that prefix's KV first if it has to be told (llama.cpp), or simply reports what its connector loaded (vLLM). A
*filling* engine computes the KV of a prefix slice by slice (`fill`) and puts it into the shared store.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    import msgspec

    from nightfill.contexts.context import Content, Form, Signature


BOUNDARY_TOKENS: Final = 8
"""So many tokens at a prefix's end may be computed anew without the rest being worth less: merges with what follows,
the last token of a prompt that is known whole, the distance to the last checkpoint of a sliding window.
"""


class Reuse(enum.Enum):
    """What a restored prefix is good for, as probed on this model at start."""

    TRIM = enum.auto()
    """Restored KV is used, and survives in the slot for the next query that shares only the prefix."""
    EXACT = enum.auto()
    """Restored KV is used once; each query needs a restore of its own (sliding window, hybrid)."""
    NONE = enum.auto()
    """The engine accepts a restore and prefills all the same: keep slots warm by replay instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What an engine says of itself; constant while it runs."""

    engine: str
    """Our name of it."""
    model: str
    """The model name that requests use."""
    signature: Signature
    context_length: int
    """Tokens that one request may have, prompt and answer together."""
    kv_bytes_per_token: int
    slots: int
    """Requests that it computes at the same time."""
    reuse: Reuse
    embeddings: bool
    version: str
    """The engine's kind and version, such as `llama.cpp xllamacpp-2026.10.11549`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A filled prefix that a request starts with."""

    tokens: Sequence[int]
    """Token ids of the part that is in the store, from the front."""
    salt: bytes
    """Isolates tenants; part of every block key."""
    stamp: float = 0.0
    """When it was stored, in Unix seconds: what was loaded of it under another stamp may have been wrong since."""
    earlier: tuple[float, ...] = ()
    """Stamps of shorter prefixes that this one goes on from, and that are as good."""
    adapter: str = ""
    """The LoRA adapter that it is computed under; see `Call`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One OpenAI request, ready for an engine."""

    path: str
    """`/v1/chat/completions`, `/v1/completions` or another route that the engine has."""
    body: Mapping[str, msgspec.Raw]
    """The JSON object's members, raw; the context's text is already in front."""
    stream: bool
    prefix: Prefix | None = None
    salt: bytes = b""
    """Whose KV may serve this request: 32 bytes, the same as of `prefix` where there is one. Empty: anybody's."""
    reuse: bool = True
    """False forces the engine to compute the whole prompt anew, whatever it holds."""
    affinity: bytes = b""
    """The prompt's first bytes as text, to find the slot whose content it shares most with."""
    said: tuple[str, ...] = ()
    """Of a chat: a digest of its first message, of the first two, and so on; empty where nobody cares."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers to forward (`traceparent`, `x-request-id`)."""
    adapter: str = ""
    """Name of the LoRA adapter to answer with, one of those that the engine was made with; empty for none. Set by
    `engines.adapted` alone, the same as of `prefix`.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token counts of one request, as the engine reported them; None is «not said»."""

    prompt: int | None = None
    reused: int | None = None
    output: int | None = None
    drafted: int | None = None
    """Guessed ahead (speculative decoding)."""
    accepted: int | None = None
    """Of those, the ones that the model agreed with; they are part of `output`."""
    compute_s: float | None = None
    """Seconds that the engine worked on the request, its waiting lines left out; other requests may have shared them.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """Whether a stored prefix is loaded or computed again, and what either was expected to take."""

    load: bool
    restore_s: float | None
    """Seconds that loading takes; None while that is unknown."""
    recompute_s: float | None
    """Seconds that computing takes; None while that is unknown."""


class Reply(Protocol):
    """An engine's answer under way. Its status and headers are there; its body is still to come."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def content_type(self) -> str:
        """Media type of the body."""

    @property
    def restore_s(self) -> float:
        """Seconds spent on loading the prefix before the engine was asked; 0 if it was there."""

    @property
    def weighed(self) -> Weighed | None:
        """How it was decided to load the prefix or not; None where there was nothing to decide, or somebody else does,
        as a vLLM server does itself.
        """

    @property
    def queued_s(self) -> float:
        """Seconds spent waiting for a slot."""

    @property
    def loaded_tokens(self) -> int:
        """Tokens of the prefix that the engine now holds for this request, restored or still there: the promise."""

    @property
    def tokens(self) -> Tokens:
        """What is known by now; `reused` comes early where the engine says it early, the rest at the end."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body, in pieces as they come, unchanged. For a stream: whole server-sent events. An error is in OpenAI's
        shape, and its status tells whose fault it is.

        Raises EngineUnavailable when the engine dies midway, EngineTimeout when it falls silent.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one step of a fill did."""

    reached: int
    """Tokens of the prefix whose KV the engine holds now, from the front."""
    computed: int
    """Tokens that this step computed."""
    seconds: float
    """Engine time that it took, pauses not counted."""


class Way(enum.StrEnum):
    """Where the KV of a sampled prefix comes from."""

    STORED = "stored"
    """Loaded from the store, past whatever the engine holds."""
    OWN = "own"
    """Computed by the engine before, in one piece: a hit of its own prefix cache."""
    AGAIN = "again"
    """As `OWN`, computed another time in two pieces: a machine may round otherwise then."""
    COLD = "cold"
    """Computed with what follows it, past all caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A greedy continuation."""

    tokens: tuple[int, ...]
    tops: tuple[Mapping[int, float], ...]
    """Log-probabilities of the likeliest tokens at each place, the one taken among them."""
    reused: int
    """Tokens of the prompt that were not computed; with `Way.STORED`, those that came from the store."""
    computed: int = 0
    """Tokens that were computed for it, those of the prefix before it and of the continuation too."""


class Sampler(Protocol):
    """Asks an engine for continuations of one prefix. One task at a time uses it."""

    async def sample(self, tail: Sequence[int], way: Way, *, max_tokens: int) -> Sampled:
        """Continue the prefix and `tail`, at least one token and a few at most. Cancelling stops it within a batch."""


class PrefixFill(Protocol):
    """The fill of one prefix under way on one engine. One task at a time uses it."""

    async def resume(self) -> int:
        """Load what the store has of the prefix; the number of tokens that need not be computed."""

    async def discard(self) -> None:
        """Drop what the store and this engine have of the prefix: it is not what the engine would compute.

        Raises KvError when a tier could not be asked.
        """

    async def extend(self, upto: int) -> Slice:
        """Compute the KV of the first `upto` tokens. Cancelling stops it within one batch and keeps what is done."""

    async def keep(self) -> int:
        """Store all that is computed; the number of tokens in the store, from the front. Survives kill -9 after it.

        What cannot be stored (disk full) raises KvError; the engine keeps what it has.
        """

    async def prove(self) -> int:
        """Forget the engine's copy, load the prefix from the store, and ask: the tokens that the engine reused."""


class Engine(Protocol):
    """One running inference server. Methods are coroutine-safe.

    Raises EngineUnavailable, EngineTimeout, EngineRefused.
    """

    async def describe(self) -> Description:
        """What it runs; waits for the engine to be up (bounded by its start time-out)."""

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        """Token ids that every request with this context in front starts with, whatever follows.

        Found by difference: the longest common prefix of several renderings with unlike continuations.
        """

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, as a completion's prompt would be."""

    def open(self, call: Call) -> AbstractAsyncContextManager[Reply]:
        """Answer a request. Leaving the context early aborts it on the engine.

        Raises QueueFull when its waiting line is full, EngineRefused never: an error status is a Reply.
        """

    def near(self, prefix: Prefix) -> int | None:
        """How near the KV of `prefix` is, by what is known at once: 0 in the engine itself, 1 in memory that it
        loads from, 2 in a slower tier, if it is stored at all. None: it does not tell. Only of one that was described.
        """

    def fill(self, prefix: Prefix) -> AbstractAsyncContextManager[PrefixFill]:
        """Begin to fill `prefix.tokens`. One fill at a time per engine; leaving the context frees the engine's copy."""

    def sampler(self, prefix: Prefix) -> AbstractAsyncContextManager[Sampler]:
        """Begin to compare KV of `prefix` from several origins. Not while a fill is under way on the engine."""

    def freeze(self) -> None:
        """Take the processor away from background work at once, without losing anything. Idempotent; a no-op where the
        engine cannot.
        """

    def thaw(self) -> None:
        """The inverse of `freeze`. Idempotent."""

    @property
    def freezes(self) -> bool:
        """Whether `freeze` does something."""

    async def healthy(self) -> bool:
        """Whether it answers now. Never raises."""

    async def aclose(self) -> None:
        """Stop what we started. Idempotent."""

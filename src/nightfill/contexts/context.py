"""The records of what is long-lived: contexts, their versions, and the fills of a version."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal, NewType

import msgspec

ContextName = NewType("ContextName", str)
"""`[a-z0-9][a-z0-9._-]{0,63}`, unique within a tenant."""
Tenant = NewType("Tenant", str)
Fingerprint = NewType("Fingerprint", str)
"""SHA-256 of a content, 64 hex digits."""
Signature = NewType("Signature", str)
"""SHA-256 of everything that must match for KV to be reusable, 64 hex digits; see `engines.signature`."""

DEFAULT_TENANT: Final = Tenant("default")
NAME_PATTERN: Final = r"[a-z0-9][a-z0-9._-]{0,63}"


class Text(msgspec.Struct, frozen=True, tag="text"):
    """Plain text, put in front of a prompt byte for byte."""

    text: str


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One chat message of a context."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class Messages(msgspec.Struct, frozen=True, tag="messages", omit_defaults=True):
    """A list of chat messages, put in front of a request's own."""

    messages: tuple[Message, ...]
    behind: Fingerprint | None = None
    """These go on from that version of a context, whose text is not stored again: `chats.whole` puts it in front."""


Content = Text | Messages


class TextSource(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    """Given once as text; never changes by itself."""


class Chat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the messages of a chat under way come from."""

    context: str = ""
    """Name of the context that it is about; empty for none."""
    version: str = ""
    """Of that context. The chat goes with it."""
    before: tuple[str, ...] = ()
    """Fingerprints of the same chat as it was after earlier replies, the newest first."""


class MessagesSource(msgspec.Struct, frozen=True, tag="messages", forbid_unknown_fields=True, omit_defaults=True):
    """Given once as messages; never changes by itself."""

    chat: Chat | None = None
    """They are a chat's, kept to be filled for its next turn; nobody gave them a name."""


class FilesSource(msgspec.Struct, frozen=True, tag="files", forbid_unknown_fields=True):
    """Single files, in the order given. Paths are absolute."""

    paths: tuple[str, ...]


class FolderSource(msgspec.Struct, frozen=True, tag="folder", forbid_unknown_fields=True):
    """A folder; ignored and binary files are left out. `path` is absolute, `include` glob patterns (empty: all)."""

    path: str
    include: tuple[str, ...] = ()


class GitSource(msgspec.Struct, frozen=True, tag="git", forbid_unknown_fields=True):
    """The tree of a git revision, below `subdir`."""

    repository: str
    revision: str = "HEAD"
    subdir: str = ""


Source = TextSource | MessagesSource | FilesSource | FolderSource | GitSource


class Form(enum.StrEnum):
    """How a context meets the engine; each form has tokens, and so fills, of its own."""

    CHAT = "chat"
    """In front of the messages of `/v1/chat/completions`, through the model's chat template."""
    COMPLETION = "completion"
    """In front of the prompt string of `/v1/completions`."""


class FillState(enum.StrEnum):
    """`absent -> filling -> ready -> stale | evicted`; what is not in the book is absent."""

    FILLING = "filling"
    READY = "ready"
    STALE = "stale"
    """A promise was broken, or its bytes do not verify; it will be filled again."""
    EVICTED = "evicted"
    """Its bytes were dropped to make room, or by their time to live."""


class ContextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What is done for a context beyond filling it; None follows the settings."""

    answers: Literal["off", "shadow", "exact", "near"] | None = None
    """Whether stored answers serve: not at all; not, but it is measured what they would have done; to equal requests;
    to near ones too.
    """
    foresee: bool | None = None
    """Prepare answers to questions that are likely to come."""
    distil: bool | None = None
    """Make a distilled version."""
    history: bool | None = None
    """Fill what the next turn of a chat will begin with."""


DEFAULT_OPTIONS: Final = ContextOptions()
"""Everything as the settings say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A named, long-lived content that many queries share."""

    tenant: Tenant
    name: ContextName
    source: Source
    forms: tuple[Form, ...]
    pinned: bool
    ttl_s: float | None
    """Seconds after its last use until its KV may go; None for the store's default."""
    current: Fingerprint
    content_bytes: int
    created_at_s: float
    updated_at_s: float
    checked_at_s: float
    """When the source was last compared with the current version. Unix seconds."""
    user: str = ""
    """Whose it is within the tenant, and whose budget pays for its fills; empty for nobody's."""
    options: ContextOptions = DEFAULT_OPTIONS
    distilled: Fingerprint | None = None
    """The distilled version of `current`, once there is one: a content of its own, with fills of its own."""

    @property
    def versions(self) -> tuple[Fingerprint, ...]:
        """The texts that it has now: its own, and the distilled one if there is one."""
        return (self.current,) if self.distilled is None else (self.current, self.distilled)

    @property
    def chat(self) -> Chat | None:
        """Set for a chat under way, which is not shown among contexts unless asked for."""
        return self.source.chat if isinstance(self.source, MessagesSource) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FillKey:
    """What a fill is of: one version's content, in one form, under one signature, for one tenant."""

    tenant: Tenant
    fingerprint: Fingerprint
    form: Form
    signature: Signature

    def __str__(self) -> str:
        return f"{self.tenant}/{self.fingerprint}/{self.form}/{self.signature}"

    @classmethod
    def parse(cls, text: str) -> FillKey:
        """The inverse of `str`. Raises ValueError."""
        tenant, fingerprint, form, signature = text.split("/")
        return cls(
            tenant=Tenant(tenant), fingerprint=Fingerprint(fingerprint), form=Form(form), signature=Signature(signature)
        )


DRIFTED: Final = "drifted"
"""How the reason of a fill begins whose KV was found to be wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """The KV of one version under one signature, as the book has it. `ready` is a claim; each request proves it."""

    key: FillKey
    state: FillState
    tokens: tuple[int, ...]
    """Token ids of the whole prefix, as the engine's own tokenizer gave them."""
    stored_tokens: int
    """How many of them are in the store, from the front."""
    filled_at_s: float
    """When `stored_tokens` last grew. Unix seconds."""
    fill_seconds: float
    """Engine seconds spent so far on computing what is stored."""
    reason: str = ""
    """Why it is stale or evicted."""

    @property
    def total_tokens(self) -> int:
        """How many it has."""
        return len(self.tokens)

    @property
    def drifted(self) -> bool:
        """In quarantine: what is stored of it is wrong, and must neither be used nor be continued."""
        return self.state is FillState.STALE and self.reason.startswith(DRIFTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A fill without its tokens: all that planning needs, and cheap where there are many."""

    key: FillKey
    state: FillState
    total_tokens: int
    stored_tokens: int
    filled_at_s: float
    fill_seconds: float
    reason: str = ""

    @property
    def drifted(self) -> bool:
        """As of a `Fill`."""
        return self.state is FillState.STALE and self.reason.startswith(DRIFTED)

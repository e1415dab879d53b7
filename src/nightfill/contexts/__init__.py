"""What is long-lived: the records of contexts, how they are named, read, put in front of a request and recognised."""

from nightfill.contexts.context import (
    DEFAULT_TENANT,
    Content,
    Context,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Fingerprint,
    Form,
    Message,
    Messages,
    Signature,
    Source,
    Tenant,
    Text,
)
from nightfill.contexts.fingerprint import (
    content_bytes,
    decode_messages,
    fingerprint_of,
    messages_content,
    normalise,
    text_content,
)
from nightfill.contexts.names import parse_name, parse_tenant, parse_user
from nightfill.contexts.placement import Front, place_chat, place_completion
from nightfill.contexts.recognise import Entry, Index

__all__ = [
    "DEFAULT_TENANT",
    "Content",
    "Context",
    "ContextName",
    "Entry",
    "Fill",
    "FillKey",
    "FillState",
    "Fingerprint",
    "Form",
    "Front",
    "Index",
    "Message",
    "Messages",
    "Signature",
    "Source",
    "Tenant",
    "Text",
    "content_bytes",
    "decode_messages",
    "fingerprint_of",
    "messages_content",
    "normalise",
    "parse_name",
    "parse_tenant",
    "parse_user",
    "place_chat",
    "place_completion",
    "text_content",
]

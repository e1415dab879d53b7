"""The signature: one digest of everything that must match for KV to be reusable."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from nightfill.contexts.context import Signature

if TYPE_CHECKING:
    from collections.abc import Mapping


def signature_of(parts: Mapping[str, str | int | bool]) -> Signature:
    """SHA-256 over the named parts in canonical JSON (RFC 8785 for these types: sorted keys, no spaces).

    Leaving a part out and giving it another value are different signatures; so is a new name for an old part.
    """
    text = json.dumps(dict(parts), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Signature(hashlib.sha256(b"nightfill.signature.1\0" + text.encode()).hexdigest())


def adapted(signature: Signature, *, digest: str, scale: float = 1.0) -> Signature:
    """Of the same model under a LoRA adapter: `digest` is of the adapter's content, `scale` its weight."""
    return signature_of({"base": signature, "adapter": digest, "scale": f"{scale:.9g}"})

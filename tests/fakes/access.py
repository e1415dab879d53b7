"""Rows of an access log."""

from __future__ import annotations

from typing import Any

from nightfill.contexts.context import DEFAULT_TENANT, Form
from nightfill.state.access import Access


def access(**more: Any) -> Access:
    """A request that was served cold, of 4,000 tokens in two seconds, but for what is said otherwise."""
    found: dict[str, Any] = {
        "at_s": 0.0,
        "tenant": DEFAULT_TENANT,
        "context": None,
        "fingerprint": None,
        "form": Form.CHAT,
        "model": "m",
        "layer": "cold",
        "prompt_tokens": 4000,
        "promised_tokens": 0,
        "reused_tokens": 0,
        "output_tokens": 1,
        "ttft_s": 2.0,
        "total_s": 2.5,
        "restore_s": 0.0,
        "status": 200,
        **more,
    }
    return Access(**found)

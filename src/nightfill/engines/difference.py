"""The tokens that all requests with a context share, found by difference: renderings with unlike continuations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts import Front

_CHATS: Final[tuple[bytes, ...]] = (
    b'[{"role":"user","content":"a"}]',
    b'[{"role":"user","content":"Zebra? 7"}]',
    b'[{"role":"system","content":"Q: be brief."},{"role":"user","content":"(x)"}]',
    b'[{"role":"system","content":"\\n- 1"},{"role":"user","content":"\\n"}]',
)
_CONTINUATIONS: Final[tuple[bytes, ...]] = (b'"a"', b'" the"', b'"\\n"', b'"\\n\\nQ: 7"', b'"("', b'""')


def unlike_chats(front: Front) -> list[list[msgspec.Raw]]:
    """Message lists that begin with `front` and go on as differently as requests do."""
    return [front.chat(msgspec.json.decode(chat, type=list[msgspec.Raw])) for chat in _CHATS]


def unlike_prompts(front: Front) -> list[str]:
    """Prompts that begin with `front` and go on as differently as requests do."""
    prompts = [front.completion(msgspec.Raw(continuation)) for continuation in _CONTINUATIONS]
    return [msgspec.json.decode(prompt, type=str) for prompt in prompts]


def common_prefix(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest common prefix of all rows; what min and max agree on, all between them agree on."""
    low, high = min(rows), max(rows)
    for n, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return low[:n]
    return low

"""How texts are sealed before they are written into the shared state."""

from __future__ import annotations

from typing import Protocol


class TextSeal(Protocol):
    """Encrypts and authenticates small pieces of bytes. Safe to call from several threads."""

    def seal(self, plain: bytes) -> bytes:
        """The sealed form of `plain`."""

    def open(self, sealed: bytes) -> bytes:
        """The inverse of `seal`. Raises ValueError or a NightfillError when the bytes or the key are not ours."""


class RenewableSeal(TextSeal, Protocol):
    """A seal whose key may have been changed."""

    def current(self, sealed: bytes) -> bool:
        """Whether `sealed` is under the key that `seal` uses now."""


class NoSeal:
    """Leaves bytes as they are."""

    def seal(self, plain: bytes) -> bytes:
        """`plain`."""
        return plain

    def open(self, sealed: bytes) -> bytes:
        """`sealed`."""
        return sealed

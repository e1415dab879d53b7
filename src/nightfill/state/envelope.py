"""How texts and token lists lie in the state: sealed, checksummed and bound to their owner."""

from __future__ import annotations

import hashlib
import logging
import sys
from array import array
from typing import TYPE_CHECKING, Final

from nightfill.errors import NightfillError, StateUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.state.seal import RenewableSeal, TextSeal

_LOG: Final = logging.getLogger(__name__)
_TOLD: Final = 4096


class Envelopes:
    """What one book seals and opens. Safe to call from several threads."""

    def __init__(self, seal: TextSeal) -> None:
        self._seal = seal
        self._told: set[str] = set()

    def wrap(self, owner: str, plain: bytes) -> bytes:
        """Seal `plain` for the row named `owner`."""
        return wrap(self._seal, owner, plain)

    def unwrap(self, owner: str, sealed: bytes) -> bytes:
        """The inverse of `wrap`. Raises StateUnavailable when bytes, key or row differ from those of the sealing."""
        return unwrap(self._seal, owner, sealed)

    def opened(self, owner: str, sealed: bytes) -> bytes | None:
        """As `unwrap`, but None, and a warning, when it cannot be opened."""
        try:
            return self.unwrap(owner, sealed)
        except StateUnavailable as exc:
            # Once each: whoever asks for it comes by often.
            if owner not in self._told and len(self._told) < _TOLD:
                self._told.add(owner)
                _LOG.warning("%s", exc)
            return None


def wrap(seal: TextSeal, owner: str, plain: bytes) -> bytes:
    """Seal `plain` for the row named `owner`."""
    return seal.seal(_digest(owner, plain) + plain)


def unwrap(seal: TextSeal, owner: str, sealed: bytes) -> bytes:
    """The inverse of `wrap`. Raises StateUnavailable when bytes, key or row differ from those of the sealing."""
    try:
        opened = seal.open(sealed)
    except (NightfillError, ValueError) as exc:
        raise StateUnavailable(f"the text of {owner} cannot be opened: damaged, or sealed with another key") from exc
    if opened[:32] != _digest(owner, opened[32:]):
        raise StateUnavailable(f"the text of {owner} is damaged, or sealed with another key")
    return opened[32:]


def renewed(seal: RenewableSeal, owner: str, sealed: bytes) -> bytes | None:
    """Sealed anew; None when it is under the current key already, or cannot be opened."""
    if seal.current(sealed):
        return None
    try:
        return wrap(seal, owner, unwrap(seal, owner, sealed))
    except StateUnavailable:
        return None


def question_owner(tenant: str, key: bytes, scope: bytes) -> str:
    """The name of a stored answer's question: bound to its scope, so that no row can be moved to another."""
    return f"{tenant}/{key.hex()}/{scope.hex()}"


def body_owner(tenant: str, key: bytes) -> str:
    """The name of a stored answer's body."""
    return f"{tenant}/{key.hex()}"


def note_owner(tenant: str, context: str) -> str:
    """The name of the questions that were asked of a context."""
    return f"{tenant}/{context}/asked"


def pack(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian u32."""
    return _swapped(array("I", tokens)).tobytes()


def unpack(packed: bytes) -> tuple[int, ...]:
    """The inverse of `pack`."""
    numbers = array("I")
    numbers.frombytes(packed)
    return tuple(_swapped(numbers))


def _swapped(numbers: array[int]) -> array[int]:
    assert numbers.itemsize == 4
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _digest(owner: str, plain: bytes) -> bytes:
    return hashlib.sha256(owner.encode() + b"\0" + plain).digest()

"""How texts and token lists lie in the state: sealed, checksummed and bound to their owner."""

from __future__ import annotations

import hashlib
import sys
from array import array
from typing import TYPE_CHECKING

from nightfill.errors import NightfillError, StateUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.state.seal import TextSeal


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

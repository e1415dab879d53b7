"""Seals: what makes a flipped byte, a truncated file or another's block a miss.

Without a key, a block carries an XXH3-128 checksum. With one, it is encrypted by AES-256-GCM under a key derived per
salt (HKDF-SHA256, RFC 5869), with a random 96-bit nonce per block (NIST SP 800-38D: at most 2^32 blocks per salt and
master key), and the tag does the checksum's work. Either covers header, payload and salt.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Final, Protocol

import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nightfill.errors import BadSetting, BlockCorrupt
from nightfill.kv.block import COVERED_BYTES, HEADER_BYTES, Block, Header, SealKind, sealed_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nightfill.kv.block import BlockMeta
    from nightfill.kv.buffer import Buffers
    from nightfill.kv.key import BlockKey

_log = logging.getLogger(__name__)

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAIL_BYTES: Final = 16
"""OpenSSL's wrapper wants so much room behind what it writes."""
_TEXT_MAGIC: Final = b"\0nf.text1"


class Sealer(Protocol):
    """Turns a block into bytes that cannot change unnoticed, and back. Safe to use from any thread."""

    def seal(self, key: BlockKey, meta: BlockMeta, parts: Sequence[memoryview], *, salt: bytes) -> memoryview:
        """Copy `parts`, flat views of bytes, one after the other into a new sealed buffer.

        Raises TierUnavailable when there is no memory for it.
        """

    def open(self, key: BlockKey, sealed: memoryview, *, salt: bytes) -> Block:
        """Verify `sealed` and return what it holds. Its payload may be a view into `sealed`.

        Raises BlockCorrupt unless `sealed` is exactly what `seal` made for this key and salt.
        """


class ChecksumSealer:
    """XXH3-128: finds damage, not malice."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers

    def seal(self, key: BlockKey, meta: BlockMeta, parts: Sequence[memoryview], *, salt: bytes) -> memoryview:
        """See `Sealer`."""
        payload_bytes = sum(len(part) for part in parts)
        header = Header(key=key, meta=meta, payload_bytes=payload_bytes, seal=SealKind.XXH3)
        sealed, _ = _blank(header, self._buffers)
        at = HEADER_BYTES
        for part in parts:
            sealed[at : at + len(part)] = part
            at += len(part)
        sealed[COVERED_BYTES:HEADER_BYTES] = _digest(sealed, payload_bytes, salt)
        return sealed

    def open(self, key: BlockKey, sealed: memoryview, *, salt: bytes) -> Block:
        """See `Sealer`."""
        header = _header(key, sealed, SealKind.XXH3)
        if _digest(sealed, header.payload_bytes, salt) != sealed[COVERED_BYTES:HEADER_BYTES]:
            raise BlockCorrupt("checksum differs")
        return Block(header.meta, sealed[HEADER_BYTES : HEADER_BYTES + header.payload_bytes].toreadonly())


class AesGcmSealer:
    """AES-256-GCM under a key derived from `master`, 32 bytes, and the salt."""

    def __init__(self, master: bytes, buffers: Buffers) -> None:
        assert len(master) == KEY_BYTES
        self._buffers = buffers
        self._key_id = _derive(master, b"", b"nightfill.kv.key-id.1")[:8]
        self._key_of = functools.lru_cache(maxsize=1024)(
            lambda salt: algorithms.AES256(_derive(master, salt, b"nightfill.kv.block.1"))
        )

    def seal(self, key: BlockKey, meta: BlockMeta, parts: Sequence[memoryview], *, salt: bytes) -> memoryview:
        """See `Sealer`."""
        nonce = os.urandom(_NONCE_BYTES)
        header = Header(
            key=key,
            meta=meta,
            payload_bytes=sum(len(part) for part in parts),
            seal=SealKind.AES_GCM,
            key_id=self._key_id,
            nonce=nonce,
        )
        sealed, room = _blank(header, self._buffers)
        encryptor = Cipher(self._key_of(salt), modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(sealed[:COVERED_BYTES])
        at = HEADER_BYTES
        for part in parts:
            at += encryptor.update_into(part, room[at:])
        encryptor.finalize()
        # The wrapper may have scribbled on the padding behind the last part.
        sealed[at:] = bytes(len(sealed) - at)
        sealed[COVERED_BYTES:HEADER_BYTES] = encryptor.tag
        return sealed

    def open(self, key: BlockKey, sealed: memoryview, *, salt: bytes) -> Block:
        """See `Sealer`."""
        header = _header(key, sealed, SealKind.AES_GCM)
        if header.key_id != self._key_id:
            raise BlockCorrupt("sealed under another master key")
        tag = bytes(sealed[COVERED_BYTES:HEADER_BYTES])
        decryptor = Cipher(self._key_of(salt), modes.GCM(header.nonce, tag)).decryptor()
        decryptor.authenticate_additional_data(sealed[:COVERED_BYTES])
        plain = self._buffers.take(header.payload_bytes + _TAIL_BYTES)
        decryptor.update_into(sealed[HEADER_BYTES : HEADER_BYTES + header.payload_bytes], plain)
        try:
            decryptor.finalize()
        except InvalidTag as error:
            raise BlockCorrupt("authentication tag differs") from error
        return Block(header.meta, plain[: header.payload_bytes].toreadonly())


class TextSealer:
    """Seals short texts and token lists for rest in a database; without a key it changes nothing. Thread-safe."""

    def __init__(self, master: bytes | None) -> None:
        self._aead = None if master is None else AESGCM(_derive(master, b"", b"nightfill.text.1"))

    def seal_text(self, data: bytes) -> bytes:
        """`data`, encrypted: 36 bytes longer, and different each time."""
        if self._aead is None:
            return data
        nonce = os.urandom(_NONCE_BYTES)
        return _TEXT_MAGIC + nonce + self._aead.encrypt(nonce, data, _TEXT_MAGIC)

    def open_text(self, sealed: bytes) -> bytes:
        """The inverse of `seal_text`. Raises BlockCorrupt when it was changed, or sealed under another key or none."""
        ours = sealed.startswith(_TEXT_MAGIC)
        if self._aead is None:
            if ours:
                raise BlockCorrupt("text is encrypted, and no key file is set")
            return sealed
        if not ours:
            raise BlockCorrupt("text is not encrypted, though a key file is set")
        nonce, body = sealed[len(_TEXT_MAGIC) :][:_NONCE_BYTES], sealed[len(_TEXT_MAGIC) + _NONCE_BYTES :]
        try:
            return self._aead.decrypt(nonce, body, _TEXT_MAGIC)
        except (InvalidTag, ValueError) as error:
            raise BlockCorrupt("text was changed, or encrypted under another key") from error


def read_master_key(path: Path) -> bytes:
    """The 32 bytes of a key file, which holds them raw or as 64 hex digits. Raises BadSetting."""
    try:
        raw = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise BadSetting(f"kv.key_file: cannot read {path}: {error.strerror}", param="kv.key_file") from error
    if mode & 0o077:
        _log.warning("key file %s can be read by others: chmod 600 it", path)
    if len(raw) == KEY_BYTES:
        return raw
    digits = raw.strip()
    if len(digits) == 2 * KEY_BYTES:
        try:
            return bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            pass
    raise BadSetting(
        f"kv.key_file: {path} holds {len(raw)} bytes; 32 random bytes or 64 hex digits are wanted "
        "(make one: `openssl rand -hex 32`)",
        param="kv.key_file",
    )


def _blank(header: Header, buffers: Buffers) -> tuple[memoryview, memoryview]:
    """A sealed buffer with its header written and its padding zeroed, and the same with room behind it."""
    length = sealed_bytes(header.payload_bytes)
    room = buffers.take(length + _TAIL_BYTES)
    room[:COVERED_BYTES] = header.pack()
    end = HEADER_BYTES + header.payload_bytes
    room[end:length] = bytes(length - end)
    return room[:length], room


def _header(key: BlockKey, sealed: memoryview, seal: SealKind) -> Header:
    header = Header.parse(sealed)
    if header.key != key:
        raise BlockCorrupt("the block stored under this key is another's")
    if header.seal != seal:
        raise BlockCorrupt(f"sealed by {header.seal.name}, where {seal.name} is set")
    return header


def _digest(sealed: memoryview, payload_bytes: int, salt: bytes) -> bytes:
    hasher = xxhash.xxh3_128(salt)
    hasher.update(sealed[:COVERED_BYTES])
    hasher.update(sealed[HEADER_BYTES : HEADER_BYTES + payload_bytes])
    return hasher.digest()


def _derive(master: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(master)

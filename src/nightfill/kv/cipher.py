"""Encryption at rest: AES-256-GCM under keys derived from one key file.

Blocks have a key per salt (HKDF-SHA256, RFC 5869) and a random 96-bit nonce each, which is good for 2^32 blocks per
salt and key file (NIST SP 800-38D, 8.3). The tag also does the checksum's work: it covers header and payload.

A key file is replaced by naming the one before among the old ones: their blocks and texts are opened, and nothing more
is sealed under them.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nightfill.errors import BadSetting, BlockCorrupt, KeyUnknown
from nightfill.kv.block import COVERED_BYTES, HEADER_BYTES, Block, Header, SealKind, key_id_in, owner_of, seal_in
from nightfill.kv.seal import TAIL_BYTES, TEXT_MAGIC, blank, matching_header

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.ciphers import AEADDecryptionContext

    from nightfill.kv.block import BlockMeta
    from nightfill.kv.buffer import Buffers
    from nightfill.kv.key import BlockKey

_log = logging.getLogger(__name__)

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class AesGcmSealer:
    """AES-256-GCM under a key derived from `master`, 32 bytes, and the salt; opens also what `old` ones sealed."""

    encrypts: Final = True

    def __init__(self, master: bytes, buffers: Buffers, *, old: Sequence[bytes] = ()) -> None:
        assert all(len(one) == KEY_BYTES for one in (master, *old))
        self._buffers = buffers
        self._masters = {_key_id(one): one for one in (master, *old)}
        self._key_id = _key_id(master)
        self._key_of = functools.lru_cache(maxsize=1024)(
            lambda key_id, salt: algorithms.AES256(derive(self._masters[key_id], salt, b"nightfill.kv.block.1"))
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
            owner=owner_of(salt),
        )
        sealed, room = blank(header, self._buffers)
        encryptor = Cipher(self._key_of(self._key_id, salt), modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(sealed[:COVERED_BYTES])
        at = HEADER_BYTES
        for part in parts:
            at += encryptor.update_into(part, room[at:])
        encryptor.finalize()
        sealed[COVERED_BYTES:HEADER_BYTES] = encryptor.tag
        return sealed

    def open(self, key: BlockKey, sealed: memoryview, *, salt: bytes) -> Block:
        """See `Sealer`."""
        header, decryptor = self._decryptor(key, sealed, salt)
        plain = self._buffers.take(header.payload_bytes + TAIL_BYTES)
        decryptor.update_into(sealed[HEADER_BYTES : HEADER_BYTES + header.payload_bytes], plain)
        _finish(decryptor)
        return Block(header.meta, plain[: header.payload_bytes].toreadonly())

    def open_into(self, key: BlockKey, sealed: memoryview, out: memoryview, *, salt: bytes) -> BlockMeta | None:
        """See `Sealer`. Decrypts in place: `out` holds what is not verified yet until this returns."""
        header, decryptor = self._decryptor(key, sealed, salt)
        length = header.payload_bytes
        if length != len(out):
            return None
        # All but the end goes where it belongs, since OpenSSL's wrapper wants room behind what it writes.
        split = max(0, length - TAIL_BYTES)
        decryptor.update_into(sealed[HEADER_BYTES : HEADER_BYTES + split], out)
        out[split:] = decryptor.update(sealed[HEADER_BYTES + split : HEADER_BYTES + length])
        _finish(decryptor)
        return header.meta

    def current(self, head: memoryview) -> bool:
        """See `Sealer`."""
        return seal_in(head) == SealKind.AES_GCM and key_id_in(head) == self._key_id

    def _decryptor(self, key: BlockKey, sealed: memoryview, salt: bytes) -> tuple[Header, AEADDecryptionContext]:
        header = matching_header(key, sealed, SealKind.AES_GCM)
        if header.key_id not in self._masters:
            raise KeyUnknown("sealed under another master key")
        tag = bytes(sealed[COVERED_BYTES:HEADER_BYTES])
        decryptor = Cipher(self._key_of(header.key_id, salt), modes.GCM(header.nonce, tag)).decryptor()
        decryptor.authenticate_additional_data(sealed[:COVERED_BYTES])
        return header, decryptor


class EncryptedTexts:
    """A `TextSealer` under a key derived from `master`, 32 bytes; opens also what `old` ones sealed.

    Sealed texts are 36 bytes longer.
    """

    def __init__(self, master: bytes, *, old: Sequence[bytes] = ()) -> None:
        assert all(len(one) == KEY_BYTES for one in (master, *old))
        self._aeads = [AESGCM(derive(one, b"", b"nightfill.text.1")) for one in (master, *old)]

    def seal_text(self, data: bytes) -> bytes:
        """See `TextSealer`. Different each time."""
        nonce = os.urandom(_NONCE_BYTES)
        return TEXT_MAGIC + nonce + self._aeads[0].encrypt(nonce, data, TEXT_MAGIC)

    def current_text(self, sealed: bytes) -> bool:
        """See `TextSealer`."""
        nonce_at = len(TEXT_MAGIC)
        nonce, body = sealed[nonce_at : nonce_at + _NONCE_BYTES], sealed[nonce_at + _NONCE_BYTES :]
        try:
            self._aeads[0].decrypt(nonce, body, TEXT_MAGIC)
        except (InvalidTag, ValueError):
            return False
        return True

    def open_text(self, sealed: bytes) -> bytes:
        """See `TextSealer`."""
        if not sealed.startswith(TEXT_MAGIC):
            raise BlockCorrupt("text is not encrypted, though a key file is set")
        nonce_at = len(TEXT_MAGIC)
        nonce, body = sealed[nonce_at : nonce_at + _NONCE_BYTES], sealed[nonce_at + _NONCE_BYTES :]
        # A text does not name its key; trying a few costs microseconds.
        for aead in self._aeads:
            try:
                return aead.decrypt(nonce, body, TEXT_MAGIC)
            except (InvalidTag, ValueError):
                continue
        raise BlockCorrupt("text was changed, or encrypted under another key")


def read_master_key(path: Path, *, param: str = "kv.key_file") -> bytes:
    """The 32 bytes of a key file, which holds them raw or as 64 hex digits. Raises BadSetting, which names `param`."""
    try:
        raw = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise BadSetting(f"{param}: cannot read {path}: {error.strerror}", param=param) from error
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
        f"{param}: {path} holds {len(raw)} bytes; 32 random bytes or 64 hex digits are wanted "
        "(make one: `openssl rand -hex 32`)",
        param=param,
    )


def derive(master: bytes, salt: bytes, info: bytes) -> bytes:
    """32 bytes for one use of a master key (HKDF-SHA256)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(master)


def _key_id(master: bytes) -> bytes:
    return derive(master, b"", b"nightfill.kv.key-id.1")[:8]


def _finish(decryptor: AEADDecryptionContext) -> None:
    try:
        decryptor.finalize()
    except InvalidTag as error:
        raise BlockCorrupt("authentication tag differs") from error

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from fakes.kv import MASTER, SALT, MakeSample
from nightfill.errors import BadSetting, BlockCorrupt, KeyUnknown
from nightfill.kv.cipher import AesGcmSealer, EncryptedTexts, read_master_key
from nightfill.kv.seal import ChecksumSealer, PlainTexts

if TYPE_CHECKING:
    from pathlib import Path

    from nightfill.kv.buffer import Buffers

OTHER = bytes(reversed(MASTER))


def test_another_master_key_does_not_open(buffers: Buffers, sample: MakeSample) -> None:
    one = sample(1)
    stored = AesGcmSealer(OTHER, buffers).seal(one.key, one.meta, [memoryview(one.payload)], salt=SALT)
    with pytest.raises(KeyUnknown, match="another master key"):
        AesGcmSealer(MASTER, buffers).open(one.key, stored, salt=SALT)
    with pytest.raises(KeyUnknown):
        ChecksumSealer(buffers).open(one.key, stored, salt=SALT)


def test_what_an_old_key_sealed_is_opened_and_known_as_old(buffers: Buffers, sample: MakeSample) -> None:
    one = sample(1)
    stored = AesGcmSealer(OTHER, buffers).seal(one.key, one.meta, [memoryview(one.payload)], salt=SALT)
    sealer = AesGcmSealer(MASTER, buffers, old=[bytes(32), OTHER])
    assert sealer.open(one.key, stored, salt=SALT).payload == one.payload
    assert not sealer.current(stored)
    fresh = sealer.seal(one.key, one.meta, [memoryview(one.payload)], salt=SALT)
    assert sealer.current(fresh)
    assert AesGcmSealer(MASTER, buffers).open(one.key, fresh, salt=SALT).payload == one.payload


def test_texts_under_old_keys_are_opened_and_sealed_under_the_new_one() -> None:
    sealed = EncryptedTexts(OTHER).seal_text(b"text")
    texts = EncryptedTexts(MASTER, old=[bytes(32), OTHER])
    assert texts.open_text(sealed) == b"text"
    assert EncryptedTexts(MASTER).open_text(texts.seal_text(b"text")) == b"text"


def test_the_same_block_is_never_encrypted_alike_twice(buffers: Buffers, sample: MakeSample) -> None:
    one, sealer = sample(1, 64), AesGcmSealer(MASTER, buffers)
    first, second = (bytes(sealer.seal(one.key, one.meta, [memoryview(one.payload)], salt=SALT)) for _ in range(2))
    assert first[112:124] != second[112:124]
    assert first[4096:4160] != second[4096:4160]


def test_no_plain_byte_of_the_payload_is_stored(buffers: Buffers, sample: MakeSample) -> None:
    one = sample(1, 8192)
    stored = bytes(AesGcmSealer(MASTER, buffers).seal(one.key, one.meta, [memoryview(one.payload)], salt=SALT))
    assert one.payload[:32] not in stored


def test_each_salt_has_a_key_of_its_own(buffers: Buffers, sample: MakeSample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", bytes)
    one, sealer = sample(1, 64), AesGcmSealer(MASTER, buffers)
    first, second = (
        bytes(sealer.seal(one.key, one.meta, [memoryview(one.payload)], salt=salt)) for salt in (b"a", b"b")
    )
    owner = slice(124, 132)
    assert first[: owner.start] + first[owner.stop : 4080] == second[: owner.start] + second[owner.stop : 4080]
    assert first[4096:4160] != second[4096:4160]


@pytest.mark.parametrize("text", [b"", b"x", b"a longer text" * 100])
def test_texts_come_back(text: bytes) -> None:
    texts = EncryptedTexts(MASTER)
    sealed = texts.seal_text(text)
    assert len(sealed) == len(text) + 36
    assert texts.open_text(sealed) == text
    assert texts.seal_text(text) != sealed


@pytest.mark.parametrize("at", [0, 7, 8, 19, 20, -1])
def test_a_changed_text_is_corrupt(at: int) -> None:
    texts = EncryptedTexts(MASTER)
    sealed = bytearray(texts.seal_text(b"some text"))
    sealed[at] ^= 1
    with pytest.raises(BlockCorrupt):
        texts.open_text(bytes(sealed))


@pytest.mark.parametrize("length", [0, 7, 8, 19, 20, 30, 44])
def test_a_truncated_text_is_corrupt(length: int) -> None:
    texts = EncryptedTexts(MASTER)
    with pytest.raises(BlockCorrupt):
        texts.open_text(texts.seal_text(b"some text")[:length])


def test_texts_of_another_key_or_none_are_corrupt_not_garbage() -> None:
    sealed = EncryptedTexts(MASTER).seal_text(b"text")
    with pytest.raises(BlockCorrupt, match="another key"):
        EncryptedTexts(OTHER).open_text(sealed)
    with pytest.raises(BlockCorrupt, match="no key file"):
        PlainTexts().open_text(sealed)
    with pytest.raises(BlockCorrupt, match="not encrypted"):
        EncryptedTexts(MASTER).open_text(b"text")


@pytest.mark.parametrize("content", [MASTER, MASTER.hex().encode(), b" " + MASTER.hex().upper().encode() + b"\n"])
def test_a_key_file_holds_bytes_or_digits(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    assert read_master_key(path) == MASTER


@pytest.mark.parametrize("content", [b"", b"short", bytes(33), b"zz" * 32, MASTER.hex().encode()[:63]])
def test_any_other_key_file_is_a_bad_setting(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(BadSetting, match=f"holds {len(content)} bytes") as caught:
        read_master_key(path)
    assert caught.value.param == "kv.key_file"
    assert content == b"" or repr(content) not in str(caught.value)


def test_a_missing_key_file_is_a_bad_setting(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="cannot read"):
        read_master_key(tmp_path / "none")


def test_a_key_file_open_to_others_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "key"
    path.write_bytes(MASTER)
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_master_key(path)
    assert "chmod 600" in caplog.text

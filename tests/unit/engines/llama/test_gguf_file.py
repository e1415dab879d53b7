from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightfill.engines.llama import gguf_file
from nightfill.engines.llama.gguf_file import adapted_architecture, read_head, weights_digest
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedReader
    from pathlib import Path

Pair = tuple[str, int, bytes]


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def text(key: str, value: str) -> Pair:
    return key, 8, string(value)


def u32(key: str, value: int) -> Pair:
    return key, 4, struct.pack("<I", value)


def strings(key: str, values: Sequence[str]) -> Pair:
    return key, 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(string, values))


def floats(key: str, count: int) -> Pair:
    return key, 9, struct.pack("<IQ", 6, count) + bytes(4 * count)


USUAL: list[Pair] = [
    text("general.architecture", "qwen3"),
    text("general.name", "A model"),
    u32("qwen3.context_length", 40_960),
    u32("qwen3.block_count", 36),
    u32("qwen3.embedding_length", 2560),
    u32("qwen3.attention.head_count_kv", 8),
    strings("tokenizer.ggml.tokens", ["a", "bc", ""]),
    floats("tokenizer.ggml.scores", 3),
    text("tokenizer.chat_template", "{{ messages }}"),
    ("general.quantized", 7, b"\1"),
]


def gguf(
    pairs: Sequence[Pair] = USUAL, *, version: int = 3, magic: bytes = b"GGUF", n_pairs: int | None = None
) -> bytes:
    head = magic + struct.pack("<IQQ", version, 398, len(pairs) if n_pairs is None else n_pairs)
    return head + b"".join(string(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)


def test_the_head_says_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf() + b"tensors")
    head = read_head(path)
    assert (head.architecture, head.name, head.version) == ("qwen3", "A model", 3)
    assert (head.context_length, head.block_count, head.embedding_length, head.head_count_kv) == (40_960, 36, 2560, 8)
    assert (head.vocabulary, head.chat_template, head.sliding_window, head.tensors) == (3, True, 0, 398)
    assert head.file_bytes == len(gguf()) + 7


def test_what_the_file_does_not_say_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([text("general.architecture", "mamba"), u32("qwen3.context_length", 7)]))
    head = read_head(path)
    assert (head.name, head.context_length, head.vocabulary, head.chat_template) == ("", 0, 0, False)


def test_a_window_is_told_and_a_value_per_layer_is_not_a_number(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    per_layer = ("gemma3.attention.head_count_kv", 9, struct.pack("<IQ2I", 4, 2, 8, 4))
    path.write_bytes(
        gguf([text("general.architecture", "gemma3"), u32("gemma3.attention.sliding_window", 512), per_layer])
    )
    head = read_head(path)
    assert (head.sliding_window, head.head_count_kv) == (512, 0)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "too short"),
        (b"PK\3\4" + bytes(100), "wrong magic"),
        (gguf(version=1), "version 1; supported are 2 and 3"),
        (gguf(version=3 << 24), "big-endian"),
        (gguf(n_pairs=1 << 60), "metadata entries"),
        (gguf([u32("general.alignment", 32)]), "no architecture"),
        (gguf([("a", 13, b"")]), "unknown type 13"),
        (gguf([("a", 9, struct.pack("<IQ", 9, 1))]), "array of the unknown type 9"),
        (gguf([("a", 9, struct.pack("<IQ", 8, 1 << 62))]), "truncated"),
        (gguf([("a", 9, struct.pack("<IQ", 10, 1 << 63))]), "truncated"),
        (gguf([("a", 8, struct.pack("<Q", (1 << 64) - 1))]), "truncated"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_path_and_reason(raw: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(BadSetting, match=reason) as caught:
        read_head(path)
    assert str(path) in str(caught.value)
    assert caught.value.param == "model"


def test_every_truncation_of_the_head_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    whole = gguf()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadSetting):
            read_head(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_read_but_raises_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(gguf())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(raw)
    try:
        head = read_head(path)
    except BadSetting:
        return
    assert head.context_length >= 0


def test_no_file_and_no_regular_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no such file"):
        read_head(tmp_path / "none.gguf")
    with pytest.raises(BadSetting, match="not a file"):
        read_head(tmp_path)
    with pytest.raises(BadSetting, match="No such file"):
        weights_digest(tmp_path / "none.gguf", tmp_path)


def test_a_large_vocabulary_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([strings("tokenizer.ggml.tokens", ["token"] * 150_000), *USUAL[:3]]))
    assert read_head(path).vocabulary == 150_000
    assert read_head(path).architecture == "qwen3"


class Hashes:
    """Counts how often a file is really read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = hashlib.file_digest

        def counted(file: BufferedReader, digest: str) -> object:
            self.count += 1
            return real(file, digest)

        monkeypatch.setattr(hashlib, "file_digest", counted)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Hashes:
    return Hashes(monkeypatch)


def test_a_digest_is_the_files_sha_256_and_is_computed_once(tmp_path: Path, hashes: Hashes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    cache = tmp_path / "cache" / "models"
    assert [weights_digest(path, cache) for _ in range(3)] == [expected] * 3
    assert hashes.count == 1


def test_a_link_to_a_model_is_the_same_model(tmp_path: Path, hashes: Hashes) -> None:
    path, link = tmp_path / "model.gguf", tmp_path / "link.gguf"
    path.write_bytes(b"weights")
    link.symlink_to(path)
    assert weights_digest(path, tmp_path / "cache") == weights_digest(link, tmp_path / "cache")
    assert hashes.count == 1


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    path, cache = tmp_path / "model.gguf", tmp_path / "cache"
    path.write_bytes(b"weights")
    first = weights_digest(path, cache)
    path.write_bytes(b"changed")  # the same size
    os.utime(path, ns=(1, 1))
    assert weights_digest(path, cache) == hashlib.sha256(b"changed").hexdigest() != first


def test_another_file_of_equal_size_and_time_put_in_its_place_is_hashed_again(tmp_path: Path) -> None:
    path, other, cache = tmp_path / "model.gguf", tmp_path / "other", tmp_path / "cache"
    path.write_bytes(b"weights")
    other.write_bytes(b"another")
    for file in (path, other):
        os.utime(file, ns=(1, 1))
    weights_digest(path, cache)
    other.replace(path)
    assert weights_digest(path, cache) == hashlib.sha256(b"another").hexdigest()


@pytest.mark.parametrize("note", [b"", b"{", b'{"path": 1}', b"\xff", b"[]"])
def test_a_damaged_note_is_ignored(note: bytes, tmp_path: Path) -> None:
    path, cache = tmp_path / "model.gguf", tmp_path / "cache"
    path.write_bytes(b"weights")
    digest = weights_digest(path, cache)
    (written,) = cache.iterdir()
    written.write_bytes(note)
    assert weights_digest(path, cache) == digest


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    assert weights_digest(path, tmp_path / "cache") == hashlib.sha256(b"weights").hexdigest()


def test_a_split_models_digest_is_that_of_all_parts(tmp_path: Path) -> None:
    parts = [tmp_path / f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts:
        part.write_bytes(gguf() if part is parts[0] else part.name.encode())
    before = weights_digest(parts[0], tmp_path / "cache")
    assert gguf_file.parts_of(parts[0]) == tuple(parts)
    assert read_head(parts[0]).file_bytes == sum(part.stat().st_size for part in parts)
    parts[2].write_bytes(b"other weights")
    assert weights_digest(parts[0], tmp_path / "cache") != before


def test_a_split_model_with_a_part_missing_or_named_by_a_later_part_is_refused(tmp_path: Path) -> None:
    first, second = (tmp_path / f"big-0000{n}-of-00002.gguf" for n in (1, 2))
    first.write_bytes(gguf())
    with pytest.raises(BadSetting, match=r"big-00002-of-00002\.gguf is missing"):
        read_head(first)
    second.write_bytes(b"x")
    with pytest.raises(BadSetting, match="name the first"):
        weights_digest(second, tmp_path)


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([text("general.architecture", "qwen3")], "is no LoRA adapter"),
        (
            [text("general.type", "adapter"), text("adapter.type", "control"), text("general.architecture", "x")],
            "is no",
        ),
    ],
)
def test_what_is_no_adapter_is_told(tmp_path: Path, pairs: list[Pair], says: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf(pairs))
    with pytest.raises(BadSetting, match=says):
        adapted_architecture(path)
    with pytest.raises(BadSetting, match="no such file"):
        adapted_architecture(tmp_path / "nowhere")


def test_an_adapter_says_what_models_it_is_for(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    told = [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", "qwen3")]
    path.write_bytes(gguf([text(key, value) for key, value in told]))
    assert adapted_architecture(path) == "qwen3"

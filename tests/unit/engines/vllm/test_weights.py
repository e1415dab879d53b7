from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from nightfill.engines.vllm.weights import digest_of, model_files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-00001.safetensors").write_bytes(b"a" * 10_000)
    (folder / "model-00002.safetensors").write_bytes(b"b" * 10_000)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("not part of it")
    (folder / "tokenizer.json").write_text("nor is this: keys are made of token ids")
    return folder


def test_weights_and_settings_count_and_nothing_else(model: Path) -> None:
    assert [path.name for path in model_files(model)] == [
        "config.json",
        "model-00001.safetensors",
        "model-00002.safetensors",
    ]


def test_the_digest_is_of_content_wherever_it_lies(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(model, copy)
    assert digest_of(model_files(model)) == digest_of(model_files(copy))


@pytest.mark.parametrize("name", ["config.json", "model-00002.safetensors"])
def test_one_changed_byte_is_another_digest(model: Path, name: str) -> None:
    before = digest_of(model_files(model))
    changed = bytearray((model / name).read_bytes())
    changed[-1] ^= 1
    (model / name).write_bytes(changed)
    assert digest_of(model_files(model)) != before


def test_swapped_files_are_another_digest(model: Path) -> None:
    before = digest_of(model_files(model))
    one, two = model / "model-00001.safetensors", model / "model-00002.safetensors"
    one.rename(model / "x")
    two.rename(one)
    (model / "x").rename(two)
    assert digest_of(model_files(model)) != before


def test_files_are_read_once_and_again_when_they_changed(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "weights.json"
    first = digest_of(model_files(model), cache=cache)
    assert cache.stat().st_mode & 0o777 == 0o600
    assert digest_of(model_files(model), cache=cache) == first == digest_of(model_files(model))
    weights = model / "model-00001.safetensors"
    before = weights.stat()
    weights.write_bytes(b"c" * 10_000)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of change stays behind
    assert digest_of(model_files(model), cache=cache) == digest_of(model_files(model)) != first


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_cache_costs_time_only(model: Path, tmp_path: Path, damage: bytes) -> None:
    cache = tmp_path / "weights.json"
    cache.write_bytes(damage)
    assert digest_of(model_files(model), cache=cache) == digest_of(model_files(model))


def test_files_of_a_hub_cache_are_named_by_their_digest_and_not_read(tmp_path: Path) -> None:
    content = b"w" * 100
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(content)
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    before = digest_of(model_files(snapshot))
    blob.write_bytes(b"other bytes under a name that says what they were")
    assert digest_of(model_files(snapshot)) == before

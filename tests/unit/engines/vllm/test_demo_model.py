from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from nightfill.engines.llama import demo_vocabulary
from nightfill.engines.vllm import demo_model
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    demo_model.make(folder, size="tiny", seed=1)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def document(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def header_of(folder: Path) -> tuple[dict[str, Any], int]:
    """The header without its metadata, and where values begin."""
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    return header, 8 + length


def values_of(folder: Path, name: str) -> NDArray[np.float32]:
    header, start = header_of(folder)
    begin, end = header[name]["data_offsets"]
    raw = (folder / "model.safetensors").read_bytes()[start + begin : start + end]
    wide = np.frombuffer(raw, dtype="<u2").astype("<u4") << 16
    return wide.view("<f4").reshape(header[name]["shape"])


def test_the_same_seed_gives_the_same_files_and_another_other_weights_only(tiny: Path, tmp_path: Path) -> None:
    demo_model.make(tmp_path / "new" / "same", size="tiny", seed=1)
    demo_model.make(tmp_path / "other", size="tiny", seed=2)
    assert digests(tmp_path / "new" / "same") == digests(tiny)
    other = digests(tmp_path / "other")
    assert {name for name in other if other[name] != digests(tiny)[name]} == {"model.safetensors"}


def test_tensors_follow_each_other_without_gaps_to_the_end_of_the_file(tiny: Path) -> None:
    header, start = header_of(tiny)
    assert start % 8 == 0
    end = 0
    for entry in header.values():
        assert entry["dtype"] == "BF16"
        assert entry["data_offsets"] == [end, end + 2 * math.prod(entry["shape"])]
        end = entry["data_offsets"][1]
    assert (tiny / "model.safetensors").stat().st_size == start + end


def test_tensors_have_the_shapes_that_the_config_says(tiny: Path) -> None:
    config, (header, _) = document(tiny, "config.json"), header_of(tiny)
    vocabulary, hidden, width = config["vocab_size"], config["hidden_size"], config["head_dim"]
    assert vocabulary == len(demo_vocabulary.load().tokens)
    assert header["model.embed_tokens.weight"]["shape"] == [vocabulary, hidden]
    assert header["lm_head.weight"]["shape"] == [vocabulary, hidden]
    assert not config["tie_word_embeddings"]
    last = f"model.layers.{config['num_hidden_layers'] - 1}."
    assert header[last + "self_attn.k_proj.weight"]["shape"] == [config["num_key_value_heads"] * width, hidden]
    assert header[last + "self_attn.o_proj.weight"]["shape"] == [hidden, config["num_attention_heads"] * width]
    assert header[last + "mlp.down_proj.weight"]["shape"] == [hidden, config["intermediate_size"]]
    assert len(header) == 3 + 11 * config["num_hidden_layers"]


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("model.embed_tokens.weight", 1.0),
        ("model.layers.0.self_attn.k_proj.weight", 1 / 16),
        ("model.layers.3.self_attn.o_proj.weight", 2 / 16),
        ("model.layers.3.mlp.down_proj.weight", 2 / 512**0.5),
    ],
)
def test_weights_are_scaled_so_that_wrong_kv_shows(tiny: Path, name: str, deviation: float) -> None:
    values = values_of(tiny, name)
    assert float(values.std()) == pytest.approx(deviation, rel=0.02)
    assert abs(float(values.mean())) < deviation * 0.02


def test_norms_of_queries_and_keys_are_large_and_the_others_one(tiny: Path) -> None:
    assert set(values_of(tiny, "model.layers.0.self_attn.q_norm.weight").tolist()) == {1.6015625}  # 1.6 as bfloat16
    assert set(values_of(tiny, "model.layers.3.input_layernorm.weight").tolist()) == {1.0}


def test_the_head_is_large_where_a_token_may_be_said_and_zero_elsewhere(tiny: Path) -> None:
    vocabulary, head = demo_vocabulary.load(), values_of(tiny, "lm_head.weight")
    silent = [not vocabulary.is_speakable(token) for token in range(len(vocabulary.tokens))]
    assert all(silent[token] for token in vocabulary.special_ids)
    assert (~head.any(axis=1)).tolist() == silent
    assert float(head[~np.array(silent)].std()) == pytest.approx(4 / 16, rel=0.02)


def test_floats_are_rounded_to_the_nearest_bfloat16_and_ties_to_even() -> None:
    given = np.array([1.0, 1.00390625, 1.01171875, 1.00391, -1.00390625, 0.0, 3.0e38], dtype=np.float32)
    wide = demo_model._bfloat16(given).astype("<u4") << 16
    assert wide.view("<f4").tolist() == pytest.approx([1.0, 1.0, 1.015625, 1.0078125, -1.0, 0.0, 3.0e38], rel=1e-2)
    assert wide.view("<f4")[:6].tolist() == [1.0, 1.0, 1.015625, 1.0078125, -1.0, 0.0]


def test_its_tokenizer_has_every_token_once_and_adds_none(tiny: Path) -> None:
    vocabulary, tokenizer = demo_vocabulary.load(), document(tiny, "tokenizer.json")
    ids = {**tokenizer["model"]["vocab"], **{one["content"]: one["id"] for one in tokenizer["added_tokens"]}}
    assert ids == {text: token for token, text in enumerate(vocabulary.tokens)}
    assert tokenizer["post_processor"]["type"] == "ByteLevel"
    settings = document(tiny, "tokenizer_config.json")
    assert (settings["bos_token"], settings["add_bos_token"]) == (None, False)
    assert settings["chat_template"] == demo_vocabulary.CHAT_TEMPLATE


def test_two_ranks_can_share_every_size() -> None:
    for shape in demo_model.SIZES.values():
        assert shape.heads % 2 == shape.kv_heads % 2 == shape.feed_forward % 2 == 0
        assert shape.heads % shape.kv_heads == 0
    assert demo_model.SIZES["tiny"].kv_bytes_per_token == 2048
    assert demo_model.SIZES["medium"].kv_bytes_per_token == 16384


@pytest.mark.parametrize(
    ("size", "seed", "message"),
    [("huge", 1, "'huge' is unknown; there are tiny, medium"), ("tiny", -1, "seed -1"), ("tiny", 2**63, "seed")],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, size: str, seed: int, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        demo_model.make(tmp_path / "model", size=size, seed=seed)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(BadSetting, match="exists already"):
        demo_model.make(tmp_path / "model", size="tiny", seed=1)
    assert list((tmp_path / "model").iterdir()) == []


def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_model, "_safetensors_head", fails)
    with pytest.raises(BadSetting, match="No space left on device"):
        demo_model.make(tmp_path / "model", size="tiny", seed=1)
    assert list(tmp_path.iterdir()) == []


def test_it_runs_from_the_command_line(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nightfill.engines.vllm.demo_model", str(tmp_path / "model"), "--seed", "1"]
    subprocess.run(command, check=True, timeout=60)
    assert digests(tmp_path / "model") == digests(tiny)
    again = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists already" in again.stderr

from __future__ import annotations

import hashlib
import multiprocessing
from typing import TYPE_CHECKING

import pytest

from nightfill.engines.llama import demo_model, demo_vocabulary
from nightfill.engines.llama.gguf_file import read_head
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from pathlib import Path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_is_made_once_and_found_again(tmp_path: Path) -> None:
    path = demo_model.ensure("tiny", tmp_path / "new" / "folder")
    made = path.stat()
    assert demo_model.ensure("tiny", tmp_path / "new" / "folder") == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (made.st_mtime_ns, made.st_ino)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_its_head_says_what_it_is(tmp_path: Path) -> None:
    head = read_head(demo_model.ensure("tiny", tmp_path))
    shape = demo_model.SIZES["tiny"]
    assert (head.architecture, head.name) == ("qwen3", "nightfill-demo-tiny")
    assert (head.context_length, head.block_count, head.embedding_length) == (131_072, shape.layers, shape.hidden)
    assert head.chat_template
    assert head.vocabulary == len(demo_vocabulary.load().tokens)


def test_the_same_size_is_the_same_file_everywhere(tmp_path: Path) -> None:
    one, two = (demo_model.ensure("tiny", tmp_path / name) for name in "ab")
    assert one.name == two.name
    assert digest(one) == digest(two)


def test_other_content_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = demo_model.ensure("tiny", tmp_path)
    monkeypatch.setattr(demo_vocabulary, "CHAT_TEMPLATE", "{{ messages }}")
    after = demo_model.ensure("tiny", tmp_path)
    assert before != after
    assert digest(before) != digest(after)


def test_an_unknown_size_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="'huge' is unknown; there are tiny, small, medium"):
        demo_model.ensure("huge", tmp_path)


def test_another_seed_is_another_model_of_the_same_shape(tmp_path: Path) -> None:
    paths = [demo_model.ensure(name, tmp_path) for name in ("tiny", "tiny:0", "tiny:7")]
    one, _, other = (read_head(path) for path in paths)
    assert (one.embedding_length, one.block_count) == (other.embedding_length, other.block_count)
    assert other.name == "nightfill-demo-tiny-7"
    assert one.file_bytes == pytest.approx(other.file_bytes, abs=64)
    tails = [path.read_bytes()[-4096:] for path in paths]
    assert tails[0] == tails[1] != tails[2]


@pytest.mark.parametrize("name", ["tiny:x", "tiny:-1", "tiny:1:2", "tiny:99999999999"])
def test_a_seed_is_a_small_whole_number(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadSetting, match="is no seed"):
        demo_model.ensure(name, tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(BadSetting, match=r"cannot be written.*cache"):
        demo_model.ensure("tiny", tmp_path / "cache")


def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_model, "_write", fails)
    with pytest.raises(BadSetting, match="No space left on device"):
        demo_model.ensure("tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_may_make_it_at_once(tmp_path: Path) -> None:
    alone = digest(demo_model.ensure("tiny", tmp_path / "alone"))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        paths = pool.starmap(demo_model.ensure, [("tiny", tmp_path / "shared")] * 3, chunksize=1)
    assert len(set(paths)) == 1
    assert digest(paths[0]) == alone
    assert len(list((tmp_path / "shared").iterdir())) == 1


def test_every_size_has_widths_that_its_weights_allow() -> None:
    for shape in demo_model.SIZES.values():
        widths = (shape.hidden, shape.feed_forward, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim)
        assert all(width % 32 == 0 for width in widths)
        assert shape.heads % shape.kv_heads == 0


def test_the_vocabulary_has_a_token_for_every_byte_and_merges_only_what_it_has() -> None:
    vocabulary = demo_vocabulary.load()
    known = set(vocabulary.tokens)
    assert len(known) == len(vocabulary.tokens)
    assert [vocabulary.bytes_of(token) for token in range(256)] == [bytes([byte]) for byte in range(256)]
    made = set(demo_vocabulary.BYTE_SYMBOLS)
    for merge in vocabulary.merges:
        left, right = merge.split(" ")
        assert left in made
        assert right in made
        made.add(left + right)
    assert made | set(demo_vocabulary.SPECIAL) == known
    assert [vocabulary.tokens[token] for token in vocabulary.special_ids] == list(demo_vocabulary.SPECIAL)
    assert vocabulary.id_of(demo_vocabulary.TURN_END) == vocabulary.special_ids[2]


def test_nothing_that_would_end_or_spoil_a_text_is_ever_said() -> None:
    vocabulary = demo_vocabulary.load()
    said = [token for token in range(len(vocabulary.tokens)) if vocabulary.is_speakable(token)]
    assert not set(said) & set(vocabulary.special_ids)
    assert "\0" not in (text := b"".join(vocabulary.bytes_of(token) for token in said).decode())
    assert {"\n", " ", "a", "def"} <= {vocabulary.bytes_of(token).decode() for token in said}
    assert text.isascii()


def test_models_that_loop_agree_on_what_follows_and_no_token_follows_two(tmp_path: Path) -> None:
    vocabulary = demo_vocabulary.load()
    loops = demo_model.loops(vocabulary)
    tokens = [token for loop in loops for token in loop]
    assert {len(loop) for loop in loops} == {demo_model.LOOP_TOKENS}
    assert len(set(tokens)) == len(tokens)
    assert all(vocabulary.is_speakable(token) for token in tokens)
    assert demo_model.loops(vocabulary) == loops != demo_model.loops(vocabulary, seed=1)
    assert read_head(demo_model.ensure("loop", tmp_path)).vocabulary == len(vocabulary.tokens)

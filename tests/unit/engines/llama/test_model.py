from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nightfill.config import EngineSettings, SpeculationSettings
from nightfill.engines.llama.child_config import Drafting
from nightfill.engines.llama.gguf_file import GgufHead
from nightfill.engines.llama.model import DEFAULT_CONTEXT, LlamaModel, context_length, load, resolve
from nightfill.errors import BadSetting

HEAD = GgufHead(
    path=Path("m.gguf"),
    version=3,
    architecture="qwen3",
    name="Demo",
    context_length=8192,
    block_count=2,
    embedding_length=64,
    head_count_kv=1,
    sliding_window=0,
    vocabulary=10,
    chat_template=True,
    tensors=1,
    file_bytes=1000,
)


def model(head: GgufHead = HEAD, *, filling: bool = False, **settings: object) -> LlamaModel:
    from nightfill.contexts.context import Signature

    return LlamaModel(
        settings=EngineSettings(model="m.gguf", **settings),  # type: ignore[arg-type]
        path=Path("dir/m.gguf"),
        head=head,
        signature=Signature("ab" * 32),
        scratch=Path("/scratch"),
        filling=filling,
    )


@pytest.mark.parametrize(
    ("wanted", "made_for", "given"),
    [(0, 8192, 8192), (0, 1 << 20, DEFAULT_CONTEXT), (4096, 8192, 4096), (1 << 19, 1 << 20, 1 << 19)],
)
def test_the_context_is_the_model_s_unless_that_is_huge(wanted: int, made_for: int, given: int) -> None:
    settings = EngineSettings(model="m", context_length=wanted)
    assert context_length(settings, replace(HEAD, context_length=made_for)) == given


def test_more_than_the_model_was_made_for_is_refused() -> None:
    with pytest.raises(BadSetting, match="8193"):
        context_length(EngineSettings(model="m", context_length=8193), HEAD)


def test_requests_call_it_by_the_setting_else_the_file_s_name() -> None:
    assert model(served_model_name="x").served_name == "x"
    assert model().served_name == "Demo"
    assert model(replace(HEAD, name="")).served_name == "m"


def test_a_filling_child_has_one_slot_and_stays_behind() -> None:
    live, fill = model(slots=3, embeddings=True).child(), model(slots=3, embeddings=True, filling=True).child()
    assert (live.n_parallel, live.n_ctx, live.background, live.embeddings) == (3, 3 * 8192, False, True)
    assert (fill.n_parallel, fill.n_ctx, fill.background, fill.embeddings) == (1, 8192, True, False)


def test_only_a_serving_child_guesses_tokens() -> None:
    guesses = Drafting(method="ngram")
    assert replace(model(), drafting=guesses).child().drafting == guesses
    assert replace(model(filling=True), drafting=guesses).child().drafting is None


def test_kv_is_the_same_with_speculation_and_without(tmp_path: Path) -> None:
    given = {"cache_dir": tmp_path, "scratch_dir": str(tmp_path), "data_dir": tmp_path}
    plain = load(EngineSettings(model="demo:tiny"), filling=False, **given)  # type: ignore[arg-type]
    wanted = SpeculationSettings(method="draft", model="demo:tiny")
    guessing = load(EngineSettings(model="demo:tiny", speculation=wanted), filling=False, **given)  # type: ignore[arg-type]
    assert guessing.drafting == Drafting(method="draft", model=str(plain.path))
    assert guessing.signature == plain.signature


def test_slots_have_cells_of_their_own_where_slot_files_can_be_changed_to_fit() -> None:
    assert not model(slots=2).child().kv_unified
    assert model(slots=1).child().kv_unified
    assert model(replace(HEAD, sliding_window=512), slots=2).child().kv_unified
    assert model(slots=2).child(unified=True).kv_unified


def test_a_demo_model_is_made_and_named_by_its_weights(tmp_path: Path) -> None:
    settings = EngineSettings(model="demo:tiny")
    path, head, signature = resolve(settings, cache_dir=tmp_path)
    assert path.is_file()
    assert head.architecture == "qwen3"
    assert resolve(settings, cache_dir=tmp_path)[2] == signature
    assert resolve(EngineSettings(model="demo:small"), cache_dir=tmp_path)[2] != signature


def test_the_signature_does_not_hang_on_the_context_s_length_or_the_name(tmp_path: Path) -> None:
    _, _, signature = resolve(EngineSettings(model="demo:tiny"), cache_dir=tmp_path)
    other = EngineSettings(model="demo:tiny", context_length=4096, name="another", slots=7)
    assert resolve(other, cache_dir=tmp_path)[2] == signature


def test_loading_gives_each_child_a_folder_of_its_own(tmp_path: Path) -> None:
    settings = EngineSettings(model="demo:tiny")
    one, two = (
        load(settings, filling=filling, cache_dir=tmp_path, scratch_dir=str(tmp_path / "s"), data_dir=tmp_path)
        for filling in (False, True)
    )
    assert one.scratch != two.scratch
    assert one.child().slot_save_path == f"{one.scratch}/"


def test_a_file_that_is_not_there_is_a_bad_setting(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no such file"):
        resolve(EngineSettings(model=str(tmp_path / "none.gguf")), cache_dir=tmp_path)

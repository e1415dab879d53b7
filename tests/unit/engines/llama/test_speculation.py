from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nightfill.config import SpeculationSettings
from nightfill.engines.llama import demo_model
from nightfill.engines.llama.child import parameters
from nightfill.engines.llama.child_config import ChildConfig, Drafting
from nightfill.engines.llama.speculation import drafting
from nightfill.errors import BadSetting


def told(**wanted: object) -> Drafting | None:
    return drafting(SpeculationSettings(**wanted), find=Path)  # type: ignore[arg-type]


def params(given: Drafting | None) -> Any:
    config = ChildConfig(model="m.gguf", slot_save_path="/scratch", n_ctx=512, drafting=given, n_threads=3)
    return parameters(config)


def test_nothing_is_guessed_unless_wanted() -> None:
    assert told() is None


def test_a_method_without_a_model_of_its_own_needs_none() -> None:
    assert told(method="ngram") == Drafting(method="ngram")
    assert told(method="mtp", tokens=2) == Drafting(method="mtp", tokens=2)


@pytest.mark.parametrize("method", ["draft", "eagle3"])
def test_a_model_that_guesses_is_found(method: str, tmp_path: Path) -> None:
    path = demo_model.ensure("tiny", tmp_path)
    assert told(method=method, model=str(path), tokens=8) == Drafting(
        method=method,  # type: ignore[arg-type]
        model=str(path),
        tokens=8,
    )


@pytest.mark.parametrize(
    ("wanted", "says"),
    [({"method": "eagle"}, "eagle3"), ({"method": "draft", "model": "nowhere.gguf"}, "no such file")],
)
def test_what_llama_cpp_cannot_do_is_refused(wanted: dict[str, object], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        told(**wanted)


def test_llama_cpp_is_told_the_method_and_its_bounds() -> None:
    whole = params(Drafting(method="ngram", tokens=16))
    found = whole.speculative
    assert [kind.name for kind in found.types] == ["COMMON_SPECULATIVE_TYPE_NGRAM_MOD"]
    assert (found.ngram_mod.n_max, found.ngram_mod.n_min) == (16, 16)
    whole = params(Drafting(method="draft", model="d.gguf", tokens=5))
    found = whole.speculative
    assert [kind.name for kind in found.types] == ["COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"]
    assert (found.draft.mparams.path, found.draft.n_max, found.draft.cpuparams.n_threads) == ("d.gguf", 5, 3)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("eagle3", "COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3"), ("mtp", "COMMON_SPECULATIVE_TYPE_DRAFT_MTP")],
)
def test_trained_heads_have_methods_of_their_own(method: str, kind: str) -> None:
    whole = params(Drafting(method=method, model="head.gguf"))  # type: ignore[arg-type]
    found = whole.speculative
    assert [one.name for one in found.types] == [kind]


def test_llama_cpp_s_own_bounds_hold_where_none_are_given() -> None:
    whole = params(Drafting(method="ngram"))
    guess = whole.speculative.ngram_mod
    plain = params(None)
    usual = plain.speculative.ngram_mod
    assert (guess.n_max, guess.n_min) == (usual.n_max, usual.n_min)
    assert [kind.name for kind in plain.speculative.types] == ["COMMON_SPECULATIVE_TYPE_NONE"]

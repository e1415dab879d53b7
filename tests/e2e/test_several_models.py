"""Two models in one gateway, each in llama.cpp children of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from serving import marked, source_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving import Serve

pytestmark = pytest.mark.e2e

ENGINES = [
    {"name": "a", "served_model_name": "model-a", "context_length": 4096},
    {"name": "b", "served_model_name": "model-b", "context_length": 4096, "model": "demo:tiny:1"},
]


def test_each_model_answers_under_its_name_and_has_its_own_fill_of_a_context(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve(settings={"engines": ENGINES}).start()
    models = serve.request("GET", "/v1/models").json()["data"]
    assert [one["id"] for one in models] == ["model-a", "model-b"]
    serve.put("code", source_text(1, functions=30))
    serve.wait_ready("code", models=2)
    for name in ("a", "b"):
        answer = serve.ask(context="code", model=f"model-{name}")
        assert (answer.status, answer.layer, answer.headers["x-nightfill-engine"]) == (200, "fill", name)
        assert answer.reused > 500
    assert len({fill["signature"] for fill in serve.fills("code")}) == 2
    assert serve.ask(model="model-c").status == 404
    assert sum("llama.child" in one.command for one in marked(serve.mark)) >= 2

"""A running `nightfill serve`: what all other tests of this folder stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from serving import eventually, marked, source_text

if TYPE_CHECKING:
    from serving import Serve

pytestmark = pytest.mark.e2e


def test_a_context_is_filled_by_itself_used_and_proven_also_after_a_restart(serve: Serve) -> None:
    serve.put("code", source_text(1, functions=50))
    serve.wait_ready("code")
    (fill,) = serve.fills("code")
    cold = serve.ask(context="code", skip=("fill",))
    assert (cold.layer, cold.reused) == ("cold", 0)
    filled = serve.ask(context="code")
    assert (filled.layer, filled.reused) == ("fill", fill["tokens"])
    streamed = serve.ask(context="code", stream=True)
    assert (streamed.finished, streamed.text, streamed.layer) == (True, filled.text, "fill")
    assert streamed.reused >= fill["tokens"]
    serve.stop()
    serve.start()
    again = serve.ask(context="code")
    assert (again.text, again.layer, again.reused) == (filled.text, "fill", fill["tokens"])
    assert serve.metric("nightfill_broken_promises_total") == 0


def test_a_server_has_a_live_engine_a_worker_and_while_it_fills_another_engine(serve: Serve) -> None:
    serve.put("code", source_text(2, functions=20))
    eventually(lambda: serve.fill_pid is not None, within_s=30, what="an engine that fills")
    family = {serve.pid, serve.live_pid, serve.worker_pid, serve.fill_pid}
    assert {one.pid for one in marked(serve.mark)} == family
    assert len(family) == 4
    serve.wait_ready("code")

"""A server whose state is in Redis: the same as with a file, and while Redis is away, it serves what it knows."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from fakes.redis_server import RedisServer
from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving import Serve

pytestmark = pytest.mark.e2e


def test_contexts_are_filled_and_served_over_a_restart_of_redis(new_serve: Callable[..., Serve]) -> None:
    # What is on its disk comes back with it, as it would anywhere.
    with closing(RedisServer("--appendonly", "yes", "--appendfsync", "always", tcp=True)) as redis:
        serve = new_serve("serve", settings={"state": redis.url}).start()
        serve.put("code", source_text(1, functions=30))
        serve.wait_ready("code")
        (fill,) = serve.fills("code")
        served = serve.ask(context="code")
        assert (served.layer, served.reused) == ("fill", fill["tokens"])
        redis.kill()
        for _ in range(3):
            alone = serve.ask(context="code")
            assert (alone.status, alone.layer, alone.text) == (200, "fill", served.text)
            assert serve.ask().status == 200
        redis.start()
        look = "/v1/nightfill/contexts/code"
        eventually(lambda: serve.request("GET", look).status == 200, within_s=30, what="a state that answers again")
        assert serve.states("code") == ["ready"]
        serve.put("more", source_text(2, functions=10))
        serve.wait_ready("code", "more")
        assert serve.ask(context="more").layer == "fill"
        assert serve.metric("nightfill_broken_promises_total") == 0
        assert not (serve.data_dir / "state.db").exists()
        serve.stop()

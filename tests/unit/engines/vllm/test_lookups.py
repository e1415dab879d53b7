from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.contexts.context import Signature
from nightfill.engines.vllm.asked import Asked, whole_spans
from nightfill.engines.vllm.lookups import LOOK_AGAIN_S, LOOK_WITHIN_S, Lookups
from nightfill.engines.vllm.wire import Wish
from nightfill.kv.worth import LOAD_ANYWAY_AFTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nightfill.kv import Span

BLOCK = 256
BYTES = 1 << 20


class Store:
    """Has the first `stored` blocks of anything, and may be made to wait."""

    def __init__(self) -> None:
        self.stored = 0
        self.open = threading.Event()
        self.open.set()
        self.asked = 0

    def leading(self, spans: Sequence[Span]) -> int:
        assert self.open.wait(20)
        self.asked += 1
        return min(self.stored, len(spans))


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lookups(store: Store, clock: Clock) -> Iterator[Lookups]:
    made = Lookups(store.leading, block_tokens=BLOCK, block_bytes=BYTES, clock=clock)
    yield made
    store.open.set()
    made.close()


def request(clock: Clock, **wish: Any) -> Asked:
    spans = whole_spans(list(range(4 * BLOCK)), signature=Signature("ab" * 32), salt=bytes(32), block_tokens=BLOCK)
    return Asked(
        request_id="r",
        signature=Signature("ab" * 32),
        salt=bytes(32),
        spans=spans,
        keyed=True,
        wish=Wish(**wish),
        stores=False,
        arrived_s=clock(),
    )


def settled(lookups: Lookups, asked: Asked) -> None:
    if asked.looking is not None:
        asked.looking.result(20)
    lookups.settle(asked)


def test_what_is_stored_of_the_prompts_front_is_found_and_loaded(lookups: Lookups, store: Store, clock: Clock) -> None:
    store.stored = 3
    asked = request(clock)
    lookups.begin(asked)
    settled(lookups, asked)
    lookups.decide(asked, cached_tokens=0)
    assert (asked.found, asked.usable, asked.decision) == (3, 3, "restore")


def test_nothing_stored_is_absent(lookups: Lookups, clock: Clock) -> None:
    asked = request(clock)
    lookups.begin(asked)
    settled(lookups, asked)
    lookups.decide(asked, cached_tokens=0)
    assert (asked.found, asked.usable, asked.decision) == (0, 0, "absent")


def test_a_store_that_is_slow_to_answer_costs_half_a_second_and_no_more(
    lookups: Lookups, store: Store, clock: Clock
) -> None:
    store.open.clear()
    asked = request(clock)
    lookups.begin(asked)
    clock.now_s += LOOK_WITHIN_S - 0.01
    lookups.settle(asked)
    assert asked.found is None
    clock.now_s += 0.02
    lookups.settle(asked)
    assert asked.found == 0


def test_blocks_that_somebody_is_about_to_store_are_waited_for(lookups: Lookups, store: Store, clock: Clock) -> None:
    store.stored = 1
    asked = request(clock, await_tokens=3 * BLOCK, await_s=10.0)
    lookups.begin(asked)
    settled(lookups, asked)
    assert asked.found is None
    lookups.settle(asked)
    assert asked.looking is None, "not at once again"
    store.stored = 3
    clock.now_s += 2 * LOOK_AGAIN_S
    lookups.settle(asked)
    settled(lookups, asked)
    assert asked.found == 3


def test_waiting_ends_at_its_deadline_with_what_is_there(lookups: Lookups, store: Store, clock: Clock) -> None:
    store.stored = 1
    asked = request(clock, await_tokens=3 * BLOCK, await_s=1.0)
    lookups.begin(asked)
    settled(lookups, asked)
    clock.now_s += 1.1
    lookups.settle(asked)
    settled(lookups, asked)
    assert asked.found == 1


def test_more_than_the_prompt_has_is_not_waited_for(lookups: Lookups, store: Store, clock: Clock) -> None:
    store.stored = 4
    asked = request(clock, await_tokens=100 * BLOCK, await_s=10.0)
    lookups.begin(asked)
    settled(lookups, asked)
    assert asked.found == 4


def slow_store(lookups: Lookups) -> None:
    lookups.observe(load_bytes=100 << 20, load_s=100.0, prefill_tokens=100_000, prefill_s=1.0)


def found(lookups: Lookups, store: Store, clock: Clock, *, cached_tokens: int = 0, **wish: Any) -> Asked:
    store.stored = 4
    asked = request(clock, **wish)
    lookups.begin(asked)
    settled(lookups, asked)
    lookups.decide(asked, cached_tokens=cached_tokens)
    return asked


def test_a_prefix_that_is_quicker_to_compute_is_computed(lookups: Lookups, store: Store, clock: Clock) -> None:
    slow_store(lookups)
    asked = found(lookups, store, clock)
    assert (asked.decision, asked.usable, asked.found) == ("recompute", 0, 4)
    assert asked.restore_s == pytest.approx(4.0)
    assert asked.recompute_s == pytest.approx(4 * BLOCK / 100_000)


def test_only_what_the_engine_lacks_is_weighed(lookups: Lookups, store: Store, clock: Clock) -> None:
    slow_store(lookups)
    asked = found(lookups, store, clock, cached_tokens=3 * BLOCK)
    assert asked.restore_s == pytest.approx(1.0)
    assert found(lookups, store, clock, cached_tokens=4 * BLOCK).decision == "restore", "nothing to load or compute"


def test_loading_is_tried_again_after_a_while(lookups: Lookups, store: Store, clock: Clock) -> None:
    slow_store(lookups)
    decisions = [found(lookups, store, clock).decision for _ in range(LOAD_ANYWAY_AFTER + 2)]
    assert decisions == [*["recompute"] * LOAD_ANYWAY_AFTER, "restore", "recompute"]


def test_who_wants_to_see_what_is_stored_sees_it(lookups: Lookups, store: Store, clock: Clock) -> None:
    slow_store(lookups)
    assert found(lookups, store, clock, fresh=True).decision == "restore"


@pytest.mark.parametrize(("load", "usable"), [(True, 4), (False, 0)])
def test_a_request_may_say_which(lookups: Lookups, store: Store, clock: Clock, load: bool, usable: int) -> None:
    if load:
        slow_store(lookups)
    assert found(lookups, store, clock, load=load).usable == usable


def test_always_means_always(store: Store, clock: Clock) -> None:
    lookups = Lookups(store.leading, block_tokens=BLOCK, block_bytes=BYTES, always=True, clock=clock)
    try:
        slow_store(lookups)
        assert found(lookups, store, clock).decision == "restore"
    finally:
        lookups.close()

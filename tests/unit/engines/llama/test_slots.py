from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.contexts.context import Signature
from nightfill.engines.engine import Prefix
from nightfill.engines.llama.slots import Slot, SlotTable, choose, common_bytes
from nightfill.errors import QueueFull
from nightfill.kv.key import Span, spans

SIGNATURE = Signature("ab" * 32)


def prefix(*tokens: int) -> tuple[Span, ...]:
    return spans(tokens, signature=SIGNATURE, salt=b"s", block_tokens=2)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


@pytest.fixture
def table() -> SlotTable:
    return SlotTable(2, max_waiting=3, clock=Clock())


def test_the_slot_that_holds_the_prefix_is_chosen() -> None:
    warm = Slot(id=1, spans=prefix(1, 2, 3, 4), last_used_s=9)
    assert choose([Slot(id=0), warm], spans=prefix(1, 2, 3, 4, 5), text=b"") is warm


def test_without_a_prefix_the_slot_with_most_of_the_text_is_chosen() -> None:
    warm = Slot(id=1, text=b"x" * 1000, last_used_s=9)
    assert choose([Slot(id=0), warm], spans=(), text=b"x" * 900 + b"y") is warm


def test_the_slot_that_answered_the_chat_last_is_chosen_before_all_others_but_never_for_another_tenant() -> None:
    chat = Slot(id=1, said=(b"a", "2"), tokens=90, last_used_s=1)
    older = Slot(id=2, said=(b"a", "1"), tokens=50, last_used_s=2)
    warm = Slot(id=3, spans=prefix(1, 2), last_used_s=3)
    said = [(b"a", "1"), (b"a", "2"), (b"a", "3")]
    assert choose([warm, older, chat], spans=prefix(1, 2), text=b"", said=said) is chat
    assert choose([warm, older], spans=prefix(1, 2), text=b"", said=said) is older
    theirs = [(b"b", mark) for _, mark in said]
    assert choose([warm, older, chat], spans=prefix(1, 2), text=b"", said=theirs) is warm
    chat.forget(0)
    assert choose([warm, chat], spans=prefix(1, 2), text=b"", said=said) is warm


def test_a_short_common_beginning_is_chance_and_the_empty_slot_is_taken() -> None:
    empty = Slot(id=0, last_used_s=9)
    assert choose([Slot(id=1, text=b"system: you are", last_used_s=1), empty], spans=(), text=b"system: you") is empty


def test_among_used_slots_the_one_unused_for_longest_goes() -> None:
    old = Slot(id=1, spans=prefix(7, 8), last_used_s=1)
    assert choose([Slot(id=0, spans=prefix(5, 6), last_used_s=2), old], spans=prefix(1, 2), text=b"") is old


async def test_most_held_counts_busy_slots_too_and_none_of_another_process(table: SlotTable) -> None:
    spans = prefix(1, 2, 3, 4)
    async with table.acquire(generation=1, spans=spans, text=b"") as slot:
        slot.spans = spans[:1]
        assert table.most_held(spans, generation=1) == 2
        assert table.most_held(prefix(9, 9), generation=1) == 0
    assert table.most_held(spans, generation=2) == 0


def test_a_slot_holds_only_whole_blocks_that_agree_from_the_front() -> None:
    slot = Slot(id=0, spans=prefix(1, 2, 3, 4, 5))
    assert slot.holds(prefix(1, 2, 3, 4, 5)) == 5
    assert slot.holds(prefix(1, 2, 3, 4, 5, 6)) == 4
    assert slot.holds(prefix(9, 2, 3, 4)) == 0


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_common_bytes_is_the_length_of_the_longest_common_prefix(head: bytes, a: bytes, b: bytes) -> None:
    a, b = head + a, head + b
    expected = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_bytes(a, b) == expected


async def test_a_new_generation_of_the_process_empties_all_slots(table: SlotTable) -> None:
    async with table.acquire(generation=1, spans=(), text=b"") as slot:
        slot.spans = prefix(1, 2)
    async with table.acquire(generation=2, spans=prefix(1, 2), text=b"") as slot:
        assert slot.holds(prefix(1, 2)) == 0


async def test_waiters_are_served_in_order_and_nobody_overtakes(table: SlotTable) -> None:
    served: list[int] = []

    async def use(n: int) -> None:
        async with table.acquire(generation=1, spans=(), text=b""):
            served.append(n)

    async with AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(table.acquire(generation=1, spans=(), text=b""))
        tasks = [asyncio.create_task(use(n)) for n in range(3)]
        await asyncio.sleep(0)
        assert (table.busy, table.waiting) == (2, 3)
        with pytest.raises(QueueFull):
            async with table.acquire(generation=1, spans=(), text=b""):
                pass
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2]


async def test_a_waiter_that_leaves_as_its_turn_comes_passes_it_on() -> None:
    table = SlotTable(1, max_waiting=3, clock=Clock())
    served: list[int] = []

    async def use(n: int) -> None:
        async with table.acquire(generation=1, spans=(), text=b""):
            served.append(n)

    async with table.acquire(generation=1, spans=(), text=b""):
        first, second = asyncio.create_task(use(1)), asyncio.create_task(use(2))
        await asyncio.sleep(0)
    first.cancel()  # its turn was given to it a moment ago
    await asyncio.gather(first, second, return_exceptions=True)
    assert first.cancelled()
    assert served == [2]
    assert (table.busy, table.waiting) == (0, 0)


@given(st.lists(st.sampled_from(["enter", "leave", "cancel"]), max_size=40), st.integers(1, 3))
def test_slots_are_never_shared_and_never_lost(steps: list[str], count: int) -> None:
    async def run() -> None:
        table = SlotTable(count, max_waiting=100, clock=Clock())
        using: set[int] = set()
        tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []

        async def use(done: asyncio.Event) -> None:
            async with table.acquire(generation=1, spans=(), text=b"") as slot:
                assert slot.id not in using
                using.add(slot.id)
                try:
                    await done.wait()
                finally:
                    using.remove(slot.id)

        for step in steps:
            if step == "enter":
                done = asyncio.Event()
                tasks.append((asyncio.create_task(use(done)), done))
            elif tasks and step == "leave":
                tasks[0][1].set()
                tasks.append(tasks.pop(0))
            elif tasks:
                tasks[-1][0].cancel()
            await asyncio.sleep(0)
        for _, done in tasks:
            done.set()
        results = await asyncio.wait_for(asyncio.gather(*(t for t, _ in tasks), return_exceptions=True), 5)
        assert not [r for r in results if r is not None and not isinstance(r, asyncio.CancelledError)]
        assert (table.busy, table.waiting) == (0, 0)

    asyncio.run(run())


def test_a_kept_slot_is_taken_last() -> None:
    kept = Slot(id=0, spans=prefix(1, 2), last_used_s=1, kept=True)
    used = Slot(id=1, text=b"x" * 1000, last_used_s=9)
    assert choose([kept, used], spans=(), text=b"y" * 1000) is used
    assert choose([kept, used], spans=prefix(7, 8), text=b"") is used
    assert choose([kept], spans=(), text=b"") is kept
    assert choose([kept, used], spans=prefix(1, 2, 3, 4), text=b"") is kept


async def test_slots_are_kept_for_as_long_as_what_they_hold_is_wanted(table: SlotTable) -> None:
    one, two = prefix(1, 2, 3, 4), prefix(5, 6)
    async with table.acquire(generation=1, spans=one, text=b"") as slot:
        slot.spans = one
        # Also while somebody uses it.
        assert table.keep([one, two], generation=1) == [4, 0]
        assert slot.kept
    assert table.keep([prefix(1, 2, 9, 9)], generation=1) == [2]
    assert slot.kept
    assert table.keep([two], generation=1) == [0]
    assert not slot.kept


async def test_another_process_holds_nothing_of_what_the_one_before_held(table: SlotTable) -> None:
    one = prefix(1, 2)
    async with table.acquire(generation=1, spans=one, text=b"") as slot:
        slot.spans = one
    assert table.keep([one], generation=2) == [0]
    assert not slot.kept


async def test_what_a_past_process_held_is_not_held(table: SlotTable) -> None:
    async with table.acquire(generation=1, spans=(), text=b"") as slot:
        slot.spans = prefix(1, 2)
    assert table.held(generation=1)
    assert not table.held(generation=2)


async def test_only_what_was_computed_in_a_slot_from_its_first_token_on_counts_as_computed(table: SlotTable) -> None:
    given = Prefix(tokens=tuple(range(100)), salt=b"s")
    async with table.acquire(generation=1, spans=(), text=b"") as slot:
        slot.answered(given, solid_tokens=80, reused=0)
    assert table.computed(generation=1) == [(slot.id, given, 80)]
    assert table.computed(generation=2) == []
    slot.answered(None, solid_tokens=500, reused=80)
    assert table.computed(generation=1) == [(slot.id, given, 80)], "the next request went on from there"
    slot.answered(given, solid_tokens=200, reused=60)
    assert table.computed(generation=1) == [], "a part was computed over something else"
    slot.answered(given, solid_tokens=200, reused=0)
    assert table.computed(generation=1) == [(slot.id, given, 100)]
    slot.answered(given, solid_tokens=-3, reused=0)
    assert table.computed(generation=1) == [], "too short for a whole batch"

from __future__ import annotations

import math
from typing import Any, Final

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nightfill.config import ByteSize, Duration, LifecycleSettings
from nightfill.engines.lifecycle.policy import decide, next_look_s
from nightfill.engines.lifecycle.state import ModelState
from nightfill.engines.lifecycle.view import Action, Drain, Refuse, Sleep, View, Wake

S = ModelState
NOW_S: Final = 1000.0
LONG_AGO: Final[dict[str, Any]] = {"since_s": 900.0, "woke_s": 900.0, "used_s": 900.0}


def model(name: str, state: ModelState = S.ASLEEP_1, size: int | None = 60, **given: Any) -> View:
    """One that was tried, with its full size on the device where it is up."""
    up = state in (S.STARTING, S.WARMING, S.AWAKE, S.DRAINING)
    held = (size or 100) if up else 0
    defaults: dict[str, Any] = {"tried": True, "held_bytes": held, **LONG_AGO}
    return View(name=name, device="gpu", state=state, size_bytes=size, **(defaults | given))


def decided(*models: View, device_bytes: int = 100, **given: Any) -> tuple[Action, ...]:
    return decide(models, {"gpu": device_bytes}, LifecycleSettings(**given), NOW_S)


def briefly(actions: tuple[Action, ...]) -> list[str]:
    """Such as `wake a`."""
    return [
        f"{type(action).__name__.lower()} {action.name}" + (f" {action.level}" if isinstance(action, Sleep) else "")
        for action in actions
    ]


def test_nothing_is_done_without_a_cause() -> None:
    assert decided(model("a"), model("b", S.AWAKE), model("c", S.ASLEEP_2), model("d", S.STOPPED)) == ()


def test_who_waits_is_woken_into_free_room() -> None:
    assert decided(model("a", asked_s=999), model("b", S.AWAKE, 40)) == (Wake("a", "requests wait"),)


def test_who_is_being_acted_on_is_left_alone_and_keeps_its_place() -> None:
    falling = model("a", acting=True, asked_s=990)
    assert decided(falling) == ()
    assert decided(falling, model("b", asked_s=999)) == ()


def test_room_goes_to_whoever_waited_longest_and_is_not_given_to_who_came_later() -> None:
    busy = model("busy", S.AWAKE, 50, in_flight=1, woke_s=995)
    assert decided(busy, model("large", asked_s=990), model("small", size=30, asked_s=991)) == ()
    assert briefly(decided(busy, model("large", asked_s=992), model("small", size=30, asked_s=991))) == ["wake small"]


def test_those_without_requests_give_way_the_one_used_longest_ago_first() -> None:
    models = [model("new", asked_s=999), model("a", S.AWAKE, 50, used_s=990), model("b", S.AWAKE, 50, used_s=980)]
    assert decided(*models, device_bytes=110) == (Drain("b", "gives way to new"),)


def test_nobody_gives_way_who_is_not_needed() -> None:
    models = [model("new", asked_s=999), model("a", S.AWAKE, 10, used_s=980), model("b", S.AWAKE, 60, used_s=990)]
    assert briefly(decided(*models)) == ["drain b"]


def test_nobody_gives_way_where_it_would_not_suffice() -> None:
    idle, busy = model("idle", S.AWAKE, 40), model("busy", S.AWAKE, 60, in_flight=1, woke_s=990)
    assert decided(model("new", asked_s=999), idle, busy) == ()


@pytest.mark.parametrize(
    ("victim", "gives_way"),
    [
        ({"woke_s": 998.5}, False),  # min_awake_s is 2
        ({"woke_s": 997.0}, True),
        ({"pinned": True}, False),
        ({"acting": True}, False),
        ({"in_flight": 1, "woke_s": 990.0}, False),  # max_turn_s is 15
        ({"in_flight": 1, "woke_s": 984.0}, True),
        ({"in_flight": 1, "woke_s": 984.0, "pinned": True}, False),
        ({"expected_until_s": 2000.0}, True),
    ],
)
def test_when_a_model_gives_way_to_requests(victim: dict[str, Any], gives_way: bool) -> None:
    actions = decided(model("new", asked_s=999), model("old", S.AWAKE, **victim))
    pinned = victim.get("pinned", False)
    assert briefly(actions) == (["drain old"] if gives_way else ["refuse new"] if pinned else [])


def test_a_wake_waits_for_the_room_that_is_on_its_way() -> None:
    leaving = model("old", S.DRAINING, 60, in_flight=1)
    assert decided(model("new", asked_s=999), leaving, model("c", S.AWAKE, 40)) == ()
    assert briefly(decided(model("new", asked_s=999), model("old", S.DRAINING, 60))) == ["sleep old 1"]


def test_a_model_goes_back_to_work_when_nobody_waits_for_its_room_any_more() -> None:
    assert briefly(decided(model("a", S.DRAINING, in_flight=1))) == ["resume a"]
    assert briefly(decided(model("a", S.DRAINING, asked_s=999), model("b"))) == ["resume a"]
    assert decided(model("a", S.DRAINING, in_flight=1, told=1)) == ()
    assert briefly(decided(model("a", S.DRAINING))) == ["sleep a 1"]


def test_of_two_that_drain_only_who_is_needed_goes_on_with_it() -> None:
    models = [model("a", S.DRAINING, 60, in_flight=1), model("b", S.DRAINING, 40, in_flight=1)]
    assert briefly(decided(*models, model("new", size=60, asked_s=999))) == ["resume b"]
    alike = [model(name, S.DRAINING, 40, in_flight=1) for name in "ab"]
    assert briefly(decided(*alike, model("new", size=60, asked_s=999))) == ["resume a"]


def test_a_model_of_unknown_size_is_loaded_alone() -> None:
    new = model("new", S.STOPPED, None, asked_s=999)
    assert briefly(decided(new, model("a", S.AWAKE, 10))) == ["drain a"]
    assert decided(new, model("a", S.STARTING, 10)) == ()
    assert briefly(decided(new, model("a", S.ASLEEP_1, 10, held_bytes=1))) == ["sleep a 2"]
    assert briefly(decided(new, model("a", S.ASLEEP_2, 10, held_bytes=1))) == ["wake new"]
    assert decided(model("a", S.STARTING, None), model("b", size=1, asked_s=999)) == ()


def test_pinned_models_give_way_to_a_first_load_alone() -> None:
    pinned = model("pinned", S.AWAKE, 50, pinned=True)
    assert briefly(decided(model("new", S.STOPPED, None, asked_s=999), pinned)) == ["drain pinned"]
    [refused] = decided(model("new", S.STOPPED, 51, asked_s=999), pinned)
    assert isinstance(refused, Refuse)
    assert "takes 51 bytes awake, and device gpu has 50 for it, beside pinned which is pinned" in refused.reason
    assert "max_bytes" in refused.reason


def test_models_are_loaded_once_at_start_one_after_another_the_pinned_ones_last() -> None:
    fresh = [model(name, S.STOPPED, None, tried=False, pinned=name == "a") for name in "abc"]
    assert briefly(decided(*fresh)) == ["wake b"]
    loaded = model("b", S.AWAKE, 10, woke_s=NOW_S)
    assert briefly(decided(fresh[0], loaded, fresh[2])) == ["drain b"]
    assert briefly(decided(fresh[0], model("b", S.DRAINING, 10), fresh[2])) == ["sleep b 2"]


def test_requests_come_before_first_loads() -> None:
    fresh = model("fresh", S.STOPPED, None, tried=False)
    assert briefly(decided(fresh, model("asked", asked_s=999))) == ["wake asked"]


def test_a_pinned_model_is_woken_into_room_that_nobody_uses() -> None:
    assert briefly(decided(model("a", pinned=True), model("b", S.AWAKE, 40))) == ["wake a"]
    assert briefly(decided(model("a", pinned=True), model("b", S.AWAKE, used_s=980))) == ["drain b"]
    assert decided(model("a", pinned=True), model("b", S.AWAKE, used_s=990)) == ()


@pytest.mark.parametrize(
    ("beside", "done"),
    [
        ({"size": 40}, ["wake a"]),
        ({"used_s": 980.0}, ["drain b"]),
        ({"used_s": 990.0}, []),
        ({"used_s": 980.0, "pinned": True}, []),
        ({"used_s": 980.0, "expected_until_s": 1500.0}, []),
        ({"used_s": 980.0, "in_flight": 1}, []),
    ],
)
def test_an_expected_use_wakes_a_model_where_it_disturbs_nobody(beside: dict[str, Any], done: list[str]) -> None:
    assert briefly(decided(model("a", expected_until_s=1500), model("b", S.AWAKE, **beside))) == done


def test_an_expected_use_that_finds_no_room_keeps_none_from_others() -> None:
    busy = model("busy", S.AWAKE, 60, in_flight=1)
    models = [busy, model("large", expected_until_s=1500), model("small", size=40, expected_until_s=1600)]
    assert briefly(decided(*models)) == ["wake small"]


@pytest.mark.parametrize(
    ("given", "done"),
    [
        ({"used_s": 701.0}, []),
        ({"used_s": 699.0}, ["drain a"]),
        ({"used_s": 699.0, "woke_s": 701.0}, []),
        ({"used_s": 699.0, "in_flight": 1}, []),
        ({"used_s": 699.0, "pinned": True}, []),
        ({"used_s": 699.0, "expected_until_s": 1001.0}, []),
    ],
)
def test_a_model_that_nobody_asks_for_sleeps(given: dict[str, Any], done: list[str]) -> None:
    awake = model("a", S.AWAKE, **({"woke_s": 10.0} | given))
    assert briefly(decided(awake)) == done
    assert decided(awake, level_1_after_s=Duration(0)) == ()


def test_who_sleeps_at_level_1_for_long_goes_to_level_2() -> None:
    asleep = model("a", since_s=-2601.0)
    assert briefly(decided(asleep)) == ["sleep a 2"]
    assert decided(asleep, level_2_after_s=Duration(0)) == ()
    assert decided(model("a", since_s=-2601.0, levels=frozenset({1}))) == ()
    assert decided(model("a", since_s=-2599.0)) == ()


@pytest.mark.parametrize(("levels", "level"), [({1, 2}, 1), ({2}, 2), ({1}, 1)])
def test_a_model_sleeps_at_the_quickest_level_that_it_has(levels: set[Any], level: int) -> None:
    assert briefly(decided(model("a", S.DRAINING, levels=frozenset(levels)))) == [f"sleep a {level}"]


def test_a_model_that_host_memory_has_no_room_for_sleeps_at_level_2() -> None:
    leaving = model("a", S.DRAINING, host_1_bytes=50, used_s=900)
    newer = model("b", host_bytes=60, used_s=950)
    assert briefly(decided(leaving, newer, host_max_bytes=ByteSize(110))) == ["sleep a 1"]
    assert briefly(decided(leaving, newer, host_max_bytes=ByteSize(109))) == ["sleep a 2"]
    assert briefly(decided(leaving, newer)) == ["sleep a 1"]


def test_host_memory_is_taken_from_who_was_used_longest_ago() -> None:
    leaving = model("a", S.DRAINING, host_1_bytes=50, used_s=950)
    sleepers = [model("b", host_bytes=60, used_s=900), model("c", host_bytes=60, used_s=800)]
    assert briefly(decided(leaving, *sleepers, host_max_bytes=ByteSize(120))) == ["sleep c 2"]
    going = model("c", host_bytes=60, used_s=800, acting=True)
    assert decided(leaving, sleepers[0], going, host_max_bytes=ByteSize(120)) == (), "it waits for that memory"


def test_host_memory_that_runs_short_is_given_back() -> None:
    sleepers = [model("a", host_bytes=60, used_s=900), model("b", host_bytes=60, used_s=800)]
    assert briefly(decided(*sleepers, host_max_bytes=ByteSize(100))) == ["sleep b 2"]
    assert briefly(decided(sleepers[0], host_max_bytes=ByteSize(50))) == ["sleep a 2"]
    assert decided(*sleepers, host_max_bytes=ByteSize(120)) == ()


def test_a_model_that_failed_is_left_alone_for_a_while() -> None:
    assert decided(model("a", S.FAILED, asked_s=999, retry_at_s=1000.5)) == ()
    assert briefly(decided(model("a", S.FAILED, asked_s=999, retry_at_s=1000.0))) == ["wake a"]
    assert decided(model("a", S.FAILED, retry_at_s=900.0)) == ()


def test_what_is_asked_for_by_hand() -> None:
    assert briefly(decided(model("a", S.AWAKE, told=2, in_flight=1))) == ["drain a"]
    assert briefly(decided(model("a", S.DRAINING, told=2))) == ["sleep a 2"]
    assert briefly(decided(model("a", told=2))) == ["sleep a 2"]
    assert decided(model("a", told=1, asked_s=999)) == (), "it wakes again when that is done"


def test_what_lies_on_the_device_asleep_is_taken_into_account() -> None:
    asleep = model("b", held_bytes=5)
    assert briefly(decided(model("a", size=95, asked_s=999), asleep)) == ["wake a"]
    assert briefly(decided(model("a", size=96, asked_s=999), asleep)) == ["sleep b 2"]
    assert briefly(decided(model("a", size=96, asked_s=999, held_bytes=1), model("b", held_bytes=4))) == ["wake a"]
    deep = model("b", S.ASLEEP_2, held_bytes=5)
    assert briefly(decided(model("a", size=96, asked_s=999), deep)) == ["refuse a"]


def test_devices_do_not_share_room() -> None:
    models = [
        model("a", asked_s=999),
        View(name="b", device="cpu", state=S.AWAKE, size_bytes=50, held_bytes=50, **LONG_AGO),
    ]
    assert briefly(decide(models, {"gpu": 60, "cpu": 50}, LifecycleSettings(), NOW_S)) == ["wake a"]


def test_the_next_look_is_when_time_alone_changes_something() -> None:
    def looked(*models: View) -> float:
        return next_look_s(models, LifecycleSettings(), NOW_S)

    assert looked(model("a", S.ASLEEP_2)) == math.inf
    assert looked(model("a", S.AWAKE, woke_s=999.0, used_s=999.0)) == 1001.0
    assert looked(model("a", S.AWAKE, woke_s=990.0, used_s=999.0)) == 1005.0
    assert looked(model("a", S.AWAKE, woke_s=900.0, used_s=990.0)) == 1005.0
    assert looked(model("a", S.AWAKE)) == 1200.0
    assert looked(model("a", S.ASLEEP_1)) == 4500.0
    assert looked(model("a", S.FAILED, retry_at_s=1003.0), model("b", expected_until_s=1002.0)) == 1002.0


@given(st.sampled_from([S.AWAKE, S.ASLEEP_1]), st.floats(0, 1e6), st.floats(0.1, 1e4))
def test_when_it_looks_the_time_has_come(state: ModelState, since_s: float, after_s: float) -> None:
    after = Duration(after_s)
    settings = LifecycleSettings(
        level_1_after_s=after, level_2_after_s=after, min_awake_s=Duration(0), max_turn_s=Duration(0.1)
    )
    idle = model("a", state, since_s=since_s, woke_s=since_s, used_s=since_s)
    now_s = since_s + max(after_s / 2, 0.0)
    assert decide([idle], {"gpu": 100}, settings, now_s) == ()
    while (look_s := next_look_s([idle], settings, now_s)) < math.inf:
        now_s = look_s
    assert briefly(decide([idle], {"gpu": 100}, settings, now_s)) in (["drain a"], ["sleep a 2"])

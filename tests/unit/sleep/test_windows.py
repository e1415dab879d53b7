"""Nights by the calendar, among them those in which the clock is changed: 2026-03-29 and 2026-10-25 in Berlin (at 01:00
UTC), 2026-03-08 (07:00 UTC) and 2026-11-01 (06:00 UTC) in New York."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightfill.cli.units import parse_duration
from nightfill.config import Duration, SleepSettings
from nightfill.errors import BadSetting
from nightfill.sleep.windows import Windows, windows_of

BERLIN = "Europe/Berlin"
NEW_YORK = "America/New_York"


def at_s(text: str) -> float:
    """`2026-03-29 01:00`, UTC, as Unix seconds."""
    return datetime.fromisoformat(f"{text}+00:00").timestamp()


def shown(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%m-%d %H:%M}"


def windows(*texts: str, zone: str = "UTC", **given: Any) -> Windows:
    return windows_of(SleepSettings(windows=texts, time_zone=zone, **given), duration=parse_duration)


def openings(found: Windows, start: str, days: int) -> list[str]:
    """All windows that open in so many days, in UTC."""
    now_s, until_s, spans = at_s(start), at_s(start) + days * 86400, []
    while (window := found.next_after(now_s)) is not None and window.opens_at_s < until_s:
        spans.append(f"{shown(window.opens_at_s)}-{shown(window.closes_at_s)[6:]}")
        now_s = window.opens_at_s
    return spans


@pytest.mark.parametrize(
    ("now", "is_open"),
    [
        ("2026-06-01 01:59:59", False),
        ("2026-06-01 02:00", True),
        ("2026-06-01 05:59:59", True),
        ("2026-06-01 06:00", False),
    ],
)
def test_a_window_is_open_from_its_start_and_not_at_its_end(now: str, is_open: bool) -> None:
    found = windows("0 2 * * *")
    assert (found.open_at(at_s(now)) is not None) == is_open


def test_without_windows_none_opens() -> None:
    found = windows()
    assert (bool(found), found.open_at(0.0), found.next_after(0.0)) == (False, None, None)


def test_each_window_may_say_its_own_length_and_others_have_the_usual_one() -> None:
    found = windows("0 2 * * *", "0 12 * * SAT,SUN for 90m", window_length_s=Duration(3600))
    assert openings(found, "2026-06-05 12:00", 2) == ["06-06 02:00-03:00", "06-06 12:00-13:30", "06-07 02:00-03:00"]


def test_a_window_over_midnight_is_open_on_both_days() -> None:
    found = windows("30 22 * * FRI for 7h")
    assert found.open_at(at_s("2026-06-05 23:00")) == found.open_at(at_s("2026-06-06 05:00")) is not None
    assert found.open_at(at_s("2026-06-06 23:00")) is None


def test_the_next_opening_is_after_now_even_while_a_window_is_open() -> None:
    found = windows("0 2 * * *").next_after(at_s("2026-06-01 02:00"))
    assert found is not None
    assert shown(found.opens_at_s) == "06-02 02:00"


@pytest.mark.parametrize(
    ("rule", "zone", "start", "expected"),
    [
        # In the spring an hour is skipped: what would begin in it begins at its end.
        ("30 2 * * *", BERLIN, "2026-03-28 00:00", ["03-28 01:30-05:30", "03-29 01:00-05:00", "03-30 00:30-04:30"]),
        ("30 2 * * *", NEW_YORK, "2026-03-07 00:00", ["03-07 07:30-11:30", "03-08 07:00-11:00", "03-09 06:30-10:30"]),
        # In the autumn an hour comes twice: what begins in it begins once, at the first.
        ("30 2 * * *", BERLIN, "2026-10-24 00:00", ["10-24 00:30-04:30", "10-25 00:30-04:30", "10-26 01:30-05:30"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31 00:00", ["10-31 05:30-09:30", "11-01 05:30-09:30", "11-02 06:30-10:30"]),
        # A window over the change lasts its four hours, whatever the clock on the wall says at its end.
        ("0 0 * * *", BERLIN, "2026-03-28 12:00", ["03-28 23:00-03:00", "03-29 22:00-02:00", "03-30 22:00-02:00"]),
        ("0 0 * * *", NEW_YORK, "2026-11-01 00:00", ["11-01 04:00-08:00", "11-02 05:00-09:00", "11-03 05:00-09:00"]),
    ],
)
def test_nights_in_which_the_clock_is_changed(rule: str, zone: str, start: str, expected: list[str]) -> None:
    found = windows(rule, zone=zone)
    assert openings(found, start, 3) == expected


@pytest.mark.parametrize(("day", "hours"), [("2026-03-28 23:00", 23), ("2026-10-24 22:00", 25)])
def test_hourly_windows_open_in_each_hour_that_really_passes(day: str, hours: int) -> None:
    found = windows("0 * * * * for 10m", zone=BERLIN)
    begin = at_s(day)
    starts = []
    now_s = begin - 1
    while (window := found.next_after(now_s)) is not None and window.opens_at_s < begin + hours * 3600:
        starts.append(window.opens_at_s)
        now_s = window.opens_at_s
    assert starts == [begin + hour * 3600 for hour in range(hours)]


def test_in_the_second_of_two_equal_hours_the_window_of_the_first_is_over() -> None:
    found = windows("30 2 * * * for 30m", zone=BERLIN)
    assert found.open_at(at_s("2026-10-25 00:45")) is not None
    assert found.open_at(at_s("2026-10-25 01:45")) is None


def test_in_the_second_of_two_equal_hours_the_next_start_is_not_that_of_the_first() -> None:
    coming = windows("30 2 * * *", zone=BERLIN).next_after(at_s("2026-10-25 01:10"))
    assert coming is not None
    assert shown(coming.opens_at_s) == "10-26 01:30"


def test_two_starts_that_the_change_puts_at_one_instant_are_one() -> None:
    found = windows("0 2,3 * * * for 30m", zone=BERLIN)
    assert openings(found, "2026-03-28 12:00", 1) == ["03-29 01:00-01:30"]


def test_neighbours_that_a_change_of_the_clock_makes_overlap_are_one_long_window() -> None:
    found = windows("0 22 * * *", "0 2 * * *", zone=BERLIN)
    window = found.open_at(at_s("2026-10-25 00:30"))
    assert window is not None
    assert shown(window.closes_at_s) == "10-25 04:00"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"windows": ("0 2 * *",)}, r"sleep.windows.0 = '0 2 \* \*': must be five fields"),
        ({"windows": ("0 0 2 * * *",)}, "sleep.windows.0 = .*: must be five fields"),
        ({"windows": ("0 2 * * *", "61 2 * * *")}, "sleep.windows.1 = .*: bad minute"),
        ({"windows": ("0 0 30 2 *",)}, "sleep.windows.0 = .*: bad day-of-month"),
        ({"windows": ("0 2 * * * for 0",)}, "sleep.windows.0 = .*: must last longer than no time"),
        ({"windows": ("0 2 * * * for 32d",)}, "sleep.windows.0 = .*31 days"),
        ({"windows": ("0 2 * * * for long",)}, "sleep.windows.0 = .*: after `for`, must be a duration"),
        ({"windows": ("0 2 * * *", "0 5 * * *")}, r"sleep.windows.1 = .*: must not overlap sleep.windows.0 \('0 2"),
        ({"windows": ("0 */2 * * *",)}, "sleep.windows.0 = .*: must not overlap itself"),
        ({"windows": ("0 2 * * *", "0 0 29 2 * for 8h")}, "must not overlap sleep.windows.1"),
        ({"time_zone": "Europe/Berlin "}, "sleep.time_zone = .*: must be UTC or an IANA name"),
        ({"time_zone": "../../etc/passwd"}, "sleep.time_zone = .*: must be UTC or an IANA name"),
        ({"time_zone": ""}, "sleep.time_zone = .*: must be UTC or an IANA name"),
    ],
)
def test_what_makes_no_sense_is_refused_with_key_value_and_what_is_allowed(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        windows_of(SleepSettings(**given), duration=parse_duration)


@settings(max_examples=60, deadline=None)
@given(
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    length_h=st.integers(1, 23),
    zone=st.sampled_from(["UTC", BERLIN, NEW_YORK, "Australia/Lord_Howe", "Asia/Kolkata"]),
    day=st.integers(0, 365),
)
def test_what_is_said_to_open_next_does_and_for_its_whole_length(
    minute: int, hour: int, length_h: int, zone: str, day: int
) -> None:
    found = windows(f"{minute} {hour} * * * for {length_h}h", zone=zone)
    now = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(days=day)
    starts = []
    for _ in range(3):
        window = found.next_after(now.timestamp())
        assert window is not None
        assert window.closes_at_s - window.opens_at_s == length_h * 3600
        assert found.open_at(window.opens_at_s) == window == found.open_at(window.closes_at_s - 1)
        before = found.open_at(window.opens_at_s - 1)
        # 23 hours may reach into a next day that has only 23.
        assert before is None or length_h >= 22
        starts.append(window.opens_at_s)
        now = datetime.fromtimestamp(window.opens_at_s, UTC)
    assert all(22.5 * 3600 <= b - a <= 25 * 3600 for a, b in pairwise(starts))

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from nightfill.engines.lifecycle.forecast import Expected, next_use

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo

BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")
MONDAY = datetime(2026, 6, 1, tzinfo=UTC)


def asked(times: Iterable[str], zone: tzinfo = UTC) -> Counter[int]:
    """Hours of requests at these times by the clock on the wall."""
    return Counter(int(datetime.fromisoformat(at).replace(tzinfo=zone).timestamp() // 3600) for at in times)


def daily(clock: str, *, days: int, first: datetime = MONDAY, only: Iterable[int] = range(7)) -> list[str]:
    """That time on each of so many days, where its weekday is one of `only` (Monday is 0)."""
    found = [first + timedelta(days=number) for number in range(days)]
    return [f"{day:%Y-%m-%d} {clock}" for day in found if day.weekday() in only]


def foreseen(times: Iterable[str], now: str, zone: tzinfo = UTC) -> str | None:
    now_s = datetime.fromisoformat(now).replace(tzinfo=zone).timestamp()
    expected = next_use(asked(times, zone), now_s=now_s, zone=zone)
    if expected is None:
        return None
    return f"{datetime.fromtimestamp(expected.at_s, zone):%a %Y-%m-%d %H:%M}"


@pytest.mark.parametrize(
    ("times", "now", "expected"),
    [
        pytest.param([], "2026-06-05 12:00", None, id="never asked"),
        pytest.param(daily("09:10", days=2), "2026-06-03 07:00", None, id="two days are no habit"),
        pytest.param(daily("09:10", days=3), "2026-06-04 07:00", "Thu 2026-06-04 09:00", id="three days are"),
        pytest.param(daily("09:10", days=3), "2026-06-04 10:59", "Thu 2026-06-04 09:00", id="under way"),
        pytest.param(daily("09:10", days=3), "2026-06-04 11:00", "Fri 2026-06-05 09:00", id="over"),
        pytest.param(
            [*daily("09:10", days=3), *daily("10:30", days=3), *daily("12:00", days=3)],
            "2026-06-04 11:30",
            "Fri 2026-06-05 09:00",
            id="pauses of an hour begin nothing",
        ),
        pytest.param(
            [*daily("09:10", days=3), *daily("14:30", days=3)],
            "2026-06-04 11:30",
            "Thu 2026-06-04 14:00",
            id="a second time on the same day",
        ),
        pytest.param(
            daily("09:10", days=12, only=range(5)),
            "2026-06-13 07:00",
            "Sat 2026-06-13 09:00",
            id="one Saturday tells nothing yet",
        ),
        pytest.param(
            daily("09:10", days=19, only=range(5)),
            "2026-06-20 07:00",
            "Mon 2026-06-22 09:00",
            id="not at the week's end",
        ),
        pytest.param(
            daily("22:00", days=21, only=[6]), "2026-06-22 08:00", "Sun 2026-06-28 22:00", id="on Sundays alone"
        ),
        pytest.param(
            [*daily("08:55", days=2), "2026-06-03 09:05", "2026-06-04 09:05"],
            "2026-06-05 07:00",
            "Fri 2026-06-05 08:00",
            id="now before and now after the full hour",
        ),
        pytest.param(
            [f"2026-06-0{day} {hour:02}:10" for day, hour in ((1, 3), (2, 9), (3, 15), (4, 20))],
            "2026-06-05 00:00",
            None,
            id="at any time",
        ),
        pytest.param(daily("00:05", days=4), "2026-06-04 23:30", "Fri 2026-06-05 00:00", id="at midnight"),
        pytest.param(daily("23:05", days=4), "2026-06-05 00:30", "Thu 2026-06-04 23:00", id="since before midnight"),
    ],
)
def test_a_model_is_expected_when_it_began_to_be_asked_on_most_past_days(
    times: list[str], now: str, expected: str | None
) -> None:
    assert foreseen(times, now) == expected


@pytest.mark.parametrize(
    ("first", "now", "expected_utc"),
    [
        pytest.param(datetime(2026, 3, 23, tzinfo=UTC), "2026-03-28 05:00", "2026-03-28 08:00", id="winter"),
        pytest.param(datetime(2026, 3, 23, tzinfo=UTC), "2026-03-29 05:00", "2026-03-29 07:00", id="clock put on"),
        pytest.param(datetime(2026, 10, 19, tzinfo=UTC), "2026-10-25 05:00", "2026-10-25 08:00", id="clock put back"),
    ],
)
def test_the_time_is_that_of_the_clock_on_the_wall(first: datetime, now: str, expected_utc: str) -> None:
    now_s = datetime.fromisoformat(now).replace(tzinfo=BERLIN).timestamp()
    days = (datetime.fromisoformat(now).replace(tzinfo=UTC) - first).days
    expected = next_use(asked(daily("09:10", days=days, first=first), BERLIN), now_s=now_s, zone=BERLIN)
    at_s = datetime.fromisoformat(expected_utc).replace(tzinfo=UTC).timestamp()
    assert expected == Expected(at_s=at_s, until_s=at_s + 7200)


def test_zones_with_half_hours_begin_with_the_hour_that_is_counted() -> None:
    assert foreseen(daily("09:40", days=3), "2026-06-04 07:00", UTC) == "Thu 2026-06-04 09:00"
    assert foreseen(daily("09:40", days=3), "2026-06-04 07:00", KOLKATA) == "Thu 2026-06-04 09:30"


def test_what_happened_today_is_not_yet_a_habit() -> None:
    assert foreseen([*daily("09:10", days=2), "2026-06-03 09:10"], "2026-06-03 12:00") is None

"""When a model will be asked again after a pause, by the hours in which it was asked on past days. Pure.

A start is an hour with requests after at least `PAUSE_HOURS` without any. One is expected on a day where most past days
had one at that time by the clock on the wall: days of the same weekday where at least two of them are known, so that
nobody is woken up on Sunday, else all days, of which there must be three.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import date, tzinfo

PAUSE_HOURS: Final = 2
_SAME_WEEKDAYS: Final = 2
_DAYS: Final = 3
_MOST: Final = 0.5
_SOME: Final = 0.25
"""Of the days, so many must have begun at the very hour, and not only at the one after it."""
_HOUR_S: Final = 3600
_DAYS_AHEAD: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A use that is expected. Unix seconds."""

    at_s: float
    until_s: float
    """It begins before then, or on this day not at all."""


def next_use(hours: Mapping[int, int], *, now_s: float, zone: tzinfo) -> Expected | None:
    """The first expected use that is not over yet; None where the past shows none.

    `hours` has requests by hour (Unix seconds // 3600), of the last four weeks or so; the day of `now_s` and what is
    after it is no past.
    """
    today = datetime.fromtimestamp(now_s, zone).date()
    starts = _starts(hours, zone, before=today)
    if not starts:
        return None
    begun = datetime.fromtimestamp(min(hours) * _HOUR_S, zone).date()
    past = [begun + timedelta(days=number) for number in range((today - begun).days)]
    for number in range(-1, _DAYS_AHEAD):
        day = today + timedelta(days=number)
        for moment in _expected_on(day, past, starts):
            at_s = datetime.combine(day, moment, zone).timestamp()
            if at_s + 2 * _HOUR_S > now_s:
                return Expected(at_s=at_s, until_s=at_s + 2 * _HOUR_S)
    return None


def _starts(hours: Iterable[int], zone: tzinfo, *, before: date) -> dict[date, set[time]]:
    """Times of day at which uses began after a pause, by day."""
    found: dict[date, set[time]] = {}
    last = None
    for hour in sorted(hours):
        began = datetime.fromtimestamp(hour * _HOUR_S, zone)
        if (last is None or hour - last > PAUSE_HOURS) and began.date() < before:
            found.setdefault(began.date(), set()).add(began.time())
        last = hour
    return found


def _expected_on(day: date, past: list[date], starts: Mapping[date, set[time]]) -> list[time]:
    alike = [one for one in past if one.weekday() == day.weekday()]
    days = alike if len(alike) >= _SAME_WEEKDAYS else past
    if len(days) < _SAME_WEEKDAYS or (days is past and len(days) < _DAYS):
        return []
    known = [starts.get(one, set()) for one in days]
    found: list[time] = []
    for moment in sorted(set().union(*known)):
        then = (datetime.combine(day, moment) + timedelta(hours=1)).time()
        here = sum(moment in times for times in known)
        near = sum(moment in times or then in times for times in known)
        after_another = bool(found) and _minutes(moment) - _minutes(found[-1]) <= PAUSE_HOURS * 60
        if here >= _SOME * len(days) and near > _MOST * len(days) and not after_another:
            found.append(moment)
    return found


def _minutes(moment: time) -> int:
    return moment.hour * 60 + moment.minute

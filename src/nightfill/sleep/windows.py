"""Windows: the spans in which background work may run, by cron. Pure, and the sole importer of cronsim.

A window is given by the cron of its start and its length. Starts follow the clock on the wall of the time zone; length
is elapsed time: four hours stay four hours in the night in which the clock is changed. As with Debian's cron, a start
at a time that the change skips comes right after it, one at a time that comes twice comes once, at the first; those of
every hour (`0 * * * *`) come in each hour that really passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nightfill.config import SleepSettings

_CHECKED_FROM: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""A leap year: what begins once in four years is met within the first months."""
_CHECKED_STARTS: Final = 1000
_CHECKED_YEARS: Final = 10
_LONGEST_S: Final = 31 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of `sleep.windows`."""

    cron: str
    length_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One night. Unix seconds."""

    opens_at_s: float
    closes_at_s: float
    rule: Rule


class Windows:
    """All windows of one time zone; none at all is false. Rules are valid. Immutable."""

    def __init__(self, rules: Sequence[Rule] = (), zone: ZoneInfo | None = None) -> None:
        self.rules = tuple(rules)
        self.zone = zone or ZoneInfo("UTC")

    def __bool__(self) -> bool:
        return bool(self.rules)

    def open_at(self, now_s: float) -> Window | None:
        """The window that is open; of several, which a change of the clock makes of neighbours, the last to close."""
        found = [
            Window(opens_at_s=start_s, closes_at_s=start_s + rule.length_s, rule=rule)
            for rule in self.rules
            if (start_s := self._last_start(rule, now_s)) is not None and start_s + rule.length_s > now_s
        ]
        return max(found, key=lambda window: window.closes_at_s, default=None)

    def next_after(self, now_s: float) -> Window | None:
        """The next one that opens after `now_s`; None when none ever does."""
        found = [
            Window(opens_at_s=start_s, closes_at_s=start_s + rule.length_s, rule=rule)
            for rule in self.rules
            if (start_s := next(self._starts(rule, now_s), None)) is not None
        ]
        return min(found, key=lambda window: window.opens_at_s, default=None)

    def _last_start(self, rule: Rule, now_s: float) -> float | None:
        last_s = None
        for start_s in self._starts(rule, now_s - rule.length_s):
            if start_s > now_s:
                break
            last_s = start_s
        return last_s

    def _starts(self, rule: Rule, after_s: float) -> Iterator[float]:
        """All after `after_s`, in order."""
        # cronsim goes by the clock on the wall, and may begin with starts of an hour that is passing a second time.
        begin = datetime.fromtimestamp(math.floor(after_s), UTC).astimezone(self.zone)
        last_s = after_s
        for start in CronSim(rule.cron, begin):
            start_s = start.timestamp()
            if start_s > last_s:
                last_s = start_s
                yield start_s


def windows_of(settings: SleepSettings, *, duration: Callable[[str], float]) -> Windows:
    """The windows of the settings; `duration` gives the seconds of a text such as `4h`, or raises ValueError.

    Raises BadSetting for what is no cron or duration, an unknown time zone, and windows that overlap.
    """
    rules = [
        _rule(text, f"sleep.windows.{index}", float(settings.window_length_s), duration)
        for index, text in enumerate(settings.windows)
    ]
    windows = Windows(rules, _zone(settings.time_zone))
    _refuse_overlaps(rules, settings.windows)
    return windows


def wakes_of(crons: Sequence[str], *, key: str, length_s: float, zone: str) -> Windows:
    """Spans of `length_s` from each of these times on, which may overlap. `key` is for messages. Raises BadSetting."""
    rules = []
    for index, cron in enumerate(crons):
        if " for " in cron:
            raise _bad(
                f"{key}.{index}", cron, "must be five fields: minute hour day month weekday, such as `0 8 * * *`"
            )
        rules.append(_rule(cron, f"{key}.{index}", length_s, float))
    return Windows(rules, _zone(zone))


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError) as exc:
        raise _bad("sleep.time_zone", name, "must be UTC or an IANA name such as Europe/Berlin") from exc


def _rule(text: str, key: str, length_s: float, duration: Callable[[str], float]) -> Rule:
    cron, has_length, length = text.partition(" for ")
    cron = " ".join(cron.split())
    if has_length:
        try:
            length_s = duration(length)
        except ValueError as exc:
            raise _bad(key, text, f"after `for`, {exc}") from exc
    if not 0 < length_s <= _LONGEST_S:
        raise _bad(key, text, "must last longer than no time, and 31 days at most")
    if len(cron.split()) != 5:
        raise _bad(key, text, "must be five fields: minute hour day month weekday, such as `0 2 * * *`")
    try:
        next(CronSim(cron, _CHECKED_FROM))
    except CronSimError as exc:
        raise _bad(key, text, f"{str(exc).lower()}: must be minute hour day month weekday") from exc
    except StopIteration as exc:
        raise _bad(key, text, "never begins: there is no such day") from exc
    return Rule(cron=cron, length_s=length_s)


def _refuse_overlaps(rules: Sequence[Rule], texts: Sequence[str]) -> None:
    """By the clock of a year without changes of it, since those are nobody's fault."""
    before: tuple[datetime, int] | None = None
    crons = [CronSim(rule.cron, _CHECKED_FROM - timedelta(seconds=1)) for rule in rules]
    coming = [next(cron) for cron in crons]
    for _ in range(_CHECKED_STARTS if rules else 0):
        index = min(range(len(rules)), key=coming.__getitem__)
        start = coming[index]
        if start.year >= _CHECKED_FROM.year + _CHECKED_YEARS:
            break
        if before is not None and start < before[0]:
            other = before[1]
            which = "itself" if other == index else f"sleep.windows.{other} ({texts[other]!r})"
            raise _bad(f"sleep.windows.{index}", texts[index], f"must not overlap {which}: make one of them shorter")
        before = (start + timedelta(seconds=rules[index].length_s), index)
        coming[index] = next(crons[index])


def _bad(key: str, value: object, allowed: str) -> BadSetting:
    return BadSetting(f"setting {key} = {value!r}: {allowed}", param=key)

"""Request rates of clients, in windows of ten minutes: the CSV files of ServeGen weeks."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.errors import BadInput
from nightfill.simulate.trace import lines

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

WINDOW_S: Final = 600
DAY_S: Final = 86400
_MOST_RPS: Final = 1_000_000
_MOST_WINDOWS: Final = 100 * DAY_S // WINDOW_S


@dataclass(frozen=True, slots=True)
class Client:
    """One client of one served model."""

    model: str
    name: str
    uses: tuple[int, ...]
    """Requests in each window."""


def read_rates(paths: Sequence[Path]) -> list[Client]:
    """The clients of all files, by model and name, all with the same number of windows, whole days.

    Window 0 begins at midnight UTC of the first day that any row has. A window's requests are `rate_rps * WINDOW_S`,
    rounded: rates were counted so. Raises BadInput, which names file and line, for anything else.
    """
    found: dict[tuple[str, str], dict[int, int]] = {}
    for path in paths:
        _read(path, found)
    if not found:
        raise BadInput(f"{', '.join(map(str, paths))}: no rates", param="file")
    first = min(min(uses) for uses in found.values()) * WINDOW_S // DAY_S * DAY_S // WINDOW_S
    last = max(max(uses) for uses in found.values())
    count = -(-(last + 1 - first) * WINDOW_S // DAY_S) * DAY_S // WINDOW_S
    if count > _MOST_WINDOWS:
        raise BadInput(f"the rates span {count * WINDOW_S // DAY_S} days; at most 100 are simulated", param="file")
    return [
        Client(model, name, tuple(found[model, name].get(first + window, 0) for window in range(count)))
        for model, name in sorted(found, key=lambda key: (key[0], key[1].zfill(12)))
    ]


def _read(path: Path, found: dict[tuple[str, str], dict[int, int]]) -> None:
    with lines(path) as rows:
        for number, row in enumerate(csv.DictReader(rows), start=2):
            try:
                key = (row.get("model") or "model", row["client"])
                window, uses = _cell(float(row["t_s"]), float(row["rate_rps"]))
            except (KeyError, TypeError, ValueError, OverflowError) as exc:
                raise BadInput(f"{path}, line {number}: no rate of a client: {exc}", param="file") from exc
            of = found.setdefault(key, {})
            of[window] = of.get(window, 0) + uses


def _cell(at_s: float, rate: float) -> tuple[int, int]:
    """A window and its requests. Raises ValueError."""
    if at_s < 0 or at_s % WINDOW_S:
        raise ValueError(f"t_s {at_s:g} is not the beginning of a window of {WINDOW_S} s")
    if not 0 <= rate < _MOST_RPS:
        raise ValueError(f"rate_rps {rate:g} is not from 0 to {_MOST_RPS:,}")
    return int(at_s) // WINDOW_S, round(rate * WINDOW_S)


def scaled(clients: Sequence[Client], count: int, rng: random.Random) -> list[Client]:
    """`count` clients like these: each is one of them, drawn at random, and shifted in time by up to two hours.

    Shifts are short and go around the end of the trace, so that day and night stay where they are.
    """
    most = 2 * 3600 // WINDOW_S
    drawn = []
    for number in range(count):
        one = rng.choice(clients)
        shift = rng.randint(-most, most) % len(one.uses)
        drawn.append(Client(one.model, f"{one.name}-{number}", one.uses[shift:] + one.uses[:shift]))
    return drawn

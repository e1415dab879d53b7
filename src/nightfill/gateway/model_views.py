"""How models that may sleep are shown: as JSON, as metrics, and as lines of the log."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from nightfill.engines.lifecycle.state import ModelState
from nightfill.observe.metrics import Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nightfill.engines.lifecycle.model import Event, Status

_LOG: Final = logging.getLogger(__name__)


def lifecycle_view(status: Status) -> dict[str, Any]:
    """A model's state as JSON. Times are Unix seconds."""
    return {
        "name": status.name,
        "state": status.state.value,
        "since": status.since_s,
        "device": status.device,
        "bytes": 0 if status.footprint is None else status.footprint.device_bytes,
        "host_bytes": 0 if status.footprint is None else status.footprint.host_bytes,
        "awake_bytes": status.awake_bytes,
        "in_flight": status.in_flight,
        "waiting": status.waiting,
        "pinned": status.pinned,
        "expected_until": status.expected_until_s,
        "wakes": status.wakes,
        "failures": status.failures,
        "last_wake": None if status.last_wake is None else asdict(status.last_wake),
        "error": status.error,
    }


class Transitions:
    """Hears of each transition: writes it to the log, and adds up what waking took. For one event loop."""

    def __init__(self) -> None:
        self._phases: defaultdict[tuple[str, str], float] = defaultdict(float)

    def __call__(self, event: Event) -> None:
        """Take one in."""
        took = ", ".join(f"{phase} {seconds:.3f} s" for phase, seconds in event.seconds.items())
        level = logging.WARNING if event.after is ModelState.FAILED else logging.INFO
        _LOG.log(
            level,
            "model %s: %s -> %s: %s%s", event.model, event.before, event.after, event.reason, took and f" ({took})",
        )  # fmt: skip
        if event.after is ModelState.AWAKE:
            for phase, seconds in event.seconds.items():
                self._phases[event.model, phase] += seconds

    def samples(self, statuses: Sequence[Status]) -> Iterable[Sample]:
        """All figures, for each scrape."""
        for status in statuses:
            labels = {"engine": status.name}
            for state in ModelState:
                yield Sample(
                    name="model_state",
                    help="1 for the state that a model is in.",
                    value=status.state is state,
                    labels={**labels, "state": state.value},
                )
            footprint, wake = status.footprint, status.last_wake
            for name, text, value in (
                ("model_bytes", "Of its device, taken by a model.", footprint.device_bytes if footprint else 0),
                ("model_host_bytes", "Of the host beside that.", footprint.host_bytes if footprint else 0),
                ("model_waiting_requests", "Requests that wait for a model to be awake.", status.waiting),
                ("model_wake_queue", "Requests that waited when it last woke.", wake.released if wake else 0),
                ("model_pinned", "1 while it is kept awake.", status.pinned),
            ):
                yield Sample(name=name, help=text, value=value, labels=labels)
            for name, text, value in (
                ("model_wakes_total", "How often a model woke.", status.wakes),
                ("model_failures_total", "How often it could not be woken or put to sleep.", status.failures),
            ):
                yield Sample(name=name, help=text, value=value, kind="counter", labels=labels)
        for (model, phase), seconds in tuple(self._phases.items()):
            yield Sample(
                name="model_wake_seconds_total",
                help="What waking took, by phase; `warm` is the first token, before any request.",
                value=seconds,
                kind="counter",
                labels={"engine": model, "phase": phase},
            )

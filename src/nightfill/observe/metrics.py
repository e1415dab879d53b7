"""Prometheus metrics; the only importer of prometheus-client.

Labels are bounded: routes and layers from fixed lists, models and tiers from what was configured. Nothing of a tenant,
a key, a context or a text is a label.
"""

from __future__ import annotations

import logging
import platform
from collections import deque
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

import nightfill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_LOG: Final = logging.getLogger(__name__)
TTFT_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
"""vLLM's, so that dashboards overlay."""
OVERHEAD_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
REQUEST_BUCKETS: Final = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),
)
_MAX_NOTED: Final = 64
"""A fold then takes a fraction of a millisecond."""
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One figure that somebody else keeps, read when metrics are asked for. `name` goes without our prefix."""

    name: str
    help: str
    value: float
    kind: Literal["gauge", "counter"] = "gauge"
    labels: Mapping[str, str] = field(default_factory=dict)


class _Watched(Collector):
    """Reads samples at scrape time, from the thread that renders. Registered first, so that it folds first."""

    def __init__(self, fold: Callable[[], None], on_fault: Callable[[], None]) -> None:
        self.sources: list[Callable[[], Iterable[Sample]]] = []
        self._fold = fold
        self._on_fault = on_fault

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()  # not known before there is something to read

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        self._fold()
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for source in self.sources:
            try:
                samples = list(source())
            except Exception:  # noqa: BLE001
                # The outermost frame of somebody else's code: its figures are missing, all others are not.
                _LOG.exception("a source of metrics failed")
                self._on_fault()
                continue
            for sample in samples:
                family = families.get(sample.name)
                if family is None:
                    kind = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
                    family = kind(f"nightfill_{sample.name}", sample.help, labels=tuple(sample.labels))
                    families[sample.name] = family
                family.add_metric(tuple(sample.labels.values()), sample.value)
        return families.values()


class _Registry(CollectorRegistry):
    """Makes what it holds, under our prefix."""

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"nightfill_{name}", text, labels, registry=self)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"nightfill_{name}", text, labels, registry=self)

    def histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"nightfill_{name}", text, labels, buckets=buckets, registry=self)


class _Times:
    """How long requests take."""

    def __init__(self, registry: _Registry) -> None:
        self.ttft = registry.histogram(
            "time_to_first_token_seconds",
            "From a request's arrival to the first content of its stream.",
            "model_name",
            "layer",
            buckets=TTFT_BUCKETS,
        )
        self.duration = registry.histogram(
            "request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            "model_name",
            "layer",
            buckets=REQUEST_BUCKETS,
        )
        self.overhead = registry.histogram(
            "gateway_overhead_seconds",
            "From a request's arrival to the call of its engine.",
            buckets=OVERHEAD_BUCKETS,
        )
        self.restore = registry.histogram(
            "restore_seconds", "Loading a filled prefix before the engine was asked.", buckets=TTFT_BUCKETS[:16]
        )


class _Fills:
    """What engines compute, and what fills spare them."""

    def __init__(self, registry: _Registry) -> None:
        counter = registry.counter
        self.planned = counter("planned_tokens", "Tokens that the book said were stored.")
        self.promised = counter("promised_tokens", "Tokens of filled prefixes that engines loaded.")
        self.reused = counter("reused_tokens", "Prompt tokens that engines reported as not computed.")
        self.prompt = counter("prompt_tokens", "Prompt tokens, as engines reported them.")
        self.output = counter("output_tokens", "Generated tokens, as engines reported them.")
        self.drafted = counter("drafted_tokens", "Tokens guessed ahead, as engines reported them.")
        self.accepted = counter("accepted_tokens", "Of those, the ones that the model agreed with.")
        self.promises = counter("promises", "Requests for which a filled prefix was promised.")
        self.broken = counter("broken_promises", "Promises that were not kept.")
        self.decisions = counter(
            "restore_decisions", "Stored prefixes that were loaded, or computed again as that is quicker.", "decision"
        )
        self.saved = counter("saved_tokens", "Prompt tokens that engines did not compute thanks to a fill.")
        self.saved_s = counter(
            "saved_seconds", "Engine time that computing them would have taken, less what loading them took."
        )


class _Answers:
    """What becomes of stored answers."""

    def __init__(self, registry: _Registry) -> None:
        counter = registry.counter
        self.looked = counter("answer_lookups", "Look-ups of stored answers.", "layer", "result")
        self.looked_s = registry.histogram(
            "answer_lookup_seconds", "Looking for a stored answer.", "layer", buckets=OVERHEAD_BUCKETS
        )
        self.refused = counter("answer_guard_refusals", "Near answers that the guard did not let pass.", "reason")
        self.served = counter(
            "answers_served", "Requests that a stored answer served, by where the answer came from.", "origin"
        )
        self.kept = counter("answers_kept", "Replies that passed by, stored or why not.", "outcome")
        self.shadowed = counter(
            "answer_shadows",
            "Stored answers that would have served, by how they compare with what the model said.",
            "layer",
            "outcome",
        )
        self.saved = counter(
            "answer_saved_tokens", "Tokens that engines did not compute thanks to a stored answer.", "part"
        )
        self.saved_s = counter("answer_saved_seconds", "Engine time that computing them would have taken.")


def _totals(name: str, text: str, label: str, counts: Mapping[str, int]) -> list[Sample]:
    return [Sample(name=name, help=text, value=n, kind="counter", labels={label: word}) for word, n in counts.items()]


class Metrics:
    """All metrics of one process, in a registry of their own. Thread-safe.

    What every request counts is noted at once and folded in by the batch, or when somebody reads: counting one by one
    costs a request several times more, because all that code is cold by then.
    """

    def __init__(self) -> None:
        self.registry = registry = _Registry()
        self._noted: deque[Callable[[], object]] = deque()
        self._watched = _Watched(fold=self._fold, on_fault=lambda: self.fault("metrics"))
        registry.register(self._watched)
        self._times = _Times(registry)
        self._requests = registry.counter("requests", "Answers by route and class of status.", "route", "status")
        self._fills = _Fills(registry)
        self._answers = _Answers(registry)
        self._routes = registry.counter("routes", "Requests by what spoke for the engine that was asked.", "reason")
        self._turns = registry.counter("history_turns", "Chats that went on, by what becomes of them.", "outcome")
        self._left = registry.counter("clients_left", "Clients that hung up before their answer was complete.")
        self._failed_open = registry.counter("failed_open", "Requests served without the state, which had failed.")
        self._dropped = registry.counter("access_rows_dropped", "Rows of the access log that could not be written.")
        self._faults = registry.counter("faults", "Unexpected errors, each a defect of ours.", "where")
        self._in_flight = registry.gauge("in_flight_requests", "Live requests.")
        self._draining = registry.gauge("draining", "1 while shutting down.")
        self._jobs = registry.gauge("jobs", "Background jobs by state.", "state")
        self._failing = registry.gauge("jobs_failing", "Unfinished jobs whose last attempts failed; tried again.")
        self._told: dict[str, Sequence[Sample]] = {"audits": (), "foreseen": (), "scale": (), "budgets": ()}
        """What the state counts, as it was told last; shown in this order."""
        self.watch(lambda: chain.from_iterable(self._told.values()))
        build = registry.gauge("build_info", "Always 1.", "version", "python")
        build.labels(nightfill.__version__, platform.python_version()).set(1)

    def _note(self, act: Callable[[], object]) -> None:
        self._noted.append(act)
        if len(self._noted) >= _MAX_NOTED:
            self._fold()

    def _fold(self) -> None:
        noted = self._noted
        while noted:
            try:
                act = noted.popleft()
            except IndexError:
                return  # another thread folds too
            act()

    def request(self, route: str, status: int) -> None:
        """An answer was sent. `route` is one of a fixed list."""
        self._note(lambda: self._requests.labels(route, f"{status // 100}xx").inc())

    def ttft(self, model: str, layer: str, seconds: float) -> None:
        """The first content of a stream came."""
        self._note(lambda: self._times.ttft.labels(model, layer).observe(seconds))

    def duration(self, model: str, layer: str, seconds: float) -> None:
        """An answer came to its end."""
        self._note(lambda: self._times.duration.labels(model, layer).observe(seconds))

    def overhead(self, seconds: float) -> None:
        """The gateway's own time before it called the engine."""
        self._note(lambda: self._times.overhead.observe(seconds))

    def promise(self, *, planned: int, promised: int, broken: bool, restore_s: float) -> None:
        """A request was planned to use a fill, and what came of it."""
        self._fills.promises.inc()
        self._fills.planned.inc(planned)
        self._fills.promised.inc(promised)
        if broken:
            self._fills.broken.inc()
        if restore_s > 0:
            self._times.restore.observe(restore_s)

    def restore_decision(self, *, loaded: bool) -> None:
        """A stored prefix was loaded, or computed again by choice."""
        self._fills.decisions.labels("restored" if loaded else "recomputed").inc()

    def tokens(self, *, prompt: int, reused: int, output: int) -> None:
        """What an engine reported at the end of an answer."""
        if prompt or reused or output:
            self._fills.prompt.inc(prompt)
            self._fills.reused.inc(reused)
            self._fills.output.inc(output)

    def drafted(self, *, drafted: int, accepted: int) -> None:
        """Tokens that an engine guessed for an answer, and those of them that it took."""
        self._fills.drafted.inc(drafted)
        self._fills.accepted.inc(accepted)

    def saved(self, *, tokens: int, seconds: float) -> None:
        """What a fill spared an engine at one request."""
        if tokens:
            self._fills.saved.inc(tokens)
            self._fills.saved_s.inc(seconds)

    def answer_looked(self, layer: str, result: str, seconds: float) -> None:
        """A stored answer was looked for. Both words are of fixed lists."""

        def act() -> None:
            self._answers.looked.labels(layer, result).inc()
            self._answers.looked_s.labels(layer).observe(seconds)

        self._note(act)

    def answer_refused(self, reason: str) -> None:
        """The guard let no near answer pass. `reason` is one of a fixed list."""
        self._answers.refused.labels(reason).inc()

    def answer_served(self, origin: str) -> None:
        """A stored answer served a request. `origin` is one of a fixed list."""
        self._answers.served.labels(origin).inc()

    def answer_kept(self, outcome: str) -> None:
        """A reply was stored, or was not. `outcome` is one of a fixed list."""
        self._answers.kept.labels(outcome).inc()

    def answer_shadowed(self, layer: str, outcome: str) -> None:
        """A stored answer would have served. Both words are of fixed lists."""
        self._answers.shadowed.labels(layer, outcome).inc()

    def answer_saved(self, *, prompt: int, output: int, seconds: float) -> None:
        """What a stored answer spared an engine."""
        self._answers.saved.labels("prompt").inc(prompt)
        self._answers.saved.labels("output").inc(output)
        self._answers.saved_s.inc(seconds)

    def routed(self, reason: str) -> None:
        """An engine was asked. `reason` is one of a fixed list."""
        self._note(lambda: self._routes.labels(reason).inc())

    def history_turn(self, outcome: str) -> None:
        """A chat went on. `outcome` is one of a fixed list."""
        self._turns.labels(outcome).inc()

    def client_left(self) -> None:
        """A client hung up early."""
        self._left.inc()

    def failed_open(self) -> None:
        """The state failed and a request went on without it."""
        self._failed_open.inc()

    def rows_dropped(self, count: int) -> None:
        """Access rows were lost."""
        self._dropped.inc(count)

    def fault(self, where: str) -> None:
        """An unexpected exception was caught at a task's outermost frame."""
        self._faults.labels(where).inc()

    def live(self, *, in_flight: Callable[[], float], draining: Callable[[], float]) -> None:
        """Where to read the number of live requests and whether the server is draining."""
        self._in_flight.set_function(in_flight)
        self._draining.set_function(draining)

    def jobs(self, counts: Mapping[str, int], *, failing: int) -> None:
        """Background jobs by state, and how many of the unfinished failed before."""
        self._failing.set(failing)
        for state, count in counts.items():
            self._jobs.labels(state).set(count)

    def audits(self, counts: Mapping[str, int]) -> None:
        """How often stored KV was compared with what an engine computes, by outcome; the state counts them."""
        text = "Fills that were compared with what an engine computes; drift is wrong KV."
        self._told["audits"] = _totals("audits_total", text, "outcome", counts)

    def foreseen(self, counts: Mapping[str, int]) -> None:
        """Answers prepared before anybody asked, by source; the state counts them."""
        text = "Answers prepared before anybody asked, by where the question was foreseen from."
        self._told["foreseen"] = _totals("answers_prepared_total", text, "origin", counts)

    def budgets(self, samples: Sequence[Sample]) -> None:
        """What background work has spent of the budget of all; the state counts it."""
        self._told["budgets"] = samples

    def scale(self, samples: Sequence[Sample]) -> None:
        """The queue, and how many workers it needs, as of now."""
        self._told["scale"] = samples

    def watch(self, source: Callable[[], Iterable[Sample]]) -> None:
        """Read `source` at each scrape, from another thread than the loop's."""
        self._watched.sources.append(source)

    def render(self) -> bytes:
        """Prometheus text. Takes milliseconds: call it off the event loop."""
        return generate_latest(self.registry)

"""What an experiment decides: who is in which arm, what each arm did, and when it has to stop. Pure."""

from __future__ import annotations

import enum
import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nightfill.errors import BadRequest

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from nightfill.config import ExperimentSettings
    from nightfill.gateway.relay import Trip

MEASURES: Final = ("ttft_s", "inter_token_s", "tokens_per_s", "compute_s", "prompt_tokens", "output_tokens")
"""What is compared of requests that ended well, see `measured`."""
KEPT: Final = 512
"""Values of each measure and arm that are kept: a fair sample of all that came."""


class Arm(enum.StrEnum):
    """The two ways that requests go."""

    A = "a"
    B = "b"


def arm_of(experiment: str, share: float, who: bytes) -> Arm:
    """The arm of a session, or of a request without one: always the same for the same `who`, in B for `share` (0 to 1)
    of all. Those in B stay there when the share grows, and another experiment draws others.
    """
    digest = hashlib.blake2b(who, key=experiment.encode()[:64], digest_size=8).digest()
    return Arm.B if int.from_bytes(digest) < share * 2.0**64 else Arm.A


def parse_choice(text: bytes) -> tuple[str, Arm]:
    """The experiment and arm that a client asks for by `name=a` or `name=b`. Raises BadRequest."""
    name, _, arm = text.decode("latin-1").partition("=")
    if arm not in tuple(Arm):
        raise BadRequest("the header x-nightfill-experiment must be NAME=a or NAME=b", param="x-nightfill-experiment")
    return name, Arm(arm)


def measured(trip: Trip, *, streamed: bool, ended_s: float) -> dict[str, float]:
    """The measures of a request that ended well; those that nobody can know are left out.

    `ttft_s`: from the engine's being asked to the first piece of the answer, of streams. `inter_token_s`: from there to
    the end, by token. `tokens_per_s`: of the answer, from the asking to the end. `compute_s`: what the engine says it
    worked on it (llama.cpp: its timings; vLLM: its metrics of the request), a time that it may have shared with others.
    """
    tokens = trip.tokens
    begun_s = trip.content_s or trip.first_s
    values: dict[str, float | None] = {
        "prompt_tokens": tokens.prompt,
        "output_tokens": tokens.output,
        "compute_s": tokens.compute_s,
    }
    if streamed:
        values["ttft_s"] = begun_s - trip.asked_s
    if tokens.output and ended_s > trip.asked_s:
        values["tokens_per_s"] = tokens.output / (ended_s - trip.asked_s)
    if streamed and tokens.output and tokens.output > 1:
        values["inter_token_s"] = (ended_s - begun_s) / (tokens.output - 1)
    return {name: float(value) for name, value in values.items() if value is not None}


@dataclass(slots=True)
class Sampled:
    """Values of one measure: their number and sum, and a sample of `KEPT` in which each is as likely as any other."""

    count: int = 0
    total: float = 0.0
    values: list[float] = field(default_factory=list)

    def add(self, value: float, rng: random.Random) -> None:
        """Take one in (Vitter's algorithm R)."""
        self.count += 1
        self.total += value
        if len(self.values) < KEPT:
            self.values.append(value)
        elif (place := rng.randrange(self.count)) < KEPT:
            self.values[place] = value


@dataclass(slots=True)
class Tally:
    """What one arm did. Its memory is bounded."""

    requests: int = 0
    """That ended, well or not; those that were the client's own fault, or that it left, are not counted."""
    failures: int = 0
    drafted: int = 0
    accepted: int = 0
    measures: dict[str, Sampled] = field(default_factory=lambda: {name: Sampled() for name in MEASURES})

    @property
    def failure_share(self) -> float:
        """0 while there are no requests."""
        return self.failures / self.requests if self.requests else 0.0

    def failed(self) -> None:
        """Count a request that was not answered, or not to its end."""
        self.requests += 1
        self.failures += 1

    def answered(self, values: Mapping[str, float], rng: random.Random, *, drafted: int = 0, accepted: int = 0) -> None:
        """Count a request that ended well."""
        self.requests += 1
        self.drafted += drafted
        self.accepted += accepted
        for name, value in values.items():
            self.measures[name].add(value, rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far the arms' answers to the same prompts are apart: medians over prompts, of the largest difference of a
    log-probability in nats. Infinite where the other's token was not even likely.
    """

    prompts: int
    same: int
    """Prompts whose answers of both arms were the same, token by token."""
    drift: float
    """Of arm B from arm A."""
    noise: float
    """Of arm A from itself, asked again."""


def reason_to_stop(settings: ExperimentSettings, a: Tally, b: Tally, drift: Drift | None) -> str:
    """Why arm B gets no more requests, for people; empty where it goes on."""
    if b.requests >= settings.min_requests and b.failure_share - a.failure_share > settings.max_error_share:
        return (
            f"arm b failed {b.failures} of {b.requests} requests and arm a {a.failures} of {a.requests}: "
            f"more by over {settings.max_error_share:g}"
        )
    if drift is None or not settings.max_drift or drift.prompts < settings.min_requests:
        return ""
    beyond = math.inf if math.isinf(drift.drift) else drift.drift - drift.noise
    if beyond > settings.max_drift:
        return (
            f"arm b's log-probabilities are {drift.drift:.3g} nats from arm a's at the median of {drift.prompts} "
            f"prompts, and arm a's {drift.noise:.3g} from its own: over {settings.max_drift:g} more"
        )
    return ""

"""`/v1/nightfill/experiments`: what experiments have found; stopped, started, and told how far answers drift."""

from __future__ import annotations

import functools
import math
import statistics
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from nightfill.gateway.experiment import Drift
from nightfill.gateway.openai import decode_members, decode_record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nightfill.contexts import Tenant
    from nightfill.gateway.experiment import Sampled, Tally
    from nightfill.gateway.experiments import Experiment, Experiments

    Handler = Callable[[Tenant, bytes], Awaitable[tuple[int, object]]]


class DriftBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of `POST experiments/{name}/drift`: medians in nats, null for infinite."""

    prompts: Annotated[int, Meta(ge=1)]
    same: Annotated[int, Meta(ge=0)]
    drift: Annotated[float, Meta(ge=0)] | None
    noise: Annotated[float, Meta(ge=0)] | None


class ExperimentsAdmin:
    """Answers for `Admin`. Used by one event loop. Reading is for everybody, acting for who runs the server."""

    def __init__(self, experiments: Experiments) -> None:
        self._experiments = experiments

    def handlers(self, path: Sequence[str]) -> dict[str, Handler]:
        """By method, for what follows `experiments`; none where there is nothing."""
        match path:
            case []:
                return {"GET": self._list}
            case [name]:
                return {"GET": functools.partial(self._show, name)}
            case [name, "stop" | "start" | "drift" as action]:
                return {"POST": functools.partial(self._act, name, action)}
        return {}

    async def _list(self, _tenant: Tenant, _body: bytes) -> tuple[int, object]:
        return 200, {"object": "list", "data": [experiment_view(one) for one in self._experiments.all]}

    async def _show(self, name: str, _tenant: Tenant, _body: bytes) -> tuple[int, object]:
        return 200, experiment_view(self._experiments.get(name), values=True)

    async def _act(self, name: str, action: str, tenant: Tenant, body: bytes) -> tuple[int, object]:
        experiments = self._experiments
        experiments.operated_by(tenant)
        match action:
            case "stop":
                one = await experiments.stop(name, "by hand")
            case "start":
                one = await experiments.start(name)
            case _:
                decode_members(body)
                said = decode_record(body, DriftBody)
                one = await experiments.drifted(
                    name,
                    Drift(prompts=said.prompts, same=said.same, drift=_number(said.drift), noise=_number(said.noise)),
                )
        return 200, experiment_view(one)


def experiment_view(one: Experiment, *, values: bool = False) -> dict[str, Any]:
    """An experiment as JSON: times in Unix seconds, infinite drift as null; `values`: with the samples that figures and
    intervals are made of.
    """
    settings, drift = one.settings, one.drift
    return {
        "name": settings.name,
        "state": "running" if one.stop is None else "stopped",
        "stopped": None if one.stop is None else {"reason": one.stop.reason, "at": one.stop.at_s},
        "mode": settings.mode or None,
        "share": settings.share,
        "bounds": {
            "max_error_share": settings.max_error_share,
            "max_drift": settings.max_drift or None,
            "min_requests": settings.min_requests,
        },
        "arms": {
            "a": {"engine": settings.a, **_arm_view(one.a, values=values)},
            "b": {"engine": settings.b, **_arm_view(one.b, values=values), "missed": one.missed},
        },
        "drift": None
        if drift is None
        else {
            "prompts": drift.prompts,
            "same": drift.same,
            "drift": drift.drift if math.isfinite(drift.drift) else None,
            "noise": drift.noise if math.isfinite(drift.noise) else None,
        },
    }


def _arm_view(tally: Tally, *, values: bool) -> dict[str, Any]:
    return {
        "requests": tally.requests,
        "failures": tally.failures,
        "drafted_tokens": tally.drafted,
        "accepted_tokens": tally.accepted,
        "acceptance": tally.accepted / tally.drafted if tally.drafted else None,
        "measures": {
            name: _measure_view(measure, values=values) for name, measure in tally.measures.items() if measure.count
        },
    }


def _measure_view(measure: Sampled, *, values: bool) -> dict[str, Any]:
    return {
        "n": measure.count,
        "mean": measure.total / measure.count,
        "p50": statistics.median(measure.values),
        **({"values": measure.values} if values else {}),
    }


def _number(said: float | None) -> float:
    return math.inf if said is None else said

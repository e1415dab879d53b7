"""`/v1/nightfill/engines`: what the engines are and how they do; and models put to sleep, woken and pinned by hand."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from nightfill.contexts.context import DEFAULT_TENANT
from nightfill.errors import BadRequest, NotAllowed, NotFound
from nightfill.gateway.model_views import lifecycle_view
from nightfill.gateway.openai import decode_members, decode_record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from nightfill.contexts import Tenant
    from nightfill.engines.engine import Description
    from nightfill.engines.lifecycle.model import Status
    from nightfill.gateway.fleet import Standing

    Handler = Callable[[Tenant, bytes], Awaitable[tuple[int, object]]]


class SleepBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST engines/{name}/sleep`; none for the lightest level that the model has."""

    level: Literal[1, 2] | None = None


class Keeper(Protocol):
    """Whoever wakes models and puts them to sleep; see `engines.lifecycle.lifecycle.Lifecycle`."""

    async def wake(self, name: str) -> None:
        """Wake it, as if somebody asked for it. Raises EngineError."""

    async def sleep(self, name: str, level: Literal[1, 2] | None = None) -> None:
        """Put it to sleep once the requests in flight have ended. Raises EngineError."""

    def pin(self, name: str, pinned: bool) -> None:
        """Whether it may be put to sleep by itself."""

    def statuses(self) -> Sequence[Status]:
        """Of all models that may sleep."""


class EnginesAdmin:
    """Answers for `Admin`. Used by one event loop.

    What concerns all tenants is for who runs the server: without API keys everybody who gets in, else the tenant
    `default`, or the only one that there is.
    """

    def __init__(
        self,
        *,
        describe: Callable[[], Awaitable[Sequence[Description]]],
        standings: Callable[[], Mapping[str, Standing]] | None = None,
        keeper: Keeper | None = None,
        tenants: Sequence[str] = (),
    ) -> None:
        self._describe = describe
        self._standings = standings
        self._keeper = keeper
        self._operators = tenants if len(tenants) == 1 else (DEFAULT_TENANT,)

    def handlers(self, path: Sequence[str]) -> dict[str, Handler]:
        """By method, for what follows `engines`; none where there is nothing."""
        match path:
            case []:
                return {"GET": self._list}
            case [name, "sleep" | "wake" | "pin" | "unpin" as action]:
                return {"POST": functools.partial(self._act, name, action)}
        return {}

    async def _list(self, _tenant: Tenant, _body: bytes) -> tuple[int, object]:
        standings = self._standings() if self._standings is not None else {}
        models = self._keeper.statuses() if self._keeper is not None else ()
        rows = [
            {
                "name": engine.engine,
                "model": engine.model,
                "version": engine.version,
                "signature": engine.signature,
                "context_length": engine.context_length,
                "kv_bytes_per_token": engine.kv_bytes_per_token,
                "slots": engine.slots,
                "reuse": engine.reuse.name.lower(),
                "embeddings": engine.embeddings,
                **(asdict(standings[engine.engine]) if engine.engine in standings else {}),
                "lifecycle": next((lifecycle_view(one) for one in models if _is_of(engine.engine, one.name)), None),
            }
            for engine in await self._describe()
        ]
        return 200, {"object": "list", "data": rows}

    async def _act(self, name: str, action: str, tenant: Tenant, body: bytes) -> tuple[int, object]:
        if tenant not in self._operators:
            raise NotAllowed("putting models to sleep concerns all tenants: it takes the API key of tenant default")
        keeper = self._keeper
        names = () if keeper is None else [one.name for one in keeper.statuses()]
        model = next((one for one in names if _is_of(name, one)), None)
        if keeper is None or model is None:
            if name not in {one.engine for one in await self._describe()}:
                raise NotFound(f"there is no engine {name[:80]!r}")
            raise BadRequest(f"engine {name!r} is always awake: it has no device (engines.N.device)", param="name")
        match action:
            case "sleep":
                await keeper.sleep(model, _level(body))
            case "wake":
                await keeper.wake(model)
            case _:
                keeper.pin(model, action == "pin")
        return 200, lifecycle_view(next(one for one in keeper.statuses() if one.name == model))


def _is_of(engine: str, model: str) -> bool:
    """Whether the engine is the model's, or an adapter of it."""
    return engine == model or engine.startswith(f"{model}:")


def _level(body: bytes) -> Literal[1, 2] | None:
    if not body.strip():
        return None
    decode_members(body)
    return decode_record(body, SleepBody).level

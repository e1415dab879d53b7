"""The gateway as a raw ASGI application: dispatch by method and path, nothing more on the way of a request."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import nightfill
from nightfill.errors import (
    ClientLeft,
    Draining,
    NightfillError,
    NotFound,
    StateError,
    WrongMethod,
)
from nightfill.gateway.ask import ENGINE_ROUTES
from nightfill.gateway.autoscale import scale_samples
from nightfill.gateway.exchange import CLOSE, Exchange
from nightfill.gateway.inference import model_of
from nightfill.gateway.refusal import refusal
from nightfill.observe.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from nightfill.gateway.admin import Admin
    from nightfill.gateway.admission import Admission
    from nightfill.gateway.exchange import Receive, Scope, Send
    from nightfill.gateway.inference import Inference
    from nightfill.observe.metrics import Metrics

_LOG: Final = logging.getLogger(__name__)
_LIVE: Final = frozenset({"/healthz", "/health", "/livez"})
_READY: Final = frozenset({"/readyz", "/ready"})
_PLAIN: Final = _LIVE | _READY | {"/metrics", "/version"}
_ADMIN: Final = "/v1/nightfill/"
_READY_S: Final = 2.0


class Gateway:
    """The ASGI callable. Holds no state of its own; built by the composition root, used by one event loop."""

    def __init__(self, *, admission: Admission, inference: Inference, admin: Admin, metrics: Metrics) -> None:
        self._admission = admission
        self._inference = inference
        self._admin = admin
        self._metrics = metrics
        metrics.live(in_flight=lambda: admission.in_flight, draining=lambda: admission.draining)

    @property
    def in_flight(self) -> int:
        """Live requests."""
        return self._admission.in_flight

    async def idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False when that took longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._admission.idle.wait()
        except TimeoutError:
            return False
        return True

    def drain(self) -> None:
        """Take no more work: readiness is 503 from now on, and so is every new request. Idempotent."""
        self._admission.draining = True

    def abort(self) -> None:
        """End the answers that are still under way; their clients are told."""
        self._inference.abort(Draining("the server is shutting down", retry_after_s=5.0))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope. Only HTTP is spoken."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        route = _route_of(exchange.path)
        try:
            await self._dispatch(exchange)
        except ClientLeft:
            exchange.status = 499
        except NightfillError as exc:
            await _refuse(exchange, exc)
        except Exception:  # noqa: BLE001
            # The outermost frame of the request's task: record it, answer, end.
            _LOG.exception("unexpected error", extra={"route": route})
            self._metrics.fault(route)
            if not exchange.head_sent:
                await _refuse(exchange, NightfillError("internal error; the log has it under this request's id"))
        finally:
            self._metrics.request(route, exchange.status or 500)

    async def _dispatch(self, exchange: Exchange) -> None:
        path = exchange.path
        if path in ENGINE_ROUTES:
            _expect(exchange, "POST")
            tenant = self._admission.tenant(exchange.headers)
            async with self._admission.body(exchange) as body:
                with self._admission.place():
                    await self._inference.answer(exchange, tenant, path, body)
        elif path in _PLAIN:
            _expect(exchange, "GET", "HEAD")
            await self._plain(exchange)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            _expect(exchange, "GET", "HEAD")
            self._admission.tenant(exchange.headers)
            await self._models(exchange, path.removeprefix("/v1/models").removeprefix("/"))
        elif path.startswith(_ADMIN):
            await self._admin.answer(exchange, self._admission)
        else:
            raise NotFound(f"there is no {path[:200]!r} here")

    async def _plain(self, exchange: Exchange) -> None:
        path = exchange.path
        if path in _LIVE:
            await exchange.respond_json(200, {"status": "ok"})
        elif path == "/version":
            await exchange.respond_json(200, {"version": nightfill.__version__})
        elif path in _READY:
            status, reason = await self._readiness()
            await exchange.respond_json(status, {"status": reason})
        else:
            try:
                counts, failing = await self._admin.job_counts()
                self._metrics.jobs(counts, failing=failing)
                self._metrics.audits(await self._admin.audit_counts())
                self._metrics.foreseen(await self._admin.foreseen_counts())
                self._metrics.budgets(await self._admin.budget_samples())
                if (scale := await self._admin.scale()) is not None:
                    self._metrics.scale(tuple(scale_samples(scale)))
            except StateError as exc:
                _LOG.warning("jobs could not be counted: %s", exc)
            text = await asyncio.to_thread(self._metrics.render)
            await exchange.respond(200, text, content_type=CONTENT_TYPE)

    async def _readiness(self) -> tuple[int, str]:
        if self._admission.draining:
            return 503, "draining"
        try:
            async with asyncio.timeout(_READY_S):
                ready = await self._inference.ready()
        except TimeoutError:
            ready = False
        return (200, "ready") if ready else (503, "no engine is ready")

    async def _models(self, exchange: Exchange, name: str) -> None:
        models = await self._inference.descriptions()
        if not name:
            by_name = {model.model: model_of(model) for model in reversed(models)}
            data = [by_name[name] for name in dict.fromkeys(model.model for model in models)]
            await exchange.respond_json(200, {"object": "list", "data": data})
            return
        for model in models:
            if model.model == name:
                await exchange.respond_json(200, model_of(model))
                return
        raise NotFound(f"model {name[:80]!r} is not served here", param="model")


def _expect(exchange: Exchange, *methods: str) -> None:
    if exchange.method not in methods:
        raise WrongMethod(f"{exchange.method} is not allowed on {exchange.path}", allowed=methods)


def _route_of(path: str) -> str:
    """The path as a metrics label, from a fixed list."""
    if path in ENGINE_ROUTES or path in _PLAIN:
        return path
    if path.startswith("/v1/models"):
        return "/v1/models"
    return _ADMIN if path.startswith(_ADMIN) else "other"


async def _refuse(exchange: Exchange, error: NightfillError) -> None:
    if exchange.head_sent:
        return  # the server closes the connection, since the answer is short of its length
    status, body, headers = refusal(error)
    if isinstance(error, Draining):
        headers = [*headers, CLOSE]
    if exchange.much_unread:
        await exchange.respond_early(status, body, headers=headers)
    else:
        await exchange.respond(status, body, headers=headers)

"""Budgets in Redis. What is set aside and spent moves with the jobs, in `jobs.lua`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.state.agenda import MOST_WOKEN
from nightfill.state.budgets import BudgetLine, BudgetRules, Period, Scope
from nightfill.state.redis.server import ROOT, Server, batches, scripts

if TYPE_CHECKING:
    from collections.abc import Sequence

_AT_ONCE: Final = 200


class RedisBudgetBook:
    """See `BudgetBook`. `rules` say what holds where no limit was set."""

    def __init__(self, server: Server, *, rules: BudgetRules) -> None:
        self._server = server
        self._scripts = scripts("books")
        self._set_limit = scripts("agenda")["set_limit"]
        self._rules = rules

    async def users(self, tenant: str) -> list[Scope]:
        """See `BudgetBook`."""
        users = sorted(name.decode() for name in await self._server.call("SMEMBERS", f"{ROOT}:payers:{tenant}"))
        lines = await self.lines([Scope(tenant, user) for user in users])
        return list(dict.fromkeys(line.scope for line in lines if line.own or line.spent or line.reserved))

    async def lines(self, scopes: Sequence[Scope] | None = None) -> list[BudgetLine]:
        """See `BudgetBook`. Each scope's lines are of one instant."""
        if scopes is None:
            scopes = await self._all()
        lines: list[BudgetLine] = []
        for some in batches(scopes, _AT_ONCE):
            packed = await self._server.run(self._scripts["budget_lines"], [key_of(scope) for scope in some])
            lines += lines_of(some, msgspec.msgpack.decode(packed), self._rules)
        return lines

    async def set_limit(self, scope: Scope, period: Period, tokens: int | None) -> None:
        """See `BudgetBook`."""
        budget = key_of(scope)
        limit = False if tokens is None else tokens
        await self._server.run(self._set_limit, f"{period}\0{budget}", limit, budget, MOST_WOKEN)

    async def _all(self) -> list[Scope]:
        """Those with a limit of their own, something spent or something set aside."""
        keys = {field.split(b"\0", 1)[1] async for field, _ in self._server.scan("HSCAN", f"{ROOT}:limits")}
        for name in ("reserved", *(await self._server.run(self._scripts["spent"]))):
            name = name.decode() if isinstance(name, bytes) else f"{ROOT}:{name}"
            keys |= {field async for field, _ in self._server.scan("HSCAN", name)}
        scopes = [_scope(key.decode()) for key in keys]
        return sorted(scopes, key=lambda scope: (scope.user is not None, scope.tenant or "", scope.user or ""))


def lines_of(scopes: Sequence[Scope], rows: Any, rules: BudgetRules) -> list[BudgetLine]:
    """What `budget_lines` of the scripts says of these scopes."""
    return [
        BudgetLine(
            scope=scope,
            period=period,
            limit=rules.limit(scope, period) if own is False else own,
            own=own is not False,
            spent=spent,
            reserved=reserved,
            resets_at_s=float(resets_at_s),
        )
        for scope, row in zip(scopes, rows, strict=True)
        for period, (own, spent, reserved, resets_at_s) in zip(Period, row, strict=True)
    ]


def key_of(scope: Scope) -> str:
    """The name of a budget in the scripts."""
    if scope.tenant is None:
        return "a"
    return f"t{scope.tenant}" if scope.user is None else f"u{scope.tenant}\0{scope.user}"


def _scope(key: str) -> Scope:
    if key == "a":
        return Scope()
    tenant, _, user = key[1:].partition("\0")
    return Scope(tenant, user) if key[0] == "u" else Scope(tenant)

"""What a tenant may know of its bill and its budgets, over HTTP. Setting budgets is for who runs the server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from nightfill.errors import BadRequest
from nightfill.ledger import DEFAULT_SINCE, By, bill, parse_by, parse_since
from nightfill.observe.metrics import Sample
from nightfill.state.budgets import Scope
from nightfill.state.views import budget_view

if TYPE_CHECKING:
    from nightfill.config import PriceSettings
    from nightfill.contexts import Tenant
    from nightfill.state.budgets import BudgetBook
    from nightfill.state.ledger import LedgerBook

_ASKED: Final = frozenset({"by", "since"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Answers for one tenant at a time."""

    ledger: LedgerBook
    budgets: BudgetBook
    prices: PriceSettings

    async def billed(self, tenant: Tenant, query: bytes) -> dict[str, Any]:
        """Answer `GET ledger`; `by` and `since` are as of `nightfill ledger`. Raises BadInput, StateUnavailable."""
        asked = {key: values[-1] for key, values in parse_qs(query.decode("latin-1"), keep_blank_values=True).items()}
        if unknown := sorted(asked.keys() - _ASKED):
            raise BadRequest(f"there is no parameter {unknown[0][:80]!a}; by and since are known", param="query")
        now_s = time.time()
        return {
            "object": "list",
            **await bill(
                self.ledger,
                self.prices,
                by=parse_by(asked.get("by", By.CONTEXT)),
                since_day=parse_since(asked.get("since", DEFAULT_SINCE), now_s=now_s),
                now_s=now_s,
                tenant=tenant,
            ),
        }

    async def budgeted(self, tenant: Tenant) -> dict[str, Any]:
        """Answer `GET budgets`: the tenant's own, and those of its users. Raises StateUnavailable."""
        scopes = [Scope(tenant), *await self.budgets.users(tenant)]
        return {"object": "list", "data": [budget_view(line) for line in await self.budgets.lines(scopes)]}

    async def samples(self) -> list[Sample]:
        """The budget of all together, as gauges: no label may tell a tenant or a user. Raises StateUnavailable."""
        return [
            Sample(name=name, help=text, value=tokens, labels={"period": str(line.period)})
            for line in await self.budgets.lines([Scope()])
            for name, text, tokens in (
                ("background_tokens", "Tokens computed by background work since the period began.", line.spent),
                ("background_reserved_tokens", "Tokens set aside in budgets for unfinished jobs.", line.reserved),
                (
                    "background_limit_tokens",
                    "Tokens that all may compute; absent for no bound.",
                    line.limit,
                ),
            )
            if tokens is not None
        ]

"""What `nightfill simulate` does with the rates of clients: its options, and how the result is shown."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.cli.output import echo_json, echo_table
from nightfill.cli.units import parse_duration, show_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nightfill.cli.simulate_blocks import BlockOptions
    from nightfill.config import PriceSettings
    from nightfill.simulate.contest import KeptContexts
    from nightfill.simulate.fleet import Fleet
    from nightfill.simulate.rates import Client

_MOST_CLIENTS: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOptions:
    """What was given for the rates of clients."""

    seeds: tuple[int, ...]
    clients: int | None
    ttl_s: float
    budget_share: float
    peak_load: float


class _Seeds(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers alone
    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            return tuple(dict.fromkeys(int(text) for text in value.split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 1,2,3", param, ctx)


class _Ttl(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers alone
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(parse_duration(value))
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)
        return seconds if seconds >= 600 else self.fail(f"{value!r} is below 10m, one window", param, ctx)


_OPTIONS: Final = (
    click.option("--seeds", type=_Seeds(), default="1", show_default=True, help="One run for each, by commas."),
    click.option("--clients", type=click.IntRange(1, _MOST_CLIENTS), help="Drawn from those of the files."),
    click.option("--ttl", "ttl_s", type=_Ttl(), default="4h", show_default=True, help="So long a fill lasts."),
    click.option(
        "--budget-share",
        type=click.FloatRange(0, 1),
        default=0.25,
        show_default=True,
        help="Of what would be wished for, what a day's budget can fill.",
    ),
    click.option(
        "--peak-load",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.8,
        show_default=True,
        help="Of each model's engines at its peak, with nothing filled.",
    ),
)


def context_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options for rates of clients, as the argument `contexts` of a command."""

    @functools.wraps(command)
    def gathered(*args: Any, **options: Any) -> None:
        names = ContextOptions.__dataclass_fields__
        command(*args, contexts=ContextOptions(**{name: options.pop(name) for name in names}), **options)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def simulate_rates(
    files: Sequence[Path],
    options: ContextOptions,
    speeds: BlockOptions,
    prices: PriceSettings,
    *,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Read, replay for each seed, and show. Raises BadInput for a file that has no rates."""
    import random

    from nightfill.simulate.bound import Bound
    from nightfill.simulate.contest import contest
    from nightfill.simulate.fleet import Machines, fleet_of
    from nightfill.simulate.rates import read_rates, scaled
    from nightfill.sleep.worth import Speeds

    clients: Sequence[Client] = read_rates(files)
    machines = Machines(
        speeds=Speeds(
            prefill=speeds.prefill_tokens_per_s,
            fill=speeds.prefill_tokens_per_s,
            restore=speeds.load_bytes_per_s / speeds.bytes_per_token,
        ),
        peak_load=options.peak_load,
    )
    bound: Bound | None = None
    runs: list[tuple[int, Fleet, list[KeptContexts]]] = []
    for seed in options.seeds:
        rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
        shown = scaled(clients, options.clients, rng) if options.clients else clients
        fleet = fleet_of(shown, rng, lasts_s=options.ttl_s, budget_share=options.budget_share, machines=machines)
        if bound is None or options.clients:
            bound = Bound(shown, fleet.lasts)
        results = list(contest(fleet, bound.tokens(fleet), prices, seed=seed))
        runs.append((seed, fleet, results))
        if not as_json:
            _show(seed, fleet, results)
    if chart is not None:
        _draw(chart, runs)
    if as_json:
        echo_json(_json(files, options, runs))


def _json(
    files: Sequence[Path], options: ContextOptions, runs: Sequence[tuple[int, Fleet, Sequence[KeptContexts]]]
) -> dict[str, Any]:
    fleet = runs[0][1]
    return {
        "trace": ", ".join(file.name for file in files),
        "kind": "contexts",
        "ttl_s": options.ttl_s,
        "budget_share": options.budget_share,
        "machines": fleet.machines,
        "seeds": [
            {
                "seed": seed,
                "clients": len(fleet.clients),
                "days": fleet.days,
                "requests": fleet.requests,
                "wished_tokens": fleet.wished_tokens,
                "day_tokens": fleet.day_tokens,
                "engines": fleet.engines,
            }
            for seed, fleet, _ in runs
        ],
        "results": [result for _, _, results in runs for result in results],
    }


def _show(seed: int, fleet: Fleet, results: Sequence[KeptContexts]) -> None:
    click.echo(
        f"seed {seed}: {len(fleet.clients):,} contexts, {fleet.requests:,} requests in {fleet.days} days, "
        f"{sum(fleet.engines.values()):,} engines; a day's budget is {fleet.day_tokens:,} tokens of "
        f"{round(fleet.wished_tokens / fleet.days):,} wished for; a fill lasts {show_duration(fleet.lasts * 600)}"
    )
    echo_table(
        [
            "policy",
            "saved tokens",
            "of bound",
            "hit ratio",
            "background tokens",
            "cost",
            "saved",
            "TTFT p50",
            "p95",
            "p99",
        ],
        [
            [
                one.policy,
                one.saved_tokens,
                f"{one.bound_share:.1%}",
                f"{one.hit_ratio:.1%}",
                one.background_tokens,
                f"{one.background_money:,.2f}",
                f"{one.saved_money:,.0f}",
                *(f"{seconds:.2f} s" for seconds in (one.ttft_s.p50, one.ttft_s.p95, one.ttft_s.p99)),
            ]
            for one in results
        ],
    )
    click.echo()


def _draw(chart: Path, runs: Sequence[tuple[int, Fleet, Sequence[KeptContexts]]]) -> None:
    from nightfill.bench.chart import draw_shares

    shares: dict[str, list[float]] = {}
    for _, _, results in runs:
        for one in results:
            shares.setdefault(one.policy, []).append(one.bound_share)
    fleet = runs[0][1]
    draw_shares(
        {policy: values for policy, values in shares.items() if policy not in ("none", "unlimited")},
        chart,
        title="Prefill tokens saved, of what no planner can exceed",
        subtitle=f"{len(fleet.clients):,} contexts, {fleet.days} days, one dot per seed",
    )

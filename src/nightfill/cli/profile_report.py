"""What `nightfill profile` prints: one record, as JSON or as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.cli.output import echo_table
from nightfill.cli.units import show_duration
from nightfill.contexts.bundle import show_bytes
from nightfill.contexts.discovery import NODE_BYTES, quantile, short_name
from nightfill.ledger import show_money, uses_to_break_even

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.cli.profile import Known
    from nightfill.config import Settings
    from nightfill.contexts.discovery import Finding
    from nightfill.contexts.discovery_prompt import About
    from nightfill.contexts.discovery_volatile import Spot, Volatile
    from nightfill.contexts.profile import Measure, Profile

_HOUR_S: Final = 3600.0
_VOLATILE_SHOWN: Final = 20


def report_of(
    profile: Profile,
    findings: Sequence[Finding[About]],
    measure: Measure,
    known: Known,
    settings: Settings,
    *,
    files: Sequence[str],
    registered: Sequence[Mapping[str, Any]] | None,
    show_text: bool,
) -> dict[str, Any]:
    """Everything that is known, as JSON. Money is that of the settings `prices`."""
    totals, gaps = profile.sketch.totals, profile.sketch.gaps.values
    span_s = None if profile.first_s is None or profile.last_s is None else profile.last_s - profile.first_s
    made = {row["key"]: row for row in registered or ()}
    names = {finding.key: short_name(finding.key) for finding in findings}
    volatile = sorted(profile.volatile, key=lambda one: -one.shared)[:_VOLATILE_SHOWN]
    return {
        "files": list(files),
        "kind": "blocks" if profile.is_trace else "text",
        "requests": profile.requests,
        "span_s": span_s,
        "untimed_requests": profile.untimed,
        "bad_lines": profile.bad,
        "first_bad_lines": profile.bad_shown,
        "prompt_tokens": round(profile.prompt_tokens),
        "tokens_by": "the trace" if profile.is_trace else known.tokens_by,
        "bytes_per_token": None if profile.is_trace else round(measure.bytes_per_token, 3),
        "block_tokens": profile.block_tokens or round(measure.block_bytes / measure.bytes_per_token),
        "min_tokens": measure.min_tokens,
        "distinct_prefixes": totals.distinct,
        "recurring_prefixes": totals.recurring,
        "recurrences": totals.recurrences,
        "interval_p50_s": _rounded(quantile(gaps, 0.5)),
        "interval_p90_s": _rounded(quantile(gaps, 0.9)),
        "reusable_tokens": profile.tokens(totals.known_size),
        "prefill_tokens_per_s": known.prefill_tokens_per_s,
        "prefill_by": known.prefill_by,
        "memory": {
            "prefixes": len(profile.sketch),
            "max_prefixes": profile.sketch.max_nodes,
            "max_bytes": profile.sketch.max_nodes * NODE_BYTES,
            "forgotten": totals.evicted,
            "recurrences_missed_at_most": totals.evicted_shortest,
            "complete_within_s": _rounded(totals.complete_s) if totals.evicted else None,
        },
        "prefixes": [
            {
                "name": names[finding.key],
                "within": None if finding.within is None else names[finding.within],
                **_finding_view(profile, finding, known, settings),
                "volatile": profile.spoils(finding.key),
                **({"registered": _without_key(made[finding.key])} if finding.key in made else {}),
            }
            for finding in findings
        ],
        "breaks_reuse": [_volatile_view(profile, one, show_text=show_text) for one in volatile],
    }


def show(report: Mapping[str, Any]) -> None:
    """Print it for people."""
    span = f" in {show_duration(report['span_s'])}" if report["span_s"] is not None else ""
    click.echo(
        f"{report['requests']:,} requests{span}, {report['prompt_tokens']:,} prompt tokens ({report['tokens_by']}); "
        f"{report['reusable_tokens']:,} of them came again"
    )
    click.echo(
        f"prefixes of {report['min_tokens']:,} tokens: {report['distinct_prefixes']:,} distinct_prefixes, "
        f"{report['recurring_prefixes']:,} recurring_prefixes, {report['recurrences']:,} recurrences"
    )
    if report["interval_p50_s"] is not None:
        p50, p90 = (show_duration(report[f"interval_{name}_s"]) for name in ("p50", "p90"))
        click.echo(f"a recurrence comes after {p50} at the median, {p90} at the 90th percentile")
    if report["prefixes"]:
        click.echo("")
        _show_prefixes(report)
    _show_volatile(report["breaks_reuse"])
    _show_limits(report)


def _show_prefixes(report: Mapping[str, Any]) -> None:
    rows = report["prefixes"]
    depth: dict[str | None, int] = {None: -1}
    for row in rows:
        depth[row["name"]] = depth[row["within"]] + 1
    tenants = len({row["tenant"] for row in rows}) > 1
    echo_table(
        [
            *(["TENANT"] if tenants else []),
            *("PREFIX", "TOKENS", "REQUESTS", "AGAIN AFTER", "P90", "AT STAKE", "FILL", "COST", "SAVES", "SAVED"),
            *("PAYS AT", "REMARK"),
        ],
        [
            [
                *([row["tenant"]] if tenants else []),
                "  " * depth[row["name"]] + row["name"],
                row["tokens"],
                row["requests"],
                *(
                    "-" if row[name] is None else show_duration(row[name])
                    for name in ("interval_p50_s", "interval_p90_s")
                ),
                row["stake_tokens"],
                show_duration(row["background_s"]),
                show_money(row["background_money"]),
                show_duration(row["saved_s"]),
                show_money(row["saved_money"]),
                "-" if row["break_even"] is None else f"{row['break_even']:.2g}",
                _remark(row),
            ]
            for row in rows
        ],
    )
    click.echo(
        f"at {report['prefill_tokens_per_s']:,.0f} tokens/s of prefill ({report['prefill_by']}) and the settings' "
        "prices; PAYS AT is the number of recurrences that pay for filling"
    )


def _remark(row: Mapping[str, Any]) -> str:
    if "registered" in row:
        made = row["registered"]
        return f"{made['did']}: {made['why']}" if made["did"] == "left" else f"{made['did']} {made['name']}"
    return "a piece of it changes" if row["volatile"] else ""


def _show_volatile(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        click.echo("")
        click.echo(
            f"breaks reuse: {row['requests']:,} requests are alike but for what follows; "
            f"moved to the end, it would leave {row['saved_tokens']:,} tokens to be used again"
        )
        for spot in row["places"]:
            length = (
                f"{spot['shortest']}"
                if spot["shortest"] == spot["longest"]
                else f"{spot['shortest']} to {spot['longest']}"
            )
            shown = f": {', '.join(map(ascii, spot['examples']))}" if "examples" in spot else ""
            click.echo(
                f"  {spot['kind']} of {length} characters at character {spot['offset']:,} of "
                f"{'the prompt' if row['form'] == 'completion' else 'message ' + str(spot['message'])}{shown}"
            )


def _show_limits(report: Mapping[str, Any]) -> None:
    if report["bad_lines"]:
        shown = ", ".join(f"{one.file} line {one.line} ({one.why})" for one in report["first_bad_lines"])
        click.echo(f"left out {report['bad_lines']:,} lines that are no requests: {shown}", err=True)
    memory = report["memory"]
    if memory["forgotten"]:
        within = show_duration(memory["complete_within_s"] or 0)
        click.echo(
            f"{memory['forgotten']:,} prefixes were forgotten to stay within {show_bytes(memory['max_bytes'])}: "
            f"recurrences within {within} are all counted, "
            f"at most {memory['recurrences_missed_at_most']:,} later ones are missing; --memory allows more",
            err=True,
        )


def _finding_view(profile: Profile, finding: Finding[About], known: Known, settings: Settings) -> dict[str, Any]:
    tokens = profile.tokens(finding.size)
    once_s = tokens / known.prefill_tokens_per_s
    late = sum(gap_s > settings.kv.ttl_s for gap_s in finding.gaps) / max(1, len(finding.gaps))
    fills = 1 + round(late * finding.recurrences)
    median_s = quantile(finding.gaps, 0.5)
    # Uses that come while the first fill is under way are served cold all the same.
    too_soon = min(finding.recurrences, int(once_s / median_s)) if median_s else 0
    hits = finding.recurrences - too_soon
    background_money = fills * once_s * settings.prices.background_per_hour / _HOUR_S
    saved_money = hits * once_s * settings.prices.serving_per_hour / _HOUR_S
    return {
        "tenant": finding.about.tenant,
        "model": finding.about.model,
        "form": finding.about.form,
        "tokens": tokens,
        "requests": finding.requests,
        "recurrences": finding.recurrences,
        "interval_p50_s": _rounded(median_s),
        "interval_p90_s": _rounded(quantile(finding.gaps, 0.9)),
        "first_s": finding.first_s,
        "last_s": finding.last_s,
        "stake_tokens": profile.tokens(finding.stake),
        "fills": fills,
        "background_s": fills * once_s,
        "background_money": background_money,
        "too_soon": too_soon,
        "saved_s": hits * once_s,
        "saved_money": saved_money,
        "break_even": uses_to_break_even(background_money=background_money, saved_money=saved_money, uses=hits),
    }


def _volatile_view(profile: Profile, one: Volatile[About], *, show_text: bool) -> dict[str, Any]:
    return {
        "tenant": one.about.tenant,
        "model": one.about.model,
        "form": one.about.form,
        "requests": one.variants,
        "saved_tokens": profile.tokens(one.shared),
        "places": [_spot_view(spot, show_text=show_text) for _, spot in sorted(one.spots.items())],
    }


def _spot_view(spot: Spot, *, show_text: bool) -> dict[str, Any]:
    return {
        "message": spot.message,
        "offset": spot.offset,
        "kind": spot.kind,
        "shortest": spot.shortest,
        "longest": spot.longest,
        **({"examples": spot.examples} if show_text else {}),
    }


def _without_key(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "key"}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)

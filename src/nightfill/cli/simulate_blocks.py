"""What `nightfill simulate` does with a trace of block hashes: its options, and how the result is shown."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.cli.output import echo_json, echo_table
from nightfill.cli.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nightfill.simulate.block_trace import BlockTrace
    from nightfill.simulate.blocks import KeptBlocks
    from nightfill.simulate.queueing import Engines

SIZES: Final = "128GiB,512GiB,2TiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOptions:
    """What was given for traces of blocks. Sizes in bytes."""

    sizes: tuple[tuple[str, int], ...]
    """Each as it was written, and in bytes."""
    bytes_per_token: int
    engines: int
    prefill_tokens_per_s: float
    load_bytes_per_s: int


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers alone
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = int(parse_size(value))
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)
        return size if size > 0 else self.fail(f"{value!r} is not above 0", param, ctx)


class _Sizes(_Size):
    name = "sizes"

    def convert(  # type: ignore[override]
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, int], ...]:
        return tuple((text.strip(), super(_Sizes, self).convert(text, param, ctx)) for text in value.split(","))


_OPTIONS: Final = (
    click.option("--sizes", type=_Sizes(), default=SIZES, show_default=True, help="Of the store, by commas."),
    click.option("--bytes-per-token", type=_Size(), default="128KiB", show_default=True, help="KV bytes of a token."),
    click.option("--engines", type=click.IntRange(1, 10_000), default=8, show_default=True, help="That prefill."),
    click.option(
        "--prefill-tokens-per-s",
        type=click.FloatRange(0, 1e9, min_open=True),
        default=8_000,
        show_default=True,
        help="Of one engine.",
    ),
    click.option(
        "--load-bytes-per-s", type=_Size(), default="8GiB", show_default=True, help="Of stored KV, by one engine."
    ),
)


def block_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options for traces of blocks, as the argument `blocks` of a command."""

    @functools.wraps(command)
    def gathered(*args: Any, **options: Any) -> None:
        names = BlockOptions.__dataclass_fields__
        command(*args, blocks=BlockOptions(**{name: options.pop(name) for name in names}), **options)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def simulate_block_trace(file: Path, options: BlockOptions, *, chart: Path | None, as_json: bool) -> None:
    """Read, replay and show. Raises BadInput for a file that is no such trace or a size that holds no block."""
    from nightfill.simulate.block_trace import read_blocks
    from nightfill.simulate.blocks import simulate_blocks
    from nightfill.simulate.queueing import Engines

    trace = read_blocks(file)
    engines = Engines(
        count=options.engines,
        prefill_tokens_per_s=options.prefill_tokens_per_s,
        load_bytes_per_s=options.load_bytes_per_s,
    )
    results = simulate_blocks(
        trace, [size for _, size in options.sizes], bytes_per_token=options.bytes_per_token, engines=engines
    )
    if chart is not None:
        _draw(chart, file, results)
    if as_json:
        echo_json(_json(file, trace, results, engines, options))
    else:
        _show(trace, results, engines, options)


def _json(
    file: Path, trace: BlockTrace, results: Sequence[KeptBlocks], engines: Engines, options: BlockOptions
) -> dict[str, Any]:
    return {
        "trace": file.name,
        "kind": "blocks",
        "requests": len(trace.requests),
        "prompt_tokens": trace.prompt_tokens,
        "prompt_blocks": trace.prompt_blocks,
        "block_tokens": trace.block_tokens,
        "bytes_per_token": options.bytes_per_token,
        "engines": engines,
        "results": results,
    }


def _show(trace: BlockTrace, results: Sequence[KeptBlocks], engines: Engines, options: BlockOptions) -> None:
    names = {size: text for text, size in options.sizes}
    echo_table(
        ["size", "policy", "hit ratio", "LRU to MIN", "saved tokens", "bound", "TTFT p50", "p90", "p99"],
        [
            [
                names[one.size_bytes],
                one.policy,
                f"{one.hit_ratio:.2%}",
                "" if one.lru_to_min is None else f"{one.lru_to_min:.0%}",
                one.saved_tokens,
                one.bound_tokens,
                *(f"{seconds:.2f} s" for seconds in (one.ttft_p50_s, one.ttft_p90_s, one.ttft_p99_s)),
            ]
            for one in results
        ],
    )
    click.echo(
        f"{len(trace.requests):,} requests, {trace.prompt_blocks:,} prompt blocks of {trace.block_tokens} tokens at "
        f"{options.bytes_per_token:,} bytes; {engines.count} engines, {engines.prefill_tokens_per_s:,g} tokens/s of "
        f"prefill and {engines.load_bytes_per_s:,} bytes/s of loading each"
    )


def _draw(chart: Path, file: Path, results: Sequence[KeptBlocks]) -> None:
    from nightfill.bench.chart import draw_hit_ratios

    lines: dict[str, list[tuple[int, float]]] = {}
    for one in results:
        lines.setdefault(one.policy, []).append((one.size_bytes, one.hit_ratio))
    draw_hit_ratios(lines, chart, title="Prompt blocks that need no prefill", subtitle=file.name)

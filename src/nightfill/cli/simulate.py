"""`nightfill simulate`: what policies would have saved on recorded traffic, beside what was possible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nightfill.cli.output import json_option
from nightfill.cli.simulate_blocks import block_options, simulate_block_trace
from nightfill.cli.simulate_contexts import context_options, simulate_rates
from nightfill.errors import BadInput

if TYPE_CHECKING:
    from nightfill.cli.root import Options
    from nightfill.cli.simulate_blocks import BlockOptions
    from nightfill.cli.simulate_contexts import ContextOptions
    from nightfill.config import PriceSettings


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@context_options
@block_options
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), help="Draw the result into this PNG.")
@json_option
@click.pass_obj
def simulate(
    options: Options | None,
    /,
    files: tuple[Path, ...],
    *,
    contexts: ContextOptions,
    blocks: BlockOptions,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Replay a recorded trace through each policy.

    CSV files with the request rates of clients (client, t_s, rate_rps, by windows of ten minutes) ask which contexts to
    keep filled, one per client: prefill tokens saved by policy, beside a bound for all policies.

    A file of JSON lines with the hashes of prompt blocks asks which blocks to keep: hit ratios of prompt blocks by rule
    of eviction and size of the store.
    """
    from nightfill.simulate.trace import Kind, kind_of

    if chart is not None:
        from nightfill.bench.chart import require_matplotlib

        require_matplotlib()
    kinds = {kind_of(file) for file in files}
    if kinds == {Kind.RATES}:
        simulate_rates(files, contexts, blocks, _prices(options), chart=chart, as_json=as_json)
    elif kinds == {Kind.BLOCKS} and len(files) == 1:
        simulate_block_trace(files[0], blocks, chart=chart, as_json=as_json)
    else:
        raise BadInput("give files with the rates of clients, or one file of requests with block hashes", param="file")


def _prices(options: Options | None) -> PriceSettings:
    from nightfill.cli.root import Options as Given
    from nightfill.cli.workspace import Workspace

    return Workspace.load(options or Given()).settings.prices

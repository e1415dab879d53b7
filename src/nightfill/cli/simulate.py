"""`nightfill simulate`: what policies would have saved on recorded traffic, beside what was possible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nightfill.cli.output import json_option
from nightfill.cli.simulate_blocks import block_options, simulate_block_trace
from nightfill.errors import BadInput

if TYPE_CHECKING:
    from nightfill.cli.simulate_blocks import BlockOptions


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@block_options
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), help="Draw the result into this PNG.")
@json_option
def simulate(files: tuple[Path, ...], *, blocks: BlockOptions, chart: Path | None, as_json: bool) -> None:
    """Replay a recorded trace through each policy.

    A file of JSON lines with the hashes of prompt blocks asks which blocks to keep: hit ratios of prompt blocks by rule
    of eviction and size of the store.
    """
    from nightfill.simulate.trace import Kind, kind_of

    if chart is not None:
        from nightfill.bench.chart import require_matplotlib

        require_matplotlib()
    if len(files) > 1 or kind_of(files[0]) is not Kind.BLOCKS:
        raise BadInput("give one file of requests with block hashes", param="file")
    simulate_block_trace(files[0], blocks, chart=chart, as_json=as_json)

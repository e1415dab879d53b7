"""Pictures: how times to first token are distributed, how fast tiers move blocks, how often blocks are hit.

Sole importer of matplotlib (extra `chart`)."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, Final

from nightfill.bench.stats import percentile
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_COLOURS: Final = ("#B4532A", "#1F6F8B", "#4C8C4A", "#6C5B9E")  # told apart also by those who see no red or green
_INK: Final = "#222222"
_JITTER: Final = 0.16


def require_matplotlib() -> None:
    """Raise BadSetting, which says what to install, when charts cannot be drawn here. Ask before a long run."""
    try:
        import matplotlib  # noqa: F401 - heavy, and an extra
    except ImportError as exc:
        raise BadSetting(
            "a chart needs matplotlib: install nightfill with its extra `chart` (pip install 'nightfill[chart]')",
            param="chart",
        ) from exc


def draw(
    arms: Mapping[str, Sequence[float]],
    path: Path,
    *,
    title: str,
    subtitle: str = "",
    axis: str = "time to first token (logarithmic)",
) -> None:
    """Write a PNG: one dot per query and a bar at the median of each arm, on a logarithmic axis of seconds.

    `arms` maps a name to its times in seconds (of `axis`), all above 0, at least one arm with a value; the first comes
    on top. Raises BadSetting when matplotlib is missing or `path` cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {name: sorted(values) for name, values in arms.items() if values}
    assert shown, "nothing to draw"
    figure = Figure(figsize=(8, 1.7 + 0.85 * len(shown)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without pyplot's global state
    axes = figure.subplots()
    rng = random.Random(0)  # noqa: S311 - only spreads the dots
    for row, ordered in enumerate(shown.values()):
        _arm(axes, row, ordered, _COLOURS[row % len(_COLOURS)], rng)
    _axis(axes, shown, axis)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    axes.set_title(subtitle, loc="left", fontsize=9, color="#555555")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, format="png")
    except OSError as exc:
        raise BadSetting(f"cannot write the chart to {path}: {exc}", param="chart") from exc


def _arm(axes: Any, row: int, ordered: Sequence[float], colour: str, rng: random.Random) -> None:
    heights = [row + rng.uniform(-_JITTER, _JITTER) for _ in ordered]
    axes.scatter(ordered, heights, s=16, color=colour, alpha=0.55, linewidths=0, zorder=3)
    median = percentile(ordered, 50)
    axes.plot([median, median], [row - 0.28, row + 0.28], color=colour, linewidth=2.5, zorder=4)
    axes.annotate(
        f"p50 {_label(median)}  ·  p95 {_label(percentile(ordered, 95))}  ·  p99 {_label(percentile(ordered, 99))}",
        (median, row - 0.32),
        ha="center",
        va="bottom",
        fontsize=9,
        color=_INK,
    )


def _axis(axes: Any, shown: Mapping[str, Sequence[float]], label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low = min(values[0] for values in shown.values())
    high = max(values[-1] for values in shown.values())
    axes.set_xscale("log")
    room = 10 ** max(0.5, 0.33 * math.log10(high / low))  # half a label must fit beside the outermost median
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0) if high / low < 300 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _label(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(
        range(len(shown)), [f"{name}\n{len(values)} queries" for name, values in shown.items()], fontsize=10
    )
    axes.set_ylim(len(shown) - 0.4, -0.75)
    axes.set_xlabel(label, fontsize=9, color=_INK)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8, zorder=0)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _label(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def draw_tiers(tiers: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write a PNG: per tier a bar for load and one for save, and a mark where the raw device is, by one thread.

    `tiers` is what `bench.tiers.tier_json` gives, by name, at least one. Rates are on a logarithmic axis. Raises
    BadSetting when matplotlib is missing or `path` cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(9, 1.6 + 1.1 * len(tiers)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, one in enumerate(tiers.values()):
        for offset, colour, ours, raw, ratio in (
            (-0.19, _COLOURS[1], "load_bps", "raw_bps", "load_ratio"),
            (0.19, _COLOURS[0], "save_bps", "raw_save_bps", "save_ratio"),
        ):
            at, word = row + offset, ours.removesuffix("_bps")
            axes.barh(at, one[ours], height=0.34, color=colour, label=word if row == 0 else None, zorder=3)
            told = f"  {_rate(one[ours])}"
            if one[raw] is not None:
                axes.plot([one[raw]] * 2, [at - 0.18, at + 0.18], color=_INK, linewidth=2.2, zorder=4)
                told += f", {one[ratio]:.2f} of raw"
            axes.text(max(one[ours], one[raw] or 0), at, told, va="center", fontsize=8.5, color=_INK)
    rates = [one[key] for one in tiers.values() for key in ("load_bps", "save_bps", "raw_bps", "raw_save_bps")]
    known = [rate for rate in rates if rate]
    axes.set_xscale("log")
    axes.set_xlim(min(known) / 3, max(known) * 6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _rate(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(tiers)), list(tiers), fontsize=10)
    axes.set_ylim(len(tiers) - 0.45, -0.55)
    block_bytes = next(iter(tiers.values()))["block_bytes"]
    axes.set_xlabel(
        f"blocks of {block_bytes:,} bytes moved by one thread (logarithmic); line: the raw device", fontsize=9
    )
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8, zorder=0)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)
    _save(figure, path)


def _rate(bps: float) -> str:
    return f"{bps / 1e9:.3g} GB/s" if bps >= 1e8 else f"{bps / 1e6:.3g} MB/s"


def draw_hit_ratios(
    lines: Mapping[str, Sequence[tuple[int, float]]], path: Path, *, title: str, subtitle: str = ""
) -> None:
    """Write a PNG: one line per name through its (bytes, ratio of 0 to 1), on a logarithmic axis of bytes.

    At least one line, each with a point. Raises BadSetting when matplotlib is missing or `path` cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, PercentFormatter

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(lines.items()):
        sizes, ratios = zip(*sorted(points), strict=True)
        colour, marker = _COLOURS[number % len(_COLOURS)], "osD^vX"[number % 6]
        axes.plot(sizes, ratios, color=colour, marker=marker, ls="-" if number < len(_COLOURS) else "--", label=name)
    ticks = sorted({size for points in lines.values() for size, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [_size(size) for size in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("size of the store (logarithmic)", fontsize=9, color=_INK)
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.tick_params(length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    axes.set_title(subtitle, loc="left", fontsize=9, color="#555555")
    _save(figure, path)


def _size(nbytes: float) -> str:
    power = min(int(math.log2(nbytes)) // 10, 5)
    return f"{nbytes / 2 ** (10 * power):.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power]}"


def draw_phases(
    rows: Mapping[str, Mapping[str, float]], path: Path, *, title: str, subtitle: str = "", unit: str = "seconds"
) -> None:
    """Write a PNG: per name a bar of its phases' seconds, one behind the other; the first comes on top.

    At least one name; phases keep their colour over all rows. Raises BadSetting when matplotlib is missing or `path`
    cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    phases = list(dict.fromkeys(phase for row in rows.values() for phase in row))
    figure = Figure(figsize=(9, 1.8 + 0.6 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, row in enumerate(rows.values()):
        left = 0.0
        for phase in row:
            place = phases.index(phase)
            colour = _COLOURS[place % len(_COLOURS)]
            axes.barh(
                number, row[phase], left=left, height=0.6, color=colour, alpha=1 - 0.45 * (place >= len(_COLOURS))
            )
            left += row[phase]
        axes.text(left, number, f"  {_label(left)}", va="center", fontsize=9, color=_INK)
    for place, phase in enumerate(phases):
        colour, alpha = _COLOURS[place % len(_COLOURS)], 1 - 0.45 * (place >= len(_COLOURS))
        axes.barh(0, 0, color=colour, alpha=alpha, label=phase)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=10)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * max(sum(row.values()) for row in rows.values()))
    axes.set_xlabel(unit, fontsize=9, color=_INK)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(phases), frameon=False, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    axes.set_title(subtitle, loc="left", fontsize=9, color="#555555")
    _save(figure, path)


def draw_shares(rows: Mapping[str, Sequence[float]], path: Path, *, title: str, subtitle: str = "") -> None:
    """Write a PNG: per name a bar to the mean of its shares (0 to 1) and a dot for each; the first comes on top.

    At least one name, each with a share. Raises BadSetting when matplotlib is missing or `path` cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 1.4 + 0.5 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, shares in enumerate(rows.values()):
        mean = sum(shares) / len(shares)
        axes.barh(row, mean, height=0.6, color=_COLOURS[1], alpha=0.35, zorder=3)
        axes.scatter(shares, [row] * len(shares), s=16, color=_COLOURS[1], linewidths=0, zorder=4)
        axes.text(1.02, row, f"{mean:.1%}", va="center", fontsize=9, color=_INK)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=10)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8, zorder=0)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    axes.set_title(subtitle, loc="left", fontsize=9, color="#555555")
    _save(figure, path)

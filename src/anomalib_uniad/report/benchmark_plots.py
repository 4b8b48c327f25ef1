# SPDX-License-Identifier: Apache-2.0
"""Pictures of a benchmark: accuracy against cost, time and loss, unified against separate, spread over seeds."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .benchmark import Benchmark, over_seeds
from .columns import MODES

# Colours of Okabe and Ito, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MORE_COLOURS = colormaps["tab20"].colors  # type: ignore[attr-defined]  # for more methods than those
MARKERS = {"unified": "o", "separate": "^"}
_LINES = {"unified": "-", "separate": "--"}
# Column of the cost -> label of its axis, and by what it is divided.
_COSTS = {
    "train_seconds": ("training, minutes", 60.0),
    "latency_ms": ("one image in OpenVINO, ms", 1.0),
    "size_on_disk": ("files to deploy, MB", 1e6),
}
_SHOWN = ("image_AUROC", "pixel_AUROC", "image_TPR@FPR5", "image_TPR@FPR2")  # the first three that are there


def draw(benchmark: Benchmark, data: str) -> dict[str, Figure]:
    """Draw the pictures of some data that there is something to draw for.

    Args:
        benchmark (Benchmark): Results of a benchmark.
        data (str): Name of the data.

    Returns:
        dict[str, Figure]: ``cost``, ``modes``, ``seeds``, ``time`` and ``loss``, independent of pyplot.
    """
    metrics = ([name for name in _SHOWN if name in benchmark.metrics] or benchmark.metrics)[:3]
    methods = list(benchmark.table["method"].unique())
    colours = dict(zip(methods, cycle(COLOURS if len(methods) <= len(COLOURS) else MORE_COLOURS), strict=False))
    rows, categories = benchmark.means(data), benchmark.categories(data)
    figures = {}
    if len(rows):
        figures["cost"] = _cost(rows, metrics, colours)
    if (categories.groupby("method")["mode"].nunique() == len(MODES)).any():
        figures["modes"] = _modes(categories, metrics, colours)
    if rows["seed"].nunique() > 1:
        figures["seeds"] = _seeds(rows, metrics, colours)
    epochs = benchmark.epochs
    if len(epochs):
        epochs = epochs[(epochs["data"] == data) & (epochs["mode"] == "unified")]
        known = [name for name in metrics if name in epochs and epochs[name].notna().any()]
        if known and epochs.groupby(["method", "seed"]).size().max() > 1:
            figures["time"] = _time(epochs, known, colours)
            if "train_loss" in epochs and epochs["train_loss"].gt(0).any():
                figures["loss"] = _loss(epochs, [name for name in known if name.endswith("AUROC")] or known)
    return figures


def _figure(rows: int, columns: int, height: float = 3.3) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.3 * columns, height * rows + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _cost(rows: pd.DataFrame, metrics: Sequence[str], colours: Mapping[str, str]) -> Figure:
    costs = [name for name in _COSTS if rows[name].notna().any()] or ["train_seconds"]
    figure, grid = _figure(len(metrics), len(costs))
    found = over_seeds(rows, [*metrics, *costs], ["method", "mode"])
    for line, metric in zip(grid, metrics, strict=True):
        for axes, cost in zip(line, costs, strict=True):
            label, unit = _COSTS[cost]
            points: Any = found.iterrows()
            for (method, mode), row in points:
                x, y = row[cost, "mean"] / unit, 100 * row[metric, "mean"]
                spread = [[y - 100 * row[metric, "min"]], [100 * row[metric, "max"] - y]]
                style = {"marker": MARKERS[mode], "color": colours[method], "markersize": 9}
                axes.errorbar(x, y, yerr=spread, linestyle="", capsize=3, **style)
            axes.set(xscale="log", xlabel=label, ylabel=_in_words(metric))
            axes.margins(x=0.12, y=0.15)
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_ylim(top=min(axes.get_ylim()[1], 101))
            _grid(axes)
    _legend(figure, colours, list(found.index.unique("method")), list(found.index.unique("mode")))
    return figure


def _modes(categories: pd.DataFrame, metrics: Sequence[str], colours: Mapping[str, str]) -> Figure:
    of_modes = {mode: set(rows["method"]) for mode, rows in categories.groupby("mode")}
    methods = [name for name in colours if all(name in of_modes[mode] for mode in MODES)]
    names = list(categories["category"].unique())
    figure, grid = _figure(len(methods), len(metrics), height=0.9 + 0.33 * len(names))
    found = over_seeds(categories, metrics, ["method", "mode", "category"])
    for line, method in zip(grid, methods, strict=True):
        for axes, metric in zip(line, metrics, strict=True):
            for place, name in enumerate(names):
                values = {
                    mode: 100 * found.loc[(method, mode, name), (metric, "mean")]
                    for mode in MODES
                    if (method, mode, name) in found.index
                }
                axes.plot(list(values.values()), [place] * len(values), color="0.75", linewidth=3, zorder=1)
                for mode, value in values.items():
                    filled = colours[method] if mode == "unified" else "white"
                    axes.plot(value, place, MARKERS[mode], color=colours[method], markerfacecolor=filled, markersize=8)
            axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=_in_words(metric))
            axes.set_yticks(range(len(names)), [_short(name) for name in names])
            for text in axes.get_yticklabels():
                text.set_parse_math(False)
            axes.set_title(_short(method), fontsize=10).set_parse_math(False)
            _percents(axes)
            _grid(axes)
    handles = [
        Line2D([], [], marker=MARKERS[mode], linestyle="", color="0.3", markerfacecolor=fill, label=mode, markersize=8)
        for mode, fill in zip(MODES, ("0.3", "white"), strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _seeds(rows: pd.DataFrame, metrics: Sequence[str], colours: Mapping[str, str]) -> Figure:
    kinds = list(dict.fromkeys(zip(rows["method"], rows["mode"], strict=True)))
    figure, grid = _figure(1, len(metrics), height=0.9 + 0.45 * len(kinds))
    for axes, metric in zip(grid[0], metrics, strict=True):
        for place, (method, mode) in enumerate(kinds):
            values = 100 * rows[(rows["method"] == method) & (rows["mode"] == mode)][metric].dropna().astype(float)
            if len(values):
                axes.plot([values.min(), values.max()], [place] * 2, color="0.75", linewidth=3, zorder=1)
                axes.plot(values, [place] * len(values), MARKERS[mode], color=colours[method], alpha=0.7)
                axes.plot(values.mean(), place, "|", color="black", markersize=18)
        axes.set(ylim=(len(kinds) - 0.5, -0.5), xlabel=_in_words(metric))
        axes.set_yticks(range(len(kinds)), [f"{_short(method)}, {mode}" for method, mode in kinds])
        for text in axes.get_yticklabels():
            text.set_parse_math(False)
            text.set_visible(axes is grid[0][0])
        _percents(axes)
        _grid(axes)
    return figure


def _time(epochs: pd.DataFrame, metrics: Sequence[str], colours: Mapping[str, str]) -> Figure:
    figure, grid = _figure(1, len(metrics))
    for axes, metric in zip(grid[0], metrics, strict=True):
        for (method, _), rows in epochs.dropna(subset=[metric]).groupby(["method", "seed"], sort=False):
            axes.plot(rows["seconds"] / 60, 100 * rows[metric], ".-", color=colours[method], alpha=0.8)
        axes.set(xlabel="training, minutes", ylabel=f"{_in_words(metric)}, validation")
        axes.set_xlim(left=0)
        _grid(axes)
    _legend(figure, colours, list(epochs["method"].unique()), [])
    return figure


def _loss(epochs: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """A panel for each method, all on the same axes: where the loss falls and a metric with it, the method copies."""
    methods = list(epochs["method"].unique())
    columns = min(len(methods), 4)
    figure, grid = _figure(-(-len(methods) // columns), columns)
    kinds: list[tuple[str, str, Any, float]] = [
        ("train_loss", "black", "--", 1.0),
        *((name, COLOURS[row], "-", 100.0) for row, name in enumerate(metrics)),
    ]
    losses, values = epochs["train_loss"], 100 * epochs[list(metrics)].stack()
    for axes, method in zip(grid.flat, methods, strict=False):
        other = axes.twinx()
        for _, rows in epochs[epochs["method"] == method].groupby("seed"):
            for name, colour, line, unit in kinds:
                known = rows.dropna(subset=[name])
                place = axes if name == "train_loss" else other
                place.plot(known["epoch"], unit * known[name], line, marker=".", color=colour)
        means = 100 * epochs[epochs["method"] == method].groupby("epoch")[metrics[0]].mean().dropna()
        words = _in_words(metrics[0])[:-3]
        best = (
            ""
            if means.empty
            else (f"\n{words} {means.max():.1f} at epoch {means.idxmax()}, {means.iloc[-1]:.1f} at the end")
        )
        title = f"{_short(method)}{best}"
        axes.set_title(title, fontsize=9).set_parse_math(False)
        axes.set(yscale="log", ylim=(0.9 * losses.min(), 1.1 * losses.max()), xlabel="epoch", ylabel="training loss")
        other.set(ylim=(values.min() - 1, min(values.max() + 1, 101)), ylabel="validation, %")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for spines in (axes.spines, other.spines):
            spines["top"].set_visible(False)
        axes.label_outer()
        other.yaxis.label.set_visible(axes.get_subplotspec().is_last_col())
    for axes in grid.flat[len(methods) :]:
        axes.remove()
    labels = {"train_loss": "training loss", **{name: _in_words(name)[:-3] for name in metrics}}
    handles = [Line2D([], [], color=colour, linestyle=line, label=labels[name]) for name, colour, line, _ in kinds]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _legend(figure: Figure, colours: Mapping[str, str], methods: Sequence[str], modes: Sequence[str]) -> None:
    handles = [Line2D([], [], marker="s", linestyle="", color=colours[name], label=_short(name)) for name in methods]
    if len(modes) > 1:
        handles += [Line2D([], [], marker=MARKERS[mode], linestyle="", color="0.3", label=mode) for mode in modes]
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _percents(axes: Axes) -> None:
    """Leave room beside the lowest and highest value, but none far beyond 100 %."""
    axes.margins(x=0.1)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, high - 2), min(high, 101))


def _grid(axes: Axes) -> None:
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _in_words(metric: str) -> str:
    """Name of a metric on an axis, in percent."""
    level, _, name = metric.partition("_")
    if metric.startswith("image_TPR@FPR"):
        return f"found at {metric.removeprefix('image_TPR@FPR')} % false alarms, %"
    return f"{level} {name}, %"


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"

# SPDX-License-Identifier: Apache-2.0
"""Picture of scores over time, a panel for each product."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .predictions import Series
from .statistics import GoodScores

# Colours of Okabe and Ito, which colour-blind people can tell apart; markers and lines differ in shape too.
_NORMAL, _ANOMALOUS, _MEDIAN, _BAND = "#56B4E9", "#D55E00", "#000000", "#009E73"
_WORDS = {
    "": ("", "black"),
    "higher": (": scores are higher", "#B00000"),
    "lower": (": scores are lower", "#B00000"),
    "anomalous": (": more anomalous images", "#B00000"),
}


class Panel(NamedTuple):
    """What is drawn of a product.

    Attributes:
        name (str): Its name.
        series (Series): Its images.
        good (GoodScores | None): What good scores are like, if that is known.
        drift (str): What has moved.
    """

    name: str
    series: Series
    good: GoodScores | None
    drift: str


def draw(panels: Sequence[Panel], window: int) -> Figure:
    """Draw scores over time.

    Args:
        panels (Sequence[Panel]): The products.
        window (int): Images of the running median.

    Returns:
        Figure: Independent of pyplot.
    """
    columns = min(3, max(len(panels), 1))
    rows = max(math.ceil(len(panels) / columns), 1)
    figure = Figure(figsize=(5 * columns + 1, 2.7 * rows + 0.7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, window)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles = [
        Line2D([], [], marker="o", linestyle="", color=_NORMAL, markersize=5, label="normal"),
        Line2D([], [], marker="^", linestyle="", color=_ANOMALOUS, markersize=6, label="anomalous"),
        Line2D([], [], color=_MEDIAN, linewidth=2, label=f"median of {window} images"),
        Line2D([], [], color="0.3", linestyle="--", label="threshold"),
        Patch(color=_BAND, alpha=0.25, label="95 % of good scores, as known before"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, 2 * columns), frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, panel: Panel, window: int) -> None:
    scores, anomalous = np.array(panel.series.scores), np.array(panel.series.anomalous)
    places = np.arange(1, len(scores) + 1)
    size = 4 if len(scores) <= 300 else 2
    if panel.good is not None:
        low, high = (math.exp(panel.good.middle + 1.96 * side * panel.good.spread) for side in (-1, 1))
        axes.axhspan(low, high, color=_BAND, alpha=0.25, linewidth=0)
    axes.plot(places[~anomalous], scores[~anomalous], "o", color=_NORMAL, markersize=size, markeredgewidth=0)
    axes.plot(places[anomalous], scores[anomalous], "^", color=_ANOMALOUS, markersize=size + 1, markeredgewidth=0)
    axes.plot(places, panel.series.thresholds, color="0.3", linestyle="--", linewidth=1.2)
    axes.plot(places, _running_median(scores, window), color=_MEDIAN, linewidth=2)
    word, colour = _WORDS[panel.drift]
    axes.set_title(f"{panel.name}{word}", fontsize=10, color=colour, fontweight="bold" if word else "normal")
    axes.title.set_parse_math(False)
    axes.set(xlabel="image", ylabel="score", yscale="log")
    near = scores[scores > 0]
    wide = len(near) and near.max() > 20 * near.min()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)) if wide else MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def _running_median(scores: np.ndarray, window: int) -> np.ndarray:
    """Median of the last images up to each (N,), of fewer at the start; NaN before there are ten."""
    medians = [np.median(scores[max(end - window, 0) : end]) for end in range(1, len(scores) + 1)]
    return np.where(np.arange(len(scores)) < min(9, len(scores) - 1), np.nan, medians)

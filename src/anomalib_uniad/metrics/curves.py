# SPDX-License-Identifier: Apache-2.0
"""Figure of a category: ROC curves, precision-recall curves and a histogram of scores."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
from matplotlib.figure import Figure

from anomalib_uniad.captions import printable
from anomalib_uniad.metrics.functional import (
    Floats,
    Ranking,
    auroc,
    average_precision,
    f1_max,
    precision_recall_curve,
    roc_curve,
)

# Colours of Okabe and Ito, which colour-blind people can tell apart; lines and areas also differ in style.
_LEVELS = {"image": ("#0072B2", "-"), "pixel": ("#E69F00", "--")}
_KINDS = {"normal": ("#56B4E9", ""), "defective": ("#D55E00", "////")}
_THRESHOLD_LINES = ("--", ":", "-.")
_BINS = 41  # odd, so that a single score is in the middle of one
_FAR = 1e100  # beyond it, scores are left out: the others would be one bin
_LONGEST_NAME = 100


def draw_category(
    category: str,
    image: Ranking | None,
    pixel: Ranking | None,
    normal: Floats,
    defective: Floats,
    thresholds: Mapping[str, float],
) -> Figure:
    """Draw ROC curves, precision-recall curves and a histogram of scores of one category, side by side.

    A curve that is undefined is left out, and the legend says why.

    Args:
        category (str): Name of the category.
        image (Ranking | None): Counts of images, ``None`` if there are none.
        pixel (Ranking | None): Counts of pixels, ``None`` if there are none.
        normal (Floats): Scores of normal images ``(N,)``, without NaN.
        defective (Floats): Scores of defective images ``(D,)``, without NaN.
        thresholds (Mapping[str, float]): Thresholds of image scores by what they are for.

    Returns:
        Figure: The figure of 1500 x 500 pixels, independent of pyplot.
    """
    figure = Figure(figsize=(15, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    roc, precision_recall, histogram = figure.subplots(1, 3)
    roc.plot([0, 1], [0, 1], color="0.75", linewidth=1, linestyle=":")
    for level, ranking in (("image", image), ("pixel", pixel)):
        color, line = _LEVELS[level]
        if reason := _why_undefined(ranking, level):
            _remark(roc, f"{level}: {reason}")
            _remark(precision_recall, f"{level}: {reason}")
        elif ranking is not None:
            label = f"{level}, AUROC {auroc(ranking):.4f}"
            roc.plot(*thin(*roc_curve(ranking)), line, color=color, label=label)
            _draw_precision_recall(precision_recall, ranking, level)
    for axes, title, x, y in (
        (roc, "ROC", "false positive rate", "true positive rate"),
        (precision_recall, "Precision and recall", "recall", "precision"),
    ):
        axes.set(title=title, xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    precision_recall.set_ylim(-0.02, 1.2)  # room for the legend: curves can be anywhere below
    _draw_histogram(histogram, {"normal": normal, "defective": defective}, thresholds)
    for axes, place in ((roc, "lower right"), (precision_recall, "upper center"), (histogram, "upper center")):
        legend = axes.legend(loc=place, ncols=2 if axes is histogram else 1, fontsize=9, framealpha=0.95)
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.suptitle(_shortened(category), parse_math=False, usetex=False, fontsize=14)
    return figure


def thin(x: Floats, y: Floats, count: int = 1000) -> tuple[Floats, Floats]:
    """Drop points of a curve (N,) with ascending ``x`` that are too close to each other to be told apart.

    Half of the points that stay are evenly spaced in ``x`` and half along the curve, which keeps steep parts. Both ends
    of a long straight part stay, so corners do not move. At most twice ``count`` points stay.

    Examples:
        >>> x, y = thin(np.arange(10_001), np.arange(10_001), count=10)
        >>> x.tolist()
        [0, 2500, 5000, 7500, 10000]
    """
    if len(x) <= count:
        return x, y
    keep = np.zeros(len(x), dtype=bool)
    keep[[0, -1]] = True
    across = np.diff(x, prepend=x[0])
    for steps in (across, across + np.abs(np.diff(y, prepend=y[0]))):
        way = np.cumsum(steps)
        at = np.searchsorted(way, np.linspace(0, way[-1], count // 2)).clip(max=len(x) - 1)
        keep[at] = True
        keep[at[steps[at] > way[-1] / (count // 2)] - 1] = True
    return x[keep], y[keep]


def _draw_precision_recall(axes: Axes, ranking: Ranking, level: str) -> None:
    color, line = _LEVELS[level]
    precision, recall = precision_recall_curve(ranking)
    f1 = 2 * precision * recall / (precision + recall)
    best = len(f1) - 1 - int(f1[::-1].argmax())
    # Steps, as the average precision sums them up: precision holds back to the recall before.
    x, y = thin(np.append(0.0, recall), np.append(precision[0], precision))
    label = f"{level}, AP {average_precision(ranking):.4f}, F1max {f1_max(ranking):.4f} (dot)"
    axes.plot(x, y, line, color=color, drawstyle="steps-pre", label=label)
    axes.plot(recall[best], precision[best], "o", color=color, markeredgecolor="black", markersize=7, zorder=3)


def _draw_histogram(axes: Axes, kinds: Mapping[str, Floats], thresholds: Mapping[str, float]) -> None:
    # Double precision, as a part of the range between the largest and smallest score can be too small otherwise.
    scores = {kind: np.asarray(values, dtype=np.float64) for kind, values in kinds.items()}
    near = {kind: values[np.abs(values) < _FAR] for kind, values in scores.items()}
    edges = _bin_edges(np.concatenate(list(near.values())))
    tallest = 0.0
    for kind, values in near.items():
        color, hatch = _KINDS[kind]
        if not len(scores[kind]):
            _remark(axes, f"no {kind} images")
            continue
        # Shares of each kind: there can be far more of one than of the other.
        shares = np.histogram(values, edges)[0] / len(scores[kind])
        tallest = max(tallest, shares.max())
        label = f"{kind} ({len(scores[kind]):,})"
        axes.stairs(shares, edges, fill=True, color=color, alpha=0.45, hatch=hatch, linewidth=0, label=label)
        axes.stairs(shares, edges, color=color, linewidth=1.5)
        if len(values) < len(scores[kind]):
            _remark(axes, f"{len(scores[kind]) - len(values):,} {kind} out of range")
    for number, (name, threshold) in enumerate(thresholds.items()):
        label = f"threshold, {_shortened(name)}: {threshold:.4g}"
        if abs(threshold) < _FAR:
            line = _THRESHOLD_LINES[number % len(_THRESHOLD_LINES)]
            axes.axvline(threshold, color="black" if number % 2 == 0 else "0.4", linestyle=line, label=label)
        else:
            _remark(axes, label)
    axes.set(title="Image scores", xlabel="score", ylabel="share of the images of its kind")
    axes.set_ylim(0, 1.4 * (tallest or 1))  # room for the legend


def _bin_edges(scores: Floats) -> Floats:
    """Edges of bins over all scores, or around them if all are nearly the same."""
    if not len(scores):
        return np.linspace(0, 1, _BINS + 1)
    low, high = float(scores.min()), float(scores.max())
    largest = max(abs(low), abs(high))
    if high - low <= 1e-9 * largest:
        pad = 0.05 * largest or 0.5
        low, high = low - pad, high + pad
    return np.linspace(low, high, _BINS + 1)


def _why_undefined(ranking: Ranking | None, level: str) -> str:
    """Say why a ranking has no curves; empty if it has."""
    if ranking is None:
        return "not evaluated"
    if not ranking.positives:
        return f"no defective {level}s" if ranking.negatives else f"no {level}s"
    return "" if ranking.negatives else f"no normal {level}s"


def _remark(axes: Axes, text: str) -> None:
    """Put a line of text into the legend."""
    axes.plot([], [], linestyle="none", label=text)


def _shortened(name: str) -> str:
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]} ... {name[-_LONGEST_NAME // 3 :]}"
    return printable(name)

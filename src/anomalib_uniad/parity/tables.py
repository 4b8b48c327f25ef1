# SPDX-License-Identifier: Apache-2.0
"""Markdown of what was compared, for the terminal and ``parity.md``."""

import pandas as pd

from anomalib_uniad.metrics.table import to_markdown

from .comparison import METRICS


def render(frame: pd.DataFrame) -> str:
    """Two tables: differences and speed, and metrics.

    Args:
        frame (pd.DataFrame): Rows of ``parity.csv``; the first one is torch.
    """
    first, others = frame.iloc[0], frame.iloc[1:]
    differences = {
        "model": frame["model"],
        "precision": frame["precision"],
        "computed in": frame["computed_in"],
        "map, largest": [_part(value) for value in frame["map_difference_max"]],
        "map, mean": [_part(value) for value in frame["map_difference_mean"]],
        "score, largest": [_part(value) for value in frame["score_difference_max"]],
        "flips": ["" if pd.isna(value) else f"{value:.0f}" for value in frame["flipped_decisions"]],
        "ms": [f"{value:.1f}" for value in frame["latency_ms"]],
        "images/s": [f"{value:.1f}" for value in frame["images_per_second"]],
        "MB": [f"{value / 1e6:.1f}" for value in frame["size_bytes"]],
    }
    metrics: dict[str, list[str]] = {"model": list(frame["model"]), "computed in": list(frame["computed_in"])}
    for name in METRICS:
        cells = ["" if pd.isna(first[name]) else f"{first[name]:.4f}"]
        cells += ["" if pd.isna(value) else f"{value:+.4f}" for value in others[f"{name}_change"]]
        metrics[name] = cells
    normalised = [str(name) for name, kind in zip(frame["model"], frame["compared"], strict=True) if kind != "raw"]
    notes = [
        f"{first['images']} test images of {first['categories']} categories, on {first['device']}. Differences of maps "
        "and scores are parts of their ranges in torch; flips are images whose decision is another one; ms is the "
        "median of one image after the other, images/s with parallel requests (torch: one after the other).",
        "Means over the categories: of torch, and what the others have more.",
    ]
    if normalised:
        notes.append(
            f"Of {', '.join(normalised)}, the raw maps and scores cannot be had: compared are normalised ones, cut to "
            "[0, 1], on both sides, and changes of metrics are to torch's metrics of those."
        )
    table, second = to_markdown(pd.DataFrame(differences)), to_markdown(pd.DataFrame(metrics))
    return "\n\n".join([notes[0], table, notes[1], second, *notes[2:]])


def _part(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.1e}"

# SPDX-License-Identifier: Apache-2.0
"""The figure of how time and memory grow."""

from pathlib import Path

import numpy as np
import pandas as pd

from .operations import operations


def draw_scaling(frame: pd.DataFrame, path: Path) -> None:
    """Draw time and memory over image size, images and batch, and the share of attention.

    Args:
        frame (pd.DataFrame): Rows of ``training_scaling.csv``; the last device in it is drawn.
        path (Path): The image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
    from matplotlib.figure import Figure

    frame = frame[frame["device"] == frame["device"].iloc[-1]]
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (share, size), (images, batch) = figure.subplots(2, 2)

    rows = frame[frame["series"] == "image size"].sort_values("image_size")
    sides = np.arange(96, 1025, 16)
    shares = [100 * operations(8, (side // 16) ** 2).attention_share for side in sides]
    share.plot(sides, shares, color="tab:blue", label="of the operations (formula)")
    share.plot(rows["image_size"], 100 * rows["attention_of_time"], "o", color="tab:orange", label="of the time")
    share.axhline(50, color="grey", linewidth=0.8, linestyle=":")
    share.set(xlabel="image size, px", ylabel="attention's share, %", ylim=(0, 100))
    share.legend()

    plots = (
        (size, rows, "image_size", "image size, px", "seconds_per_step"),
        (images, frame[frame["series"] == "images"], "images", "images", "seconds_per_epoch"),
        (batch, frame[frame["series"] == "batch"], "batch_size", "images per step", "seconds_per_step"),
    )
    for axes, part, column, label, seconds in plots:
        right = axes.twinx()
        for cache, group in part.sort_values(column).groupby("cache"):
            line = "--" if cache == "disk" else "-"
            name = f", {cache}" if part["cache"].nunique() > 1 else ""
            axes.plot(group[column], group[seconds], f"o{line}", color="tab:blue", label=f"time{name}")
            memory = group["peak_memory_bytes"] / 1e9
            right.plot(group[column], memory, f"s{line}", color="tab:red", label=f"memory{name}")
        if len(part):
            axes.set_ylim(bottom=0)
            right.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel(seconds.replace("_", " "), color="tab:blue")
        right.set_ylabel("peak memory, GB", color="tab:red")
        handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        axes.legend(handles, [str(handle.get_label()) for handle in handles])
    figure.suptitle(str(frame["device"].iloc[-1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)

# SPDX-License-Identifier: Apache-2.0
"""The figure of how time and memory grow with the number of images."""

from pathlib import Path

import pandas as pd

from .tables import LABELS


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw time and peak memory over the number of images, both on logarithmic axes.

    Args:
        frame (pd.DataFrame): Rows of ``evaluation_speed.csv``; of the device and size with most rows.
        path (Path): The image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    groups = frame.groupby(["device", "image_size", "categories"], sort=False)
    (device, image_size, categories), rows = max(groups, key=lambda group: len(group[1]))
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, (method, label) in enumerate(LABELS.items()):
        points = rows[rows["method"] == method].dropna(subset=["processor_seconds"]).sort_values("images")
        style = {"color": f"C{number}", "marker": "o^sDvP"[number], "label": label}
        left.plot(points["images"], points["processor_seconds"], **style)
        right.plot(points["images"], points["peak_memory_bytes"] / 2**20, **style)
    sizes = rows.drop_duplicates("images").sort_values("images")
    data = sizes["category_bytes"] / 2**20
    right.plot(sizes["images"], data, color="grey", linestyle=":", label="data of one category")
    right.plot(sizes["images"], data + 2048, color="black", linestyle="--", label="2 GiB on top of it")
    left.set(xlabel="images", ylabel="processor time, s")
    right.set(xlabel="images", ylabel="peak memory, MiB")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(sizes["images"], [f"{count:,}" for count in sizes["images"]])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"The seven metrics, {categories} categories, maps of {image_size} px, {device}", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)

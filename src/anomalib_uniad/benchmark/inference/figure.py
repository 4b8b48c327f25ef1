# SPDX-License-Identifier: Apache-2.0
"""The figure of where OpenVINO's time goes."""

from pathlib import Path

import pandas as pd

from .profile import PARTS
from .tables import LABELS

_TYPES = 8  # the rest is "other"


def draw(profile: pd.DataFrame, floor: pd.DataFrame, path: Path) -> None:
    """Draw the time by part, with the floor, and by type of layer.

    Args:
        profile (pd.DataFrame): Rows of ``inference_profile.csv``; the last device in it is drawn.
        floor (pd.DataFrame): Rows of ``inference_floor.csv``.
        path (Path): The image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
    from matplotlib.figure import Figure

    device = profile["device"].iloc[-1]
    profile, floor = profile[profile["device"] == device], floor[floor["device"] == device]
    variants = list(profile["variant"].unique())
    figure = Figure(figsize=(11, 2.5 + 1.3 * len(variants)), layout="constrained")
    FigureCanvasAgg(figure)
    by_part, by_type = figure.subplots(1, 2)
    colors = {part: f"C{number}" for number, part in enumerate(PARTS)}
    for row, variant in enumerate(variants):
        left = 0.0
        for part in PARTS:
            width = profile.loc[(profile["variant"] == variant) & (profile["part"] == part), "ms"].sum()
            by_part.barh(row, width, left=left, color=colors[part], label=part if row == 0 else None)
            left += width
        least = floor.loc[(floor["variant"] == variant) & (floor["part"] == "whole"), "floor_ms"].dropna()
        if len(least):
            label = "floor" if row == 0 else None
            by_part.vlines(least.iloc[0], row - 0.45, row + 0.45, color="black", linestyle="--", label=label)
    by_part.set_yticks(range(len(variants)), [LABELS[name].removeprefix("UniAD, OpenVINO, ") for name in variants])
    by_part.invert_yaxis()
    by_part.set(xlabel="ms per image", title="by part")

    rows = profile[profile["variant"] == variants[0]]
    largest = list(rows.groupby("layer")["ms"].sum().sort_values(ascending=False).index[:_TYPES])
    rows = rows.assign(layer=rows["layer"].where(rows["layer"].isin(largest), "other"))
    names = [*largest, *(["other"] if "other" in set(rows["layer"]) else [])]
    for row, name in enumerate(names):
        left = 0.0
        for part in PARTS:
            width = rows.loc[(rows["layer"] == name) & (rows["part"] == part), "ms"].sum()
            by_type.barh(row, width, left=left, color=colors[part])
            left += width
    by_type.set_yticks(range(len(names)), names)
    by_type.invert_yaxis()
    by_type.set(xlabel="ms per image", title=f"by type of layer, {variants[0]}")
    figure.legend(*by_part.get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS) + 1)
    figure.suptitle(f"One image through UniAD in OpenVINO, {device}", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)

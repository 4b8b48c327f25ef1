# SPDX-License-Identifier: Apache-2.0
"""The score of an image from its map, without torch: of a part of the image too."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def score_map(
    anomaly_map: NDArray[np.floating],
    inside: NDArray[np.bool_],
    reduction: Literal["max", "top", "mean", "std"] = "max",
    pool_size: int = 16,
    top_fraction: float = 0.02,
) -> float:
    """Score a part of a map.

    What lies outside is treated as models treat padding: it has the lowest value of what lies inside, so that ``"max"``
    and ``"top"`` do not see it, and does not count for means.

    Args:
        anomaly_map (NDArray[np.floating]): ``(H, W)``.
        inside (NDArray[np.bool_]): ``(H, W)``, the pixels that count; at least one.
        reduction (str): ``"max"`` of the average-pooled map, ``"mean"``, ``"std"``, or ``"top"``, the mean of the
            highest pixels less half of the mean of all. Defaults to ``"max"``.
        pool_size (int): Side of the average pool before ``"max"``, in pixels; stride 1. Defaults to ``16``.
        top_fraction (float): Part of the pixels that ``"top"`` takes the mean of, rounded, at least one. Defaults to
            ``0.02``.

    Returns:
        float: The score.

    Examples:
        >>> values = np.array([[9.0, 1.0], [2.0, 3.0]])
        >>> score_map(values, values < 9, "mean"), score_map(values, values < 9, "max", pool_size=1)
        (2.0, 3.0)
    """
    values = anomaly_map[inside].astype(np.float64)
    if reduction == "mean":
        return float(values.mean())
    if reduction == "std":
        return float(values.std())
    if reduction == "top":
        count = max(round(top_fraction * len(values)), 1)
        return float(np.partition(values, len(values) - count)[-count:].mean() - values.mean() / 2)
    filled = np.where(inside, anomaly_map, values.min()).astype(np.float64)
    sums = np.zeros((filled.shape[0] + 1, filled.shape[1] + 1))
    sums[1:, 1:] = filled.cumsum(axis=0).cumsum(axis=1)
    rows = sums[pool_size:] - sums[:-pool_size]
    windows = rows[:, pool_size:] - rows[:, :-pool_size]
    return float(windows.max()) / pool_size**2

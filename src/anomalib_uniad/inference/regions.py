# SPDX-License-Identifier: Apache-2.0
"""Where the defects are: masks and regions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """A connected part of a mask, also across corners.

    Attributes:
        left (int): Of its box, in pixels of the image, like the next three.
        top (int): See ``left``.
        width (int): See ``left``.
        height (int): See ``left``.
        area (int): Its pixels.
        share (float): Its part of the image in percent.
        peak (float): Highest value of the map in it, from 0 to 1.
        mean (float): Mean value of the map in it.
    """

    left: int
    top: int
    width: int
    height: int
    area: int
    share: float
    peak: float
    mean: float


def find_regions(
    anomaly_map: NDArray[np.floating], threshold: float, minimum_area: int = 0
) -> tuple[NDArray[np.bool_], list[Region]]:
    """Find the parts of a map that lie above a threshold.

    Args:
        anomaly_map (NDArray[np.floating]): ``(H, W)``; NaN is below.
        threshold (float): Values above it are marked.
        minimum_area (int): Smaller parts, in pixels, are left out. Defaults to ``0``.

    Returns:
        tuple[NDArray[np.bool_], list[Region]]: Mask ``(H, W)``, and its regions, those with the highest peak first.

    Examples:
        >>> mask, regions = find_regions(np.array([[0.9, 0.2, 0.6], [0.7, 0.1, 0.2]]), 0.5)
        >>> [(region.left, region.area, region.peak) for region in regions]
        [(0, 2, 0.9), (2, 1, 0.6)]
    """
    import cv2  # not with this module, which the command line imports

    with np.errstate(invalid="ignore"):
        above = (anomaly_map > threshold).astype(np.uint8)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    regions, mask = [], np.zeros(above.shape, bool)
    for number, (left, top, width, height, area) in enumerate(boxes.tolist()):
        if number == 0 or area < minimum_area:  # 0 is everything else
            continue
        part = labels[top : top + height, left : left + width] == number
        mask[top : top + height, left : left + width] |= part
        values = anomaly_map[top : top + height, left : left + width][part]
        share = 100 * area / above.size
        regions.append(Region(left, top, width, height, area, share, float(values.max()), float(values.mean())))
    return mask, sorted(regions, key=lambda region: -region.peak)

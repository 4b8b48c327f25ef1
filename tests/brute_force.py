# SPDX-License-Identifier: Apache-2.0
"""AUPRO as its definition reads, one threshold and one region at a time."""

import numpy as np


def regions(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Pixels of each region of a mask (H, W); pixels that touch at a corner belong together."""
    todo = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while todo:
        region, edge = [], [todo.pop()]
        while edge:
            y, x = edge.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            edge.extend(near)
        found.append(region)
    return found


def weights(masks: np.ndarray) -> np.ndarray:
    """One over the size of its region for each positive pixel of masks (B, H, W), in their order."""
    result = np.zeros(masks.shape)
    for image, mask in enumerate(masks):
        for region in regions(mask):
            for y, x in region:
                result[image, y, x] = 1 / len(region)
    return result[masks]


def aupro(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
    """Area under the mean overlap over the false positive rate of maps and masks (B, H, W), up to a limit."""
    everywhere = [(image, region) for image, mask in enumerate(masks) for region in regions(mask)]
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        called = maps >= threshold
        rates.append((called & ~masks).sum() / (~masks).sum())
        overlaps.append(np.mean([np.mean([called[image, y, x] for y, x in region]) for image, region in everywhere]))
    area = 0.0
    for number in range(1, len(rates)):
        left, right = rates[number - 1], rates[number]
        low, high = overlaps[number - 1], overlaps[number]
        if left >= limit or left == right:
            continue
        if right > limit:
            high = low + (high - low) * (limit - left) / (right - left)
            right = limit
        area += (right - left) * (low + high) / 2
    return area / limit

# SPDX-License-Identifier: Apache-2.0
"""Heatmaps over images."""

import numpy as np
from PIL import Image

_LEVELS = np.linspace(0, 1, 256)[:, None]
# The colour map "jet": blue, green and red rise and fall one after the other.
_JET = (np.clip(1.5 - np.abs(4 * _LEVELS - np.array([3, 2, 1])), 0, 1) * 255).round().astype(np.uint8)  # (256, 3)


def draw_heatmap(image: np.ndarray, anomaly_map: np.ndarray) -> Image.Image:
    """Lay a map over an image, half and half.

    Args:
        image (np.ndarray): ``(H, W, 3)``, from 0 to 255.
        anomaly_map (np.ndarray): ``(h, w)``, of any size, from 0 (dark blue) over 0.5 (green) to 1 (dark red).

    Returns:
        Image.Image: Of the image's size.
    """
    height, width = image.shape[:2]
    resized = Image.fromarray(anomaly_map.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    levels = (np.asarray(resized) * 255).round().clip(0, 255).astype(np.uint8)
    pixels = image if image.dtype == np.uint8 else image.round().astype(np.uint8)
    return Image.blend(Image.fromarray(pixels), Image.fromarray(_JET[levels]), 0.5)

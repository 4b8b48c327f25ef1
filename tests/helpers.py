# SPDX-License-Identifier: Apache-2.0
"""Small image folders for the tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Size = tuple[int, int]


def write_image(path: Path, size: Size = (64, 64), seed: int = 0, defect: bool = False) -> np.ndarray:
    """Write a noisy grey RGB image, with a bright square if ``defect``; return the mask (H, W) of the square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    pixels = np.random.default_rng(seed).integers(80, 120, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    if defect:
        mask[height // 4 : height // 2, width // 4 : width // 2] = 255
        pixels[mask > 0] = 250
    Image.fromarray(pixels).save(path)
    return mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) of 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def make_mvtec_like(
    root: Path,
    categories: Sequence[str] = ("bottle", "cable"),
    sizes: Mapping[str, Size] | Size = (64, 64),
    train: int = 4,
    good: int = 3,
    bad: int = 3,
    normal: str = "good",
    defect: str = "broken",
    mask_suffix: str = "_mask",
    seed: int = 0,
) -> Path:
    """Write random images in the MVTec-AD layout.

    Args:
        root: Folder that gets one folder per category.
        categories: Names of the categories.
        sizes: Height and width of all images, or per category (others get 64x64).
        train: Number of normal training images of each category.
        good: Number of normal test images of each category.
        bad: Number of defective test images of each category, each with a mask.
        normal: Name of the folder of normal images (BTech: "ok").
        defect: Name of the defect type.
        mask_suffix: What the mask's name has in addition to that of the image (BTech: "").
        seed: Different seeds give different images.

    Returns:
        ``root``.
    """
    for index, category in enumerate(categories):
        size = sizes.get(category, (64, 64)) if isinstance(sizes, Mapping) else sizes
        folder = Path(root) / category
        first = seed + 1000 * index
        for number in range(train):
            write_image(folder / "train" / normal / f"{number:03}.png", size, first + number)
        for number in range(good):
            write_image(folder / "test" / normal / f"{number:03}.png", size, first + 100 + number)
        for number in range(bad):
            mask = write_image(folder / "test" / defect / f"{number:03}.png", size, first + 200 + number, True)
            write_mask(folder / "ground_truth" / defect / f"{number:03}{mask_suffix}.png", mask)
    return Path(root)

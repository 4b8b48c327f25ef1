# SPDX-License-Identifier: Apache-2.0
"""Images to train on, written for the measurement, with the cost of reading photographs."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

CATEGORIES = ("cloth", "metal")


def write_images(root: Path, count: int, pixels: int, seed: int = 0) -> list[Path]:
    """Write PNG images in the layout of MVTec AD.

    Smooth shapes and some noise: they compress about as well as photographs, so decoding them costs as much.

    Args:
        root (Path): Folder that gets a folder per category.
        count (int): Number of training images, over all categories.
        pixels (int): Height and width.
        seed (int): Seed of what is drawn. Defaults to ``0``.

    Returns:
        list[Path]: The training images.
    """
    draw = np.random.default_rng(seed)
    noise = draw.normal(0, 4, (pixels, pixels, 3)).astype(np.float32)
    paths = []
    for number in range(count):
        path = root / CATEGORIES[number % len(CATEGORIES)] / "train" / "good" / f"{number:05}.png"
        _write(path, _photograph(draw, pixels, noise))
        paths.append(path)
    for category in CATEGORIES:  # the layout wants some; they are not used
        image = _photograph(draw, pixels, noise)
        _write(root / category / "test" / "good" / "000.png", image)
        _write(root / category / "test" / "broken" / "000.png", image)
        _write(root / category / "ground_truth" / "broken" / "000_mask.png", np.full((pixels, pixels), 255, np.uint8))
    return paths


def mean_bytes(paths: Sequence[Path]) -> float:
    """Mean size of files, in bytes."""
    return float(np.mean([path.stat().st_size for path in paths]))


def _photograph(draw: np.random.Generator, pixels: int, noise: np.ndarray) -> np.ndarray:
    coarse = draw.uniform(40, 215, (8, 8, 3)).astype(np.float32)
    fine = draw.normal(0, 12, (pixels // 8 + 1, pixels // 8 + 1, 3)).astype(np.float32)
    smooth, texture = (cv2.resize(part, (pixels, pixels), interpolation=cv2.INTER_CUBIC) for part in (coarse, fine))
    shift = tuple(int(n) for n in draw.integers(0, pixels, 2))
    return np.clip(smooth + texture + np.roll(noise, shift, (0, 1)), 0, 255).astype(np.uint8)


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        msg = f"The image {str(path)!r} could not be written. Is the disk full?"
        raise OSError(msg)

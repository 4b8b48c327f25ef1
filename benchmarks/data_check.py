# SPDX-License-Identifier: Apache-2.0
"""How long it takes to look at the files of a folder: by ``anomalib-uniad check``, and at the start of a training.

python benchmarks/data_check.py --counts [5000,50000]
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jsonargparse import auto_cli

from harness import CPU, RESULTS, add_rows, apart, at_least, origin, quiet, show

PRODUCTS = 5


def data_check(
    counts: Sequence[int] = (5000, 50000),
    pixels: int = 128,
    work_dir: Path = Path("data_check"),
    output_dir: Path = RESULTS,
) -> None:
    """Time the check of folders with many images; writes ``data_check.csv``.

    Args:
        counts: Numbers of images: good ones of five products, half PNG and half JPEG.
        pixels: Their height and width.
        work_dir: Where the images are written; those that are there are used.
        output_dir: Folder of the csv file.
    """
    at_least(PRODUCTS, **{f"counts[{index}]": count for index, count in enumerate(counts)})
    path = output_dir / "data_check.csv"
    for count in counts:
        root = work_dir / f"{count}_{pixels}"
        size = make_images(root, count, pixels)
        for name in STEPS:
            seconds = apart(measure, {"name": name, "root": root})
            row = {
                "step": name,
                "images": count,
                "pixels": pixels,
                "megabytes": round(size / 1e6, 1),
                "seconds": round(seconds, 2),
                "images_per_s": round(count / seconds),
            }
            add_rows(path, [{**row, **origin(CPU)}], ("step", "images", "pixels"))
    show(path, ("step", "images", "pixels", "megabytes", "seconds", "images_per_s"))


def measure(name: str, root: Path) -> float:
    """Seconds of a step, without the imports that it needs."""
    run = STEPS[name](root)
    with quiet():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def check_files(root: Path) -> Callable[[], Any]:
    """``anomalib-uniad check`` without features: everything is read and made small."""
    from anomalib_uniad.check.command import inspect
    from anomalib_uniad.check.source import read_folder

    return lambda: inspect(read_folder(root), None)


def check_all(root: Path) -> Callable[[], Any]:
    """``anomalib-uniad check``: with features."""
    from anomalib_uniad.check.command import inspect
    from anomalib_uniad.check.source import read_folder

    return lambda: inspect(read_folder(root), "tf_efficientnet_lite0")


def list_folders(root: Path) -> Callable[[], Any]:
    """What a training does first: find products, images and masks by their names."""
    from anomalib_uniad.data import MultiCategory

    return lambda: MultiCategory(root=root)


def start_training(root: Path) -> Callable[[], Any]:
    """All that a training does before its model sees an image: find, look at and split the images."""
    from anomalib_uniad.data import MultiCategory

    return lambda: MultiCategory(root=root).setup()


STEPS = {
    "list folders": list_folders,
    "start of a training": start_training,
    "check without features": check_files,
    "check": check_all,
}


def make_images(root: Path, count: int, pixels: int) -> int:
    """Write images that all differ, if they are not there; returns their bytes."""
    random = np.random.default_rng(0)
    coarse = random.uniform(40, 215, (PRODUCTS, 8, 8, 3)).astype(np.float32)
    noise = random.normal(0, 6, (2 * pixels, 2 * pixels, 3)).astype(np.float32)
    size = 0
    for number in range(count):
        product = number % PRODUCTS
        path = root / f"product {product}" / "good" / f"{number:06}.{('png', 'jpg')[number // PRODUCTS % 2]}"
        if not path.exists():
            top, left = random.integers(0, pixels, 2)
            smooth = cv2.resize(coarse[product], (pixels, pixels), interpolation=cv2.INTER_CUBIC)
            image = smooth * random.uniform(0.9, 1.1) + noise[top : top + pixels, left : left + pixels]
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8)):
                raise OSError(f"The image {str(path)!r} could not be written. Is the disk full?")
        size += path.stat().st_size
    return size


if __name__ == "__main__":
    auto_cli(data_check)

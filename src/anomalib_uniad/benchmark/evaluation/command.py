# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad bench metrics``. Heavy packages are imported when it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

# The first one is what the others are compared with.
MethodName = Literal["per_category", "functions", "shuffled", "pooled", "sklearn", "anomalib"]


def metrics(
    images: Sequence[int] = (200, 500, 1725, 4000),
    image_size: int = 224,
    categories: int = 15,
    methods: Sequence[MethodName] = get_args(MethodName),
    batch_size: int = 32,
    threads: int = 1,
    time_limit: float = 300.0,
    memory_limit: float = 12.0,
    output_dir: Path = Path("results"),
    seed: int = 0,
    quick: bool = False,
) -> None:
    """Measure time and memory of the seven metrics against scikit-learn and anomalib, and compare their values.

    Anomaly maps and masks are generated. Each measurement is a process of its own, and adds a row to
    ``evaluation_speed.csv`` as soon as it is done, in place of the row of the same case; ``evaluation_speed.png`` is
    drawn from all rows.

    Args:
        images: Numbers of images to measure with; MVTec AD has 1,725 test images.
        image_size: Height and width of the maps, in pixels.
        categories: Number of categories that the images are of.
        methods: What to measure; per_category comes first in any case, as the others are compared with it.
        batch_size: Images per batch.
        threads: Threads that each measurement may use.
        time_limit: Seconds that one measurement may take in all; then its row says so instead.
        memory_limit: GiB that one measurement may allocate; then its row says so instead.
        output_dir: Folder of the results; with quick, the folder "quick" in it.
        seed: Seed of maps and masks.
        quick: Small numbers that only show that everything runs.
    """
    if quick:
        images, image_size, categories, output_dir = (20, 40), 32, 2, output_dir / "quick"
    for name, value in (("image_size", image_size), ("batch_size", batch_size), ("threads", threads)):
        if value < 1:
            msg = f"{name} must be at least 1, got {value}."
            raise ValueError(msg)
    for name, limit in (("time_limit", time_limit), ("memory_limit", memory_limit)):
        if limit <= 0:
            msg = f"{name} must be positive, got {limit}."
            raise ValueError(msg)
    if categories < 1 or not images or min(images) < 4 * categories:
        msg = f"There must be at least 4 images of each category, got {list(images)} images of {categories} categories."
        raise ValueError(msg)
    unknown = [name for name in methods if name not in get_args(MethodName)]
    if unknown:
        msg = f"methods must be among {', '.join(get_args(MethodName))}, got {', '.join(map(repr, unknown))}."
        raise ValueError(msg)
    from .session import Session

    session = Session(output_dir, batch_size, threads, time_limit, memory_limit, seed)
    chosen = [name for name in get_args(MethodName) if name in methods or name == get_args(MethodName)[0]]
    session.run([(count, image_size, categories) for count in images], chosen)

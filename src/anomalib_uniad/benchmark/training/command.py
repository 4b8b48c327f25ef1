# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad bench train``. Heavy packages are imported when it runs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Part = Literal["throughput", "floor", "scaling", "gpu"]


def train(
    parts: Sequence[Part] = ("throughput", "floor", "scaling", "gpu"),
    rounds: int = 5,
    steps: int = 8,
    image_pixels: int = 1024,
    num_workers: int = 2,
    compiled: bool = False,
    gpu_batches: Sequence[int] = (8, 64),
    gpu_steps: int = 500,
    device: str = "auto",
    output_dir: Path = Path("results"),
    work_dir: Path | None = None,
    seed: int = 0,
    quick: bool = False,
) -> None:
    """Measure how fast UniAD trains on this machine, at the paper's size, and write csv files and a figure.

    Images and features are generated; nothing is downloaded. Times are those of Lightning's trainer with UniAD's
    arguments, without validation and checkpoints. What was measured before an interruption is kept, and rows of the
    same case on the same device are replaced.

    Args:
        parts: "throughput": from images, with and without cache and against a plain loop. "floor": where the time
            of a step goes. "scaling": number of images, image size, batch. "gpu": MVTec AD's size on a GPU; left out
            where there is none.
        rounds: How often each variant of "throughput" is measured, in turn.
        steps: Steps per measurement.
        image_pixels: Height and width of the generated PNG images.
        num_workers: Processes that read images, for all variants.
        compiled: Measure torch.compile as well (needs a C++ compiler; minutes of compilation).
        gpu_batches: Images per step on the GPU.
        gpu_steps: Steps per measurement on the GPU.
        device: Where to measure everything but "gpu": "cpu", "cuda", or "auto", which takes a GPU if there is one.
        output_dir: Folder of the results; with quick, the folder "quick" in it.
        work_dir: Folder for images and caches during the measurement, on a disk with 3 GB free; default: the
            system's temporary folder.
        seed: Seed of images, features and training.
        quick: Small numbers that only show that everything runs.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler: nothing of its own on the terminal
    from .session import Session

    if quick:
        rounds, steps, image_pixels, gpu_steps, output_dir = 1, 3, min(image_pixels, 128), 10, output_dir / "quick"
    for name, value in (("rounds", rounds), ("steps", steps), ("gpu_steps", gpu_steps)):
        if value < 1:
            msg = f"{name} must be at least 1, got {value}."
            raise ValueError(msg)
    if num_workers < 0 or image_pixels < 1:
        msg = f"num_workers must not be negative and image_pixels positive, got {num_workers} and {image_pixels}."
        raise ValueError(msg)
    session = Session(device=device, output_dir=output_dir, work_dir=work_dir, seed=seed, quick=quick)
    actions: dict[str, Any] = {
        "throughput": lambda: session.throughput(rounds, steps, image_pixels, num_workers, compiled),
        "floor": lambda: session.floor(max(1, rounds // 2 + 1), steps),
        "scaling": lambda: session.scaling(steps),
        "gpu": lambda: session.gpu(gpu_batches, gpu_steps),
    }
    unknown = [part for part in parts if part not in actions]
    if unknown:
        msg = f"parts must be among {', '.join(actions)}, got {', '.join(map(repr, unknown))}."
        raise ValueError(msg)
    for part, action in actions.items():
        if part in parts:
            action()

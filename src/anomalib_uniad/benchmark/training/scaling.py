# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with images, image size and batch; and how fast a GPU is. With generated features."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from . import case
from .lightning_run import BATCH_SIZE, MVTEC_IMAGES
from .operations import matrix_rate

logger = logging.getLogger(__name__)

Case = dict[str, Any]
PAPER_TOKENS = 14 * 14
GPU_EPOCHS = 1000


def scaling_cases(steps: int, quick: bool = False) -> list[Case]:
    """List what is measured: each case grows one thing, the others stay at the paper's.

    Args:
        steps (int): Steps at the paper's size; fewer where they take longer.
        quick (bool): Small numbers that only show that it runs. Defaults to ``False``.
    """
    cases: list[Case] = []
    for images in (16, 32) if quick else (500, 2000, 8000):
        cases += [{"series": "images", "images": images, "cache": cache} for cache in ("memory", "disk")]
    for size in (64, 96) if quick else (224, 320, 448):
        cases.append({"series": "image size", "image_size": size, "profile_steps": 3})
    for batch in (1, 2) if quick else (1, 8, 32, 64):
        cases.append({"series": "batch", "batch_size": batch})
    for one in cases:
        one |= {"image_size": one.get("image_size", 64 if quick else 224), "cache": one.get("cache", "memory")}
        one["batch_size"] = one.get("batch_size", BATCH_SIZE)
        work = one["batch_size"] / BATCH_SIZE * (one["image_size"] / 16) ** 2 / PAPER_TOKENS
        one["steps"] = max(3, min(steps, math.ceil(steps / work)))
        one["images"] = one.get("images", one["batch_size"] * (one["steps"] + 3))
    return cases


def gpu_cases(batches: Sequence[int], steps: int, images: int = MVTEC_IMAGES) -> list[Case]:
    """List what is measured on a GPU: MVTec AD's number of images, in bfloat16.

    Args:
        batches (Sequence[int]): Images per step.
        steps (int): Steps.
        images (int): Images in the cache. Defaults to MVTec AD's.
    """
    common = {"precision": "bf16-mixed", "images": images, "steps": steps}
    # An epoch to warm up: its last batch is smaller, and compiled for itself.
    return [
        {"batch_size": batch, "compile_mode": mode, "warm_up": math.ceil(images / batch) + 5, **common}
        for batch in batches
        for mode in (None, "default", "reduce-overhead")
    ]


def measure(
    cases: Sequence[Case],
    common: Mapping[str, Any],
    run: Callable[[Mapping[str, Any]], Case] = case.run,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Case]:
    """Measure one case after the other. One that fails is reported and left out.

    Args:
        cases (Sequence[Case]): The cases.
        common (Mapping[str, Any]): Arguments of all of them: device, seed, folder, model.
        run (Callable[[Mapping[str, Any]], Case]): Measures one. Defaults to a process of its own for each.
        progress (Callable[[], None]): Called after each case. Defaults to nothing.

    Yields:
        Case: A row: the case and what was measured.
    """
    for one in cases:
        arguments = {name: value for name, value in one.items() if name != "series"}
        try:
            values = run({**arguments, **common})
        except RuntimeError as error:
            logger.warning("%s", error)
        else:
            bf16 = str(one.get("precision", "")).startswith("bf16")
            yield {**one, "dtype": "bfloat16" if bf16 else "float32", **values}
        progress()


def gpu_row(row: Case, rate: float) -> Case:
    """Add what a user of a GPU wants to know.

    Args:
        row (Case): A row of :func:`measure`.
        rate (float): Operations per second of matrix products on the device.
    """
    steps_per_epoch = math.ceil(row["images"] / row["batch_size"])
    return {
        **row,
        "compile_mode": row["compile_mode"] or "",
        "steps_per_second": 1 / row["seconds_per_step"],
        "minutes_for_1000_epochs": GPU_EPOCHS * steps_per_epoch * row["seconds_per_step"] / 60,
        "matrix_gflop_per_second": rate / 1e9,
        "utilisation": row["operations_per_step"] / row["seconds_per_step"] / rate,
    }


def gpu_rate(device: torch.device) -> float:
    """Operations per second of matrix products in bfloat16."""
    return matrix_rate(device, torch.bfloat16)

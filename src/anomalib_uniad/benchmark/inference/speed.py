# SPDX-License-Identifier: Apache-2.0
"""Latency and throughput of one variant in one round."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino as ov
import torch

from anomalib_uniad.parity.timing import throughput

_LEAST = 5  # inferences per round, however long they take


class Eager:
    """The torch model, as it predicts without export.

    Args:
        model (Any): Lightning module in evaluation mode.
    """

    batch_size = 1

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.inference_mode()
    def infer(self, image: np.ndarray) -> None:
        """``image`` (1, 3, H, W)."""
        self._model(torch.from_numpy(image))


class Exported:
    """An exported file, compiled for latency and for throughput, for one image at a time.

    Args:
        file (Path): The file.
        precision (str): Precision of the computation. Defaults to ``"f32"``.
        threads (int): Threads; 0 takes all cores. Defaults to ``0``.
    """

    batch_size = 1

    def __init__(self, file: Path, precision: str = "f32", threads: int = 0) -> None:
        core = ov.Core()
        model = one_image(core.read_model(file))
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        latency = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **config})
        self._request = latency.create_infer_request()
        self._parallel = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", **config})

    def infer(self, image: np.ndarray) -> None:
        """``image`` (1, 3, H, W)."""
        self._request.infer({0: image})

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """Images are of the file's size already."""
        return image

    def queue(self) -> ov.AsyncInferQueue:
        """Parallel requests, as many as OpenVINO says."""
        return ov.AsyncInferQueue(self._parallel)


def one_image(model: ov.Model) -> ov.Model:
    """A model with a batch of one image, changed in place."""
    model.reshape(ov.PartialShape([1, *list(model.input().partial_shape)[1:]]))
    return model


def supports_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def measure(model: Eager | Exported, images: Sequence[np.ndarray], seconds: float) -> dict[str, Any]:
    """Measure a variant once.

    Args:
        model (Eager | Exported): The variant.
        images (Sequence[np.ndarray]): Each ``(1, 3, H, W)``; taken again and again.
        seconds (float): About how long, for latency and for throughput each.

    Returns:
        dict[str, Any]: Columns of the row.
    """
    model.infer(images[0])  # warm
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST or time.perf_counter() < end:
        start = time.perf_counter()
        model.infer(images[len(times) % len(images)])
        times.append(time.perf_counter() - start)
    return {
        "latency_ms": 1000 * median(times),
        "latency_ms_min": 1000 * min(times),
        "images_per_second": throughput(model, images, seconds),
        "inferences": len(times),
    }

# SPDX-License-Identifier: Apache-2.0
"""Latency at batch 1 and throughput, model after model in turn, so that what disturbs the machine disturbs all."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Protocol

import numpy as np


class Infers(Protocol):
    """Something to measure. With ``queue()``, a queue of parallel requests, it also has ``prepared(image)``."""

    batch_size: int

    def infer(self, image: np.ndarray) -> None:
        """Predict an image ``(1, 3, H, W)``."""


def latencies(
    predictors: Sequence[Infers], images: Sequence[np.ndarray], progress: Callable[[], None] = lambda: None
) -> list[float]:
    """Median of the seconds from an image in memory to its result.

    Args:
        predictors (Sequence[Infers]): The models.
        images (Sequence[np.ndarray]): Each ``(1, 3, H, W)``.
        progress (Callable[[], None]): Called after each measurement. Defaults to nothing.

    Returns:
        list[float]: Of each model; if the batch of a file is fixed, for such a batch.
    """
    seconds: list[list[float]] = [[] for _ in predictors]
    for predictor in predictors:
        predictor.infer(images[0])  # warm
    for image in images:
        for predictor, times in zip(predictors, seconds, strict=True):
            start = time.perf_counter()
            predictor.infer(image)
            times.append(time.perf_counter() - start)
            progress()
    return [median(times) for times in seconds]


def throughput(predictor: Infers, images: Sequence[np.ndarray], seconds: float = 2.0) -> float:
    """Images per second: in OpenVINO with parallel requests, in torch one after the other.

    Args:
        predictor (Infers): The model.
        images (Sequence[np.ndarray]): Each ``(1, 3, H, W)``; taken again and again.
        seconds (float): How long at least. Defaults to ``2.0``.
    """
    model: Any = predictor
    if not hasattr(model, "queue"):
        return _rate(lambda index: model.infer(images[index % len(images)]), lambda: None, seconds)
    queue, prepared = model.queue(), [model.prepared(image) for image in images]
    rate = _rate(lambda index: queue.start_async({0: prepared[index % len(prepared)]}), queue.wait_all, seconds)
    return rate * model.batch_size


def _rate(start_one: Callable[[int], Any], wait: Callable[[], Any], seconds: float) -> float:
    for index in range(2):  # warm
        start_one(index)
    wait()
    begin, done = time.perf_counter(), 0
    while done < 4 or time.perf_counter() - begin < seconds:
        start_one(done)
        done += 1
    wait()
    return done / (time.perf_counter() - begin)

# SPDX-License-Identifier: Apache-2.0
"""Latency at batch 1 and throughput."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Protocol


class Infers(Protocol):
    """A model to measure. With ``queue()``, a queue of parallel requests, it also has ``prepared(image)``."""

    batch_size: int

    def infer(self, image: Any) -> Any:
        """Predict an image."""


def latencies(
    models: Sequence[Infers], images: Sequence[Any], progress: Callable[[], None] = lambda: None
) -> list[float]:
    """Measure the seconds from an image in memory to its result; the median of each model.

    Models take turns with each image, so that what disturbs the machine disturbs all of them.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for model in models:
        model.infer(images[0])  # warm
    for image in images:
        for model, times in zip(models, seconds, strict=True):
            start = time.perf_counter()
            model.infer(image)
            times.append(time.perf_counter() - start)
            progress()
    return [median(times) for times in seconds]


def throughput(model: Infers, images: Sequence[Any], seconds: float = 2.0) -> float:
    """Measure images per second for some seconds: in OpenVINO with parallel requests, in torch one after the other."""
    openvino: Any = model
    if hasattr(openvino, "queue"):
        queue, prepared = openvino.queue(), [openvino.prepared(image) for image in images]
        rate = _rate(lambda index: queue.start_async({0: prepared[index % len(prepared)]}), queue.wait_all, seconds)
        return rate * model.batch_size
    return _rate(lambda index: model.infer(images[index % len(images)]), lambda: None, seconds)


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

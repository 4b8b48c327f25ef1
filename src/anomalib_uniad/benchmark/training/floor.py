# SPDX-License-Identifier: Apache-2.0
"""Where the rest of the time goes: the step with cached features, part by part, against the least possible."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from anomalib_uniad.model import UniAD

from .breakdown import LINEAR, PRODUCTS, BareStep, break_down
from .lightning_run import (
    BATCH_SIZE,
    PAPER,
    GeneratedFeatures,
    feature_shape,
    train_steps,
    write_features,
)
from .operations import matrix_rate, operations_of

LIGHTNING = "Lightning and callbacks"
STEP = "step"
FLOOR = "floor: operations over matrix rate"
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
_IMAGES = 200


def measure(
    device: torch.device,
    precision: str,
    rounds: int,
    steps: int,
    seed: int,
    model: Mapping[str, Any] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Measure the parts of a training step with cached features.

    Args:
        device (torch.device): Where to train.
        precision (str): ``"32-true"`` or ``"bf16-mixed"``.
        rounds (int): How often; with and without Lightning in turn.
        steps (int): Steps per round.
        seed (int): Seed of features and training.
        model (Mapping[str, Any] | None): Arguments of UniAD in place of the paper's. Defaults to ``None``.
        progress (Callable[[], None]): Called after each round. Defaults to nothing.

    Returns:
        list[dict[str, Any]]: A row per part; the last two are the whole step and the floor.
    """
    from anomalib_uniad.training.feature_build import MemoryWriter

    arguments = {**PAPER, "seed": seed, "pre_processor": False, "visualizer": False, **(model or {})}
    uniad = UniAD(**arguments)
    memory = MemoryWriter()
    write_features(memory, feature_shape(uniad, max(_IMAGES, 2 * steps * BATCH_SIZE)), seed)
    data = GeneratedFeatures(memory.arrays, BATCH_SIZE, device)
    bare = BareStep(uniad, data, device, bf16=precision.startswith("bf16"))
    rates, whole, parts = [], [], []
    for _ in range(rounds):
        rates.append(matrix_rate(device, PRECISIONS[precision]))
        whole.append(train_steps(UniAD(**arguments), data, device, precision, 2, steps).mean)
        parts.append(break_down(bare, 2, steps))
        progress()
    step = median(whole)
    seconds = {name: median(part.parts[name] for part in parts) for name in parts[0].parts}
    # The difference of each round: what disturbs the machine disturbs both.
    seconds[LIGHTNING] = median(w - part.total for w, part in zip(whole, parts, strict=True))
    count, rate = operations_of(uniad, BATCH_SIZE), max(rates)
    work = {LINEAR: count.linear, PRODUCTS: count.attention, STEP: count.total, FLOOR: count.total}
    rows = []
    for name, value in {**seconds, STEP: step, FLOOR: count.total / rate}.items():
        done = work.get(name)
        rows.append(
            {
                "dtype": "bfloat16" if precision.startswith("bf16") else "float32",
                "part": name,
                "seconds_per_step": value,
                "share_of_step": value / step,
                "operations": done,
                "gflop_per_second": None if done is None else done / value / 1e9,
                "batch_size": BATCH_SIZE,
                "rounds": rounds,
                "steps": steps,
            }
        )
    return rows

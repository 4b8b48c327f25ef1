# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, repeat
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from anomalib_uniad.model import UniAD

from .lightning_run import GeneratedFeatures, synchronize

LINEAR = "matrix products of linear layers"
PRODUCTS = "matrix products of attention"
WEIGHTS = "softmax, mask and dropout of attention weights"
RANDOM = "random numbers for dropout and jitter"
NORMS = "layer norms"
OTHER = "other elementwise operations, copies"
UPDATE = "clipping and optimizer"
DATA = "reading batches from the cache"

_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::linear"}
_RANDOM = ("aten::random_", "aten::bernoulli", "aten::normal_", "aten::ge", "aten::native_dropout")


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a training step without Lightning.

    Attributes:
        parts (dict[str, float]): Part of the step -> seconds.
        attention_share (float): What attention takes of forward and backward: products, softmax, mask, dropout.
    """

    parts: dict[str, float]
    attention_share: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(self.parts.values())


class BareStep:
    """A training step of a model on cached features, without Lightning.

    Args:
        model (UniAD): The model.
        data (GeneratedFeatures): Its features.
        device (torch.device): Where to train.
        bf16 (bool): Compute in bfloat16 where autocast does.
    """

    def __init__(self, model: UniAD, data: GeneratedFeatures, device: torch.device, bf16: bool) -> None:
        self.model = model.to(device).train()
        self.device = device
        self.bf16 = bf16
        self.batches: Iterator[Any] = chain.from_iterable(data.train_dataloader() for _ in repeat(None))
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=1e-4, fused=True)

    def read(self) -> torch.Tensor:
        """Get the features of a batch."""
        return next(self.batches).features.to(self.device)

    def forward_backward(self, features: torch.Tensor) -> None:
        """Compute the gradients."""
        with self._autocast():
            loss = self.model.loss(self.model.model.reconstruct(features), features)
        loss.backward()

    def update(self) -> None:
        """Clip the gradients and change the weights."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.model.gradient_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()


def break_down(step: BareStep, warm_up: int, steps: int) -> Breakdown:
    """Measure the parts of a step.

    Args:
        step (BareStep): The step.
        warm_up (int): Steps that are not counted.
        steps (int): Steps that are, once for the time and once for the profile.
    """
    marks: list[list[float]] = []
    for _ in range(warm_up + steps):
        times = [time.perf_counter()]
        features = step.read()
        times.append(_now(step.device))
        step.forward_backward(features)
        times.append(_now(step.device))
        step.update()
        times.append(_now(step.device))
        marks.append(times)
    data, gradients, update = (median(times[i + 1] - times[i] for times in marks[warm_up:]) for i in range(3))
    profiled, attention = _profile(step, max(1, steps // 3))
    # A profile says how time is divided; it makes everything slower, so how much there is was measured without it.
    scale = gradients / sum(profiled.values())
    return Breakdown(
        {DATA: data, **{name: scale * seconds for name, seconds in profiled.items()}, UPDATE: update}, attention
    )


def _profile(step: BareStep, steps: int) -> tuple[dict[str, float], float]:
    """Time of the parts of forward and backward, and the share that belongs to attention."""
    cuda = step.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    batch = step.read()
    with profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(steps):
            step.forward_backward(batch)
            step.optimizer.zero_grad()
        synchronize(step.device)
    tokens, heads = math.prod(step.model.model.grid_size), _heads(step.model)
    weights = len(batch) * heads * tokens * tokens  # elements
    parts = dict.fromkeys((LINEAR, PRODUCTS, WEIGHTS, RANDOM, NORMS, OTHER), 0.0)
    totals: dict[bool, float] = defaultdict(float)
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.device_type != torch.autograd.DeviceType.CPU:  # kernels; their time is also that of what started them
            continue
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        part, of_attention = classify(event.key, event.input_shapes or [], tokens, weights)
        parts[part] += seconds
        totals[of_attention] += seconds
    return parts, totals[True] / (totals[True] + totals[False])


def classify(name: str, shapes: list[Any], tokens: int, weights: int) -> tuple[str, bool]:
    """Tell to which part of the step an operation belongs.

    Args:
        name (str): Its name in the profile, for example ``"aten::bmm"``.
        shapes (list[Any]): Shapes of its arguments.
        tokens (int): Tokens per image.
        weights (int): Attention weights of a layer, over all heads and images of a batch.

    Returns:
        tuple[str, bool]: The part, and whether it is work on attention weights.

    Example:
        >>> classify("aten::bmm", [[64, 196, 32], [64, 32, 196]], tokens=196, weights=64 * 196**2)
        ('matrix products of attention', True)
    """
    if "attention" in name:  # torch's fused kernels
        return PRODUCTS, True
    if name in _PRODUCTS:
        return (PRODUCTS, True) if name in {"aten::bmm", "aten::baddbmm"} else (LINEAR, False)
    elements = max((math.prod(s) for s in shapes if s and all(isinstance(n, int) for n in s)), default=0)
    if name.startswith(_RANDOM):
        # One draw may decide several elements, see `keep_mask`.
        return RANDOM, elements in {weights, (weights + 3) // 4}
    if elements == weights or any(len(s) >= 2 and list(s[-2:]) == [tokens, tokens] for s in shapes if s):
        return WEIGHTS, True
    return (NORMS, False) if "layer_norm" in name else (OTHER, False)


def _heads(model: UniAD) -> int:
    return int(model.model.transformer.encoder.layers[0].self_attention.num_heads)  # type: ignore[union-attr, arg-type]


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()

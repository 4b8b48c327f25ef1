# SPDX-License-Identifier: Apache-2.0
"""In which precision a device computes faster."""

import math
import time
from functools import cache

import torch

_ROUNDS = 10
_WORTHWHILE = 1.5  # everything but matrix products gains less, and conversions cost


@cache
def bfloat16_is_faster(device: torch.device) -> bool:
    """Measure, once per process, whether a device multiplies matrices at least 1.5 times faster in bfloat16.

    It takes some milliseconds. Processors without instructions for bfloat16 emulate it, many times slower.

    Args:
        device (torch.device): The device.

    Returns:
        bool: Whether it does; False for anything but CPU and CUDA.
    """
    if device.type not in {"cpu", "cuda"}:
        return False
    size = 256 if device.type == "cpu" else 4096  # on a GPU, small products take the time of their start
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}  # the shortest: what is longer was disturbed
    for dtype in seconds:
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        for round_ in range(_ROUNDS):
            start = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # waits for the device
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
            if round_ > 1 and seconds[dtype] > 4 * seconds[torch.float32]:
                break  # emulated
    return seconds[torch.bfloat16] * _WORTHWHILE < seconds[torch.float32]

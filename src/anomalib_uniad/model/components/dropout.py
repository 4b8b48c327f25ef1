# SPDX-License-Identifier: Apache-2.0
"""Dropout whose masks are cheap to draw on a CPU."""

import torch
from torch import nn
from torch.nn import functional as F


def keep_mask(like: torch.Tensor, probability: float) -> torch.Tensor:
    """Draw which elements dropout keeps.

    torch draws one number per element on the CPU, which costs more than the matrix products around it. Here one
    64-bit draw decides four elements, 16 bits each, so ``probability`` is met to within 1 / 131072.

    Args:
        like (torch.Tensor): A tensor of the shape, data type and device that the mask is to have.
        probability (float): Probability that an element is dropped.

    Returns:
        torch.Tensor: 1 where kept, 0 where dropped.

    Examples:
        >>> mask = keep_mask(torch.empty(1000, 1000), 0.1)
        >>> bool((mask.mean() - 0.9).abs() < 0.002)
        True
    """
    count = like.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    values = draws.view(torch.int16)[:count].view(like.shape)  # uniform in [-32768, 32767]
    dropped = round(probability * 65536)
    if dropped > 65535:
        return torch.zeros_like(like, requires_grad=False)
    # Straight into the data type of the product: several times faster than a mask of bools.
    return torch.ge(values, dropped - 32768, out=torch.empty_like(like, requires_grad=False))


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout` with cheap masks on a CPU; any shape.

    Args:
        p (float): Probability that an element is dropped. Defaults to ``0.5``.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop elements of ``x`` while training, scale the others by ``1 / (1 - p)``."""
        if not self.training or self.p == 0:
            return x
        if self.p == 1 or not on_eager_cpu(x):
            return F.dropout(x, self.p)
        return x * keep_mask(x, self.p) * (1 / (1 - self.p))


def on_eager_cpu(x: torch.Tensor) -> bool:
    """Whether :func:`keep_mask` is the fastest way: other devices and compiled graphs have fused kernels.

    Args:
        x (torch.Tensor): What the mask is for.

    Returns:
        bool: True on a CPU, outside of a compiled graph.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()

# SPDX-License-Identifier: Apache-2.0
"""Multi-scale neck: the backbone's maps on one grid."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class MultiScaleNeck(nn.Module):
    """Resizes every map to one grid and concatenates them, shallow to deep.

    Bilinear with ``align_corners=True`` and without antialiasing, also when shrinking. The result is what
    UniAD reconstructs.

    Args:
        grid_size (tuple[int, int]): Height ``h`` and width ``w`` of the result.
    """

    def __init__(self, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.grid_size = grid_size

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """List of ``(B, C_i, H_i, W_i)`` -> ``(B, sum C_i, h, w)``."""
        resized = [F.interpolate(x, size=self.grid_size, mode="bilinear", align_corners=True) for x in maps]
        return torch.cat(resized, dim=1)

# SPDX-License-Identifier: Apache-2.0
"""Multi-scale neck: the backbone's maps on one grid."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_uniad.checks import check_choice

FeatureResize = Literal["bilinear", "area"]


class MultiScaleNeck(nn.Module):
    """Brings every map to one grid and concatenates them, shallow to deep. The result is what UniAD reconstructs.

    Args:
        grid_size (tuple[int, int]): Height ``h`` and width ``w`` of the result.
        resize (str): ``"bilinear"``: with ``align_corners=True`` and without antialiasing, also when shrinking, so
            that a token of a shallow map is made of four of its places. ``"area"``: maps that shrink are averaged, so
            that it is made of all places that it covers; others are resized as before. Defaults to ``"bilinear"``.

    Raises:
        ValueError: If ``resize`` is neither.
    """

    def __init__(self, grid_size: tuple[int, int], resize: FeatureResize = "bilinear") -> None:
        super().__init__()
        check_choice("feature_resize", resize, get_args(FeatureResize))
        self.grid_size = grid_size
        self.resize = resize

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """List of ``(B, C_i, H_i, W_i)`` -> ``(B, sum C_i, h, w)``."""
        return torch.cat([self._to_grid(x) for x in maps], dim=1)

    def extra_repr(self) -> str:
        """Name what features depend on; part of the key of a feature cache."""
        return "" if self.resize == "bilinear" else f"resize={self.resize!r}"

    def _to_grid(self, x: torch.Tensor) -> torch.Tensor:
        shrinks = x.shape[-2] >= self.grid_size[0] and x.shape[-1] >= self.grid_size[1]
        if self.resize == "area" and shrinks:
            return F.adaptive_avg_pool2d(x, self.grid_size)
        return F.interpolate(x, size=self.grid_size, mode="bilinear", align_corners=True)

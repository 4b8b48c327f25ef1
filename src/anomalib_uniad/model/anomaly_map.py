# SPDX-License-Identifier: Apache-2.0
"""From the reconstruction error to anomaly map and image score."""

from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_uniad.checks import check_at_least, check_choice

from .components.tiles import Tiles

ImageScore = Literal["max", "mean", "std"]


class AnomalyMap(nn.Module):
    """Length of the reconstruction error of each token, upsampled to the image; no smoothing.

    Args:
        image_size (tuple[int, int]): Height ``H`` and width ``W`` of the map, in pixels.
        tiles (Tiles | None): Tiles of the image, whose maps are joined. Defaults to ``None``, one.
    """

    def __init__(self, image_size: tuple[int, int], tiles: Tiles | None = None) -> None:
        super().__init__()
        self.image_size = image_size
        self.tiles = tiles

    def forward(
        self, reconstruction: torch.Tensor, target: torch.Tensor, covered: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map the error of a reconstruction.

        Args:
            reconstruction (torch.Tensor): ``(B, C, h, w)``.
            target (torch.Tensor): ``(B, C, h, w)``.
            covered (torch.Tensor | None): ``(B or 1, 1, H, W)``, false in the padding, where the map gets the lowest
                value that it has elsewhere. Defaults to ``None``, no padding.

        Returns:
            torch.Tensor: ``(B, 1, H, W)``, float32.
        """
        error = (reconstruction.float() - target.float()).norm(dim=1, keepdim=True)  # (B, 1, h, w)
        if self.tiles is None:
            anomaly_map = F.interpolate(error, size=self.image_size, mode="bilinear", align_corners=True)
        else:
            anomaly_map = self.tiles.join(error)
        if covered is None:
            return anomaly_map
        lowest = torch.where(covered, anomaly_map, torch.inf).amin(dim=(2, 3), keepdim=True)
        return torch.where(covered, anomaly_map, lowest)


class AnomalyScore(nn.Module):
    """One score per image from its anomaly map.

    Args:
        reduction (str): ``"max"`` of the average-pooled map (the paper's choice for MVTec-AD), ``"mean"`` (its
            choice for CIFAR-10) or ``"std"``, the population standard deviation. Defaults to ``"max"``.
        pool_size (int): Side of the average pool before ``"max"``, in pixels; stride 1, no padding.
            Defaults to ``16``.

    Raises:
        ValueError: If ``reduction`` is none of the three or ``pool_size`` is not positive.
    """

    def __init__(self, reduction: ImageScore = "max", pool_size: int = 16) -> None:
        super().__init__()
        check_choice("image_score", reduction, get_args(ImageScore))
        check_at_least("score_pool_size", pool_size, 1)
        self.reduction = reduction
        self.pool_size = pool_size

    def forward(self, anomaly_map: torch.Tensor, covered: torch.Tensor | None = None) -> torch.Tensor:
        """Score maps.

        Args:
            anomaly_map (torch.Tensor): ``(B, 1, H, W)``.
            covered (torch.Tensor | None): ``(B or 1, 1, H, W)``, false in the padding, which has the lowest value of
                the map, so that ``"max"`` does not see it. Defaults to ``None``, no padding.

        Returns:
            torch.Tensor: ``(B,)``.
        """
        if self.reduction == "max":
            columns = F.avg_pool2d(anomaly_map, (self.pool_size, 1), stride=1)  # one direction after the other, which
            return F.avg_pool2d(columns, (1, self.pool_size), stride=1).amax(dim=(1, 2, 3))  # is less work
        if covered is not None:
            weights = covered.to(anomaly_map.dtype)
            weights = weights / weights.sum(dim=(2, 3), keepdim=True)  # (B or 1, 1, H, W)
            mean = (anomaly_map * weights).sum(dim=(1, 2, 3), keepdim=True)
            if self.reduction == "mean":
                return mean.flatten()
            return ((anomaly_map - mean).square() * weights).sum(dim=(1, 2, 3)).sqrt()
        if self.reduction == "mean":
            return anomaly_map.mean(dim=(1, 2, 3))
        return anomaly_map.flatten(1).std(dim=1, correction=0)

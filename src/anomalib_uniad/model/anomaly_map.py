# SPDX-License-Identifier: Apache-2.0
"""From the reconstruction error to anomaly map and image score."""

from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_uniad.checks import check_at_least, check_choice
from anomalib_uniad.errors import InputError

from .components.tiles import Tiles, upsampling

ImageScore = Literal["max", "top", "mean", "std"]


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
        return self.from_error(self.error(reconstruction, target), covered)

    @staticmethod
    def error(reconstruction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Reconstruction and target (B, C, h, w) -> length of the error of each token (B, 1, h, w), float32."""
        return (reconstruction.float() - target.float()).norm(dim=1, keepdim=True)

    def from_error(self, error: torch.Tensor, covered: torch.Tensor | None = None) -> torch.Tensor:
        """Error of tokens (B, 1, h, w) -> map (B, 1, H, W); ``covered`` as of :meth:`forward`."""
        anomaly_map = self.upsample(error)
        if covered is None:
            return anomaly_map
        lowest = torch.where(covered, anomaly_map, torch.inf).amin(dim=(2, 3), keepdim=True)
        return torch.where(covered, anomaly_map, lowest)

    def upsample(self, error: torch.Tensor, pool_size: int = 1) -> torch.Tensor:
        """Upsample the error of tokens.

        Args:
            error (torch.Tensor): ``(B, 1, h, w)``.
            pool_size (int): Side of an average pool of the result, with stride 1 and no padding.
                Defaults to ``1``, no pool.

        Returns:
            torch.Tensor: ``(B, 1, H - pool_size + 1, W - pool_size + 1)``.
        """
        if self.tiles is not None:
            rows, columns = self.tiles.rows, self.tiles.columns
        elif pool_size == 1 and not torch.compiler.is_exporting():
            return F.interpolate(error, size=self.image_size, mode="bilinear", align_corners=True)
        else:
            # Constant matrices: in OpenVINO, two small products take a tenth of the time of an interpolation and pools.
            rows, columns = (
                upsampling(side, tokens).to(error)
                for side, tokens in zip(self.image_size, error.shape[-2:], strict=True)
            )
        if pool_size > 1:  # as linear as the upsampling: pooled matrices make the pooled map
            rows, columns = (F.avg_pool1d(side.T[None], pool_size, stride=1)[0].T for side in (rows, columns))
        return rows @ error @ columns.T


class AnomalyScore(nn.Module):
    """One score per image from its anomaly map.

    Args:
        reduction (str): ``"max"`` of the average-pooled map (the paper's choice for MVTec-AD), ``"mean"`` (its
            choice for CIFAR-10), ``"std"``, the population standard deviation, or ``"top"``, the mean of the highest
            pixels less half of the mean of all. Defaults to ``"max"``.
        pool_size (int): Side of the average pool before ``"max"``, in pixels; stride 1, no padding.
            Defaults to ``16``.
        top_fraction (float): Part of the pixels that ``"top"`` takes the mean of, rounded to whole pixels, at least
            one. Defaults to ``0.02``.

    Raises:
        ValueError: If ``reduction`` is none of the four, ``pool_size`` is not positive or ``top_fraction`` is not in
            (0, 1].
    """

    def __init__(self, reduction: ImageScore = "max", pool_size: int = 16, top_fraction: float = 0.02) -> None:
        super().__init__()
        check_choice("image_score", reduction, get_args(ImageScore))
        check_at_least("score_pool_size", pool_size, 1)
        if not 0 < top_fraction <= 1:
            raise InputError(f"score_top_fraction must lie in (0, 1], got {top_fraction}.")
        self.reduction = reduction
        self.pool_size = pool_size
        self.top_fraction = top_fraction

    def forward(self, anomaly_map: torch.Tensor, covered: torch.Tensor | None = None) -> torch.Tensor:
        """Score maps.

        Args:
            anomaly_map (torch.Tensor): ``(B, 1, H, W)``.
            covered (torch.Tensor | None): ``(B or 1, 1, H, W)``, false in the padding, which has the lowest value of
                the map, so that ``"max"`` and ``"top"`` do not see it. Defaults to ``None``, no padding.

        Returns:
            torch.Tensor: ``(B,)``.
        """
        if self.reduction == "max":
            columns = F.avg_pool2d(anomaly_map, (self.pool_size, 1), stride=1)  # one direction after the other, which
            return F.avg_pool2d(columns, (1, self.pool_size), stride=1).amax(dim=(1, 2, 3))  # is less work
        mean = self._mean(anomaly_map, covered)
        if self.reduction == "mean":
            return mean
        if self.reduction == "top":
            return self._top(anomaly_map.flatten(1), covered) - mean / 2
        return self._mean((anomaly_map - mean[:, None, None, None]).square(), covered).sqrt()

    @staticmethod
    def _mean(pixels: torch.Tensor, covered: torch.Tensor | None) -> torch.Tensor:
        """Mean of ``pixels`` (B, 1, H, W), the covered ones: (B,)."""
        if covered is None:
            return pixels.mean(dim=(1, 2, 3))
        return (pixels * covered).sum(dim=(1, 2, 3)) / covered.sum(dim=(1, 2, 3))

    def _top(self, pixels: torch.Tensor, covered: torch.Tensor | None) -> torch.Tensor:
        """Mean of the highest of ``pixels`` (B, H * W), as many as are a part of the covered ones: (B,)."""
        count = max(round(self.top_fraction * pixels.shape[1]), 1)
        highest = pixels.topk(count, dim=1).values  # (B, count)
        if covered is None:
            return highest.mean(dim=1)
        counts = (covered.flatten(1).sum(dim=1, keepdim=True) * self.top_fraction).round().clamp(min=1)  # (B or 1, 1)
        taken = (torch.arange(count, device=pixels.device) < counts).to(pixels.dtype)  # (B or 1, count)
        return (highest * taken).sum(dim=1) / taken.sum(dim=1)

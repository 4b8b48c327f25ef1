# SPDX-License-Identifier: Apache-2.0
"""Which product an image shows, and how it scores among good images of that product."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components.base import DynamicBufferMixin
from scipy.sparse.csgraph import connected_components
from sklearn.covariance import ledoit_wolf
from torch import nn

FOLDS = 5
FARTHEST = 4.0
"""How many times as far as half of the good images an image of a known product may lie.

Good images of another session, noisier, lighter or compressed more, lie farther than those that were set aside; images
of another kind of product lie farther still.
"""
CONFUSED = 0.02
"""Share of a product's good images that may be taken for another one."""


class Judged(NamedTuple):
    """Scores and maps of B images on one scale for all products: good below 0, anomalous above, within -1 and 1.

    Attributes:
        score (torch.Tensor): ``(B,)``; 1 for images of unknown products, and of those without a threshold.
        anomaly_map (torch.Tensor): ``(B, 1, H, W)``.
        product (torch.Tensor): Number of the product ``(B,)``, in the order of the names.
        unknown (torch.Tensor): Whether the image is of none of them ``(B,)``.
    """

    score: torch.Tensor
    anomaly_map: torch.Tensor
    product: torch.Tensor
    unknown: torch.Tensor

    @property
    def outputs(self) -> InferenceBatch:
        """Score and map, as models put them out."""
        return InferenceBatch(pred_score=self.score, anomaly_map=self.anomaly_map)


class Products(DynamicBufferMixin, nn.Module):
    """Recognises products, and brings scores and maps of all of them to one scale.

    A product is recognised by the mean over an image of each feature channel: the nearest product by the Mahalanobis
    distance, with one covariance for all products, estimated as by Ledoit and Wolf
    (https://doi.org/10.1016/S0047-259X(03)00096-4). An image that is farther from all than ``FARTHEST`` times the
    median distance of good images that its estimate has not seen (cross-validation) is of no known product.

    A score ``s`` of a product with threshold ``t`` and typical good score ``m`` becomes ``x / (1 + |x|)`` with
    ``x = (s - t) / (t - m)``: 0 at the threshold, -1/2 at a typical good image, and the order within a product stays.
    Values of maps become the same with ``m = 0``.

    Products that are easily confused share a calibration: those of which more than ``CONFUSED`` of the good images are
    taken for one another, in cross-validation.

    Its buffers have no products before :meth:`learn` and :meth:`calibrate`, and are kept in checkpoints.
    """

    means: torch.Tensor
    to_distance: torch.Tensor
    farthest: torch.Tensor
    image: torch.Tensor
    pixel: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(0, 0))  # (P, C)
        self.register_buffer("to_distance", torch.zeros(0, 0))  # (C, C), a root of the inverse covariance
        self.register_buffer("farthest", torch.zeros(()))  # square of a distance
        self.register_buffer("image", torch.zeros(0, 2))  # (P, 2): typical good score and threshold
        self.register_buffer("pixel", torch.zeros(0))  # (P,): threshold of the values of maps

    @property
    def known(self) -> bool:
        """Whether there are products."""
        return len(self.means) > 0 and len(self.image) == len(self.means)

    @staticmethod
    def pool(features: torch.Tensor) -> torch.Tensor:
        """Features ``(B, C, h, w)`` -> what a product is recognised by ``(B, C)``."""
        return features.mean(dim=(2, 3))

    def learn(self, products: Sequence[torch.Tensor]) -> list[list[int]]:
        """Learn what products look like.

        Args:
            products (Sequence[torch.Tensor]): Pooled features of good images of each product ``(N, C)``.

        Returns:
            list[list[int]]: Numbers of the products, those together that are easily confused.
        """
        samples = [pooled.double().cpu() for pooled in products]
        means, root = _estimate(samples)
        farthest, confused = _cross_validated(samples)
        self.means, self.to_distance = means.to(self.means), root.to(self.means)
        self.farthest = torch.tensor(farthest).to(self.means)
        groups = connected_components((confused > CONFUSED).numpy(), directed=False)[1]
        return [[row for row, other in enumerate(groups) if other == group] for group in sorted(set(groups))]

    def calibrate(self, image: Sequence[tuple[float, float]], pixel: Sequence[float]) -> None:
        """Take thresholds of each product, NaN where nothing is decided.

        Args:
            image (Sequence[tuple[float, float]]): Typical good score and threshold of images.
            pixel (Sequence[float]): Threshold of the values of maps.
        """
        below = [(min(middle, 0.99 * threshold), threshold) for middle, threshold in image]  # else there is no scale
        self.image = torch.tensor(below, dtype=torch.float32, device=self.means.device)
        self.pixel = torch.tensor(pixel, dtype=torch.float32, device=self.means.device)

    def recognise(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Product ``(B,)`` of images by their features ``(B, C, h, w)``, and whether they are of none ``(B,)``."""
        # Not a product of matrices, which runtimes compute in bfloat16 where they can: too coarse for distances.
        own = (self.pool(features)[:, None] * self.to_distance.T).sum(dim=2)  # (B, C)
        off = own[:, None] - self.means @ self.to_distance  # (B, P, C)
        distance, product = off.square().sum(dim=2).min(dim=1)
        return product, distance > self.farthest

    def forward(self, features: torch.Tensor, score: torch.Tensor, anomaly_map: torch.Tensor) -> Judged:
        """Judge images by their features ``(B, C, h, w)``, score ``(B,)`` and map ``(B, 1, H, W)``."""
        return self.judge_as(*self.recognise(features), score, anomaly_map)

    def judge_as(
        self, product: torch.Tensor, unknown: torch.Tensor, score: torch.Tensor, anomaly_map: torch.Tensor
    ) -> Judged:
        """Judge images as of the products ``(B,)`` with these numbers, or as ``unknown`` ``(B,)``."""
        middle, threshold = self.image[product].unbind(dim=1)  # (B,)
        judged = on_scale(score, threshold, middle)
        judged = torch.where(unknown | threshold.isnan(), torch.ones_like(judged), judged)
        level = self.pixel[product][:, None, None, None]  # (B, 1, 1, 1)
        levels = torch.where(level.isnan(), torch.zeros_like(anomaly_map), on_scale(anomaly_map, level))
        return Judged(judged, levels, product, unknown)


def on_scale(values: torch.Tensor, threshold: torch.Tensor, middle: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Values on the scale of all products, by threshold and typical good value."""
    beyond = (values - threshold) / (threshold - middle)
    return beyond / (1 + beyond.abs())


def _estimate(samples: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (P, C), and a root (C, C) of the inverse covariance within products, from P times (N, C)."""
    means = torch.stack([sample.mean(dim=0) for sample in samples])
    within = torch.cat([sample - mean for sample, mean in zip(samples, means, strict=True)])
    covariance = torch.from_numpy(ledoit_wolf(within.numpy(), assume_centered=True)[0])
    values, vectors = torch.linalg.eigh(covariance)
    return means, vectors * values.clamp(min=1e-6 * max(values[-1].item(), 1e-12)).rsqrt()


def _cross_validated(samples: Sequence[torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Square of the largest distance of a known product, and which part of each product is taken for which (P, P).

    Products with a single image are not asked. Without others, nothing is too far.
    """
    confused = torch.zeros(len(samples), len(samples))
    asked = [row for row, sample in enumerate(samples) if len(sample) > 1]
    if not asked:
        return math.inf, confused
    distances = []
    for fold in range(FOLDS):
        parts = [torch.arange(len(sample)) % min(FOLDS, len(sample)) == fold for sample in samples]
        parts = [part & (len(part) > 1) for part in parts]
        means, root = _estimate([sample[~part] for sample, part in zip(samples, parts, strict=True)])
        for product, (sample, part) in enumerate(zip(samples, parts, strict=True)):
            squares = ((sample[part][:, None] - means) @ root).square().sum(dim=2)  # (N, P)
            distances.append(squares[:, product])
            confused[product] += torch.bincount(squares.argmin(dim=1), minlength=len(samples)) / len(sample)
    return float(FARTHEST**2 * torch.cat(distances).median()), confused * (1 - torch.eye(len(samples)))

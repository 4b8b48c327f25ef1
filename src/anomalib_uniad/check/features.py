# SPDX-License-Identifier: Apache-2.0
"""What the features of a product's good images tell: which are unlike the others, and whether it looks like two.

The limits were set on the generated products, as EfficientNet-Lite0 sees them: one product alone has a silhouette of
0.31 at most, two of them mixed 0.83 at least.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.transforms.v2 import Normalize

from anomalib_uniad.model.components import Backbone

from .look import SIDE

BATCH = 64
LAYERS = (1, 2, 3)  # strides 4, 8 and 16
UNLIKE = 4.0  # robust standard deviations of the logarithm
TWO = 0.6  # mean silhouette of two groups
FEWEST = 10  # images of which groups are told
_FIT = 300  # images that say what is usual: more say the same
_SAMPLE = 500  # images in which two groups are looked for
_WORST = 0.05  # part of an image that counts: defects are small


class Unlike(NamedTuple):
    """How much good images differ from the others: ``deviations`` (n,), the larger the more, in their order."""

    deviations: np.ndarray

    def most(self, count: int) -> list[int]:
        """Images that differ most, the worst first."""
        return np.argsort(-self.deviations, kind="stable")[:count].tolist()

    def outliers(self) -> list[int]:
        """Images that differ much, the worst first."""
        return [index for index in self.most(len(self.deviations)) if self.deviations[index] > UNLIKE]


class Extractor:
    """A backbone that sees small images.

    Args:
        backbone (str): Name in timm.
    """

    def __init__(self, backbone: str) -> None:
        self._backbone = Backbone(backbone, LAYERS, padding="timm")
        self._backbone.prepare((SIDE, SIDE))
        self._normalize = Normalize(self._backbone.mean, self._backbone.std)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, torch.Tensor]:
        """Features of images.

        Args:
            images (Sequence[np.ndarray]): B images ``(128, 128, 3)``, uint8.

        Returns:
            tuple[np.ndarray, torch.Tensor]: Of each image as a whole (B, C), and of its places (B, N, C').
        """
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255  # (B, 3, H, W)
        maps = self._backbone(self._normalize(batch))
        whole = torch.cat([part for each in maps for part in (each.mean((2, 3)), each.std((2, 3)))], dim=1)
        grid = maps[1].shape[-2:]
        places = avg_pool2d(torch.cat([interpolate(each, grid, mode="bilinear") for each in maps[1:]], dim=1), 3, 1, 1)
        return whole.numpy(), places.flatten(2).transpose(1, 2)


class Usual:
    """What the places of a product's images look like: a Gaussian, from the first 300 images that are added."""

    def __init__(self) -> None:
        self._first: list[torch.Tensor] = []
        self._count = 0
        self._scores: list[torch.Tensor] = []
        self._whitening: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, places: torch.Tensor) -> None:
        """Add images ``(B, N, C)``."""
        if self._whitening is not None:
            self._scores.append(self._score(places, *self._whitening))
            return
        self._first.append(places)
        self._count += len(places)
        if self._count >= _FIT:
            self._fit()

    def unlike(self) -> Unlike:
        """How much each of the images differs from the others."""
        if self._first:
            self._fit()
        if not self._scores:
            return Unlike(np.zeros(0))
        scores = torch.cat(self._scores).double().clamp(min=1e-9).log().numpy()
        middle = np.median(scores)
        spread = 1.4826 * np.median(np.abs(scores - middle))  # a standard deviation that outliers do not change
        return Unlike((scores - middle) / max(spread, 1e-2))

    def _fit(self) -> None:
        places = torch.cat(self._first).flatten(0, 1)  # (n, C)
        mean = places.mean(0)
        covariance = (places - mean).T @ (places - mean) / len(places)
        # A hundredth of the mean variance: few images do not span all directions.
        covariance += 0.01 * covariance.diagonal().mean().clamp(min=1e-6) * torch.eye(len(covariance))
        whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        self._whitening = mean, whiten
        self._scores = [self._score(part, mean, whiten) for part in self._first]
        self._first = []

    @staticmethod
    def _score(places: torch.Tensor, mean: torch.Tensor, whiten: torch.Tensor) -> torch.Tensor:
        distances = ((places - mean) @ whiten).norm(dim=-1)  # (B, N), of Mahalanobis
        return distances.topk(max(1, int(_WORST * distances.shape[1])), dim=1).values.mean(1)


def two_groups(features: np.ndarray) -> np.ndarray | None:
    """Tell whether images fall into two groups that have nothing between them.

    Args:
        features (np.ndarray): ``(n, C)``, of each image as a whole.

    Returns:
        np.ndarray | None: The group of each image, 0 for the larger one and 1; ``None`` if it is one group.
    """
    if len(features) < FEWEST:
        return None
    rows = np.random.default_rng(0).permutation(len(features))[:_SAMPLE]
    sample = features[rows]
    if np.ptp(sample, axis=0).max() < 1e-6:  # the same image again and again
        return None
    clusters = KMeans(2, n_init=5, random_state=0).fit(sample)
    smaller = int(np.bincount(clusters.labels_, minlength=2).min())
    if smaller < max(3, len(sample) // 20) or silhouette_score(sample, clusters.labels_) < TWO:
        return None
    groups = clusters.predict(features)
    return groups if (groups == 0).sum() >= (groups == 1).sum() else 1 - groups

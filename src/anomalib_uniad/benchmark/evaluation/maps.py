# SPDX-License-Identifier: Apache-2.0
"""Generated anomaly maps and masks, as a test on a data set like MVTec AD would give them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from anomalib.data import ImageBatch

# Of MVTec AD's 1,725 test images, 467 are normal; of all pixels, about 3 % are defective.
NORMAL_IMAGES = 0.27


@dataclass(frozen=True)
class GeneratedMaps:
    """Maps of all categories, equally many of each. They are made when they are asked for, each from its own seed.

    Attributes:
        images (int): Number of images.
        image_size (int): Height and width, in pixels.
        categories (int): Number of categories.
        seed (int): Seed. Defaults to ``0``.
    """

    images: int
    image_size: int
    categories: int
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """Names of the categories."""
        return [f"category_{number:02}" for number in range(self.categories)]

    @property
    def category_bytes(self) -> int:
        """Bytes of maps and masks of the largest category."""
        return -(-self.images // self.categories) * self.image_size**2 * (4 + 1)

    def category_of(self, index: int) -> str:
        """Return the category of an image; images are in the order of their categories."""
        return self.names[index * self.categories // self.images]

    def is_defective(self, index: int) -> bool:
        """Return whether an image is defective; of each category, the same part is."""
        return int((index + 1) * NORMAL_IMAGES) == int(index * NORMAL_IMAGES)

    def batches(self, batch_size: int, shuffled: bool = False) -> Iterator[ImageBatch]:
        """Make batches.

        Args:
            batch_size (int): Images per batch B.
            shuffled (bool): Whether in random order, otherwise by category. Defaults to ``False``.

        Yields:
            ImageBatch: Maps ``(B, H, W)``, masks ``(B, H, W)``, scores ``(B,)``, labels ``(B,)`` and paths.
        """
        order = np.arange(self.images)
        if shuffled:
            np.random.default_rng(self.seed).shuffle(order)
        for start in range(0, self.images, batch_size):
            yield self._batch(order[start : start + batch_size].tolist())

    def _batch(self, indices: Sequence[int]) -> ImageBatch:
        shape = (len(indices), self.image_size, self.image_size)
        maps, masks = np.empty(shape, np.float32), np.empty(shape, np.bool_)
        for row, index in enumerate(indices):
            maps[row], masks[row] = generate(
                np.random.default_rng((self.seed, index)), self.image_size, self.is_defective(index)
            )
        anomaly_map, mask = torch.from_numpy(maps), torch.from_numpy(masks)
        return ImageBatch(
            image=torch.zeros(1, 1, 1, 1).expand(len(indices), 3, *shape[1:]),  # takes no memory
            anomaly_map=anomaly_map,
            gt_mask=mask,
            pred_score=anomaly_map.amax(dim=(1, 2)),
            gt_label=mask.any(dim=2).any(dim=1),
            image_path=[f"{self.category_of(index)}/test/any/{index:05}.png" for index in indices],
        )


def generate(rng: np.random.Generator, size: int, defective: bool) -> tuple[np.ndarray, np.ndarray]:
    """Make one map: smooth noise, higher where the mask is, but not everywhere and not only there.

    Args:
        rng (np.random.Generator): Source of randomness.
        size (int): Height and width, in pixels.
        defective (bool): Whether there are defects, one to three.

    Returns:
        tuple[np.ndarray, np.ndarray]: Map ``(H, W)``, float32 from 0 to 1, and mask ``(H, W)``, bool.
    """
    mask = np.zeros((size, size), np.uint8)
    if defective:
        for _ in range(rng.integers(1, 4)):
            center = rng.integers(size // 8, size - size // 8, 2).tolist()
            axes = np.maximum(1, size * rng.uniform(0.02, 0.14, 2)).astype(int).tolist()
            cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
    # Parts that sum to 1, each from 0 to 1: coarse and fine noise, and the defect with soft edges.
    coarse, fine = (
        cv2.resize(rng.random((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
        for cells in (7, 28)
    )
    grain = rng.random((size, size), np.float32)
    blob = cv2.blur(mask.astype(np.float32), (max(1, size // 14),) * 2)
    scores = 0.35 * coarse + 0.15 * fine + 0.02 * grain + 0.48 * float(rng.uniform(0.3, 1)) * blob
    return scores.astype(np.float32), mask.astype(bool)

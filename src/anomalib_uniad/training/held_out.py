# SPDX-License-Identifier: Apache-2.0
"""Normal images that are neither trained on nor tested, and copies of them with synthetic defects."""

import copy
import random
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataset, ImageItem
from anomalib.data.utils.generators import PerlinAnomalyGenerator
from lightning.pytorch.utilities.seed import isolate_rng

from anomalib_uniad.category import categories_of
from anomalib_uniad.splits import MIXED_RATIO, draw

MOST = 100  # images in all: so that looking at them takes a small part of the time of a training
FEWEST = 20  # in all, below which 5 % of them is less than an image
FEWEST_OF_CATEGORY = 3
_LARGEST = 256  # pixels, of the side of the noise
_BLEND = (0.01, 0.2)  # as in anomalib's SyntheticAnomalyDataset: faint, so that finding them is not soon perfect


class SyntheticDefects(AnomalibDataset):
    """Normal images, each followed by a copy of it with a synthetic defect.

    Defects are those of anomalib's ``SyntheticAnomalyDataset``, but painted in memory, on images of any depth, and the
    same each time.

    Args:
        images (AnomalibDataset): Dataset of images.
        rows (list[int]): Its normal images that are taken.
        categories (list[str]): Their categories.
        seed (int): Seed of the defects.

    Attributes:
        samples (pd.DataFrame): Two rows for each image: ``image_path``, ``label_index`` and ``category``.
    """

    def __init__(self, images: AnomalibDataset, rows: list[int], categories: list[str], seed: int) -> None:
        super().__init__()
        paths = images.samples["image_path"].iloc[rows]
        self._samples = pd.DataFrame(
            {
                "image_path": np.repeat(paths.to_numpy(), 2),
                "label_index": [0, 1] * len(rows),
                "category": np.repeat(np.array(categories, dtype=object), 2),
            },
            dtype=object,  # names need not be text, which columns of Arrow have to be
        ).astype({"label_index": int})
        self._images, self._rows, self._seed = images, rows, seed

    def __getitem__(self, index: int) -> ImageItem:
        """Get an image without its mask, or its copy."""
        number, defective = divmod(index, 2)
        found: Any = self._images[self._rows[number]]
        image = found.image
        if defective:
            image = _paint(image, int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0]))
        return ImageItem(image=image, gt_label=torch.tensor(defective), image_path=found.image_path)


class Held(NamedTuple):
    """What is held out, and what is left to train on.

    Attributes:
        images (SyntheticDefects | None): ``None`` if there are too few to tell anything by.
        available (int): Normal images that could be had.
        training (list[int] | None): Rows of the training set that are left; ``None`` if all are.
    """

    images: SyntheticDefects | None
    available: int
    training: list[int] | None


def hold_out(datamodule: Any, seed: int) -> Held:
    """Choose normal images that are neither trained on nor tested.

    Normal validation images serve, unless they are tested as well. Where there are none, part of the training images of
    each category is drawn.

    Args:
        datamodule (Any): A datamodule of anomalib that is set up.
        seed (int): Seed of the draw and of the defects.

    Returns:
        Held: The images.
    """
    train: AnomalibDataset = datamodule.train_data
    tested = set(map(str, getattr(getattr(datamodule, "test_data", None), "samples", {}).get("image_path", ())))
    source, ratio = getattr(datamodule, "val_data", None) or train, 1.0
    rows = _normal(source, tested | set(map(str, train.samples["image_path"])))
    if not rows:
        source, ratio = copy.copy(train), MIXED_RATIO  # whose samples stay when those of the training set are reduced
        rows = _normal(source, tested)
    paths = source.samples["image_path"].tolist()
    by_category: dict[str, list[int]] = {}
    for row, category in zip(rows, categories_of([paths[row] for row in rows], datamodule), strict=True):
        by_category.setdefault(category, []).append(row)
    drawn = {name: draw(group, ratio, seed) if ratio < 1 else group for name, group in by_category.items()}
    enough = {name: group for name, group in drawn.items() if len(group) >= FEWEST_OF_CATEGORY}
    count = sum(map(len, enough.values()))
    if count < FEWEST:
        return Held(None, sum(map(len, drawn.values())), None)
    most = max(MOST // len(enough), FEWEST_OF_CATEGORY)
    generator = np.random.default_rng(seed)
    chosen = {name: sorted(generator.permutation(group)[:most].tolist()) for name, group in enough.items()}
    taken = [row for group in chosen.values() for row in group]
    categories = [name for name, group in chosen.items() for _ in group]
    left = sorted(set(range(len(train))) - set(taken)) if ratio < 1 else None
    return Held(SyntheticDefects(source, taken, categories, seed), len(taken), left)


def _normal(images: AnomalibDataset, others: set[str]) -> list[int]:
    """Rows of the normal images of a dataset that are not among others."""
    samples = images.samples
    labels = samples["label_index"] if "label_index" in samples else [0] * len(samples)
    pairs = zip(samples["image_path"], labels, strict=True)
    return [row for row, (path, label) in enumerate(pairs) if label == 0 and str(path) not in others]


def _paint(image: torch.Tensor, seed: int) -> torch.Tensor:
    """Paint a defect on an image (3, H, W) of values from 0 to 1, as anomalib's generator does.

    The noise is made small and enlarged: for an image of 6 megapixels, anomalib's takes 12 s.
    """
    height, width = image.shape[-2:]
    scale = min(1.0, _LARGEST / max(height, width))
    with isolate_rng(include_cuda=False):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - augmentations use the legacy generator
        generator = PerlinAnomalyGenerator()
        for _ in range(10):  # some masks are empty
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            noise, mask = generator.generate_perturbation(*size, device=torch.device("cpu"))
            if mask.any():
                break
        strength = torch.empty(()).uniform_(*_BLEND)
    noise, mask = (
        torch.nn.functional.interpolate(part.permute(2, 0, 1)[None], (height, width))[0] for part in (noise, mask)
    )  # (3, H, W) and (1, H, W)
    plain = image.as_subclass(torch.Tensor)
    return torch.where(mask > 0, torch.lerp(plain, noise, strength), plain).clamp(0, 1)

# SPDX-License-Identifier: Apache-2.0
"""Images as an exported model takes them, to quantise it with."""

import copy
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageItem
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms.v2 import functional as transforms

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

IMAGES = 300  # that activations are measured on


class Images(NamedTuple):
    """Images as an exported model takes them."""

    input: torch.Tensor  # (B, 3, H, W); where items are too few for a fixed batch, the last one is repeated
    items: list[ImageItem]


class CalibrationImages(Dataset[ImageItem]):
    """Normal images, and on every second one a rectangle, black or white.

    Without it, INT8 would only reach up to what is seen in normal images, and cut off defects, which differ more.

    Args:
        images (Sequence[ImageItem]): Normal images.
    """

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageItem:
        item = self.images[index]
        if index % 2:
            item = copy.copy(item)
            height, width = item.image.shape[-2:]
            item.image = item.image.clone()
            item.image[:, height // 4 : height // 2, width // 4 : width // 2] = float(index % 4 == 1)
        return item


def calibration_images(
    model: "openvino.Model", datamodule: AnomalibDataModule, size: tuple[int, int], painted: bool = True
) -> DataLoader:
    """Training images that activations are measured on.

    Args:
        model (openvino.Model): The exported model.
        datamodule (AnomalibDataModule): Where they are from; it is set up.
        size (tuple[int, int]): Height and width to which the model resizes.
        painted (bool): Paint rectangles, see :class:`CalibrationImages`. Defaults to ``True``.

    Returns:
        DataLoader: Of :class:`Images`.
    """
    dataset = datamodule.train_data
    count = min(IMAGES, len(dataset))
    logger.info("Activations are measured on %d of %d training images", count, len(dataset))
    chosen = torch.linspace(0, len(dataset) - 1, count).round().int().tolist()  # of each category its part
    images = Subset(plain(dataset), chosen)
    return batches_of(CalibrationImages(images) if painted else images, model, size)


def plain(dataset: AnomalibDataset) -> AnomalibDataset:
    """The same images without augmentations; the dataset stays as it is."""
    plain = copy.copy(dataset)
    plain.augmentations = None
    return plain


def batches_of(dataset: Any, model: "openvino.Model", size: tuple[int, int]) -> DataLoader:
    """Images one by one in their own size, or as many and as large as the model's input is, if it is fixed.

    Args:
        dataset (Any): Images.
        model (openvino.Model): The exported model.
        size (tuple[int, int]): Height and width to which the model resizes.

    Returns:
        DataLoader: Of :class:`Images`.
    """
    shape = model.input().partial_shape
    batch = shape[0].get_length() if shape[0].is_static else 1
    fixed = (shape[2].get_length(), shape[3].get_length()) if shape[2].is_static and shape[3].is_static else None
    collate = partial(_collate, batch=batch, size=fixed or (size if batch > 1 else None))
    return DataLoader(dataset, batch_size=batch, collate_fn=collate)


def _collate(items: list[ImageItem], batch: int, size: tuple[int, int] | None) -> Images:
    images: list[Any] = [item.image if size is None else transforms.resize(item.image, list(size)) for item in items]
    return Images(torch.stack(images + images[-1:] * (batch - len(images))), items)

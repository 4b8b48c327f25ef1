# SPDX-License-Identifier: Apache-2.0
"""Dataset of image files."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataset, ImageItem
from anomalib.data.utils import LabelName
from torchvision.transforms.v2 import Transform
from torchvision.transforms.v2.functional import to_dtype, to_image
from torchvision.tv_tensors import Mask

from anomalib_uniad.data.records import Record
from anomalib_uniad.errors import InputError
from anomalib_uniad.image_files import read_image, read_mask, reason_of


class ImageFileDataset(AnomalibDataset):
    """Images of records, read by the one rule of :func:`~anomalib_uniad.image_files.read_image`.

    Args:
        records (Sequence[Record]): The images.
        task (TaskType): Segmentation with masks, classification without.
        augmentations (Transform | None): Augmentations of image and mask. Defaults to ``None``.
        value_range (tuple[float, float] | None): Range of images with more than 8 bits. Defaults to ``None``.
    """

    def __init__(
        self,
        records: Sequence[Record],
        task: TaskType,
        augmentations: Transform | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        self.value_range = value_range
        masks = [record.paths[1:] for record in records]
        samples = pd.DataFrame(
            {
                "image_path": [record.paths[0] for record in records],
                "split": [record.split.value for record in records],
                "label": [record.label_name for record in records],
                "label_index": pd.Series([record.label for record in records], dtype=int),
                # One path, as in anomalib, or a list of several.
                "mask_path": [list(paths) if len(paths) > 1 else next(iter(paths), None) for paths in masks],
            },
            dtype=object,  # names of files need not be text, which columns of Arrow have to be
        ).astype({"label_index": int})
        samples.attrs["task"] = task.value
        self.samples = samples

    def __getitem__(self, index: int) -> ImageItem:
        """Get an image with its label and, if there are masks, its mask.

        Args:
            index (int): Row of the samples.

        Returns:
            ImageItem: Image (3, H, W), mask (H, W).
        """
        row = self.samples.iloc[index]
        masks = row.mask_path if isinstance(row.mask_path, list) else [row.mask_path] if row.mask_path else []
        image: Any = _scaled(to_image(read_image(row.image_path, self.value_range)))
        mask = self._mask(masks, row.label_index, image.shape[-2:]) if self.task == TaskType.SEGMENTATION else None
        if self.augmentations:
            image, mask = self.augmentations(image, mask) if mask is not None else (self.augmentations(image), None)
        return ImageItem(
            image=image,
            gt_mask=mask,
            gt_label=torch.tensor(row.label_index),
            image_path=row.image_path,
            mask_path=masks[0] if masks else None,
        )

    def _mask(self, masks: Sequence[str], label: int, size: torch.Size) -> Mask:
        """Unite masks; without any, all of a defective image is defective."""
        if not masks:
            return Mask(torch.full(size, int(label == LabelName.ABNORMAL), dtype=torch.uint8))
        return Mask(torch.stack([_read_mask(path, size) for path in masks]).any(dim=0).to(torch.uint8))


def _read_mask(path: str, size: torch.Size) -> torch.Tensor:
    try:
        mask = torch.from_numpy(read_mask(path))
    except Exception as error:  # Pillow's decoders raise all kinds on damaged files
        raise InputError(f"The mask {path} cannot be read: {reason_of(error, path)}.") from error
    if mask.shape != size:
        (height, width), (own_height, own_width) = size, mask.shape
        msg = f"The mask {path} has {own_width} x {own_height} pixels, but its image has {width} x {height}."
        raise InputError(msg)
    return mask


def _scaled(image: torch.Tensor) -> torch.Tensor:
    """Scale values from 0 ... 255 to 0 ... 1, those of 8 bits to the same numbers as anomalib's reader."""
    return to_dtype(image, torch.float32, scale=True) if image.dtype == torch.uint8 else image / 255

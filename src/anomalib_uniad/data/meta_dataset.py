# SPDX-License-Identifier: Apache-2.0
"""Datasets of what meta files list."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageItem
from anomalib.data.utils import LabelName, TestSplitMode, ValSplitMode, read_image, read_mask
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Mask

from anomalib_uniad.data.meta_images import Sample


class MetaFileDataset(AnomalibDataset):
    """Images of meta files.

    Args:
        listed (Sequence[Sample]): What the files list.
        task (TaskType): Segmentation with masks, classification without.
        augmentations (Transform | None): Augmentations of image and mask. Defaults to ``None``.
    """

    def __init__(self, listed: Sequence[Sample], task: TaskType, augmentations: Transform | None = None) -> None:
        super().__init__(augmentations=augmentations)
        masks = [list(sample.masks) if len(sample.masks) > 1 else next(iter(sample.masks), None) for sample in listed]
        samples = pd.DataFrame(
            {
                "image_path": [sample.image for sample in listed],
                "split": [sample.record.split.value for sample in listed],
                "label": [sample.record.label_name for sample in listed],
                "label_index": pd.Series([sample.record.label for sample in listed], dtype=int),
                "mask_path": pd.Series(masks, dtype=object),
            }
        )
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
        image: Any = read_image(row.image_path, as_tensor=True)
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
        read = [torch.as_tensor(read_mask(path, as_tensor=True)).reshape(size).bool() for path in masks]
        return Mask(torch.stack(read).any(dim=0).to(torch.uint8))


class MetaFileCategory(AnomalibDataModule):
    """Images of one category, split by anomalib; the test images stay as they are listed.

    Args:
        train (MetaFileDataset): Training images.
        test (MetaFileDataset): Test images.
        **split (Any): Arguments of anomalib's datamodules for splits.
    """

    def __init__(self, train: MetaFileDataset, test: MetaFileDataset, **split: Any) -> None:
        super().__init__(train_batch_size=1, eval_batch_size=1, num_workers=0, **split)
        self._listed = train, test

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data, self.test_data = self._listed

    def _create_test_split(self) -> None:
        if self.test_split_mode == TestSplitMode.SYNTHETIC:
            super()._create_test_split()

    def _create_val_split(self) -> None:
        from_test = self.val_split_mode in (ValSplitMode.FROM_TEST, ValSplitMode.SAME_AS_TEST)
        if len(self.test_data if from_test else self.train_data):  # else there is nothing to split
            super()._create_val_split()

# SPDX-License-Identifier: Apache-2.0
"""Batches of cached features instead of images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.data.dataclasses.numpy import NumpyImageBatch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from .feature_checks import fits_on_device

NO_MASK = 255  # fills the mask of an image that has none
UNKNOWN = -1  # label of an image that has none


def _without_features(target: type) -> Any:
    """Make items or arrays of a batch: anomalib's classes know no features."""

    def make(features: Any = None, **fields: Any) -> Any:
        del features
        return target(**fields)

    return make


@dataclass
class CachedBatch(ImageBatch):
    """A batch that brings its features; its images are placeholders of one pixel.

    Attributes:
        features (torch.Tensor | None): ``(B, C, h, w)``, in the type of the cache.
    """

    item_class: ClassVar[Any] = staticmethod(_without_features(ImageItem))
    numpy_class: ClassVar[Any] = staticmethod(_without_features(NumpyImageBatch))

    features: torch.Tensor | None = None


class CachedDataset(Dataset):
    """The images of a dataset, in its order, as features.

    Args:
        arrays (dict[str, np.ndarray]): ``features`` (n, C, h, w), ``labels`` (n,) with -1 for unknown and, for
            evaluation, ``masks`` (n, H, W) with 255 in that of an image without one.
        image_path (Sequence[str | None]): Paths of the images.
        mask_path (Sequence[str | None]): Paths of the masks.
        device (torch.device | None): Keep the features there; ``None`` leaves them where they are.
            Defaults to ``None``.
        pin (bool): Copy batches to pinned memory, from which CUDA devices read without waiting.
            Defaults to ``False``.

    Example:
        >>> arrays = {"features": np.zeros((3, 8, 2, 2), np.float32), "labels": np.zeros(3, np.int8)}
        >>> dataset = CachedDataset(arrays, ["a.png", "b.png", "c.png"], [None] * 3)
        >>> batch = dataset.__getitems__([2, 0])
        >>> tuple(batch.features.shape), batch.image_path
        ((2, 8, 2, 2), ['c.png', 'a.png'])
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        image_path: Sequence[str | None],
        mask_path: Sequence[str | None],
        device: torch.device | None = None,
        pin: bool = False,
    ) -> None:
        features = torch.from_numpy(arrays["features"])
        self._features: torch.Tensor | None = features if device is None else features.to(device)
        self._labels = torch.from_numpy(np.array(arrays["labels"]))
        self._masks = torch.from_numpy(arrays["masks"]) if "masks" in arrays else None
        self._image_path = list(image_path)
        self._mask_path = list(mask_path)
        self._pin = pin

    @classmethod
    def place(
        cls,
        arrays: dict[str, np.ndarray],
        image_path: Sequence[str | None],
        mask_path: Sequence[str | None],
        device: torch.device,
    ) -> "CachedDataset":
        """Make one for a training on a device: there, if there is room, so that batches need no transfer."""
        cuda = device.type == "cuda"
        fits = cuda and fits_on_device(arrays["features"].nbytes, torch.cuda.mem_get_info(device)[0])
        return cls(arrays, image_path, mask_path, device=device if fits else None, pin=cuda and not fits)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> CachedBatch:
        """Get a batch of one image."""
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> CachedBatch:
        """Get a batch; torch's dataloader calls this once instead of ``__getitem__`` for each row."""
        if self._features is None:
            msg = "The features are released when a training ends; ask the datamodule for a new dataloader."
            raise RuntimeError(msg)
        index = torch.as_tensor(rows)
        label = self._labels[index]
        mask = None if self._masks is None else self._masks[index]
        image_path: list[Any] = [self._image_path[row] for row in rows]
        mask_path: list[Any] = [self._mask_path[row] for row in rows]
        # A label or a mask that one image of the batch does not have, the batch does not have.
        return CachedBatch(
            image=torch.zeros(1).expand(len(rows), 3, 1, 1),
            gt_label=None if bool((label == UNKNOWN).any()) else label.bool(),
            gt_mask=None if mask is None or bool((mask == NO_MASK).any()) else mask.bool(),
            image_path=None if image_path[0] is None else image_path,
            mask_path=None if mask_path[0] is None else mask_path,
            features=self._gather(self._features, index),
        )

    def release(self) -> None:
        """Let go of the features; Lightning keeps dataloaders until the next training."""
        self._features = self._masks = None

    def _gather(self, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        if features.device.type == "cuda":  # from pinned memory: an ordinary copy would wait for the device
            return features[index.pin_memory().to(features.device, non_blocking=True)]
        if not self._pin:
            return features[index.to(features.device)]
        out = torch.empty((len(index), *features.shape[1:]), dtype=features.dtype, pin_memory=True)
        return torch.index_select(features, 0, index, out=out)


def paths_of(dataset: Any) -> tuple[list[str | None], list[str | None]]:
    """Paths of the images and of the masks of a dataset, as its items have them; None where there is none."""
    samples = dataset.samples
    masks = samples["mask_path"] if "mask_path" in samples else [None] * len(samples)
    return [_path(path) for path in samples["image_path"]], [_path(path) for path in masks]


def cached_dataloader(dataset: CachedDataset, original: DataLoader) -> DataLoader:
    """Make a dataloader that visits the rows in the order in which another one visits its images.

    Order and random numbers are those of the original: with the same seed, both give the same batches.

    Args:
        dataset (CachedDataset): Has the rows of the original's dataset.
        original (DataLoader): The dataloader whose place is taken.

    Returns:
        DataLoader: Without workers, as there is nothing to decode.
    """
    common: Any = {"num_workers": 0, "collate_fn": hand_on, "generator": original.generator}
    if original.batch_size is None or type(original.batch_sampler) is not BatchSampler:  # one that the user made
        return DataLoader(dataset, batch_sampler=original.batch_sampler, **common)
    sampler: Any = original.sampler
    if type(sampler) is RandomSampler:
        sampler = RandomSampler(dataset, sampler.replacement, sampler._num_samples, sampler.generator)
    elif type(sampler) is SequentialSampler:
        sampler = None
    return DataLoader(
        dataset,
        batch_size=original.batch_size,
        sampler=sampler,
        drop_last=original.drop_last,
        **common,
    )


def _path(path: Any) -> str | None:
    if isinstance(path, (list, tuple)):  # MVTec LOCO has several masks per image; its items name the first
        path = path[0] if path else None
    return str(path) if isinstance(path, (str, os.PathLike)) and str(path) else None


def hand_on(batch: Any) -> Any:
    """Collate function for batches that are collated already."""
    return batch

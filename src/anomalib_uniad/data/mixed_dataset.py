# SPDX-License-Identifier: Apache-2.0
"""Images with masks and images without in one dataset, and batches that do not mix them."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from operator import itemgetter

import pandas as pd
from anomalib import TaskType
from anomalib.data import AnomalibDataset
from anomalib.data.dataclasses import DatasetItem
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler
from torchvision.transforms.v2 import Transform

HAS_MASKS = "has_masks"


class MixedDataset(AnomalibDataset):
    """Images with masks and images without as one dataset, sorted by path as every dataset of anomalib.

    Its samples have a column ``has_masks``. An item comes from the part that it is of, so those without masks have
    ``gt_mask`` ``None``; :func:`unmixed` makes batches of them.

    Args:
        with_masks (AnomalibDataset): The images that have masks, normal ones among them.
        without_masks (AnomalibDataset): The others.

    Attributes:
        parts (tuple[AnomalibDataset, AnomalibDataset]): The two, which read the images.
    """

    def __init__(self, with_masks: AnomalibDataset, without_masks: AnomalibDataset) -> None:
        self.parts = without_masks, with_masks
        super().__init__(with_masks.augmentations)
        frames = [part.samples.assign(**{HAS_MASKS: bool(flag)}) for flag, part in enumerate(self.parts)]
        samples = pd.concat(frames, ignore_index=True)
        samples.attrs["task"] = TaskType.SEGMENTATION.value
        self.samples = samples
        self.category = ""
        self.value_range = getattr(with_masks, "value_range", None)
        self._rows = [{path: row for row, path in enumerate(part.samples.image_path)} for part in self.parts]

    @property
    def name(self) -> str:
        """Name of the dataset of the images with masks."""
        return self.parts[1].name

    @property
    def collate_fn(self) -> Callable:
        """That of the images with masks."""
        return self.parts[1].collate_fn

    @property
    def augmentations(self) -> Transform | None:
        """Augmentations of all images."""
        return self.parts[0].augmentations

    @augmentations.setter
    def augmentations(self, augmentations: Transform | None) -> None:
        for part in self.parts:
            part.augmentations = augmentations

    def __getitem__(self, index: int) -> DatasetItem:
        """Get an image with its label and, if it is one of those with masks, its mask."""
        row = self.samples.iloc[index]
        part = int(row[HAS_MASKS])
        return self.parts[part][self._rows[part][row.image_path]]


class UnmixedBatchSampler(BatchSampler):
    """Batches of images that all have masks or all have none, in the order of the sampler.

    With several processes, each has as many batches as the others, of the same sizes: what happens once per batch
    (in a training, DDP exchanges buffers) would otherwise wait for ever.

    Args:
        sampler (Sampler | Iterable): Gives rows of the dataset. Lightning puts a ``DistributedSampler`` in its place.
        batch_size (int): Largest number of images of a batch.
        drop_last (bool): Not used: no image is left out.
        has_masks (Sequence[bool]): Whether an image has a mask, for each row of the dataset.

    Examples:
        >>> list(UnmixedBatchSampler(range(6), 2, False, [True, True, True, False, False, True]))
        [[0, 1], [2], [3, 4], [5]]
    """

    def __init__(
        self, sampler: Sampler[int] | Iterable[int], batch_size: int, drop_last: bool, has_masks: Sequence[bool]
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.has_masks = has_masks

    def __iter__(self) -> Iterator[list[int]]:
        for _, run in groupby(zip(self.sampler, self._kinds(), strict=False), key=itemgetter(1)):
            rows = [row for row, _ in run]
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _kinds(self) -> Iterator[tuple[bool | None, ...]]:
        """For each image, whether it has a mask, and those that the other processes have at the same time."""
        samplers: list[Iterable[int]] = [self.sampler]
        if isinstance(self.sampler, DistributedSampler):
            samplers = [copy.copy(self.sampler) for _ in range(self.sampler.num_replicas)]
            for rank, sampler in enumerate(samplers):
                sampler.rank = rank  # type: ignore[attr-defined]
        for rows in zip_longest(*samplers):
            yield tuple(None if row is None else self.has_masks[row] for row in rows)


def unmixed(loader: DataLoader) -> DataLoader:
    """Return a dataloader whose batches have images with masks or images without; as it is if nothing is mixed."""
    samples = getattr(loader.dataset, "samples", None)
    if samples is None or HAS_MASKS not in samples:
        return loader
    sampler = UnmixedBatchSampler(loader.sampler, loader.batch_size or 1, False, samples[HAS_MASKS].tolist())
    return DataLoader(
        loader.dataset, batch_sampler=sampler, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )

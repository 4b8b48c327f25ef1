# SPDX-License-Identifier: Apache-2.0
"""Cached datasets, their batches and their dataloaders."""

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, ImageItem
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from anomalib_uniad.training.cached_dataset import CachedDataset, cached_dataloader, paths_of

COUNT = 7
FEATURES = np.arange(COUNT * 2 * 3 * 3, dtype=np.float16).reshape(COUNT, 2, 3, 3)


def make_dataset(labels=(0, 1, 0, 1, 0, 1, 0), masks: bool = True, **arguments) -> CachedDataset:
    arrays = {"features": FEATURES, "labels": np.array(labels, dtype=np.int8)}
    if masks:
        arrays["masks"] = np.stack([np.full((5, 6), label % 256, dtype=np.uint8) for label in labels])
    images = [f"{row}.png" for row in range(COUNT)]
    mask_path = [f"{row}_mask.png" if label else None for row, label in enumerate(labels)]
    return CachedDataset(arrays, images, mask_path, **arguments)


def test_a_batch_is_the_rows_in_order() -> None:
    batch = make_dataset().__getitems__([5, 0, 3])
    assert isinstance(batch, ImageBatch)
    assert batch.features.dtype == torch.float16
    np.testing.assert_array_equal(batch.features.numpy(), FEATURES[[5, 0, 3]])
    assert batch.image.shape == (3, 3, 1, 1)
    assert len(batch) == batch.batch_size == 3
    assert batch.gt_label.tolist() == [True, False, True]
    assert batch.gt_mask.dtype == torch.bool
    assert batch.gt_mask.flatten(1).all(1).tolist() == [True, False, True]
    assert batch.image_path == ["5.png", "0.png", "3.png"]
    assert batch.mask_path == ["5_mask.png", "None", "3_mask.png"]  # as anomalib's own batches have it
    assert make_dataset()[4].image_path == ["4.png"]


def test_what_a_batch_does_not_have() -> None:
    batch = make_dataset(masks=False).__getitems__([0, 1])
    assert batch.gt_mask is None
    assert batch.mask_path is None  # the first has none
    unknown = make_dataset(labels=(0, -1, 0, 1, 0, 1, 0)).__getitems__([0, 1])
    assert unknown.gt_label is None
    assert unknown.gt_mask is None  # -1 is 255 in its mask


def test_anomalibs_views_of_a_batch() -> None:
    batch = make_dataset().__getitems__([1, 2])
    items = batch.items
    assert [type(item) for item in items] == [ImageItem, ImageItem]
    assert items[0].gt_mask.all()
    assert batch.to_numpy().gt_label.tolist() == [True, False]
    updated = batch.update(in_place=False, pred_score=torch.tensor([0.1, 0.2]))
    assert updated.features is batch.features
    assert "features" in batch.keys(include_none=False)


def test_released_features_are_not_used() -> None:
    dataset = make_dataset()
    dataset.release()
    assert len(dataset) == COUNT
    with pytest.raises(RuntimeError, match="ask the datamodule for a new dataloader"):
        dataset.__getitems__([0])


def test_features_on_a_device() -> None:
    dataset = make_dataset(device=torch.device("meta"))
    assert dataset._features.device.type == "meta"
    assert dataset._gather(dataset._features, torch.tensor([1, 2])).shape == (2, 2, 3, 3)


class Rows(torch.utils.data.Dataset):
    """The original: its items are the numbers of the images."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> int:
        return row


def weighted(rows):
    return WeightedRandomSampler([1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0], 9)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 3, "shuffle": True},
        {"batch_size": 3, "shuffle": True, "drop_last": True},
        {"batch_size": 3},
        {"batch_size": 3, "shuffle": True, "generator": 5},
        {"batch_size": 3, "sampler": lambda rows: RandomSampler(rows, replacement=True, num_samples=11)},
        {"batch_size": 3, "sampler": lambda rows: RandomSampler(rows, num_samples=4)},
        {"batch_size": 2, "sampler": weighted},
        {"batch_size": 2, "sampler": lambda rows: SubsetRandomSampler([4, 2, 6])},
        {"batch_size": 2, "sampler": lambda rows: DistributedSampler(rows, 2, 1)},
        {"batch_sampler": lambda rows: BatchSampler(SequentialSampler(rows), 4, drop_last=False)},
        {"batch_sampler": lambda rows: [[3, 1], [0]]},
    ],
)
def test_same_batches_and_same_random_numbers_as_the_original(arguments: dict) -> None:
    def run(cached: bool) -> tuple[list[list[int]], float]:
        rows, values = Rows(), dict(arguments)
        if "generator" in values:
            values["generator"] = torch.Generator().manual_seed(values["generator"])
        for name in ("sampler", "batch_sampler"):
            if name in values:
                values[name] = values[name](rows)
        loader = DataLoader(rows, **values)
        torch.manual_seed(3)
        if not cached:
            return [batch.tolist() for _ in range(3) for batch in loader], torch.rand(1).item()
        loader = cached_dataloader(make_dataset(), loader)
        found = [[int(path[0]) for path in batch.image_path] for _ in range(3) for batch in loader]
        return found, torch.rand(1).item()

    assert run(cached=True) == run(cached=False)


def test_lightning_can_distribute_it() -> None:
    """What Lightning does with a dataloader if there are several processes."""
    from lightning.pytorch.utilities.data import _update_dataloader

    loader = cached_dataloader(make_dataset(), DataLoader(Rows(), batch_size=2, shuffle=True))
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(loader.dataset, 2, rank, shuffle=True, seed=1)
        part = _update_dataloader(loader, sampler)
        parts.append([path for batch in part for path in batch.image_path])
    assert len(parts[0]) == len(parts[1]) == 4
    assert {*parts[0], *parts[1]} == {f"{row}.png" for row in range(COUNT)}


def test_paths_of_a_dataset() -> None:
    import pandas as pd

    class Dataset:
        samples = pd.DataFrame({"image_path": ["a", "b", "c", "d"], "mask_path": ["m", None, "", ["x", "y"]]})

    assert paths_of(Dataset) == (["a", "b", "c", "d"], ["m", None, None, "x"])
    Dataset.samples = Dataset.samples[["image_path"]]
    assert paths_of(Dataset)[1] == [None] * 4

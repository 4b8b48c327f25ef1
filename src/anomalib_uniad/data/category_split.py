# SPDX-License-Identifier: Apache-2.0
"""How the images of one category become its training, validation and test set."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import TestSplitMode, ValSplitMode

from anomalib_uniad.data.image_dataset import ImageFileDataset
from anomalib_uniad.data.multi_category_datamodule import read_sets
from anomalib_uniad.splits import MIXED, draw


def split_category(
    train: ImageFileDataset, test: ImageFileDataset, datamodule: AnomalibDataModule
) -> dict[str, AnomalibDataset]:
    """Split the images of one category, whose test images stay as they are listed.

    Args:
        train (ImageFileDataset): Its training images.
        test (ImageFileDataset): Its test images.
        datamodule (AnomalibDataModule): Datamodule whose modes, ratios and seed are taken.

    Returns:
        dict[str, AnomalibDataset]: Its sets ``"train"``, ``"test"`` and, if there is one, ``"val"``.
    """
    mixed = datamodule.val_split_mode == MIXED
    split = ListedCategory(
        train,
        test,
        test_split_mode=datamodule.test_split_mode,
        test_split_ratio=datamodule.test_split_ratio,
        val_split_mode=ValSplitMode.NONE if mixed else datamodule.val_split_mode,
        val_split_ratio=datamodule.val_split_ratio,
        seed=datamodule.seed,
    )
    sets = read_sets(split)
    return split_mixed(sets, datamodule.val_split_ratio, datamodule.seed or 0) if mixed else sets


def split_mixed(sets: Mapping[str, AnomalibDataset], ratio: float, seed: int) -> dict[str, AnomalibDataset]:
    """Set aside validation images of one category: good training images, and test images if some are defective.

    Args:
        sets (Mapping[str, AnomalibDataset]): Its sets ``"train"`` and ``"test"``; another one is left out.
        ratio (float): Part of the good training images, of the normal and of the defective test images.
        seed (int): Seed of the draw.

    Returns:
        dict[str, AnomalibDataset]: The sets ``"train"``, ``"test"`` and ``"val"``, which have no image in common.
    """
    train, train_rows = _set_aside(sets["train"], [0], ratio, seed)
    test, test_rows = _set_aside(sets["test"], [0, 1] if sets["test"].has_anomalous else [], ratio, seed)
    frames = [sets["train"].samples.iloc[train_rows], sets["test"].samples.iloc[test_rows]]
    val = sets["test"].subsample([])
    # An empty table has no types and would change those of the other.
    samples = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    samples.attrs["task"] = sets["test"].task.value
    val.samples = samples
    return {"train": train, "test": test, "val": val}


def _set_aside(data: AnomalibDataset, labels: list[int], ratio: float, seed: int) -> tuple[AnomalibDataset, list[int]]:
    """Return a dataset without the rows that are drawn of each label, and these."""
    indices = data.samples["label_index"].to_numpy()
    drawn = {row for label in labels for row in draw(np.flatnonzero(indices == label).tolist(), ratio, seed)}
    return data.subsample([row for row in range(len(indices)) if row not in drawn]), sorted(drawn)


class ListedCategory(AnomalibDataModule):
    """Images of one category, split by anomalib; the test images stay as they are listed.

    Args:
        train (ImageFileDataset): Training images.
        test (ImageFileDataset): Test images.
        **split (TestSplitMode | ValSplitMode | float | int | None): Arguments of anomalib's datamodules for splits.
    """

    def __init__(
        self,
        train: ImageFileDataset,
        test: ImageFileDataset,
        **split: TestSplitMode | ValSplitMode | float | int | None,
    ) -> None:
        super().__init__(train_batch_size=1, eval_batch_size=1, num_workers=0, **split)  # type: ignore[arg-type]
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

# SPDX-License-Identifier: Apache-2.0
"""Joining the datasets of several categories into one."""

import copy
import logging
import os
import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib import TaskType
from anomalib.data import AnomalibDataset
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset

logger = logging.getLogger(__name__)


def concatenate(datasets: Mapping[str, AnomalibDataset], owner: "TemporaryFolders") -> AnomalibDataset:
    """Join the datasets of several categories.

    The result is of the class of the given datasets, so items are read and collated as that class does it.
    If one of the categories has no masks (task classification), all of them are treated so, because a batch
    either has masks or has none.

    Args:
        datasets (Mapping[str, AnomalibDataset]): Category -> its dataset; at least one.
        owner (TemporaryFolders): What keeps temporary images of the datasets alive.

    Returns:
        AnomalibDataset: One dataset; the column ``category`` of its samples has the category of each image.
    """
    frames = {name: dataset.samples.assign(category=name) for name, dataset in datasets.items()}
    tasks = {name: TaskType(dataset.samples.attrs["task"]) for name, dataset in datasets.items()}
    without_masks = sorted(name for name, task in tasks.items() if task == TaskType.CLASSIFICATION)
    if 0 < len(without_masks) < len(tasks):
        logger.warning(
            "No masks in %s: the masks of the other categories are not used either, so there are no "
            "pixel metrics. Leave these categories out to have them.",
            ", ".join(without_masks),
        )

    joined = copy.copy(next(iter(datasets.values())))
    joined._category = next(iter(datasets)) if len(datasets) == 1 else ""
    # An empty table has no types and would change those of the others.
    filled = [frame for frame in frames.values() if len(frame)] or list(frames.values())[:1]
    samples = pd.concat(filled, ignore_index=True)
    if "mask_path" in samples:  # anomalib's items take no mask as None, not as NaN
        masks = [None if isinstance(path, float) else path for path in samples["mask_path"]]
        samples["mask_path"] = pd.Series(masks, dtype=object)
    samples.attrs = {**next(iter(frames.values())).attrs}
    samples.attrs["task"] = (TaskType.CLASSIFICATION if without_masks else TaskType.SEGMENTATION).value
    joined.samples = samples
    joined.temporary_folders = owner  # type: ignore[attr-defined]
    return joined


def replace_prefix(samples: pd.DataFrame, old: Path, new: Path) -> pd.DataFrame:
    """Return samples with a folder replaced in the paths of their images and masks."""

    def replaced(path: Any) -> Any:
        if isinstance(path, list):  # MVTec LOCO has several masks per image
            return [replaced(item) for item in path]
        if isinstance(path, str) and Path(path).is_relative_to(old):
            return str(new / Path(path).relative_to(old))
        return path

    changed = samples.copy()
    for column in {"image_path", "mask_path"} & set(samples):
        paths = [replaced(path) for path in samples[column]]
        changed[column] = pd.Series(paths, index=samples.index, dtype=samples[column].dtype)
    changed.attrs = samples.attrs
    return changed


class TemporaryFolders:
    """Folders that are removed when nobody refers to this object any more.

    anomalib keeps synthetic anomalies in a temporary folder that goes with a certain copy of their dataset.
    Joined and split again, a dataset may outlive that copy: here, all of its copies share one owner.

    Args:
        folders (Sequence[Path]): Folders to remove in the end. Defaults to none.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._folders: list[Path] = list(folders)
        weakref.finalize(self, _remove, self._folders, os.getpid())

    def adopt(self, datasets: Sequence[AnomalibDataset]) -> list[Path]:
        """Take over the temporary folders of datasets.

        Args:
            datasets (Sequence[AnomalibDataset]): Datasets of one category.

        Returns:
            list[Path]: The folders, without duplicates.
        """
        synthetic = [dataset for dataset in datasets if isinstance(dataset, SyntheticAnomalyDataset)]
        for dataset in synthetic:
            dataset._cleanup = False
        folders = list(dict.fromkeys(dataset.root for dataset in synthetic))
        self._folders.extend(folders)
        return folders

    def __copy__(self) -> "TemporaryFolders":
        return self

    def __deepcopy__(self, memo: dict) -> "TemporaryFolders":
        return self

    def __reduce__(self) -> tuple:
        return TemporaryFolders, ()  # a worker process must not remove what its parent still reads


def move_into(folder: Path, below: Path) -> Path:
    """Move the content of a folder into a sub-folder of it.

    Args:
        folder (Path): The folder.
        below (Path): Relative path of the sub-folder.

    Returns:
        Path: The sub-folder.
    """
    content = list(folder.iterdir())
    target = folder / below
    target.mkdir(parents=True)
    for path in content:
        path.rename(target / path.name)
    return target


def _remove(folders: list[Path], process: int) -> None:
    if os.getpid() == process:  # not in a forked worker
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

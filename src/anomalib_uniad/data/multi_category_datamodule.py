# SPDX-License-Identifier: Apache-2.0
"""Base class of the datamodules with several categories."""

import copy
import os
import random
import shutil
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import ValSplitMode
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import EVAL_DATALOADERS

from anomalib_uniad.checks import check_choice, check_loading
from anomalib_uniad.data.mixed_dataset import MixedDataset, unmixed
from anomalib_uniad.errors import InputError
from anomalib_uniad.image_files import check_samples
from anomalib_uniad.splits import MIXED, MIXED_RATIO, check_ratios


class MultiCategoryDataModule(AnomalibDataModule):
    """Reads and splits each category alone, and joins the training, validation and test sets.

    Derived classes set the attributes in their constructor and implement :meth:`_read_category`. Each joined set is of
    the class of the sets that it is made of, and its samples have a column ``category``. If some categories have masks
    and some have none, validation and test set are a :class:`~anomalib_uniad.data.mixed_dataset.MixedDataset`, and a
    batch either has masks or has none (``gt_mask`` is ``None``).

    **The one reach into the model**: a model that is trained or tested on several categories gets a
    :class:`~anomalib_uniad.metrics.PerCategoryEvaluator` in place of anomalib's own evaluator, since anomalib has no
    public way for a datamodule to say how its images are to be evaluated. The log says so.

    Args:
        val_split_mode (ValSplitMode | str | None): One of anomalib's, or ``"mixed"``; ``None`` is ``"none"``.
            Defaults to ``None``.
        val_split_ratio (float | None): Part that is split off; ``None`` is 0.2 for ``"mixed"``, otherwise 0.5.
            Defaults to ``None``.
        seed (int | None): Seed of the splits; ``None`` is 0. Defaults to ``None``.
        **arguments (Any): Further arguments of anomalib's datamodules.

    Attributes:
        categories (list[str]): Names of the categories.
        categories_with_masks (list[str]): Those whose test images (without test images: validation images) have masks;
            there after ``setup``.
        category_by_path (dict[str, str]): Path of an image, as in batches -> its category; empty before ``setup``.
        per_category_metrics (bool): Whether a model's evaluator is replaced, if there are several categories.
        value_range (tuple[float, float] | None): Pixel values that become black and white in images of more than 8
            bits; ``None`` if such images are refused.
        images_checked (bool): Whether all files were found to be readable.
    """

    categories: list[str]
    categories_with_masks: list[str]
    category_by_path: dict[str, str]
    per_category_metrics: bool
    value_range: tuple[float, float] | None = None
    images_checked: bool = False

    def __init__(
        self,
        *,
        val_split_mode: ValSplitMode | str | None = None,
        val_split_ratio: float | None = None,
        seed: int | None = None,
        **arguments: Any,
    ) -> None:
        mode = check_val_split_mode(val_split_mode or ValSplitMode.NONE)
        mixed = mode == MIXED
        ratio = val_split_ratio if val_split_ratio is not None else MIXED_RATIO if mixed else 0.5
        check_ratios(val_split_ratio=ratio)
        check_loading(**arguments)
        super().__init__(
            val_split_mode=None if mixed else mode,  # which anomalib does not know
            val_split_ratio=ratio,
            seed=0 if seed is None else seed,  # the same split each time
            **arguments,
        )
        if mixed:
            self.val_split_mode = MIXED  # type: ignore[assignment]

    @abstractmethod
    def _read_category(self, category: str) -> dict[str, AnomalibDataset]:
        """Read and split one category.

        Args:
            category (str): One of ``categories``.

        Returns:
            dict[str, AnomalibDataset]: Its sets ``"train"``, ``"test"`` and, if there is one, ``"val"``, as by
                :func:`read_sets`.
        """

    def setup(self, stage: str | None = None) -> None:
        """Read, split and join the categories, look at their files, have the trainer's model report per category.

        Args:
            stage (str | None): Stage of the trainer. Defaults to ``None``.

        Raises:
            ValueError: If files cannot be read, or have more than 8 bits.
        """
        super().setup(stage)
        check_samples(self)
        if self.trainer is not None and self.per_category_metrics and len(self.categories) > 1:
            # Not above: when anomalib.metrics is the first import, it loads this module before it is complete itself.
            from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator

            PerCategoryEvaluator.take_over(self.trainer)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Dataloader of the validation images; none if there is no validation set."""
        return unmixed(super().val_dataloader()) if hasattr(self, "val_data") else []

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """Dataloader of the test images."""
        return unmixed(super().test_dataloader())

    def _setup(self, _stage: str | None = None) -> None:
        if self.value_range is not None and "synthetic" in (self.test_split_mode, self.val_split_mode):
            msg = "value_range cannot be used with synthetic defects, which anomalib paints on images of 8 bits alone."
            raise InputError(msg)
        temporary = _TemporaryFolder()
        sets: dict[str, dict[str, AnomalibDataset]] = {"train": {}, "val": {}, "test": {}}
        for category in self.categories:
            read = self._read_category(category)
            self._keep_synthetic_images(read, category, temporary)
            for name, dataset in read.items():
                sets[name][category] = dataset
        self.category_by_path = {}
        evaluated = sets["val"] | sets["test"]
        masked = {name for name, dataset in evaluated.items() if dataset.task == TaskType.SEGMENTATION}
        self.categories_with_masks = [name for name in self.categories if name in masked]
        for name, datasets in sets.items():
            if datasets:
                joined = _join_training(datasets) if name == "train" else _join_evaluation(datasets)
                joined.temporary_folder = temporary  # type: ignore[attr-defined]
                setattr(self, f"{name}_data", joined)
                self.category_by_path |= dict(zip(joined.samples.image_path, joined.samples.category, strict=True))

    def _create_test_split(self) -> None:
        """Nothing left to do: each category has been split."""

    def _create_val_split(self) -> None:
        """Nothing left to do: each category has been split."""

    def _keep_synthetic_images(
        self, sets: Mapping[str, AnomalibDataset], category: str, temporary: "_TemporaryFolder"
    ) -> None:
        """Move synthetic images, which anomalib removes with the dataset that made them.

        If there are several categories, the folders below the name of the dataset say which one an image is of, so that
        heatmaps, which keep these folders, do not overwrite each other.
        """
        made = [dataset for dataset in sets.values() if isinstance(dataset, SyntheticAnomalyDataset)]
        for dataset in made:
            dataset._cleanup = False
        for old in {dataset.root for dataset in made}:
            as_anomalib = Path(old.parent.name, old.name)
            new = temporary.path / (as_anomalib if self.category else Path(old.name, self.name, category, "synthetic"))
            new.parent.mkdir(parents=True)
            old.rename(new)
            for moved in sets.values():
                moved.samples = replace_prefix(moved.samples, old, new)


def check_val_split_mode(mode: ValSplitMode | str) -> str:
    """Return the name of a mode, one of anomalib's or ``"mixed"``, and refuse others.

    Examples:
        >>> check_val_split_mode(ValSplitMode.FROM_TEST)
        'from_test'
    """
    name = mode.value if isinstance(mode, ValSplitMode) else mode
    check_choice("val_split_mode", name, [*(known.value for known in ValSplitMode), MIXED])
    return name


def read_sets(datamodule: AnomalibDataModule) -> dict[str, AnomalibDataset]:
    """Set up a datamodule; what it draws is drawn with its seed.

    Args:
        datamodule (AnomalibDataModule): Datamodule of one category.

    Returns:
        dict[str, AnomalibDataset]: Its sets ``"train"``, ``"test"`` and, if there is one, ``"val"``.
    """
    seed = getattr(datamodule, "seed", None) or 0
    with isolate_rng(
        include_cuda=False
    ):  # the images that synthetic defects are painted on, and the defects, have no seed of their own
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        datamodule.setup()
    # Some classes (MVTecAD2) keep the test set that they use elsewhere than in `test_data`.
    sets = {"train": datamodule.train_data, "test": datamodule.test_dataloader().dataset}
    if hasattr(datamodule, "val_data"):
        sets["val"] = datamodule.val_dataloader().dataset
    return sets


def replace_prefix(samples: pd.DataFrame, old: Path, new: Path) -> pd.DataFrame:
    """Replace a folder in the paths of images and masks.

    Args:
        samples (pd.DataFrame): Samples of a dataset.
        old (Path): The folder.
        new (Path): What to put in its place.

    Returns:
        pd.DataFrame: The same samples with other paths.
    """

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
    return changed


def _join_training(datasets: Mapping[str, AnomalibDataset]) -> AnomalibDataset:
    """Join training sets, whose batches mix categories: masks are known if only images without defects have none."""
    unknown = [data for data in datasets.values() if data.task == TaskType.CLASSIFICATION and data.has_anomalous]
    all_without = all(data.task == TaskType.CLASSIFICATION for data in datasets.values())
    return _join(datasets, TaskType.CLASSIFICATION if unknown or all_without else TaskType.SEGMENTATION)


def _join_evaluation(datasets: Mapping[str, AnomalibDataset]) -> AnomalibDataset:
    """Join validation or test sets: those with masks, those without, and both where there are both."""
    tasks = {data.task for data in datasets.values() if len(data)} or {data.task for data in datasets.values()}
    if len(tasks) == 1:
        return _join(datasets, tasks.pop())
    kinds = [
        _join({name: data for name, data in datasets.items() if data.task == task and len(data)}, task)
        for task in (TaskType.SEGMENTATION, TaskType.CLASSIFICATION)
    ]
    return MixedDataset(*kinds)


def _join(datasets: Mapping[str, AnomalibDataset], task: TaskType) -> AnomalibDataset:
    """Join the datasets of categories, as anomalib adds two of them, but without a look at all files per addition."""
    frames = [  # names of folders need not be text, which columns of Arrow have to be
        dataset.samples.assign(category=pd.Series(name, dataset.samples.index, dtype=object))
        for name, dataset in datasets.items()
    ]
    # An empty table has no types and would change those of the others.
    samples = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    if "mask_path" in samples:  # anomalib's items take no mask as None, not as NaN
        masks = samples["mask_path"].astype(object)
        samples["mask_path"] = masks.where(masks.notna(), None)
    samples.attrs["task"] = task.value
    joined = copy.copy(next(iter(datasets.values())))
    joined.category = next(iter(datasets)) if len(datasets) == 1 else ""
    joined.samples = samples
    return joined


class _TemporaryFolder:
    """Folder that is removed with the last dataset that refers to it; copies of a dataset share it.

    anomalib removes the folder of synthetic images with a certain copy of their dataset, which datasets that are joined
    or split from it may outlive.
    """

    @cached_property
    def path(self) -> Path:
        """The folder, made when it is asked for."""
        path = Path(tempfile.mkdtemp(prefix="anomalib-uniad-"))
        weakref.finalize(self, _remove, path, os.getpid())
        return path

    def __deepcopy__(self, memo: dict) -> "_TemporaryFolder":
        return self

    def __reduce__(self) -> tuple:
        return str, (str(vars(self).get("path", "")),)  # a worker process must not remove what its parent still reads


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a forked worker
        shutil.rmtree(folder, ignore_errors=True)

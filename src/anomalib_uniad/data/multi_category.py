# SPDX-License-Identifier: Apache-2.0
"""All categories of a dataset at once."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data import AnomalibDataset
from anomalib.data.utils import TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import Transform

from anomalib_uniad.checks import check_at_least, check_value_range
from anomalib_uniad.data.multi_category_datamodule import MultiCategoryDataModule, check_val_split_mode
from anomalib_uniad.data.own_folders import OwnFolders
from anomalib_uniad.data.wrapped_source import WrappedSource
from anomalib_uniad.errors import InputError

logger = logging.getLogger(__name__)

_OWN = ("Folder", "anomalib.data.Folder")


class MultiCategory(MultiCategoryDataModule):
    """Several categories of a dataset as one, for one model that learns them all.

    With nothing but a root, every folder in it is a product, whose layout is recognised by names, in upper or lower
    case: that of MVTec AD (``train/good``, ``test/<defect>``, ``ground_truth/<defect>``), ``good`` and ``bad`` (or
    ``normal`` and ``abnormal``, ``ok`` and ``ng``, ...), or good images alone, also directly in the product's folder.
    All file types of anomalib are read, images may have different sizes, and products with masks, without, and with
    good images alone may be side by side. Masks have the names of their images, with or without ``_mask``; a defective
    image without a mask, beside others that have one, counts as defective in all of its pixels. A product without good
    test images gets part of the training images as such. What was recognised and where the images went is logged.

    With a ``source``, it wraps any image datamodule that has an argument ``category``. Each category is read and split
    by the wrapped class itself, and the resulting training, validation and test sets are joined. With a single category
    everything is as with the wrapped class, down to the folder of the results.

    The samples have a column ``category``. Without ``download``, nothing is downloaded or generated and no folder made.

    Args:
        source (str | None): ``None`` or ``"Folder"`` reads folders of your own; otherwise a datamodule class to wrap:
            the name of one in ``anomalib.data`` (such as ``MVTecAD``, ``Visa`` or ``SyntheticProducts``), or the dotted
            path of another one. Defaults to ``None``.
        root (Path | str | None): Folder with a folder per product, or of the data set. ``None`` is the default of the
            wrapped class. Defaults to ``None``.
        categories (Sequence[str] | str | None): Names of the categories, or one string of them with commas in
            between. ``None`` takes all that are in ``root`` (or, if it has to be downloaded, all that the
            wrapped class knows). Defaults to ``None``.
        download (bool): Let the wrapped class download, convert or generate what is not there. Defaults to ``False``.
        normal_dir (str | Path | Sequence[str | Path] | None): Own folders only: folder of the good training images in
            each product, or several. Only folders that are given are read then; ``None`` recognises names.
            Defaults to ``None``.
        abnormal_dir (str | Path | Sequence[str | Path] | None): Own folders only: folder of the defective images in
            each product, or several. Defaults to ``None``.
        normal_test_dir (str | Path | Sequence[str | Path] | None): Own folders only: folder of good test images in each
            product, or several. Defaults to ``None``.
        mask_dir (str | Path | Sequence[str | Path] | None): Own folders only: folder of the masks in each product, or
            several. Defaults to ``None``.
        normal_split_ratio (float | None): Own folders only: part of the good images that become test images of a
            product without good test images. ``None`` is ``test_split_ratio``, or else 0.2. Defaults to ``None``.
        extensions (Sequence[str] | str | None): Own folders only: types of files that are read, such as ``[".png"]``.
            ``None`` is all that anomalib reads. Defaults to ``None``.
        train_batch_size (int): Batch size for training. Defaults to ``32``.
        eval_batch_size (int): Batch size for validation and test. Defaults to ``32``.
        num_workers (int): Number of workers of each dataloader. Defaults to ``8``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations where none are given above. Defaults to ``None``.
        test_split_mode (TestSplitMode | str | None): Where the test set comes from. ``None`` is ``"from_dir"`` for own
            folders, otherwise the default of the wrapped class, here and in the following arguments.
            Defaults to ``None``.
        test_split_ratio (float | None): Part of the training images that become normal test images, if a
            category has none. Defaults to ``None``.
        val_split_mode (ValSplitMode | str | None): Where the validation set comes from, which thresholds are learnt
            from: one of anomalib's modes or ``"mixed"``, which sets aside good training images and, where there are
            defects, test images of each category, drawn with the seed. ``None`` is ``"mixed"`` for own folders.
            Defaults to ``None``.
        val_split_ratio (float | None): Part of each category that is set aside for validation; for ``"mixed"``, of the
            good training images, of the normal and of the defective test images, at least one where there are two.
            ``None`` is 0.2 for ``"mixed"``. Defaults to ``None``.
        seed (int | None): Seed of the splits, the same for each category; ``None`` is 0. Defaults to ``None``.
        source_args (dict[str, Any] | None): Further arguments of the wrapped class, for example
            ``{"resolution": 512}`` for ``RealIAD``. Defaults to ``None``.
        value_range (Sequence[float] | None): Pixel values that become black and white in grey images of more than 8
            bits, integers or floating point, such as ``[0, 4095]``; images of 8 bits stay as they are. ``None`` refuses
            images of more than 8 bits. Own folders only. Defaults to ``None``.
        train_images (int | None): Number of training images of each product, drawn with the seed; the others are left
            out, and of a product that has fewer all are taken. A smaller number draws some of those that a larger one
            draws. Validation and test images stay as they are. ``None`` is all. Defaults to ``None``.
        per_category_metrics (bool): With several categories, have models report their metrics per category,
            and as the mean over categories, instead of over all images in one pool. Evaluators other than
            anomalib's own class are left as they are. Defaults to ``True``.

    Raises:
        FileNotFoundError: If the root is not there.
        ValueError: If the root or a product in it is not as expected, the source is unknown or has no categories, an
            argument is set that it does not have, or a category is missing, given twice or not a string.

    Examples:
        >>> from anomalib_uniad.data import MultiCategory
        >>> datamodule = MultiCategory("MVTecAD", "./datasets/MVTecAD", ["bottle", "cable"], download=True)
        >>> datamodule.categories
        ['bottle', 'cable']
    """

    def __init__(
        self,
        source: str | None = None,
        root: Path | str | None = None,
        categories: Sequence[str] | str | None = None,
        download: bool = False,
        normal_dir: str | Path | Sequence[str | Path] | None = None,
        abnormal_dir: str | Path | Sequence[str | Path] | None = None,
        normal_test_dir: str | Path | Sequence[str | Path] | None = None,
        mask_dir: str | Path | Sequence[str | Path] | None = None,
        normal_split_ratio: float | None = None,
        extensions: Sequence[str] | str | None = None,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str | None = None,
        test_split_ratio: float | None = None,
        val_split_mode: ValSplitMode | str | None = None,
        val_split_ratio: float | None = None,
        seed: int | None = None,
        source_args: dict[str, Any] | None = None,
        value_range: Sequence[float] | None = None,
        train_images: int | None = None,
        per_category_metrics: bool = True,
    ) -> None:
        if val_split_mode is not None:
            check_val_split_mode(val_split_mode)
        if train_images is not None:
            check_at_least("train_images", train_images, 1)
        names = _names(categories)
        limits = check_value_range(value_range)
        layout = {
            "normal_dir": normal_dir,
            "abnormal_dir": abnormal_dir,
            "normal_test_dir": normal_test_dir,
            "mask_dir": mask_dir,
            "extensions": extensions,
        }
        split = {
            "test_split_mode": test_split_mode,
            "test_split_ratio": test_split_ratio,
            "val_split_mode": val_split_mode,
            "val_split_ratio": val_split_ratio,
            "seed": seed,
        }
        self._source: OwnFolders | WrappedSource
        if source is None or source in _OWN:
            _refuse({"source_args": source_args or None, "download": download or None}, "a source")
            ratio = test_split_ratio if normal_split_ratio is None else normal_split_ratio
            self._source = OwnFolders(root, names, layout, split, ratio, limits)
        else:
            own = {**layout, "normal_split_ratio": normal_split_ratio, "value_range": value_range}
            _refuse(own, f"own folders, not for the source {source}, which reads files by itself")
            self._source = WrappedSource(source, root, names, split, source_args, download)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            **self._source.split,
        )
        self.source = source
        self.value_range = limits
        self.root = self._source.root
        self.train_images = train_images
        self.per_category_metrics = per_category_metrics
        self.categories = self._source.categories
        self.category = self.categories[0] if len(self.categories) == 1 else ""
        self.category_by_path = {}

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the dataset, after which anomalib names the folder of the results."""
        return self._source.name

    def prepare_data(self) -> None:
        """Let the wrapped class download or prepare each category, if ``download`` says so.

        Raises:
            FileNotFoundError: If there is no dataset afterwards.
            ConnectionError: If it cannot be downloaded.
            ValueError: If a category is not there afterwards, or its folders are not as the wrapped class reads them.
        """
        self._source.prepare()

    def _setup(self, _stage: str | None = None) -> None:
        self._source.check(self)
        super()._setup(_stage)
        self._take_training_images()
        self._source.report(self)

    def _take_training_images(self) -> None:
        """Leave out all training images but some of each category."""
        if self.train_images is None:
            return
        count, of = self.train_images, self.train_data.samples["category"].to_numpy()
        rows = {name: np.flatnonzero(of == name) for name in self.categories}
        drawn = [np.random.default_rng(self.seed).permutation(there)[:count] for there in rows.values()]
        self.train_data = self.train_data.subsample(np.sort(np.concatenate(drawn)).tolist())
        unused = ", ".join(f"{name} {max(0, len(there) - count)}" for name, there in rows.items())
        text = "train_images: trained on %d images of each product, drawn with seed %d; training images left out: %s"
        logger.info(text, count, self.seed, unused)
        if few := [f"{name} ({len(there)})" for name, there in rows.items() if len(there) < count]:
            logger.warning("train_images: fewer than %d training images of %s.", count, ", ".join(few))

    def _read_category(self, category: str) -> dict[str, AnomalibDataset]:
        return self._source.read(category, self)


def _refuse(arguments: dict[str, Any], used_with: str) -> None:
    """Refuse arguments that have no effect."""
    if given := [name for name, value in arguments.items() if value is not None]:
        raise InputError(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for {used_with}: leave it out.")


def _names(categories: Sequence[str] | str | None) -> list[str] | None:
    """Turn what the user gave as categories into a list."""
    if categories is None:
        return None
    if isinstance(categories, str):
        categories = [name.strip(" \"'") for name in categories.strip("[] ").split(",")]
    names = list(categories)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"Categories are strings, got {name!r}; in YAML, write it in quotes.")
    if not names or "" in names:
        raise InputError(f"`categories` is empty or has an empty name: {names}. Leave it out to have all categories.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Categories given twice: {', '.join(twice)}.")
    return names

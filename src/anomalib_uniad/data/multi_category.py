# SPDX-License-Identifier: Apache-2.0
"""All categories of a dataset at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataset
from anomalib.data.utils import TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import Transform

from anomalib_uniad.data.multi_category_datamodule import MultiCategoryDataModule, read_sets, replace_prefix
from anomalib_uniad.data.wrapped import WrappedSource


class MultiCategory(MultiCategoryDataModule):
    """Several categories of a dataset as one, for one model that learns them all.

    Wraps any image datamodule that has an argument ``category``. Each category is downloaded, read and split
    by the wrapped class itself, and the resulting training, validation and test sets are joined; their
    samples have a column ``category``. With a single category everything is as with the wrapped class, down
    to the folder of the results. If one of the categories has no masks, the masks of the others are not used
    either.

    Args:
        source (str): Datamodule class to wrap: the name of one in ``anomalib.data`` or
            ``anomalib_uniad.data``, or the dotted path of another one. Your own images in the layout of MVTec AD
            (``<category>/train/good``, ``<category>/test/<label>``, ``<category>/ground_truth/<label>``) are
            read by ``"MVTecAD"``: PNG, with a mask ``<name>_mask.png`` for each defective image.
            Defaults to ``"MVTecAD"``.
        root (Path | str | None): Folder of the dataset; the wrapped class may download it if it is not there.
            ``None`` is the default of the wrapped class. Defaults to ``None``.
        categories (Sequence[str] | str | None): Names of the categories, or one string of them with commas in
            between. ``None`` takes all that are in ``root`` (or, if it has to be downloaded, all that the
            wrapped class knows). Defaults to ``None``.
        train_batch_size (int): Batch size for training. Defaults to ``32``.
        eval_batch_size (int): Batch size for validation and test. Defaults to ``32``.
        num_workers (int): Number of workers of each dataloader. Defaults to ``8``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations where none are given above. Defaults to ``None``.
        test_split_mode (TestSplitMode | str | None): Where the test set comes from. ``None`` is the default
            of the wrapped class, here and in the following arguments. Defaults to ``None``.
        test_split_ratio (float | None): Part of the training images that become normal test images, if a
            category has none. Defaults to ``None``.
        val_split_mode (ValSplitMode | str | None): Where the validation set comes from. Defaults to ``None``.
        val_split_ratio (float | None): Part of each category that is split off for validation.
            Defaults to ``None``.
        seed (int | None): Seed of the splits, the same for each category. Defaults to ``None``.
        source_args (dict[str, Any] | None): Further arguments of the wrapped class, for example
            ``{"resolution": 512}`` for ``RealIAD``. Defaults to ``None``.
        per_category_metrics (bool): With several categories, have models report their metrics per category,
            and as the mean over categories, instead of over all images in one pool. Evaluators other than
            anomalib's own class are left as they are. Defaults to ``True``.

    Raises:
        ValueError: If the source is unknown or has no categories, an argument is set that it does not have,
            the root is a file, or a category is missing, given twice or not a string.

    Example:
        >>> from anomalib_uniad.data import MultiCategory
        >>> datamodule = MultiCategory("MVTecAD", root="./datasets/MVTecAD", categories=["bottle", "cable"])
        >>> datamodule.categories
        ['bottle', 'cable']
    """

    def __init__(
        self,
        source: str = "MVTecAD",
        root: Path | str | None = None,
        categories: Sequence[str] | str | None = None,
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
        per_category_metrics: bool = True,
    ) -> None:
        requested = _names(categories)
        options = {
            "root": root,
            "test_split_mode": test_split_mode,
            "test_split_ratio": test_split_ratio,
            "val_split_mode": val_split_mode,
            "val_split_ratio": val_split_ratio,
            "seed": seed,
        }
        self._wrapped = WrappedSource(source, options, source_args, requested)
        example = self._wrapped.example
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=example.test_split_mode,
            test_split_ratio=example.test_split_ratio,
            val_split_mode=example.val_split_mode,
            val_split_ratio=example.val_split_ratio,
            seed=example.seed,
        )
        self.source = source
        self.root = self._wrapped.root
        self.per_category_metrics = per_category_metrics
        self.categories = self._wrapped.choose(requested)
        self.category = self.categories[0] if len(self.categories) == 1 else ""
        self.category_by_path = {}
        self._folders: dict[str, Path] = {}

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the dataset: for one category that of the wrapped datamodule, for several that of the root.

        anomalib names the folder of the results after it, and its visualizers keep the folders that follow it
        in the path of an image, which tells the categories apart.
        """
        if len(self.categories) == 1 or self.root is None:
            return self._wrapped.example.name
        return self.root.name or self._wrapped.example.name

    def prepare_data(self) -> None:
        """Let the wrapped class download or prepare each category.

        Raises:
            FileNotFoundError: If there is no dataset afterwards.
            ValueError: If a category is not there afterwards, or its folders are not in the layout of MVTec AD
                although the wrapped class reads that.
        """
        self._wrapped.prepare(self.categories)

    def _setup(self, _stage: str | None = None) -> None:
        self._wrapped.check_present(self.categories)
        self._folders = self._wrapped.folders()
        super()._setup(_stage)

    def _read_category(self, category: str) -> dict[str, AnomalibDataset]:
        sets = read_sets(self._wrapped.make(category))
        folder = self._folders.get(category)
        # A link to a folder leads to paths without its name.
        if not self.category and folder is not None and folder.resolve() != folder:
            for dataset in sets.values():
                dataset.samples = replace_prefix(dataset.samples, folder.resolve(), folder)
        return sets


def _names(categories: Sequence[str] | str | None) -> list[str] | None:
    """Turn what the user gave as categories into a list."""
    if categories is None:
        return None
    if isinstance(categories, str):
        categories = [name.strip(" \"'") for name in categories.strip("[] ").split(",")]
    names = list(categories)
    for name in names:
        if not isinstance(name, str):
            msg = f"Categories are strings, got {name!r}; in YAML, write it in quotes."
            raise ValueError(msg)
    if not names or "" in names:
        msg = f"`categories` is empty or has an empty name: {names}. Leave it out to have all categories."
        raise ValueError(msg)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"Categories given twice: {', '.join(twice)}."
        raise ValueError(msg)
    return names

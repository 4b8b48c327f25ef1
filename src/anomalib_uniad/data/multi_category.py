# SPDX-License-Identifier: Apache-2.0
"""All categories of a dataset at once."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule, AnomalibDataset, AutoVI
from anomalib.data.utils import TestSplitMode, ValSplitMode
from omegaconf import OmegaConf
from torchvision.transforms.v2 import Transform

from anomalib_uniad.checks import check_value_range
from anomalib_uniad.data.category_datamodules import (
    arguments_of,
    category_folders,
    listed_categories,
    source_class,
)
from anomalib_uniad.data.multi_category_datamodule import MultiCategoryDataModule, read_sets, replace_prefix
from anomalib_uniad.data.mvtec_layout import check_layout, has_files, has_mvtec_layout
from anomalib_uniad.errors import InputError

logger = logging.getLogger(__name__)


class MultiCategory(MultiCategoryDataModule):
    """Several categories of a dataset as one, for one model that learns them all.

    Wraps any image datamodule that has an argument ``category``. Each category is downloaded, read and split
    by the wrapped class itself, and the resulting training, validation and test sets are joined; their
    samples have a column ``category``. With a single category everything is as with the wrapped class, down
    to the folder of the results. If one of the categories has no masks, the masks of the others are not used
    either.

    Args:
        source (str): Datamodule class to wrap: the name of one in ``anomalib.data`` (``SyntheticProducts`` among
            them), or the dotted path of another one. Your own images in the layout of MVTec AD
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
        value_range (Sequence[float] | None): Pixel values that become black and white in grey images of more than 8
            bits, integers or floating point, such as ``[0, 4095]``; images of 8 bits stay as they are. ``None`` refuses
            images of more than 8 bits. Only for own folders: the other classes read by themselves.
            Defaults to ``None``.
        per_category_metrics (bool): With several categories, have models report their metrics per category,
            and as the mean over categories, instead of over all images in one pool. Evaluators other than
            anomalib's own class are left as they are. Defaults to ``True``.

    Raises:
        ValueError: If the source is unknown or has no categories, an argument is set that it does not have,
            the root is a file, or a category is missing, given twice or not a string.

    Examples:
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
        value_range: Sequence[float] | None = None,
        per_category_metrics: bool = True,
    ) -> None:
        requested = _names(categories)
        self.value_range = check_value_range(value_range)
        if self.value_range is not None:
            msg = f"value_range is for own folders (source=null) and MetaFile; {source} reads images by itself."
            raise InputError(msg)
        self._class = source_class(source)
        self._listed = listed_categories(self._class)
        options = {
            "root": None if root is None else Path(root).expanduser(),
            "test_split_mode": test_split_mode,
            "test_split_ratio": test_split_ratio,
            "val_split_mode": val_split_mode,
            "val_split_ratio": val_split_ratio,
            "seed": seed,
        }
        self._arguments = _accepted(self._class, options, source_args)
        self.root = self._find_root(requested)
        self._example = example = self._make_example(requested)
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
        self.per_category_metrics = per_category_metrics
        self.categories = self._choose(requested)
        self.category = self.categories[0] if len(self.categories) == 1 else ""
        self.category_by_path = {}
        self._found: dict[str, Path] = {}

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the dataset: for one category that of the wrapped datamodule, for several that of the root.

        anomalib names the folder of the results after it, and its visualizers keep the folders that follow it
        in the path of an image, which tells the categories apart.
        """
        if len(self.categories) == 1 or self.root is None:
            return self._example.name
        return self.root.name or self._example.name

    def prepare_data(self) -> None:
        """Let the wrapped class download or prepare each category.

        Raises:
            FileNotFoundError: If there is no dataset afterwards.
            ValueError: If a category is not there afterwards, or its folders are not in the layout of MVTec AD
                although the wrapped class reads that.
        """
        self._announce_download()
        for category in self.categories:
            self._make(category).prepare_data()
        self._check_present()

    def _setup(self, _stage: str | None = None) -> None:
        self._check_present()
        self._found = self._folders()
        super()._setup(_stage)

    def _read_category(self, category: str) -> dict[str, AnomalibDataset]:
        sets = read_sets(self._make(category))
        folder = self._found.get(category)
        # A link to a folder leads to paths without its name.
        if not self.category and folder is not None and folder.resolve() != folder:
            for dataset in sets.values():
                dataset.samples = replace_prefix(dataset.samples, folder.resolve(), folder)
        return sets

    def _make(self, category: str | None = None) -> AnomalibDataModule:
        """Make the wrapped datamodule; without a category, for its default one."""
        arguments: dict[str, Any] = {} if category is None else {"category": category}
        if "num_workers" in arguments_of(self._class):
            arguments["num_workers"] = 0  # its dataloaders are asked for their datasets, never run
        return self._class(**arguments, **self._arguments)

    def _make_example(self, requested: Sequence[str] | None) -> AnomalibDataModule:
        """Make the wrapped datamodule for any category, to read its defaults and folders."""
        parameter = arguments_of(self._class)["category"]
        if parameter.default is not parameter.empty:
            return self._make()
        names = requested or self._listed
        if not names:
            msg = f"{self._class.__name__} needs a category: set `categories`."
            raise InputError(msg)
        return self._make(names[0])

    def _find_root(self, requested: Sequence[str] | None) -> Path | None:
        """Return the root of the dataset, absolute and free of links as the paths in anomalib's samples."""
        root = getattr(self._make_example(requested), "root", None)
        if root is None:
            return None
        root = Path(root).expanduser().resolve()
        if root.exists() and not root.is_dir():
            msg = f"The root {root} is a file: set `root` to the folder with the categories."
            raise InputError(msg)
        if "root" in arguments_of(self._class):
            self._arguments["root"] = root
        return root

    def _folders(self) -> dict[str, Path]:
        """Find the categories on disk: name -> folder."""
        return {} if self.root is None else category_folders(self._example, self.root)

    def _choose(self, requested: Sequence[str] | None) -> list[str]:
        """Decide on the categories, and refuse what cannot be right before anything is downloaded."""
        found = self._folders()
        has_content = self.root is not None and self.root.is_dir() and any(self.root.iterdir())
        if self.root is not None and has_content and not found:
            self._check_root(self.root)
        prepares_missing = hasattr(self._class, "available_categories")
        if requested is None:
            categories = sorted({*found, *self._listed}) if prepares_missing else list(found) or self._listed
            if not categories:
                msg = f"Found no categories in {self.root}: set `categories`, or `root` to the folder with them."
                raise InputError(msg)
            return categories
        # anomalib's classes download all categories into an empty root, AutoVI each one where it is missing.
        can_come = not found or prepares_missing or issubclass(self._class, AutoVI)
        for category in requested:
            unknown = category not in self._listed if self._listed else has_content
            if category not in found and (unknown or not can_come):
                self._refuse(category, list(found) or self._listed)
        return list(requested)

    def _check_root(self, root: Path) -> None:
        """Refuse a root that is a level too deep or too high: the dataset would be downloaded into it."""
        if (root / "train").is_dir():
            msg = f"{root} seems to be a category: the root is the folder above it, {root.parent}."
            raise InputError(msg)
        for folder in sorted(root.iterdir()):
            if not folder.name.startswith(".") and any(has_files(folder / name) for name in self._listed):
                msg = f"There are categories in {folder}, where {self._class.__name__} does not look for them."
                raise InputError(msg)

    def _check_present(self) -> None:
        """Refuse categories that are not on disk, or not as the wrapped class reads them."""
        found = self._folders()
        for category in self.categories if found else []:  # a dataset that has no folder per category has none
            if category not in found:
                self._refuse(category, list(found))
        if self.root is not None and has_mvtec_layout(self._class):
            check_layout(self.root, self.categories)

    def _announce_download(self) -> None:
        """Warn if the dataset is not there yet: that can be meant, or the root has a typing error."""
        if self.root is None or self._class.prepare_data is AnomalibDataModule.prepare_data:
            return
        if not self.root.exists():
            state = "does not exist"
        elif has_mvtec_layout(self._class) and not self._folders():
            state = "has no categories"
        else:
            return
        logger.warning("%s %s: %s will download or create its dataset there", self.root, state, self._class.__name__)

    def _refuse(self, category: str, there: Sequence[str]) -> None:
        msg = f"There is no category {category!r} in {self.root}. There are: {', '.join(there) or 'none'}."
        if self.root is not None and not self.root.exists():
            msg += " These would be downloaded or created, as this folder does not exist."
        raise InputError(msg)


def _accepted(
    cls: type[AnomalibDataModule], options: Mapping[str, Any], source_args: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what the user has set, checked against the arguments of the class."""
    chosen = {name: value for name, value in options.items() if value is not None}
    further: Any = source_args or {}
    if OmegaConf.is_config(further):
        further = OmegaConf.to_container(further, resolve=True)
    for name in further:
        if name in {*arguments_of(AnomalibDataModule), "root", "category"}:
            own = "categories" if name == "category" else name
            msg = f"Set {own!r} of MultiCategory itself, not {name!r} in `source_args`."
            raise InputError(msg)
    chosen |= further
    accepted = arguments_of(cls)
    for name in chosen:
        if name not in accepted:
            has = ", ".join(accepted)
            msg = f"{cls.__name__} has no argument {name!r}; leave it out. It has {has}."
            raise InputError(msg)
    return chosen


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
            raise InputError(msg)
    if not names or "" in names:
        msg = f"`categories` is empty or has an empty name: {names}. Leave it out to have all categories."
        raise InputError(msg)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"Categories given twice: {', '.join(twice)}."
        raise InputError(msg)
    return names

# SPDX-License-Identifier: Apache-2.0
"""A datamodule class of one category, wrapped: where its categories are, and how all of them are read."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

from anomalib.data import AnomalibDataModule, AnomalibDataset, AutoVI, Kaputt, MVTecAD, RealIAD, Visa
from anomalib.data.datasets.image.mvtecad import IMG_EXTENSIONS
from anomalib.data.errors import MisMatchError
from omegaconf import OmegaConf

from anomalib_uniad.data.category_datamodules import arguments_of, listed_categories, source_class
from anomalib_uniad.data.category_split import split_mixed
from anomalib_uniad.data.layouts import find_root, no_category, raise_product_problems, read_products
from anomalib_uniad.data.multi_category_datamodule import read_sets, replace_prefix
from anomalib_uniad.errors import InputError, MissingFileError, NoConnectionError
from anomalib_uniad.files import real_path
from anomalib_uniad.splits import MIXED, MIXED_RATIO

logger = logging.getLogger(__name__)


class WrappedSource:
    """All categories of a dataset, each read and split by a datamodule class that has an argument ``category``.

    Args:
        source (str): The class, as for :func:`source_class`.
        root (Path | str | None): Folder of the dataset; ``None`` is the default of the class.
        categories (Sequence[str] | None): Names of the categories; ``None`` takes all that are there.
        split (Mapping[str, Any]): Arguments of anomalib's datamodules for splits; ``None`` is the default of the class.
        source_args (Mapping[str, Any] | None): Further arguments of the class.
        download (bool): Let the class download or generate what is not there.

    Attributes:
        root (Path | None): The folder, absolute and free of links.
        categories (list[str]): Names of the categories.
        split (dict[str, Any]): The arguments for splits, with their defaults.
    """

    def __init__(
        self,
        source: str,
        root: Path | str | None,
        categories: Sequence[str] | None,
        split: Mapping[str, Any],
        source_args: Mapping[str, Any] | None,
        download: bool,
    ) -> None:
        self._class = source_class(source)
        self._listed = listed_categories(self._class)
        self._download = download
        self._mixed = str(getattr(split["val_split_mode"], "value", split["val_split_mode"])) == MIXED
        options = {"root": None if root is None else Path(root).expanduser(), **split}
        if self._mixed:  # the class splits no validation images off
            accepts = "val_split_mode" in arguments_of(self._class)
            options |= {"val_split_mode": "none" if accepts else None, "val_split_ratio": None}
        self._arguments = _accepted(self._class, options, source_args)
        if "seed" in arguments_of(self._class):
            self._arguments.setdefault("seed", 0)  # else another split is drawn each time
        self.root = self._find_root(categories)
        self._example = example = self._make_example(categories)
        self.split = {name: getattr(example, name) for name in split}
        if self._mixed:
            given = split["val_split_ratio"]
            self.split |= {"val_split_mode": MIXED, "val_split_ratio": MIXED_RATIO if given is None else given}
        self.categories = self._choose(categories)
        self._checked = False
        if not download:
            self.check()

    @property
    def name(self) -> str:
        """Name of the data set: for one category that of the class, for several that of the folder.

        anomalib names the folder of the results after it, and its visualizers keep the folders that follow it
        in the path of an image, which tells the categories apart.
        """
        if len(self.categories) == 1 or self.root is None:
            return self._example.name
        return self.root.name or self._example.name

    def prepare(self) -> None:
        """Let the class download or prepare each category, if that is wanted.

        Raises:
            FileNotFoundError: If there is no dataset afterwards.
            ConnectionError: If it cannot be downloaded.
            ValueError: If a category is not there afterwards, or its folders are not as the class reads them.
        """
        if self._download:
            self._announce_download()
            try:
                for category in self.categories:
                    self._make(category).prepare_data()
            except (URLError, ConnectionError, TimeoutError) as error:
                reason = getattr(error, "reason", error)
                msg = f"{self._class.__name__} cannot be downloaded to {self.root}: {reason}."
                raise NoConnectionError(msg) from error
        self.check()

    def check(self, datamodule: AnomalibDataModule | None = None) -> None:
        """Refuse categories that are not on disk, or not as the class reads them; files are looked at later."""
        if self._checked:
            return
        found = self._folders()
        if self._download and not found and self.root is not None and self._listed and not self._without_folders:
            msg = f"There are no categories in {self.root}: {self._class.__name__} has not put any there."
            raise MissingFileError(msg)
        for category in self.categories if found else []:
            if category not in found:
                raise InputError(no_category(category, self.root, list(found)))
        if self.root is not None and issubclass(self._class, MVTecAD) and self._class._setup is MVTecAD._setup:
            _check_mvtec(self.root, self.categories, self._class.__name__)
        self._checked = True

    def read(self, category: str, datamodule: AnomalibDataModule) -> dict[str, AnomalibDataset]:
        """Have the class read and split a category.

        Args:
            category (str): Its name.
            datamodule (AnomalibDataModule): Datamodule whose ratio and seed are taken for ``val_split_mode: mixed``.

        Returns:
            dict[str, AnomalibDataset]: Its sets ``"train"``, ``"test"`` and, if there is one, ``"val"``.
        """
        try:
            sets = read_sets(self._make(category))
        except MisMatchError as error:
            msg = f"{self._class.__name__} cannot pair the images and masks of {category!r} in {self.root}: {error}"
            raise InputError(msg) from error
        if self._mixed:
            sets = split_mixed(sets, datamodule.val_split_ratio, datamodule.seed or 0)
        folder = self._folders().get(category)
        # A link to a folder leads to paths without its name.
        if len(self.categories) > 1 and folder is not None and real_path(folder) != folder:
            for dataset in sets.values():
                dataset.samples = replace_prefix(dataset.samples, real_path(folder), folder)
        return sets

    def report(self, datamodule: AnomalibDataModule) -> None:
        """Nothing to say: the class decides by itself."""

    @property
    def _without_folders(self) -> bool:
        """Whether the categories have no folders of their own."""
        return issubclass(self._class, Kaputt)

    def _make(self, category: str | None = None) -> AnomalibDataModule:
        """Make the datamodule; without a category, for its default one."""
        arguments: dict[str, Any] = {} if category is None else {"category": category}
        if "num_workers" in arguments_of(self._class):
            arguments["num_workers"] = 0  # its dataloaders are asked for their datasets, never run
        return self._class(**arguments, **self._arguments)

    def _make_example(self, requested: Sequence[str] | None) -> AnomalibDataModule:
        """Make the datamodule for any category, to read its defaults and folders."""
        parameter = arguments_of(self._class)["category"]
        if parameter.default is not parameter.empty:
            return self._make()
        names = requested or self._listed
        if not names:
            raise InputError(f"{self._class.__name__} needs a category: set categories.")
        return self._make(names[0])

    def _find_root(self, requested: Sequence[str] | None) -> Path | None:
        """Return the root of the dataset, absolute and free of links as the paths in anomalib's samples."""
        given = getattr(self._make_example(requested), "root", None)
        if given is None:
            return None
        root = real_path(Path(given).expanduser())
        if root.exists() or not self._download:
            find_root(root, self._ask_for_download)
        if "root" in arguments_of(self._class):
            self._arguments["root"] = root
        return root

    @property
    def _ask_for_download(self) -> str:
        return f"set download to true to have {self._class.__name__} download or generate its images"

    def _folders(self) -> dict[str, Path]:
        """Find the categories on disk: name -> folder, sorted by name.

        A category is a folder in the root (or in one of the datamodule's folders below it, as VisA's ``visa_pytorch``)
        that has images in ``train``, or whose name the class lists.
        """
        if self.root is None:
            return {}
        if isinstance(self._example, RealIAD):
            bases = [self.root / f"realiad_{self._example.resolution}"]
        elif isinstance(self._example, Visa) and not self._download:
            bases = [self._example.split_root]  # what was downloaded is not what it reads
        else:
            paths = [value for value in vars(self._example).values() if isinstance(value, Path)]
            bases = [self.root, *(path for path in paths if path != self.root and path.is_relative_to(self.root))]
        found = {path.name: path for base in bases if base.is_dir() for path in self._categories_in(base)}
        return dict(sorted(found.items()))

    def _categories_in(self, folder: Path) -> list[Path]:
        folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return [path for path in folders if _has_files(path / "train" if path.name not in self._listed else path)]

    def _choose(self, requested: Sequence[str] | None) -> list[str]:
        """Decide on the categories, and refuse what cannot be right before anything is downloaded."""
        found = self._folders()
        has_content = self.root is not None and self.root.is_dir() and any(self.root.iterdir())
        if self.root is not None and not found:
            self._refuse_root(self.root, has_content)
        prepares_missing = self._download and hasattr(self._class, "available_categories")
        if requested is None:
            categories = sorted({*found, *self._listed}) if prepares_missing else list(found) or self._listed
            if not categories:
                msg = f"Found no categories in {self.root}: set categories, or root to the folder with them."
                raise InputError(msg)
            return categories
        # anomalib's classes download all categories into an empty root, AutoVI each one where it is missing.
        can_come = not found or (self._download and (prepares_missing or issubclass(self._class, AutoVI)))
        for category in requested:
            unknown = category not in self._listed if self._listed else has_content
            if category not in found and (unknown or not can_come):
                raise InputError(no_category(category, self.root, list(found) or self._listed))
        return list(requested)

    def _refuse_root(self, root: Path, has_content: bool) -> None:
        """Refuse a root without categories, if it is a level too deep or too high or nothing is to be downloaded."""
        if (root / "train").is_dir():
            raise InputError(f"{root} seems to be a category: the root is the folder above it, {root.parent}.")
        folders = sorted(root.iterdir()) if has_content else []
        for folder in folders:
            if not folder.name.startswith(".") and any(_has_files(folder / name) for name in self._listed):
                msg = f"There are categories in {folder}, where {self._class.__name__} does not look: set root to it."
                raise InputError(msg)
        if not self._download and self._listed and not self._without_folders:
            names = ", ".join(path.name for path in folders[:3]) + (", ..." if len(folders) > 3 else "")
            what = f"it has {names}" if folders else "it is empty"
            msg = f"The root {root} has no categories of {self._class.__name__} ({what}): correct root, or"
            raise InputError(f"{msg} {self._ask_for_download}.")

    def _announce_download(self) -> None:
        """Say that the dataset is not there yet."""
        if self.root is not None and not self._folders():
            logger.info("%s downloads or generates its images in %s.", self._class.__name__, self.root)


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
            raise InputError(f"Set {own!r} of MultiCategory itself, not {name!r} in `source_args`.")
    chosen |= further
    accepted = arguments_of(cls)
    for name in chosen:
        if name not in accepted:
            has = ", ".join(accepted)
            raise InputError(f"{cls.__name__} has no argument {name!r}; leave it out. It has {has}.")
    return chosen


def _check_mvtec(root: Path, categories: Sequence[str], name: str) -> None:
    """Refuse what anomalib's reader of the layout of MVTec AD would leave out."""
    products = read_products(root, categories)
    raise_product_problems(root, products)
    for product in products:
        real = real_path(product.folder)
        for record in product.records:
            what = ""
            if any(Path(path).suffix not in IMG_EXTENSIONS for path in record.paths):
                what = "is no PNG file"
            elif record.label == 1 and not record.masks:
                what = "has no mask"
            elif os.path.realpath(record.paths[0]) != f"{real}/{record.where}":
                what = "is behind a link"
            if what:
                msg = f"{record.paths[0]} {what}, which {name} does not read: leave source out to read all of it."
                raise InputError(msg)


def _has_files(folder: Path) -> bool:
    """Tell whether there is a file somewhere in a folder, or a link, which is not followed."""
    return folder.is_dir() and any(path.is_file() or path.is_symlink() for path in folder.rglob("*"))

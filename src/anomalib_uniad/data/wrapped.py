# SPDX-License-Identifier: Apache-2.0
"""A datamodule class with the arguments to make it for any of its categories, and where these are on disk."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from omegaconf import OmegaConf

from anomalib_uniad.data.mvtec_layout import check_layout, has_mvtec_layout
from anomalib_uniad.data.source import downloads_alone, generates, listed_categories, parameters, source_class

logger = logging.getLogger(__name__)

# Where a datamodule keeps its categories when that is neither its root nor another of its path attributes.
_CATEGORY_FOLDER = {"RealIAD": "realiad_{resolution}"}

# Whoever wraps a datamodule decides these for all categories, so they are no business of `source_args`.
_OWN_ARGUMENTS = [
    "root",
    "train_batch_size",
    "eval_batch_size",
    "num_workers",
    "train_augmentations",
    "val_augmentations",
    "test_augmentations",
    "augmentations",
    "test_split_mode",
    "test_split_ratio",
    "val_split_mode",
    "val_split_ratio",
    "seed",
]


class WrappedSource:
    """A datamodule class that is made once per category.

    Args:
        source (str): Name or dotted path of the class.
        options (Mapping[str, Any]): Arguments of the class by name; those that are ``None`` are left to it.
        source_args (Mapping[str, Any] | None): Its further arguments. Defaults to ``None``.
        requested (Sequence[str] | None): Categories that the user asks for. Defaults to ``None``.

    Attributes:
        example (AnomalibDataModule): One datamodule of the class, to read its defaults from.
        root (Path | None): Root of the dataset, absolute and free of links as the paths in anomalib's samples.

    Raises:
        ValueError: If the class cannot be used or does not have one of the arguments, or the root is a file.
    """

    def __init__(
        self,
        source: str,
        options: Mapping[str, Any],
        source_args: Mapping[str, Any] | None = None,
        requested: Sequence[str] | None = None,
    ) -> None:
        self.cls = source_class(source)
        self.listed = listed_categories(self.cls)
        self._arguments = self._accepted(options, source_args)
        if "root" in self._arguments:
            self._arguments["root"] = Path(self._arguments["root"]).expanduser()
        self.example = self._make_example(requested)
        root = getattr(self.example, "root", None)
        self.root = Path(root).expanduser().resolve() if root is not None else None
        if self.root is not None and self.root.exists() and not self.root.is_dir():
            msg = f"The root {self.root} is a file: set `root` to the folder with the categories."
            raise ValueError(msg)
        if self.root is not None and "root" in parameters(self.cls):
            self._arguments["root"] = self.root
            self.example = self._make_example(requested)

    def make(self, category: str | None = None) -> AnomalibDataModule:
        """Make a datamodule for a category; without one, for the category that is the default of the class."""
        arguments: dict[str, Any] = {} if category is None else {"category": category}
        if "num_workers" in parameters(self.cls):
            arguments["num_workers"] = 0  # its dataloaders are asked for their datasets, never run
        return self.cls(**arguments, **self._arguments)

    def folders(self) -> dict[str, Path]:
        """Find the categories on disk.

        A category is a folder in the root (or in one of the datamodule's folders below it, as VisA's
        ``visa_pytorch``) that has images in ``train``, or whose name the modules of the class list.

        Returns:
            dict[str, Path]: Category -> folder, sorted by name.
        """
        found: dict[str, Path] = {}
        for base in self._bases():
            for folder in _subfolders(base):
                if _has_files(folder / "train") or (folder.name in self.listed and _has_files(folder)):
                    found[folder.name] = folder
        return dict(sorted(found.items()))

    def choose(self, requested: Sequence[str] | None) -> list[str]:
        """Decide on the categories, and refuse what cannot be right before anything is downloaded.

        Args:
            requested (Sequence[str] | None): Categories that the user asks for; ``None`` for all.

        Returns:
            list[str]: The categories.

        Raises:
            ValueError: If there are none, or one does not exist and will not come by downloading.
        """
        found = self.folders()
        has_content = self.root is not None and self.root.is_dir() and any(self.root.iterdir())
        if not found and has_content:
            self._check_root()
        if requested is None:
            if generates(self.cls):
                return sorted({*found, *self.listed})
            if found or self.listed:
                return list(found) or self.listed
            msg = f"Found no categories in {self.root}: set `categories`, or `root` to the folder with them."
            raise ValueError(msg)
        for category in requested:
            if category in found or (not self.listed and not has_content):
                continue
            can_come = not found or generates(self.cls) or downloads_alone(self.cls, category)
            if category not in self.listed or not can_come:
                self._refuse(category, list(found) or self.listed)
        return list(requested)

    def prepare(self, categories: Sequence[str]) -> None:
        """Let the class download or make the categories, and look at what is there then.

        Args:
            categories (Sequence[str]): The categories to prepare.

        Raises:
            FileNotFoundError: If there is no dataset afterwards.
            ValueError: If a category is missing afterwards, or cannot be read.
        """
        self._announce_download()
        for category in categories:
            self.make(category).prepare_data()
        self.check_present(categories)

    def check_present(self, categories: Sequence[str]) -> None:
        """Refuse categories that are not on disk, or not as the class reads them.

        Args:
            categories (Sequence[str]): The categories to look for.

        Raises:
            FileNotFoundError: If there is no dataset.
            ValueError: If one is missing or cannot be read.
        """
        found = self.folders()
        for category in categories if found else []:  # a dataset that has no folder per category has none
            if category not in found:
                self._refuse(category, list(found))
        if self.root is not None and has_mvtec_layout(self.cls):
            check_layout(self.root, categories)

    def _announce_download(self) -> None:
        """Warn if the dataset is not there yet: that can be meant, or the root has a typing error."""
        if self.root is None or self.cls.prepare_data is AnomalibDataModule.prepare_data:
            return
        if not self.root.exists():
            state = "does not exist"
        elif has_mvtec_layout(self.cls) and not self.folders():
            state = "has no categories"
        else:
            return
        logger.warning("%s %s: %s will download or create its dataset there", self.root, state, self.cls.__name__)

    def _refuse(self, category: str, there: Sequence[str]) -> None:
        msg = f"There is no category {category!r} in {self.root}. There are: {', '.join(there) or 'none'}."
        if self.root is not None and not self.root.exists():
            msg += " These would be downloaded or created, as this folder does not exist."
        raise ValueError(msg)

    def _accepted(self, options: Mapping[str, Any], source_args: Mapping[str, Any] | None) -> dict[str, Any]:
        """Check what the user has set against the arguments of the class."""
        chosen = {name: value for name, value in options.items() if value is not None}
        further: Any = (
            OmegaConf.to_container(source_args, resolve=True) if OmegaConf.is_config(source_args) else source_args
        )
        for name in further or {}:
            if name in (*_OWN_ARGUMENTS, "category"):
                own = "categories" if name == "category" else name
                msg = f"Set {own!r} of MultiCategory itself, not {name!r} in `source_args`."
                raise ValueError(msg)
        chosen.update(further or {})
        accepted = parameters(self.cls)
        for name in chosen:
            if name not in accepted:
                has = ", ".join(accepted)
                msg = f"{self.cls.__name__} has no argument {name!r}; leave it out. It has {has}."
                raise ValueError(msg)
        return chosen

    def _make_example(self, requested: Sequence[str] | None) -> AnomalibDataModule:
        parameter = parameters(self.cls)["category"]
        if parameter.default is not parameter.empty:
            return self.make()
        names = requested or self.listed
        if not names:
            msg = f"{self.cls.__name__} needs a category: set `categories`."
            raise ValueError(msg)
        return self.make(names[0])

    def _check_root(self) -> None:
        """Refuse a root that is a level too deep or too high: the dataset would be downloaded into it."""
        if self.root is None:
            return
        if (self.root / "train").is_dir():
            msg = f"{self.root} seems to be a category: the root is the folder above it, {self.root.parent}."
            raise ValueError(msg)
        for folder in _subfolders(self.root):
            if any(_has_files(folder / name) for name in self.listed):
                msg = f"There are categories in {folder}, where {self.cls.__name__} does not look for them."
                raise ValueError(msg)

    def _bases(self) -> list[Path]:
        """Return the folders that have the categories in them."""
        if self.root is None:
            return []
        for cls in self.cls.__mro__:
            if cls.__name__ in _CATEGORY_FOLDER:
                return [self.root / _CATEGORY_FOLDER[cls.__name__].format(**vars(self.example))]
        paths = [value for value in vars(self.example).values() if isinstance(value, Path)]
        return [self.root, *(path for path in paths if path != self.root and path.is_relative_to(self.root))]


def _subfolders(base: Path) -> list[Path]:
    if not base.is_dir():
        return []
    return sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))


def _has_files(folder: Path) -> bool:
    # What is behind linked folders is not searched, as in anomalib, but they are not taken for nothing either.
    return folder.is_dir() and any(path.is_file() or path.is_symlink() for path in folder.rglob("*"))

# SPDX-License-Identifier: Apache-2.0
"""Products in folders of one's own, as datasets."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import Split, TestSplitMode

from anomalib_uniad.data.category_split import split_category
from anomalib_uniad.data.image_checks import check_copies, check_images
from anomalib_uniad.data.image_dataset import ImageFileDataset
from anomalib_uniad.data.layouts import Product, raise_product_problems, read_products, set_test_images_aside
from anomalib_uniad.errors import InputError
from anomalib_uniad.image_files import THREADS, has_to_look, raise_unusable
from anomalib_uniad.splits import MIXED, MIXED_RATIO, check_ratios, describe_validation

logger = logging.getLogger(__name__)

_FEW = 10  # good images, below which a warning says so


class OwnFolders:
    """Products in a folder, read by the names of folders and files.

    Args:
        root (Path | str | None): Folder with a folder per product.
        categories (Sequence[str] | None): Names of the products; ``None`` takes all.
        layout (Mapping[str, Any]): Arguments of :func:`~anomalib_uniad.data.layouts.read_products` that say which
            folders and files are read.
        split (Mapping[str, Any]): Arguments of anomalib's datamodules for splits; ``None`` is the default.
        test_ratio (float | None): Part of the good images that become test images of a product without good ones;
            ``None`` is 0.2.
        value_range (tuple[float, float] | None): Range of images with more than 8 bits. Defaults to ``None``.

    Attributes:
        root (Path): The folder, absolute and free of links.
        categories (list[str]): Names of the products.
        split (dict[str, Any]): The arguments for splits, with their defaults.
    """

    def __init__(
        self,
        root: Path | str | None,
        categories: Sequence[str] | None,
        layout: Mapping[str, Any],
        split: Mapping[str, Any],
        test_ratio: float | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        if root is None:
            raise InputError("Set root to the folder with your products, or source to a data set such as MVTecAD.")
        self.split = {**split}
        self.split["test_split_mode"] = split["test_split_mode"] or TestSplitMode.FROM_DIR
        self.split["val_split_mode"] = split["val_split_mode"] or MIXED
        if self.split["test_split_mode"] == TestSplitMode.NONE:
            msg = "test_split_mode is 'none', but own folders have test images: set it to 'from_dir' or 'synthetic'."
            raise InputError(msg)
        if self.split["val_split_mode"] == "from_dir":
            msg = "val_split_mode is 'from_dir', but own folders have no validation images: set it to 'mixed'."
            raise InputError(msg)
        test_ratio = MIXED_RATIO if test_ratio is None else test_ratio
        check_ratios(normal_split_ratio=test_ratio)
        products = read_products(root, categories, **layout)
        self.root = products[0].folder.parent
        raise_product_problems(self.root, products)
        self.categories = [product.name for product in products]
        self._products = {product.name: product for product in products}
        self._value_range = value_range
        _warn(products)
        seed = self.split["seed"] or 0
        self._moved = {product.name: set_test_images_aside(product, test_ratio, seed) for product in products}

    @property
    def name(self) -> str:
        """Name of the data set: that of the folder."""
        return self.root.name or "products"

    def prepare(self) -> None:
        """Nothing to do: the files are there."""

    def check(self, datamodule: Any) -> None:
        """Look at all files, once and in one process.

        Args:
            datamodule (AnomalibDataModule): The datamodule, which gets ``images_checked``.

        Raises:
            ValueError: If files cannot be read, have more than 8 bits without a range, or masks are of another size.
        """
        if not has_to_look(datamodule):
            return
        records = [record for product in self._products.values() for record in product.records]
        faults = check_images(records, True, THREADS, self._value_range, strict=False)
        files = {path for record in records for path in record.paths}
        raise_unusable({fault.file: fault.reason for fault in faults}, len(files))
        check_copies(records, THREADS, strict=False)
        datamodule.images_checked = True

    def read(self, category: str, datamodule: AnomalibDataModule) -> dict[str, AnomalibDataset]:
        """Read and split a product.

        Args:
            category (str): Its name.
            datamodule (AnomalibDataModule): Datamodule whose modes, ratios and seed are taken.

        Returns:
            dict[str, AnomalibDataset]: Its sets ``"train"``, ``"test"`` and, if there is one, ``"val"``.
        """
        product = self._products[category]
        task = TaskType.SEGMENTATION if product.has_masks else TaskType.CLASSIFICATION
        train, test = (
            ImageFileDataset([r for r in product.records if r.split == split], task, value_range=self._value_range)
            for split in (Split.TRAIN, Split.TEST)
        )
        return split_category(train, test, datamodule)

    def report(self, datamodule: AnomalibDataModule) -> None:
        """Log the layout of each product and where its images went.

        Args:
            datamodule (AnomalibDataModule): The datamodule, set up.

        Raises:
            ValueError: If no product has images for a test or for thresholds.
        """
        if not any(len(getattr(datamodule, f"{name}_data", None) or ()) for name in ("val", "test")):
            raise InputError(
                f"{self.root} has a single good image of each product: nothing is left to set thresholds and to test; "
                "at least 3 good images are needed, better 20."
            )
        logger.info("%s, thresholds from %s:", self.root, describe_validation(datamodule) or "no images")
        for product in self._products.values():
            parts = [f"{product.name}: {product.layout}{', with masks' if product.has_masks else ''}"]
            for name, use in (("train", "training"), ("val", "validation"), ("test", "test")):
                data = getattr(datamodule, f"{name}_data", None)
                if data is not None:
                    parts.append(f"{use} {_counted(data.samples[data.samples['category'] == product.name])}")
            if moved := self._moved[product.name]:
                parts.append(f"no good test images were given, {moved} of the others were taken")
            logger.info("; ".join(parts))
        for name, use in (("val", "set thresholds"), ("test", "test")):
            data = getattr(datamodule, f"{name}_data", None)
            there = set() if data is None else set(data.samples["category"])
            if data is not None and (none := [category for category in self._products if category not in there]):
                logger.warning("No images are left to %s, more are needed: %s.", use, ", ".join(none))


def _counted(samples: pd.DataFrame) -> str:
    defective = int((samples["label_index"] == 1).sum())
    return f"{len(samples) - defective} good" + (f" and {defective} defective" if defective else "")


def _warn(products: Sequence[Product]) -> None:
    for product in products:
        for note in product.notes:
            logger.warning("%s: %s", product.name, note)
    good = {product.name: sum(record.label == 0 for record in product.records) for product in products}
    if few := [f"{name} ({count})" for name, count in good.items() if count < _FEW]:
        logger.warning("Few good images, from which little can be learnt: %s.", ", ".join(few))

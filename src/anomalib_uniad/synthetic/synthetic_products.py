# SPDX-License-Identifier: Apache-2.0
"""Generated product images in the layout of MVTec AD, for trying everything out without a download."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from anomalib.data import MVTecAD
from anomalib.utils.path import resolve_dataset_root
from tqdm.auto import tqdm

from anomalib_uniad.checks import check_loading
from anomalib_uniad.errors import ExistingFileError, InputError
from anomalib_uniad.files import full_disk_named, partial_folder
from anomalib_uniad.synthetic import PRODUCTS

CATEGORIES: tuple[str, ...] = tuple(PRODUCTS)
"""Names of the categories, in the order that enters the seed of their images."""

TRAIN_GOOD = 60
TEST_GOOD = 14
TEST_PER_DEFECT = 6

# Part of the data set: another seed is another data set.
_DATASET_SEED = 2206


class SyntheticProducts(MVTecAD):
    """Six product categories with defects and pixel masks, generated on the first use.

    The images show a tablet blister, a bottle cap, a circuit board, a fabric, an oak board and a washer,
    192x192 pixels RGB. Each category has 60 good images for training and a test split of 14 good images and 6 images
    of each of its three or four defect types. They are painted by formulas (no photographs), always the same.
    Training and test images come from different seeds.

    The folder layout is that of MVTec AD. Folders that exist are used as they are and never changed; to
    generate a category again, delete its folder.

    Args:
        root (Path | str | None): Folder of the data set; ``None`` uses the folder of anomalib for data sets.
            Defaults to ``"./datasets/SyntheticProducts"``.
        category (str): One of :data:`CATEGORIES`. Defaults to ``"blister"``.
        **kwargs (Any): Further arguments of anomalib's ``MVTecAD``: batch sizes, workers, augmentations, splits, and
            the seed of the splits; the images do not depend on it.

    Attributes:
        available_categories (tuple[str, ...]): Names of all categories, for ``MultiCategory``.

    Raises:
        ValueError: If there is no such category.

    Examples:
        >>> from anomalib_uniad.synthetic.synthetic_products import SyntheticProducts
        >>> datamodule = SyntheticProducts(category="washer", num_workers=0)
        >>> datamodule.category
        'washer'
    """

    available_categories: ClassVar[tuple[str, ...]] = CATEGORIES

    def __init__(
        self, root: Path | str | None = "./datasets/SyntheticProducts", category: str = "blister", **kwargs: Any
    ) -> None:
        if category not in PRODUCTS:
            raise InputError(f"Unknown category {category!r}; there are {', '.join(CATEGORIES)}")
        check_loading(**kwargs)
        super().__init__(root=resolve_dataset_root(root, "SyntheticProducts"), category=category, **kwargs)

    def prepare_data(self) -> None:
        """Generate the categories that are not in the data set folder yet.

        Raises:
            FileExistsError: If the path of a category is taken by something not in the MVTec AD layout.
        """
        missing = [category for category in CATEGORIES if not _is_generated(self.root / category)]
        defects = sum(len(PRODUCTS[category].defects) for category in missing)
        total = len(missing) * (TRAIN_GOOD + TEST_GOOD) + defects * TEST_PER_DEFECT
        with tqdm(total=total, desc="Generating product images", unit="image", disable=not missing) as progress:
            for category in missing:
                generate_category(self.root, category, progress)


def generate_category(root: Path, category: str, progress: tqdm | None = None) -> None:
    """Generate one category as a whole or not at all.

    The files are written to a hidden folder, from which the complete category is moved to its place. If another
    process finishes the same category first, its result stays.

    Args:
        root (Path): Folder of the data set; created if missing.
        category (str): One of :data:`CATEGORIES`.
        progress (tqdm | None): Progress bar to advance by one per image. Defaults to ``None``.

    Raises:
        FileExistsError: If ``root/category`` exists and is not in the MVTec AD layout.
    """
    root.mkdir(parents=True, exist_ok=True)
    with full_disk_named(root / category), partial_folder(root, category) as temporary:
        partial = temporary / category
        for relative, picture in _pictures(category):
            file = partial / relative
            file.parent.mkdir(parents=True, exist_ok=True)
            # OpenCV's channel order is BGR; masks have a single channel.
            _, encoded = cv2.imencode(".png", picture[..., ::-1] if picture.ndim == 3 else picture)
            file.write_bytes(encoded.tobytes())
            if progress is not None and picture.ndim == 3:
                progress.update()
        if not _is_generated(root / category):
            try:
                partial.rename(root / category)
            except OSError:
                # Lost a race: fine if what is there now is a complete category.
                if not _is_generated(root / category):
                    raise


def _is_generated(folder: Path) -> bool:
    """Tell whether a category is there; an error if something else is at its place."""
    if all((folder / part).is_dir() for part in ("train/good", "test", "ground_truth")):
        return True
    if folder.exists():
        raise ExistingFileError(
            f"{folder} exists but has no train/good, test and ground_truth folders; move it away or choose another root"
        )
    return False


def _pictures(category: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the path below the category folder and the pixels of every file of a category."""
    product, index = PRODUCTS[category], CATEGORIES.index(category)
    splits: list[tuple[str, str | None, int]] = [
        ("train/good", None, TRAIN_GOOD),
        ("test/good", None, TEST_GOOD),
        *((f"test/{defect}", defect, TEST_PER_DEFECT) for defect in product.defects),
    ]
    for split, (folder, defect, count) in enumerate(splits):
        for number in range(count):
            image, mask = product.render(np.random.default_rng([_DATASET_SEED, index, split, number]), defect)
            yield f"{folder}/{number:03d}.png", image
            if defect is not None:
                yield f"ground_truth/{defect}/{number:03d}_mask.png", mask

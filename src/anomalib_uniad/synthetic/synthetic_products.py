# SPDX-License-Identifier: Apache-2.0
"""Generated product images in the layout of MVTec AD, for trying everything out without a download."""

import logging
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from anomalib.data import MVTecAD
from anomalib.data.utils import TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from torchvision.transforms.v2 import Transform
from tqdm.auto import tqdm

from anomalib_uniad.synthetic import PRODUCTS

logger = logging.getLogger(__name__)

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
    Training and test images come from different seeds. Arguments not listed here are those of anomalib's
    ``MVTecAD``.

    The folder layout is that of MVTec AD. Folders that exist are used as they are and never changed; to
    generate a category again, delete its folder.

    Args:
        root: Folder of the data set; ``None`` uses the folder of anomalib for data sets.
            Defaults to ``"./datasets/SyntheticProducts"``.
        category: One of :data:`CATEGORIES`. Defaults to ``"blister"``.
        train_batch_size: Training batch size. Defaults to ``32``.
        eval_batch_size: Validation, test and prediction batch size. Defaults to ``32``.
        num_workers: Processes that load images. Defaults to ``8``.
        train_augmentations: Augmentations of the training images. Defaults to ``None``.
        val_augmentations: Augmentations of the validation images. Defaults to ``None``.
        test_augmentations: Augmentations of the test images. Defaults to ``None``.
        augmentations: Augmentations of all subsets without their own. Defaults to ``None``.
        test_split_mode: How the test set is made. Defaults to ``TestSplitMode.FROM_DIR``.
        test_split_ratio: Share of the data used for testing, if split. Defaults to ``0.2``.
        val_split_mode: How the validation set is made. Defaults to ``ValSplitMode.SAME_AS_TEST``.
        val_split_ratio: Share of the data used for validation, if split. Defaults to ``0.5``.
        seed: Seed of the splits; the images do not depend on it. Defaults to ``None``.

    Raises:
        ValueError: If there is no such category.

    Example:
        >>> from anomalib_uniad.synthetic.synthetic_products import SyntheticProducts
        >>> datamodule = SyntheticProducts(category="washer", num_workers=0)
        >>> datamodule.category
        'washer'
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/SyntheticProducts",
        category: str = "blister",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        if category not in PRODUCTS:
            msg = f"Unknown category {category!r}; there are {', '.join(CATEGORIES)}"
            raise ValueError(msg)
        super().__init__(
            root=resolve_dataset_root(root, "SyntheticProducts"),
            category=category,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )

    def prepare_data(self) -> None:
        """Generate the categories that are not in the data set folder yet.

        Raises:
            FileExistsError: If the path of a category is taken by something not in the MVTec AD layout.
        """
        missing = [category for category in CATEGORIES if not _is_generated(self.root / category)]
        if not missing:
            logger.debug("All categories are in %s", self.root)
            return
        total = sum(_count(category) for category in missing)
        with tqdm(total=total, desc="Generating product images", unit="image") as progress:
            for category in missing:
                generate_category(self.root, category, progress)


def generate_category(root: Path, category: str, progress: tqdm | None = None) -> None:
    """Generate one category as a whole or not at all.

    The files are written to a hidden folder beside the final one, which is renamed when complete. If another
    process finishes the same category first, its result stays.

    Args:
        root: Folder of the data set; created if missing.
        category: One of :data:`CATEGORIES`.
        progress: Progress bar to advance by one per image. Defaults to ``None``.

    Raises:
        FileExistsError: If ``root/category`` exists and is not in the MVTec AD layout.
    """
    partial = root / f".{category}.{uuid.uuid4().hex}.partial"
    try:
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
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_generated(folder: Path) -> bool:
    """Tell whether a category is there; refuse to guess what anything else at its place is."""
    if all((folder / part).is_dir() for part in ("train/good", "test", "ground_truth")):
        return True
    if folder.exists():
        msg = (
            f"{folder} exists but has no train/good, test and ground_truth folders; move it away or choose another root"
        )
        raise FileExistsError(msg)
    return False


def _count(category: str) -> int:
    """Return the number of images of a category, masks not counted."""
    return TRAIN_GOOD + TEST_GOOD + TEST_PER_DEFECT * len(PRODUCTS[category].defects)


def _pictures(category: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the path below the category folder and the pixels of every file of a category."""
    product, index = PRODUCTS[category], CATEGORIES.index(category)
    splits: list[tuple[str, str | None, int]] = []
    splits += [("train/good", None, TRAIN_GOOD), ("test/good", None, TEST_GOOD)]
    splits += [(f"test/{defect}", defect, TEST_PER_DEFECT) for defect in product.defects]
    for split, (folder, defect, count) in enumerate(splits):
        for number in range(count):
            image, mask = product.render(np.random.default_rng([_DATASET_SEED, index, split, number]), defect)
            yield f"{folder}/{number:03d}.png", image
            if defect is not None:
                yield f"ground_truth/{defect}/{number:03d}_mask.png", mask

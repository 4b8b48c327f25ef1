# SPDX-License-Identifier: Apache-2.0
"""Products with masks, without masks, and with good images alone, read by anomalib's own datamodule."""

import shutil
from pathlib import Path

from anomalib.data import AnomalibDataset, Folder

from anomalib_uniad.data.multi_category_datamodule import MultiCategoryDataModule, read_sets
from helpers import make_mvtec_like

MASKED, UNMASKED, GOOD = "beaker", "axle", "cap"  # sorted, the first and the last batch have no masks


def make_products(root: Path, masked: int = 3, bad: int = 3) -> Path:
    """Write three products: with masks (as many defective images as given), without, and without defects."""
    make_mvtec_like(root, [UNMASKED], bad=bad)
    make_mvtec_like(root, [MASKED], bad=masked, seed=5000)
    make_mvtec_like(root, [GOOD], bad=0, seed=9000)
    shutil.rmtree(root / UNMASKED / "ground_truth")
    return root


class MixedProducts(MultiCategoryDataModule):
    """Every folder in a root is a product; a product without ``ground_truth`` has no masks.

    Args:
        root (Path): The folder.
        categories (list[str] | None): Products; ``None`` is all.
        **split (str): Arguments of anomalib's ``Folder``.
    """

    def __init__(self, root: Path, categories: list[str] | None = None, batch_size: int = 4, **split: str) -> None:
        super().__init__(train_batch_size=4, eval_batch_size=batch_size, num_workers=0)
        self.root = root
        self.categories = categories or sorted(folder.name for folder in root.iterdir())
        self.category = self.categories[0] if len(self.categories) == 1 else ""
        self.category_by_path = {}
        self.per_category_metrics = True
        self._split = {"val_split_mode": "same_as_test", **split}

    @property
    def name(self) -> str:
        return self.root.name

    def _read_category(self, category: str) -> dict[str, AnomalibDataset]:
        folder = self.root / category
        there = {
            name: path
            for name, path in (
                ("abnormal_dir", "test/broken"),
                ("mask_dir", "ground_truth/broken"),
                ("normal_test_dir", "test/good"),
            )
            if (folder / path).is_dir()
        }
        mode = "from_dir" if "normal_test_dir" in there else "none"
        own = Folder(category, "train/good", folder, num_workers=0, test_split_mode=mode, **there, **self._split)
        return read_sets(own)

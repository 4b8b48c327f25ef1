# SPDX-License-Identifier: Apache-2.0
"""What all datamodules with several categories have in common."""

from abc import abstractmethod
from pathlib import Path

from anomalib.data import AnomalibDataModule, AnomalibDataset
from lightning.pytorch.utilities.types import EVAL_DATALOADERS

from anomalib_uniad.data.concatenation import TemporaryFolders, concatenate, move_into, replace_prefix


class JoinedCategories(AnomalibDataModule):
    """Datamodule that reads and splits each of its categories alone, and joins the results.

    Derived classes set the attributes in their constructor and make a datamodule per category.

    Attributes:
        categories (list[str]): Names of the categories.
        category_by_path (dict[str, str]): Path of an image, as in batches -> its category; there after ``setup``.
        per_category_metrics (bool): With several categories, have models report their metrics per category.
    """

    categories: list[str]
    category_by_path: dict[str, str]
    per_category_metrics: bool

    @abstractmethod
    def _make_category(self, category: str) -> AnomalibDataModule:
        """Make the datamodule of one category; it is not set up."""

    def setup(self, stage: str | None = None) -> None:
        """Read and split the categories, and have the trainer's model report its metrics per category.

        Args:
            stage (str | None): Stage of the trainer. Defaults to ``None``.
        """
        super().setup(stage)
        trainer = getattr(self, "trainer", None)
        if trainer is not None and self.per_category_metrics and len(self.categories) > 1:
            # Only at run time: datamodules must not depend on metrics.
            from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator

            PerCategoryEvaluator.take_over(trainer)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Dataloader of the validation images; none if there is no validation set."""
        return super().val_dataloader() if hasattr(self, "val_data") else []

    def _setup(self, _stage: str | None = None) -> None:
        owner = TemporaryFolders()
        subsets: dict[str, dict[str, AnomalibDataset]] = {"train": {}, "val": {}, "test": {}}
        for category in self.categories:
            for name, dataset in self._split(category, owner).items():
                subsets[name][category] = dataset
        for name, datasets in subsets.items():
            if datasets:
                setattr(self, f"{name}_data", concatenate(datasets, owner))
        joined = [getattr(self, f"{name}_data").samples for name, datasets in subsets.items() if datasets]
        self.category_by_path = {
            path: category
            for samples in joined
            for path, category in zip(samples.image_path, samples.category, strict=True)
        }

    def _create_test_split(self) -> None:
        """Nothing left to do: each category has been split."""

    def _create_val_split(self) -> None:
        """Nothing left to do: each category has been split."""

    def _split(self, category: str, owner: TemporaryFolders) -> dict[str, AnomalibDataset]:
        """Get the sets of one category; if it is one of several, it is a part of the path of each image."""
        single = self._make_category(category)
        single.setup()
        # Some classes (MVTecAD2) keep the test set that they use elsewhere than in `test_data`.
        subsets = {"train": single.train_data, "test": single.test_dataloader().dataset}
        if hasattr(single, "val_data"):
            subsets["val"] = single.val_dataloader().dataset
        temporary = owner.adopt([*subsets.values(), single.test_data])
        if not self.category:  # else all images are of it, and files of results are told apart without it
            for old in temporary:
                new = move_into(old, Path(self.name, category, "synthetic"))
                for dataset in subsets.values():
                    dataset._samples = replace_prefix(dataset.samples, old, new)
        return subsets

# SPDX-License-Identifier: Apache-2.0
"""One prediction, from the first batch to the table of its images."""

import logging
from typing import TYPE_CHECKING, Any

from anomalib.data import PredictDataset
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader

from anomalib_uniad.category import categories_of, find_category, known_categories, paths_of
from anomalib_uniad.image_files import listed, look_at
from anomalib_uniad.metrics.files import RunFiles
from anomalib_uniad.metrics.session import Session

if TYPE_CHECKING:
    from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator

logger = logging.getLogger(__name__)


def leave_out_unreadable(dataloaders: Any) -> str:
    """Take images that cannot be read out of what is predicted; only new images are looked at, not those of datasets.

    Args:
        dataloaders (Any): Those of a prediction that is about to start.

    Returns:
        str: What to say at the end; empty if all can be read.

    Raises:
        ValueError: If no image is left, or they are read by other processes, which have their list already.
    """
    loaders = CombinedLoader(dataloaders or []).flattened
    new = [loader for loader in loaders if isinstance(getattr(loader, "dataset", None), PredictDataset)]
    images = [str(path) for loader in new for path in loader.dataset.image_filenames]
    bad, deep = look_at(images)
    if deep:
        logger.warning(
            "%d images have more than 8 bits, of which anomalib cuts off everything above 255, for example %s. Convert "
            "them to 8 bits, or use `anomalib-uniad predict`, which takes the higher 8 of 16 bits.",
            len(deep),
            deep[0],
        )
    if not bad:
        return ""
    message = f"{len(bad)} of {len(images)} images cannot be read: {listed(bad)}."
    if len(bad) == len(images) or any(loader.num_workers for loader in new):
        msg = f"{message} Nothing was predicted."
        raise ValueError(msg)
    logger.warning("%s They are left out.", message)
    for loader in new:
        loader.dataset.image_filenames = [path for path in loader.dataset.image_filenames if str(path) not in bad]
    return f"{message} The others were predicted."


class Prediction(Session):
    """A prediction.

    Args:
        evaluator (PerCategoryEvaluator): The evaluator, which has the arguments and the thresholds.
        trainer (Trainer): The trainer.
        pl_module (LightningModule): The model.

    Raises:
        ValueError: If decisions by category are wanted, but there are no thresholds, or none of the given category.
    """

    def __init__(self, evaluator: "PerCategoryEvaluator", trainer: Trainer, pl_module: LightningModule) -> None:
        super().__init__(evaluator, trainer, pl_module)
        self._without = 0
        if self._used and evaluator.category is not None and evaluator.category not in self._used:
            msg = f"category is {evaluator.category!r}, but the model has thresholds of {', '.join(self._used)}."
            raise ValueError(msg)

    def update(self, batch: Any) -> None:
        """Decide the images of a batch, and write them down."""
        categories = self._categories(batch)
        raw = self._decide(batch, categories)
        self._without += sum("image" not in self._used.get(category, {}) for category in categories)
        self._write_down(batch, raw, categories)

    def write(self) -> None:
        """Write the table of the images to the folder of the run."""
        self.stop()
        predictions = self._predictions.table()
        if not self._trainer.is_global_zero or predictions.empty:
            return
        path = RunFiles(self._folder).write_predictions(predictions)
        logger.info("Predictions of %d images: %s", len(predictions), path)
        if self._used and self._without:
            logger.warning(
                "%d images were decided by the global threshold: neither `category` nor a folder of their path says "
                "which of the categories %s they are of.",
                self._without,
                ", ".join(self._used),
            )

    def _categories(self, batch: Any) -> list[str]:
        """The category that was given, else the last folder with the name of one that the model knows."""
        paths = [path or "" for path in paths_of(batch)]
        if self._evaluator.category is not None:
            return [self._evaluator.category] * len(paths)
        if known_categories(self._datamodule):  # it knows, other than a folder of images
            return categories_of(paths, self._datamodule)
        known = self._evaluator.category_thresholds
        if len(known) == 1:
            return list(known) * len(paths)
        return [find_category(path, known) for path in paths]

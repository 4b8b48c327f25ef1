# SPDX-License-Identifier: Apache-2.0
"""One test, from the first batch to the files."""

import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from anomalib.metrics import AnomalibMetric
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import SequentialSampler

from anomalib_uniad.category import categories_of, known_categories
from anomalib_uniad.metrics import table
from anomalib_uniad.metrics.distributed import ImagesOfThisProcess, part
from anomalib_uniad.metrics.exact import Level
from anomalib_uniad.metrics.files import RunFiles
from anomalib_uniad.metrics.functional import Ranking
from anomalib_uniad.metrics.per_category import CategoryMetrics
from anomalib_uniad.metrics.raw import with_raw_scores
from anomalib_uniad.metrics.results import Results
from anomalib_uniad.metrics.session import Session
from anomalib_uniad.metrics.thresholds import Thresholds

if TYPE_CHECKING:
    from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator

logger = logging.getLogger(__name__)


class Evaluation(Session):
    """A test.

    Args:
        evaluator (PerCategoryEvaluator): The evaluator, which has the arguments and the thresholds.
        trainer (Trainer): The trainer.
        pl_module (LightningModule): The model.
        metrics (Sequence[AnomalibMetric]): The metrics.

    Raises:
        ValueError: If decisions by category are wanted, but there are no thresholds.
    """

    def __init__(
        self,
        evaluator: "PerCategoryEvaluator",
        trainer: Trainer,
        pl_module: LightningModule,
        metrics: Sequence[AnomalibMetric],
    ) -> None:
        super().__init__(evaluator, trainer, pl_module)
        known = known_categories(self._datamodule)
        self._several = len(known) > 1 or (self._datamodule is None and not known)
        lacking = [name for name in known if self._used and "image" not in self._used.get(name, {})]
        if lacking:
            msg = (
                f"thresholds is 'category', but the model has none of {', '.join(lacking)}, only of "
                f"{', '.join(self._used)}. Use 'global', or train with validation images of all of them."
            )
            raise ValueError(msg)
        self._images = ImagesOfThisProcess(trainer.test_dataloaders)
        self._results: Results | None = None
        self._table = pd.DataFrame()
        self._announced = False
        self._pictures: dict[str, bytes] = {}
        self._size: str = evaluator.pixel_resolution
        self._metrics = CategoryMetrics(
            metrics,
            self._datamodule,
            pixel_resolution=evaluator.pixel_resolution,
            mask_paths=_mask_paths(trainer.test_dataloaders),
            expected=expected_images(trainer.test_dataloaders, self._datamodule),
            finished=self._finished,
            device=pl_module.device,
        )

    def update(self, batch: Any, dataloader_idx: int) -> None:
        """Update the metrics with a batch after post-processing."""
        raw = self._decide(batch, self._metrics.categories(batch))
        compared = with_raw_scores(batch, raw) if self._several else batch
        counted: Any = self._images.cut(compared, dataloader_idx)
        if counted is not None:
            shown = batch if len(counted) == len(batch) else part(batch, range(len(counted)))
            self._write_down(shown, raw, self._metrics.categories(shown))
            if self._evaluator.pixel_resolution == "model" and counted.anomaly_map is not None:
                self._size = "model {} x {}".format(*counted.anomaly_map.shape[-2:])
            self._metrics.update(counted)  # at last, as it draws a category that is complete

    def compute(self) -> Results:
        """Compute the metrics, over all processes."""
        self.stop()
        self._table = self._predictions.table()  # before the metrics, whose pictures need the scores of all processes
        self._results = self._metrics.compute()
        return self._results

    def write(self, epochs: int | None, learned_from: str | None) -> None:
        """Show the table, and write it, the predictions and the pictures to the folder of the run.

        Args:
            epochs (int | None): Epochs that the model was trained for, ``None`` if unknown.
            learned_from (str | None): On which images thresholds were learned, ``""`` if unknown, ``None`` if on none.
        """
        if not self._trainer.is_global_zero or self._results is None:
            return
        files = RunFiles(self._folder)
        if self._results.metrics:
            scope = self._evaluator.thresholds
            run = table.describe_run(
                self._trainer, self._pl_module, epochs, learned_from, scope, self._size, self._several
            )
            title = " on ".join(filter(None, (run["model"], run["dataset"])))
            table.show(table.to_frame(self._results), title)
            files.write_metrics(self._results, run, self._evaluator.category_thresholds)
        files.write_predictions(self._table)
        if self._pictures:
            files.write_curves(self._pictures)

    def _finished(self, category: str, results: Results, rankings: Mapping[Level, Ranking]) -> None:
        if not self._trainer.is_global_zero or not writes_files(self._trainer) or not results.images.get(category):
            return
        if self._several and results.metrics:
            self._say(category, results)
        if self._evaluator.pictures and rankings:
            try:
                self._draw(category, rankings)
            except Exception as error:  # other processes wait, and numbers matter more than a picture
                logger.warning("There is no picture of %r: %s", category, error)

    def _draw(self, category: str, rankings: Mapping[Level, Ranking]) -> None:
        from anomalib_uniad.metrics.curves import plot_category  # matplotlib takes a second

        learned = self._evaluator.category_thresholds.get(category, {}).get("image", float("nan"))
        thresholds = {"global": self._globally["image"], "category": learned}
        picture = io.BytesIO()
        normal, defective = self._predictions.scores(category)
        plot_category(picture, category, rankings.get("image"), rankings.get("pixel"), normal, defective, thresholds)
        self._pictures[category] = picture.getvalue()

    def _say(self, category: str, results: Results) -> None:
        """Show the row of a category as soon as it is known, above the progress bar."""
        bar = self._trainer.progress_bar_callback
        if bar is None or getattr(bar, "is_disabled", False):
            return
        heads = [name.split("_", 1) for name in results.metrics]
        widths = [max(6, *map(len, head)) for head in heads]
        cells = [results.values.get((name, category)) for name in results.metrics]
        row = ["" if value is None else f"{value:.4f}" for value in cells]
        lines = [row]
        if not self._announced:  # names on two lines, so that nine columns fit
            lines = [[head[0] for head in heads], [head[-1] if len(head) > 1 else "" for head in heads], row]
            self._announced = True
        for number, line in enumerate(lines):
            first = category[:16] if number == len(lines) - 1 else ""
            bar.print(" ".join([first.ljust(16), *(cell.rjust(w) for cell, w in zip(line, widths, strict=True))]))


def _samples(dataloaders: Any) -> list[pd.DataFrame]:
    """Tables of anomalib's datasets."""
    loaders = dataloaders if isinstance(dataloaders, list | tuple) else [dataloaders]
    tables = [getattr(getattr(loader, "dataset", None), "samples", None) for loader in loaders]
    return [samples for samples in tables if isinstance(samples, pd.DataFrame)]


def _mask_paths(dataloaders: Any) -> dict[str, str]:
    """Masks by paths of images, as in batches."""
    found: dict[str, str] = {}
    for samples in _samples(dataloaders):
        if "mask_path" in samples:
            pairs = zip(samples.image_path, samples.mask_path, strict=True)
            found.update({str(image): str(mask) for image, mask in pairs if isinstance(mask, str | Path) and str(mask)})
    return found


def writes_files(trainer: Trainer) -> bool:
    """Whether a run leaves files: not if it only measures speed or tries whether everything runs.

    Args:
        trainer (Trainer): The trainer.

    Returns:
        bool: False with ``barebones`` and ``fast_dev_run``.
    """
    return not trainer.barebones and not getattr(trainer, "fast_dev_run", False)


def expected_images(dataloaders: Any, datamodule: Any) -> Mapping[str, int] | None:
    """Count the images of each category, if a single dataloader goes through all of them in order.

    Args:
        dataloaders (Any): Dataloader or list of dataloaders.
        datamodule (Any): Where they are from; tells the categories.

    Returns:
        Mapping[str, int] | None: Category -> number of images; ``None`` if that is not known, or there is only one.
    """
    loaders = dataloaders if isinstance(dataloaders, list | tuple) else [dataloaders]
    samples = _samples(dataloaders)
    sequential = len(loaders) == 1 and isinstance(getattr(loaders[0], "sampler", None), SequentialSampler)
    if not sequential or not samples or len(known_categories(datamodule)) < 2:
        return None
    return Counter(categories_of(list(samples[0].image_path), datamodule))


def write_validation(
    thresholds: Thresholds,
    trainer: Trainer,
    pl_module: LightningModule,
    results: Results,
    epochs: int | None,
    learned_from: str | None,
) -> None:
    """Show the results of a validation, and write them to ``validation.csv``, ``.md`` and ``.json``.

    Args:
        thresholds (Thresholds): Thresholds of the categories.
        trainer (Trainer): The trainer.
        pl_module (LightningModule): The model.
        results (Results): Metrics of each category.
        epochs (int | None): Epochs that the model was trained for, ``None`` if unknown.
        learned_from (str | None): On which images thresholds were learned, ``""`` if unknown, ``None`` if on none.
    """
    if trainer.is_global_zero and results.metrics:
        run = table.describe_run(trainer, pl_module, epochs, learned_from, "global", "model")
        table.show(table.to_frame(results), f"{run['model']}, validation")
        files = RunFiles(Path(trainer.default_root_dir), "validation")
        files.write_metrics(results, run, thresholds)

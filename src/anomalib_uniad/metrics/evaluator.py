# SPDX-License-Identifier: Apache-2.0
"""An evaluator that reports each metric per category and as the mean over categories."""

import logging
from collections.abc import Sequence
from typing import Any

from anomalib.metrics import AnomalibMetric, Evaluator
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_uniad.metrics.evaluation import Evaluation, writes_files
from anomalib_uniad.metrics.exact import seven_metrics
from anomalib_uniad.metrics.prediction import Prediction, leave_out_unreadable
from anomalib_uniad.metrics.resolution import PixelResolution, check_whole_images
from anomalib_uniad.metrics.threshold_learner import ThresholdLearner, as_list
from anomalib_uniad.metrics.thresholds import ThresholdScope

logger = logging.getLogger(__name__)


class PerCategoryEvaluator(ThresholdLearner):
    """Evaluator with a value of each metric per category, and their mean.

    ``image_AUROC`` is the mean over the categories, ``image_AUROC/bottle`` the value of one; likewise for all
    metrics. If there is only one category, only ``image_AUROC`` is logged, as by anomalib's evaluator. The
    category of an image comes from :func:`anomalib_uniad.category.categories_of`.

    AUROC, AP, F1max and AUPRO are exact, without bins, and computed category by category, so that memory is bounded
    by the largest category. With several processes, each image counts once.

    With several categories, metrics of scores and anomaly maps are computed from what the model itself returns:
    anomalib's normalisation uses one threshold for all and cuts scores to the range from 0 to 1, which can make all
    scores of a category equal. With one category, values are the normalised ones, exactly as in anomalib.

    A category in which a metric is undefined (only normal or only defective images, no masks) is left out of
    the mean. After a test, a table of the categories is shown in the terminal, and these are written to the folder of
    the run (``metrics-1.csv`` and so on if they exist):

    - ``metrics.csv``, ``metrics.md`` and ``metrics.json``. An undefined metric has an empty cell, with the reason in
      the column ``note``. The column ``thresholds`` says on which images the model has learned its thresholds and the
      normalisation of its scores.
    - ``predictions.csv``, a row per image with its scores, the threshold and the decision; after a prediction too.
    - ``curves/<category>.png``, ROC and precision-recall curves and the histogram of scores.

    At each validation, thresholds with the highest F1 score are learned for each category, beside anomalib's global
    ones. They are kept in checkpoints.

    Args:
        val_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): Metrics after each validation. ``None``
            is the image-level AUROC alone; an empty list is no metric. Defaults to ``None``.
        test_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): Metrics after a test. ``None`` is the seven
            that the field reports, image AUROC, AP and F1max and pixel AUROC, AP, F1max and AUPRO, and anomalib's F1
            scores of the decisions. Defaults to ``None``.
        compute_on_cpu (bool): Whether to keep the metrics' states on the CPU, if there is one device only.
            Defaults to ``True``.
        pixel_resolution (str): Size at which anomaly maps are compared with masks: ``"model"``, the size to which
            images are resized, or ``"original"``, that of the image files. Defaults to ``"model"``.
        thresholds (str): Thresholds of decisions and normalised scores: ``"global"``, anomalib's one for all, or
            ``"category"``, each category its own. Defaults to ``"global"``.
        category (str | None): Category of all images that are predicted, if their paths do not tell it.
            Defaults to ``None``.
        pictures (bool): Whether to draw curves. Defaults to ``True``.

    Raises:
        TypeError: If the metrics are not metrics of anomalib.
        ValueError: If ``pixel_resolution`` or ``thresholds`` is neither of its values, or two metrics have one name.

    Example:
        >>> from anomalib.metrics import AUROC, F1Max
        >>> evaluator = PerCategoryEvaluator(test_metrics=[
        ...     AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
        ...     F1Max(fields=["pred_score", "gt_label"], prefix="image_"),
        ... ])
        >>> [metric.name for metric in evaluator.val_metrics]
        ['image_AUROC']
    """

    def __init__(
        self,
        val_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        test_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        compute_on_cpu: bool = True,
        pixel_resolution: PixelResolution = "model",
        thresholds: ThresholdScope = "global",
        category: str | None = None,
        pictures: bool = True,
    ) -> None:
        for name, value, choices in (
            ("pixel_resolution", pixel_resolution, ("model", "original")),
            ("thresholds", thresholds, ("global", "category")),
        ):
            if value not in choices:
                msg = f"{name} is {value!r}, but must be one of {', '.join(map(repr, choices))}."
                raise ValueError(msg)
        if val_metrics is None:
            val_metrics = seven_metrics()[:1]
        if test_metrics is None:
            test_metrics = [*seven_metrics(), *(m for m in _anomalibs_metrics() if m.name.endswith("F1Score"))]
        super().__init__(val_metrics, test_metrics, compute_on_cpu)
        for kind, metrics in (("val_metrics", self.val_metrics), ("test_metrics", self.test_metrics)):
            names = [metric.name for metric in as_list(metrics)]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                msg = f"{kind} has several metrics with the name {', '.join(twice)}; give them different prefixes."
                raise ValueError(msg)
        self.pixel_resolution = pixel_resolution
        self.thresholds = thresholds
        self.category = category
        self.pictures = pictures
        self._evaluation: Evaluation | None = None
        self._prediction: Prediction | None = None
        self._unreadable = ""

    @classmethod
    def from_evaluator(cls, evaluator: Evaluator) -> "PerCategoryEvaluator":
        """Make one that has the metrics of another evaluator.

        Args:
            evaluator (Evaluator): The other evaluator. If it has anomalib's default metrics, the new one has its own.

        Returns:
            PerCategoryEvaluator: The new evaluator.
        """
        val_metrics, test_metrics = as_list(evaluator.val_metrics), as_list(evaluator.test_metrics)
        if [m.name for m in test_metrics] == [m.name for m in _anomalibs_metrics()]:
            return cls(val_metrics, None, evaluator.compute_on_cpu)
        return cls(val_metrics, test_metrics, evaluator.compute_on_cpu)

    @classmethod
    def take_over(cls, trainer: Trainer) -> None:
        """Replace anomalib's own evaluator of the trainer's model; one of another class stays.

        Args:
            trainer (Trainer): A trainer that has its model and callbacks, but has not set up the callbacks.
        """
        model = trainer.lightning_module
        stock = getattr(model, "evaluator", None)
        if type(stock) is not Evaluator:
            return
        evaluator = cls.from_evaluator(stock)
        # As Lightning has done it for the other callbacks before it sets up the data.
        evaluator.log = model.log
        evaluator.log_dict = model.log_dict
        model.evaluator = evaluator
        trainer.callbacks[:] = [evaluator if item is stock else item for item in trainer.callbacks]  # type: ignore[attr-defined]
        text = "Metrics are reported per category: evaluator of %s replaced by %s"
        logger.info(text, type(model).__name__, cls.__name__)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured before long work starts."""
        if self.pixel_resolution == "original":
            check_whole_images(getattr(pl_module, "pre_processor", None), trainer.test_dataloaders)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was tested before, and look at what the model returns."""
        self._stop()
        self._evaluation = Evaluation(self, trainer, pl_module, as_list(self.test_metrics))
        self._evaluation.start()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the test metrics with the batch."""
        del trainer, pl_module, outputs, batch_idx
        if self._evaluation is not None:
            self._evaluation.update(batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the test metrics."""
        del pl_module
        if self._evaluation is not None:
            self._publish(trainer, self._evaluation.compute())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show and write the results."""
        del pl_module
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is not None and writes_files(trainer):
            evaluation.write(self._loaded_epochs or trainer.current_epoch or None, self._learned_from)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out images that cannot be read."""
        del pl_module
        self._unreadable = leave_out_unreadable(trainer.predict_dataloaders)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the model returns."""
        self._stop()
        self._prediction = Prediction(self, trainer, pl_module)
        self._prediction.start()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write down the predictions of the batch, decided by the category where that is wanted."""
        del trainer, pl_module, batch, batch_idx, dataloader_idx
        if self._prediction is not None:
            self._prediction.update(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of the images; images that were left out are an error in the end.

        Raises:
            ValueError: If images could not be read; the others are predicted and written.
        """
        del pl_module
        prediction, self._prediction = self._prediction, None
        if prediction is not None and writes_files(trainer):
            prediction.write()
        unreadable, self._unreadable = self._unreadable, ""
        if unreadable:  # now that all is written, so that a command ends with an error
            raise ValueError(unreadable)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model as it was."""
        del trainer, pl_module, exception
        self._stop()

    def _stop(self) -> None:
        for current in (self._evaluation, self._prediction):
            if current is not None:
                current.stop()
        self._evaluation = self._prediction = None


def _anomalibs_metrics() -> list[AnomalibMetric]:
    # Not at the top: anomalib.models loads this package at the end of its own import.
    from anomalib.models.components import AnomalibModule

    return as_list(AnomalibModule.configure_evaluator().test_metrics)

# SPDX-License-Identifier: Apache-2.0
"""An evaluator that reports each metric per category and as the mean over categories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib.data import InferenceBatch
from anomalib.metrics import AnomalibMetric, Evaluator
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from anomalib_uniad.data.category import known_categories
from anomalib_uniad.data.validation import describe_validation
from anomalib_uniad.metrics import table
from anomalib_uniad.metrics.per_category import CategoryMetrics, Results


class PerCategoryEvaluator(Evaluator):
    """Evaluator with a value of each metric per category, and their mean.

    ``image_AUROC`` is the mean over the categories, ``image_AUROC/bottle`` the value of one; likewise for all
    metrics. If there is only one category, only ``image_AUROC`` is logged, as by anomalib's evaluator. The
    category of an image comes from :func:`anomalib_uniad.data.category.categories_of`.

    With several categories, metrics of scores and anomaly maps are computed from what the model itself returns:
    anomalib's normalisation uses one threshold for all and cuts scores to the range from 0 to 1, which can make all
    scores of a category equal. With one category, values are the normalised ones, exactly as in anomalib.

    A category in which a metric is undefined (only normal or only defective images, no masks) is left out of
    the mean. After a test, a table of the categories is shown in the terminal and written to ``metrics.csv``
    and ``metrics.md`` in the folder of the run (``metrics-1.csv`` and so on if these exist). An undefined
    metric has an empty cell there, with the reason in the column ``note``. The column ``thresholds`` says on which
    images the model has learned its thresholds and the normalisation of its scores.

    Args:
        val_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): Metrics after each validation. ``None``
            is the image-level AUROC alone, as pixel-level metrics at each validation make training slow; an
            empty list is no metric. Defaults to ``None``.
        test_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): Metrics after a test. ``None`` is
            anomalib's choice, image-level and pixel-level AUROC and F1 score. Defaults to ``None``.
        compute_on_cpu (bool): Whether to keep the metrics' states on the CPU, if there is one device only.
            Defaults to ``True``.

    Raises:
        TypeError: If the metrics are not metrics of anomalib.

    Example:
        >>> from anomalib.metrics import AUROC, F1Max
        >>> evaluator = PerCategoryEvaluator(test_metrics=[
        ...     AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
        ...     F1Max(fields=["pred_score", "gt_label"], prefix="image_"),
        ... ])
        >>> [metric.name for metric in evaluator.val_metrics]
        ['image_AUROC']
    """

    log: Any  # Lightning puts the model's here
    log_dict: Any

    def __init__(
        self,
        val_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        test_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        compute_on_cpu: bool = True,
    ) -> None:
        if val_metrics is None:
            val_metrics = [metric for metric in _default_metrics() if metric.name == "image_AUROC"]
        if test_metrics is None:
            test_metrics = _default_metrics()
        super().__init__(val_metrics, test_metrics, compute_on_cpu)
        # Made anew for each epoch, so nothing is left of the last one.
        self._validated: CategoryMetrics | None = None
        self._tested: CategoryMetrics | None = None
        self._results: Results | None = None
        self._loaded_epochs: int | None = None
        self._learned_from: str | None = None  # where thresholds come from; None if there was no validation
        self._raw: InferenceBatch | None = None
        self._hook: Any = None

    @classmethod
    def from_evaluator(cls, evaluator: Evaluator) -> "PerCategoryEvaluator":
        """Make one that has the metrics of another evaluator.

        Args:
            evaluator (Evaluator): The other evaluator.

        Returns:
            PerCategoryEvaluator: The new evaluator.
        """
        return cls(_as_list(evaluator.val_metrics), _as_list(evaluator.test_metrics), evaluator.compute_on_cpu)

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

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was validated before."""
        del trainer, pl_module
        self._validated = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the validation metrics with the batch."""
        del pl_module, outputs, batch_idx, dataloader_idx
        if self._validated is None:
            self._validated = CategoryMetrics(_as_list(self.val_metrics), getattr(trainer, "datamodule", None))
        self._validated.update(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the validation metrics; anomalib's post-processor learns its thresholds at the same time."""
        del pl_module
        if not trainer.sanity_checking:
            self._learned_from = describe_validation(getattr(trainer, "datamodule", None))
        if self._validated is not None:
            self._publish(trainer, self._validated.compute())
            self._validated = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was tested before, and look at what the model returns."""
        self._tested = self._results = None
        several = len(known_categories(getattr(trainer, "datamodule", None))) > 1
        model = getattr(pl_module, "model", None)
        if several and isinstance(model, nn.Module):
            self._hook = model.register_forward_hook(self._keep_raw)

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
        del pl_module, outputs, batch_idx, dataloader_idx
        if self._tested is None:
            self._tested = CategoryMetrics(_as_list(self.test_metrics), getattr(trainer, "datamodule", None))
        self._tested.update(self._with_raw_scores(batch))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the test metrics."""
        del pl_module
        self._stop_looking()
        if self._tested is not None:
            self._results = self._tested.compute()
            self._publish(trainer, self._results)
            self._tested = None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show and write the table."""
        results, self._results = self._results, None
        # Barebones is for measuring speed, so nothing is written then.
        if results is None or not results.metrics or not trainer.is_global_zero or trainer.barebones:
            return
        frame = table.to_frame(results)
        epochs = self._loaded_epochs or trainer.current_epoch or None
        run = table.describe_run(trainer, pl_module, epochs, self._learned_from)
        table.show(frame, title=" on ".join(filter(None, (run["model"], run["dataset"]))))
        table.write(frame, Path(trainer.default_root_dir), run)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model as it was."""
        del trainer, pl_module, exception
        self._stop_looking()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the epochs of a checkpoint from which the training was resumed."""
        del trainer, pl_module
        self._loaded_epochs = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write down where thresholds come from: a later test may have other validation images."""
        del trainer, pl_module
        checkpoint["thresholds_from"] = self._learned_from

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Learn from a checkpoint for how many epochs its model was trained, and where its thresholds come from."""
        del trainer, pl_module
        self._learned_from = checkpoint.get("thresholds_from", "")
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
        self._loaded_epochs = progress.get("current", {}).get("ready")

    def _keep_raw(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        self._raw = output if isinstance(output, InferenceBatch) else None

    def _stop_looking(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._raw = None

    def _with_raw_scores(self, batch: Any) -> Any:
        """Return the batch with the model's own scores and maps instead of anomalib's normalised ones.

        anomalib's post-processor shifts scores by one threshold for all categories and cuts them to the range from
        0 to 1. Categories that score higher or lower than others are then cut as a whole, and nothing is left of
        their order. Labels and masks that follow from thresholds stay as they are.
        """
        raw, self._raw = self._raw, None
        changed = {}
        for name in ("pred_score", "anomaly_map"):
            value, processed = getattr(raw, name, None), getattr(batch, name, None)
            if value is not None and processed is not None and value.numel() == processed.numel():
                changed[name] = value.detach().reshape(processed.shape)
        return batch.update(in_place=False, **changed) if changed else batch

    def _publish(self, trainer: Trainer, results: Results) -> None:
        for name, value in results.logged().items():
            if trainer.barebones:  # nothing is logged then: as in anomalib's evaluator, put them where they go
                trainer.callback_metrics[name] = value
                trainer.logged_metrics[name] = value
            else:
                self.log(name, value, sync_dist=trainer.world_size > 1)


def _default_metrics() -> list[AnomalibMetric]:
    # Not at the top: anomalib.models loads this package at the end of its own import.
    from anomalib.models.components import AnomalibModule

    return _as_list(AnomalibModule.configure_evaluator().test_metrics)


def _as_list(metrics: Any) -> list[AnomalibMetric]:
    """Return the metrics of a ``ModuleList``, whose items have no type."""
    return list(metrics)

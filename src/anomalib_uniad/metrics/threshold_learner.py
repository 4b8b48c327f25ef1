# SPDX-License-Identifier: Apache-2.0
"""The part of the evaluator that belongs to validations: metrics, and thresholds that travel in checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from anomalib.metrics import AnomalibMetric, Evaluator
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_uniad.metrics.distributed import ImagesOfThisProcess
from anomalib_uniad.metrics.evaluation import expected_images, write_validation, writes_files
from anomalib_uniad.metrics.exact import Level
from anomalib_uniad.metrics.functional import Ranking
from anomalib_uniad.metrics.per_category import CategoryMetrics
from anomalib_uniad.metrics.results import Results
from anomalib_uniad.metrics.thresholds import Thresholds, learn
from anomalib_uniad.splits import describe_validation


class ThresholdLearner(Evaluator):
    """Evaluator that computes validation metrics per category, and learns thresholds of the categories.

    Args:
        val_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): As of anomalib's evaluator.
        test_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): As of anomalib's evaluator.
        compute_on_cpu (bool): As of anomalib's evaluator. Defaults to ``True``.

    Attributes:
        category_thresholds (Thresholds): Thresholds of each category, as learned at the last validation or loaded.
    """

    log: Any  # Lightning puts the model's here
    log_dict: Any

    def __init__(
        self,
        val_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None,
        test_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None,
        compute_on_cpu: bool = True,
    ) -> None:
        super().__init__(val_metrics, test_metrics, compute_on_cpu)
        # Not as modules: these are only templates, and buffers of theirs in checkpoints would keep a model from being
        # loaded with other metrics, or with anomalib's evaluator.
        for name in ("val_metrics", "test_metrics"):
            self.__dict__[name] = list(self._modules.pop(name))  # type: ignore[call-overload]
        self.category_thresholds: Thresholds = {}
        # Made anew for each epoch, so nothing is left of the last one.
        self._validated: CategoryMetrics | None = None
        self._images: ImagesOfThisProcess | None = None
        self._results: Results | None = None
        self._learned: Thresholds = {}
        self._loaded_epochs: int | None = None
        self._learned_from: str | None = None  # where thresholds come from; None if there was no validation

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take no state, also not that which other evaluators have put into a checkpoint."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was validated before."""
        self._learned = {}
        self._images = ImagesOfThisProcess(trainer.val_dataloaders)
        self._validated = CategoryMetrics(
            as_list(self.val_metrics),
            getattr(trainer, "datamodule", None),
            levels=("image", "pixel"),
            expected=expected_images(trainer.val_dataloaders, getattr(trainer, "datamodule", None)),
            finished=self._learn,
            device=pl_module.device,
        )

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
        del trainer, pl_module, outputs, batch_idx
        batch = self._images.cut(batch, dataloader_idx) if self._images else batch
        if batch is not None and self._validated is not None:
            self._validated.update(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the validation metrics; anomalib's post-processor learns its thresholds at the same time."""
        del pl_module
        if self._validated is not None:
            self._results, self._validated = self._validated.compute(), None
            self._publish(trainer, self._results)
            if not trainer.sanity_checking:
                self._learned_from = describe_validation(getattr(trainer, "datamodule", None))
                self.category_thresholds = self._learned

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show and write the results of a validation that is not a part of a training."""
        results, self._results = self._results, None
        if results is not None and trainer.state.fn == TrainerFn.VALIDATING and writes_files(trainer):
            write_validation(
                self.category_thresholds, trainer, pl_module, results, self._loaded_epochs, self._learned_from
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the epochs of a checkpoint from which the training was resumed."""
        del trainer, pl_module
        self._loaded_epochs = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the thresholds of the categories, and where thresholds come from: later there may be other images."""
        del trainer, pl_module
        checkpoint["thresholds_from"] = self._learned_from
        checkpoint["category_thresholds"] = self.category_thresholds

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Learn from a checkpoint its thresholds, where they come from, and for how many epochs it was trained."""
        del trainer, pl_module
        self._learned_from = checkpoint.get("thresholds_from", "")
        self.category_thresholds = checkpoint.get("category_thresholds", {})
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
        self._loaded_epochs = progress.get("current", {}).get("ready")

    def _learn(self, category: str, results: Results, rankings: Mapping[Level, Ranking]) -> None:
        del results
        if rankings:
            self._learned[category] = learn(rankings)

    def _publish(self, trainer: Trainer, results: Results) -> None:
        for name, value in results.logged().items():
            if trainer.barebones:  # nothing is logged then: as in anomalib's evaluator, put them where they go
                trainer.callback_metrics[name] = value
                trainer.logged_metrics[name] = value
            else:
                self.log(name, value, sync_dist=trainer.world_size > 1)


def as_list(metrics: Any) -> list[AnomalibMetric]:
    """Return the metrics of a ``ModuleList``, whose items have no type."""
    return list(metrics)

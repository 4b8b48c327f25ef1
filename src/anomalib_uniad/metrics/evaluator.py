# SPDX-License-Identifier: Apache-2.0
"""An evaluator that reports each metric per category and as the mean over categories."""

import io
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from anomalib.data import InferenceBatch
from anomalib.metrics import AnomalibMetric, Evaluator
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_uniad.category import categories_of, find_category, known_categories, paths_of
from anomalib_uniad.checks import check_choice
from anomalib_uniad.errors import InputError
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.metric_names import heading
from anomalib_uniad.metrics.batches import (
    OwnImages,
    count_images,
    expected_images,
    flat,
    leave_out_unreadable,
    mask_paths,
    select,
    without_score,
)
from anomalib_uniad.metrics.category_metrics import CategoryMetrics, Results, standard_metrics
from anomalib_uniad.metrics.functional import Ranking, f1_threshold
from anomalib_uniad.metrics.original_size import PixelResolution, check_whole_images
from anomalib_uniad.metrics.run_files import (
    Predictions,
    RunFiles,
    check_scores,
    count,
    describe_run,
    for_people,
    show,
    to_frame,
)
from anomalib_uniad.metrics.scores import Level
from anomalib_uniad.metrics.thresholds import (
    Thresholds,
    ThresholdScope,
    decide_by_category,
    global_thresholds,
    join_learning,
    with_sensitivity,
)
from anomalib_uniad.splits import describe_validation

logger = logging.getLogger(__name__)

_VALIDATED = ("image_AUROC", "image_TPR@FPR2", "image_TPR@FPR5")  # what a training logs, from one ranking


class RawOutputs(Callback):
    """What has to happen before the post-processor: keeps scores and maps of a batch as the model returned them.

    anomalib's post-processor shifts scores by one threshold for all categories and cuts them to the range from 0 to 1.
    Categories that score higher or lower than others are then cut as a whole, and nothing is left of their order.

    (A forward hook on the torch model would miss models whose steps change its scores, or do without it.)
    """

    def __init__(self) -> None:
        self._last = InferenceBatch()

    def insert(self, trainer: Trainer, before: Sequence[Any]) -> None:
        """Put this callback before the first of others, and in the place of another of this class."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in callbacks if not isinstance(callback, RawOutputs)]
        position = next(number for number, callback in enumerate(others) if callback in before)
        # A new list, as Lightning goes through the present one.
        trainer.callbacks = [*others[:position], self, *others[position:]]  # type: ignore[attr-defined]

    def take(self) -> InferenceBatch:
        """Return ``pred_score`` and ``anomaly_map`` of the batch that is being processed."""
        last, self._last = self._last, InferenceBatch()
        return last

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the tensors: the post-processor puts others in their place, and does not change them."""
        source = outputs if hasattr(outputs, "pred_score") else batch
        source = getattr(source, "uncalibrated", source)
        self._last = InferenceBatch(pred_score=source.pred_score, anomaly_map=source.anomaly_map)

    on_predict_batch_end = on_test_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have all processes take part when the post-processor learns its thresholds, which comes next."""
        join_learning(getattr(pl_module, "post_processor", None))


class PerCategoryEvaluator(Evaluator):
    """Evaluator with a value of each metric per category, and their mean.

    ``image_AUROC`` is the mean over the categories, ``image_AUROC/bottle`` the value of one; likewise for all
    metrics. If there is only one category, only ``image_AUROC`` is logged, as by anomalib's evaluator. The
    category of an image comes from ``anomalib_uniad.category.categories_of``.

    AUROC, AP, F1max, TPR@FPR and AUPRO are exact, without bins, and computed category by category, so that memory is
    bounded by the largest category. With several processes, each image counts once.

    With several categories, metrics of scores and anomaly maps are computed from what the model itself returns:
    anomalib's normalisation uses one threshold for all and cuts scores to the range from 0 to 1, which can make all
    scores of a category equal. With one category, values are the normalised ones, exactly as in anomalib, unless
    ``raw_scores`` says otherwise.

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
            is the image-level AUROC and the share of defective images found at 2 % and at 5 % false alarms; an empty
            list is no metric. Defaults to ``None``.
        test_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): Metrics after a test. ``None`` is those of
            :func:`~anomalib_uniad.metrics.standard_metrics` (image AUROC, AP, F1max, TPR@FPR2 and TPR@FPR5, pixel
            AUROC, AP, F1max and AUPRO) and anomalib's F1 scores of the decisions. Defaults to ``None``.
        compute_on_cpu (bool): Whether to keep the metrics' states on the CPU, if there is one device only.
            Defaults to ``True``.
        pixel_resolution (str): Size at which anomaly maps are compared with masks: ``"model"``, the size to which
            images are resized, or ``"original"``, that of the image files. What a model pads or crops away is not
            compared. Defaults to ``"model"``.
        thresholds (str): Thresholds of decisions and normalised scores: ``"global"``, anomalib's one for all, or
            ``"category"``, each category its own. Defaults to ``"global"``.
        category (str | None): Category of all images that are predicted, if their paths do not tell it.
            Defaults to ``None``.
        pictures (bool): Whether to draw curves. Defaults to ``True``.
        raw_scores (bool): Whether metrics of a single category are of the model's own scores too, so that they compare
            with those of several. Defaults to ``False``.

    Attributes:
        category_thresholds (Thresholds): Thresholds of each category, as learned at the last validation or loaded.

    Raises:
        TypeError: If the metrics are not metrics of anomalib.
        ValueError: If ``pixel_resolution`` or ``thresholds`` is neither of its values, or two metrics have one name.

    Examples:
        >>> from anomalib.metrics import AUROC, F1Max
        >>> evaluator = PerCategoryEvaluator(test_metrics=[
        ...     AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
        ...     F1Max(fields=["pred_score", "gt_label"], prefix="image_"),
        ... ])
        >>> [metric.name for metric in evaluator.val_metrics]
        ['image_AUROC', 'image_TPR@FPR2', 'image_TPR@FPR5']
    """

    val_metrics: list[AnomalibMetric]  # type: ignore[assignment]
    test_metrics: list[AnomalibMetric]  # type: ignore[assignment]
    log: Any  # Lightning puts the model's here
    log_dict: Any

    def __init__(
        self,
        val_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        test_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        compute_on_cpu: bool = True,
        pixel_resolution: PixelResolution = "model",
        thresholds: ThresholdScope = "global",
        category: str | None = None,
        pictures: bool = True,
        raw_scores: bool = False,
    ) -> None:
        check_choice("pixel_resolution", pixel_resolution, get_args(PixelResolution))
        check_choice("thresholds", thresholds, get_args(ThresholdScope))
        if val_metrics is None:
            val_metrics = [m for m in standard_metrics() if m.name in _VALIDATED]
        if test_metrics is None:
            test_metrics = [*standard_metrics(), *(m for m in _anomalibs_metrics() if m.name.endswith("F1Score"))]
        super().__init__(val_metrics, test_metrics, compute_on_cpu)
        # Lists instead of modules: these are only templates, and buffers of theirs in checkpoints would keep a model
        # from being loaded with other metrics, or with anomalib's evaluator.
        for kind in ("val_metrics", "test_metrics"):
            metrics = list(getattr(self, kind))
            delattr(self, kind)
            setattr(self, kind, metrics)
            names = [metric.name for metric in metrics]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                msg = f"{kind} has several metrics with the name {', '.join(twice)}; give them different prefixes."
                raise InputError(msg)
        self.pixel_resolution = pixel_resolution
        self.thresholds = thresholds
        self.category = category
        self.pictures = pictures
        self.raw_scores = raw_scores
        self.category_thresholds: Thresholds = {}
        self._thresholds_from: str | None = None  # None: nothing was validated
        self._loaded_epochs: int | None = None
        self._unreadable = ""
        self._raw_outputs = RawOutputs()
        self._forget()

    def _forget(self) -> None:
        """Drop what belongs to one validation, test or prediction."""
        self._metrics = CategoryMetrics([])
        self._own_images = OwnImages([])
        self._results = Results([], [])
        self._learned: Thresholds = {}
        self._several = False  # categories
        self._global_threshold = float("nan")
        self._used: Thresholds = {}  # thresholds of categories by which is decided, as learned
        self._decided_by: Thresholds = {}  # and moved by anomalib's sensitivity
        self._predictions = Predictions()
        self._table = pd.DataFrame()
        self._pixel_size: str = self.pixel_resolution
        self._curves: dict[str, bytes] = {}
        self._raw_outputs.take()

    @classmethod
    def from_evaluator(cls, evaluator: Evaluator) -> "PerCategoryEvaluator":
        """Make one that has the metrics of another evaluator.

        Args:
            evaluator (Evaluator): The other evaluator. If it has anomalib's default metrics, the new one has its own.

        Returns:
            PerCategoryEvaluator: The new evaluator.
        """
        val_metrics: list[Any] = list(evaluator.val_metrics)
        test_metrics: list[Any] = list(evaluator.test_metrics)
        if [m.name for m in test_metrics] == [m.name for m in _anomalibs_metrics()]:
            return cls(val_metrics, None, evaluator.compute_on_cpu)
        return cls(val_metrics, test_metrics, evaluator.compute_on_cpu)

    @classmethod
    def take_over(cls, trainer: Trainer) -> None:
        """Replace anomalib's own evaluator of the trainer's model; one of another class stays.

        This is the only place where data reach into a model: datamodules with several categories call it in their
        ``setup``, so that PatchCore and all other models report per category without an argument. anomalib has no
        public hook for it. Lightning sets up the datamodule before the callbacks, so the new evaluator is set up too.

        Args:
            trainer (Trainer): A trainer that has its model and callbacks, but has not set up the callbacks.
        """
        model: Any = trainer.lightning_module
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the metrics, and have the outputs of the model kept before they are processed."""
        super().setup(trainer, pl_module, stage)
        self._raw_outputs.insert(trainer, before=(self, getattr(pl_module, "post_processor", None)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take no state, also not that which other evaluators have put into a checkpoint."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def on_save_checkpoint(
        self, trainer: Trainer | None, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the thresholds of the categories, and from which images all thresholds are.

        Args:
            trainer (Trainer | None): Not used.
            pl_module (LightningModule): Not used.
            checkpoint (dict[str, Any]): Gets ``category_thresholds`` and ``thresholds_from``.
        """
        checkpoint["thresholds_from"] = self._thresholds_from
        checkpoint["category_thresholds"] = self.category_thresholds

    def on_load_checkpoint(
        self, trainer: Trainer | None, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load the thresholds, where they are from, and for how many epochs the model was trained.

        Args:
            trainer (Trainer | None): Not used.
            pl_module (LightningModule): Not used.
            checkpoint (dict[str, Any]): Checkpoint of any model; what it lacks is unknown.
        """
        self._thresholds_from = checkpoint.get("thresholds_from", "")
        self.category_thresholds = checkpoint.get("category_thresholds", {})
        self._loaded_epochs = checkpoint.get("training_summary", {}).get("epochs")
        if self._loaded_epochs is None:  # other models than UniAD
            progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
            self._loaded_epochs = progress.get("current", {}).get("ready")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the epochs of a checkpoint from which the training was resumed."""
        self._loaded_epochs = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the metrics and thresholds of the validation."""
        self._forget()
        datamodule = getattr(trainer, "datamodule", None)
        loaders = flat(trainer.val_dataloaders)
        self._own_images = OwnImages(loaders)
        self._metrics = CategoryMetrics(
            self.val_metrics,
            datamodule,
            levels=("image", "pixel"),
            expected=expected_images(loaders, datamodule),
            finished=self._learn_thresholds,
            device=pl_module.device,
            what="validation",
            geometry=_geometry_of(pl_module),
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
        """Update the validation metrics with the batch, whose scores are raw: only tests process them."""
        self._update(batch, self._own_images.count(len(batch), dataloader_idx))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the validation metrics; anomalib's post-processor learns its thresholds at the same time."""
        self._results = self._metrics.compute()
        self._log_results(trainer)
        if not trainer.sanity_checking:
            self._thresholds_from = describe_validation(getattr(trainer, "datamodule", None))
            if not getattr(pl_module, "products", None) or trainer.state.fn == TrainerFn.FITTING:
                self.category_thresholds = self._learned  # those of a calibration are of a training

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show and write the results of a validation that is not a part of a training."""
        if trainer.state.fn == TrainerFn.VALIDATING and self._results.metrics and _writes_files(trainer):
            run = describe_run(trainer, pl_module, self._loaded_epochs, self._thresholds_from)
            counts = self._count(trainer, "validation_images")
            show(to_frame(self._results), f"{run['model']}, validation", counts)
            files = RunFiles(Path(trainer.default_root_dir), "validation")
            files.write_metrics(self._results, run, self.category_thresholds, counts)
        self._forget()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured before long work starts."""
        if self.pixel_resolution == "original":
            datasets = [getattr(loader, "dataset", None) for loader in flat(trainer.test_dataloaders)]
            check_whole_images(getattr(pl_module, "pre_processor", None), datasets)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the metrics of the test.

        Raises:
            ValueError: If decisions by category are wanted, but there are no thresholds.
        """
        self._forget()
        self._choose_thresholds(pl_module)
        datamodule = getattr(trainer, "datamodule", None)
        known = known_categories(datamodule)
        lacking = [name for name in known if self._used and "image" not in self._used.get(name, {})]
        if lacking:
            raise InputError(
                f"thresholds is 'category', but the model has none of {', '.join(lacking)}, only of "
                f"{', '.join(self._used)}. Use 'global', or train with validation images of all of them."
            )
        self._several = len(known) > 1 or (datamodule is None and not known)
        loaders = flat(trainer.test_dataloaders)
        self._own_images = OwnImages(loaders)
        self._metrics = CategoryMetrics(
            self.test_metrics,
            datamodule,
            pixel_resolution=self.pixel_resolution,
            mask_paths=mask_paths(loaders),
            expected=expected_images(loaders, datamodule),
            finished=partial(self._show_category, trainer),
            device=pl_module.device,
            geometry=_geometry_of(pl_module),
        )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Decide by category where that is wanted, and update the metrics with the batch."""
        categories = self._metrics.categories(batch)
        raw = self._decide(batch, categories, pl_module)
        count = self._own_images.count(len(batch), dataloader_idx)
        self._predictions.add(batch, raw.pred_score, categories[:count], self._global_threshold, self._decided_by)
        if self.pixel_resolution == "model" and batch.anomaly_map is not None:
            self._pixel_size = "model {} x {}".format(*batch.anomaly_map.shape[-2:])
        if self._several or self.raw_scores:
            known = {name: value for name, value in raw._asdict().items() if value is not None}
            batch = batch.update(in_place=False, **known)
        self._update(batch, count)  # last, as it draws a category that is complete

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the test metrics."""
        self._table = self._predictions.table()  # before the metrics: curves need the scores of all processes
        self._results = self._metrics.compute()
        self._log_results(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table, and write it, the predictions and the curves to the folder of the run.

        Raises:
            ValueError: If scores are not numbers; all is written.
        """
        if _writes_files(trainer):
            files = RunFiles(Path(trainer.default_root_dir))
            if self._results.metrics:
                epochs = self._loaded_epochs or trainer.current_epoch or None
                run = describe_run(
                    trainer,
                    pl_module,
                    epochs,
                    self._thresholds_from,
                    scope=self._scope(pl_module),
                    pixel_resolution=self._pixel_size,
                    raw=self._several or self.raw_scores,
                )
                counts = self._count(trainer, "test_images", self._table)
                show(to_frame(self._results), " on ".join(filter(None, (run["model"], run["dataset"]))), counts)
                rules = getattr(pl_module, "threshold_rules", None)
                files.write_metrics(self._results, run, self.category_thresholds, counts, rules)
            files.write_predictions(self._table)
            if self._curves:
                files.write_curves(self._curves)
        table = self._table
        self._forget()
        check_scores(table)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out images that cannot be read."""
        self._unreadable = leave_out_unreadable(trainer.predict_dataloaders)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the thresholds.

        Raises:
            ValueError: If decisions by category are wanted, but there are no thresholds, or none of the given category.
        """
        self._forget()
        self._choose_thresholds(pl_module)
        if self._used and self.category is not None and self.category not in self._used:
            raise InputError(f"category is {self.category!r}, but the model has thresholds of {', '.join(self._used)}.")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Decide by category where that is wanted, and keep the rows of the batch."""
        categories = self._predicted_categories(outputs, getattr(trainer, "datamodule", None))
        raw = self._decide(outputs, categories, pl_module)
        self._predictions.add(outputs, raw.pred_score, categories, self._global_threshold, self._decided_by)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of the images; images that were left out are an error in the end.

        Raises:
            ValueError: If images could not be read, or scores are not numbers; all others are predicted and written.
        """
        table = self._predictions.table()
        if _writes_files(trainer) and len(table):
            path = RunFiles(Path(trainer.default_root_dir)).write_predictions(table)
            logger.info("Predictions of %d images: %s", len(table), path)
            without = sum("image" not in self._used.get(category, {}) for category in table.category)
            if self._used and without:
                logger.warning(
                    "%d images were decided by the global threshold: neither `category` nor a folder of their path "
                    "says which of the categories %s they are of.",
                    without,
                    ", ".join(self._used),
                )
        self._forget()
        if self._unreadable:  # now that all is written, so that a command ends with an error
            raise InputError(self._unreadable)
        check_scores(table)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the scores of a run that failed."""
        self._forget()

    def _choose_thresholds(self, pl_module: Any) -> None:
        post_processor = getattr(pl_module, "post_processor", None)
        self._global_threshold = global_thresholds(post_processor)["image"]
        products: Any = getattr(pl_module, "products", None)
        if products:  # each is decided about by its own
            self._global_threshold, self._decided_by = float("nan"), pl_module.decided_by
            if self.category is not None and self.category not in products:
                known = ", ".join(products)
                raise InputError(f"The model has no product {self.category!r}, it knows {known}.")
            told = self.thresholds == "category" or self.category is not None
            self._used = self.category_thresholds if told else {}
            return
        if self.thresholds == "global":
            return
        if not self.category_thresholds:
            raise InputError(
                "thresholds is 'category', but the model has none of categories. They are learned at validations "
                "during training and kept in its checkpoint; a model without them has 'global' ones only."
            )
        if not isinstance(post_processor, PostProcessor):
            raise InputError("thresholds is 'category', which needs anomalib's PostProcessor, but the model has none.")
        self._used = self.category_thresholds
        self._decided_by = with_sensitivity(self._used, post_processor)

    def _scope(self, pl_module: Any) -> str:
        """By whose threshold is decided: all images' global one, a told category's, or a recognised product's."""
        return "product" if getattr(pl_module, "products", None) and not self._used else self.thresholds

    def _decide(self, batch: Any, categories: Sequence[str], pl_module: Any) -> InferenceBatch:
        """Decide by category where that is wanted; returns the raw outputs."""
        raw = self._raw_outputs.take()
        if self._used and getattr(pl_module, "products", None):
            pl_module.judge_as(batch, raw, categories)
        elif self._used:
            decide_by_category(batch, raw, categories, self._used, pl_module.post_processor)
        wrong = without_score(batch, raw.pred_score)
        if wrong is not None and batch.pred_label is not None and batch.pred_label.dtype == torch.bool:
            batch.pred_label = batch.pred_label | wrong.reshape(batch.pred_label.shape)  # never normal
        return raw

    def _update(self, batch: Any, count: int) -> None:
        """Update the metrics with the first images of a batch."""
        if count:
            self._metrics.update(batch if count == len(batch) else select(batch, range(count)))

    def _learn_thresholds(self, category: str, results: Results, rankings: Mapping[Level, Ranking]) -> None:
        if rankings:
            self._learned[category] = {level: f1_threshold(ranking) for level, ranking in rankings.items()}

    def _count(self, trainer: Trainer, seen: str, predictions: pd.DataFrame | None = None) -> pd.DataFrame:
        """Count the images of the datamodule's sets, those that were seen now as they were seen, and decisions."""
        images = count_images(getattr(trainer, "datamodule", None), self._results.categories)
        for category, number in self._results.images.items():
            images[category][seen] = number
        return count(self._results.categories, images, predictions)

    def _log_results(self, trainer: Trainer) -> None:
        for name, value in self._results.logged().items():
            if trainer.barebones:  # nothing is logged then: as in anomalib's evaluator, put them where they go
                trainer.callback_metrics[name] = value
                trainer.logged_metrics[name] = value
            else:
                self.log(name, value, sync_dist=trainer.world_size > 1)

    def _show_category(
        self, trainer: Trainer, category: str, results: Results, rankings: Mapping[Level, Ranking]
    ) -> None:
        """Print the row of a category, and draw its curves, as soon as its values are known."""
        if not _writes_files(trainer) or not results.images[category]:
            return
        if self._several and results.metrics:
            _print_row(trainer.progress_bar_callback, category, results)
        if self.pictures and rankings:
            try:
                self._draw_curves(category, rankings)
            except Exception as error:  # other processes wait, and numbers matter more than a picture
                logger.warning("There is no picture of %r: %s", category, error)

    def _draw_curves(self, category: str, rankings: Mapping[Level, Ranking]) -> None:
        from anomalib_uniad.metrics.curves import draw_category  # matplotlib takes a second

        learned = self.category_thresholds.get(category, {}).get("image", float("nan"))
        thresholds = {"global": self._global_threshold, "category": learned}
        scores = self._predictions.scores(category)
        figure = draw_category(category, rankings.get("image"), rankings.get("pixel"), *scores, thresholds)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        self._curves[category] = picture.getvalue()

    def _predicted_categories(self, batch: Any, datamodule: Any) -> list[str]:
        """The category that was given, else what the datamodule says, else the folder of a category with thresholds."""
        paths = [path or "" for path in paths_of(batch)]
        known = [self.category] if self.category is not None else list(self.category_thresholds)
        if self.category is None and known_categories(datamodule):
            return categories_of(paths, datamodule)
        if len(known) == 1:
            return known * len(paths)
        return [find_category(path, known) for path in paths]


def _anomalibs_metrics() -> list[Any]:
    # Not at the top: anomalib.models loads this package at the end of its own import.
    from anomalib.models.components import AnomalibModule

    return list(AnomalibModule.configure_evaluator().test_metrics)


def _geometry_of(pl_module: LightningModule) -> Geometry | None:
    """Crop and padding of a model's pre-processor, if it has some; only ours does."""
    return getattr(getattr(pl_module, "pre_processor", None), "geometry", None)


def _writes_files(trainer: Trainer) -> bool:
    """Whether this process writes files: none does in runs that only measure speed or try whether everything runs."""
    return trainer.is_global_zero and not trainer.barebones and not getattr(trainer, "fast_dev_run", False)


def _print_row(bar: Any, category: str, results: Results) -> None:
    """Print the values of a category above the progress bar; with the first one, names on two lines, so they fit."""
    if bar is None or getattr(bar, "is_disabled", False):
        return
    heads = [heading(name) for name in results.metrics]
    widths = [max(5, *map(len, head)) for head in heads]
    label = category if len(category) <= 13 else f"{category[:6]}…{category[-6:]}"  # names often differ at their end
    lines = [(label, for_people([results.values.get((name, category)) for name in results.metrics]))]
    if sum(map(bool, results.images.values())) == 1:
        lines = [*(("", list(cells)) for cells in zip(*heads, strict=True)), *lines]
    for first, cells in lines:
        bar.print(" ".join([first.ljust(13), *(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))]))

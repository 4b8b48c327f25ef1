# SPDX-License-Identifier: Apache-2.0
"""The epoch with the best validation instead of the last one."""

import math
import shutil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import replacing
from anomalib_uniad.splits import describe_validation, drawn_without_seed, validates_test_images

from .checkpoint_files import checkpoint_path, save_whole

CheckpointChoice = Literal["last", "best"]
MONITOR = "image_AUROC"
_LAST = "Or keep the last checkpoint (checkpoint_selection=last)."


class CheckpointSelection(Callback):
    """Makes the epoch with the highest validation ``image_AUROC`` the result of a training.

    Each validation that is better than all before it (with equal values, the earlier one stays) writes ``best.ckpt``.
    When training ends, that is loaded into the model and takes the place of ``model.ckpt``, the last epoch, so that
    what is tested and exported is the same. The choice survives a training that is resumed.

    A training does not begin if images are validated that are tested as well: the result would be chosen on them.
    """

    def __init__(self) -> None:
        self._score: float | None = None  # of the best validation so far
        self._step = 0  # its global step
        self._path: Path | None = None  # None: nothing is selected
        self._last: Any = None  # callback that keeps the last epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the validation images.

        Raises:
            ValueError: If there is nothing to select by, or it would be selected on test images.
        """
        if stage != "fit":
            return
        self._score = self._path = None
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        _check_images(trainer)
        _check_metric(pl_module)
        checkpoints = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        self._last = next((item for item in checkpoints if item.monitor is None and item.save_top_k == 1), None)
        if self._last is None:
            raise InputError(
                "checkpoint_selection=best needs the trainer's own checkpoint callback, which keeps the last epoch; it "
                f"is switched off, or replaced by another. {_LAST}"
            )
        self._path = checkpoint_path(trainer, "best.ckpt")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, if it is the best so far."""
        if self._path is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics[MONITOR])
        score = -math.inf if math.isnan(score) else score
        if trainer.strategy.broadcast(self._score is None or score > self._score):
            before = self._score, self._step
            self._score, self._step = score, trainer.global_step  # as the file is to say
            if not save_whole(trainer, self._path):
                self._score, self._step = before

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the best epoch into the model, and put its file in the place of the last one."""
        if self._path is None or self._score is None:
            return
        checkpoint = trainer.strategy.load_checkpoint(self._path)
        pl_module.on_load_checkpoint(checkpoint)  # thresholds of categories, and for how many epochs it was trained
        pl_module.load_state_dict(checkpoint["state_dict"])
        trainer.strategy.barrier("best checkpoint loaded")
        if trainer.is_global_zero and self._last.best_model_path:
            self._path.replace(self._last.best_model_path)
        epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
        rank_zero_info(
            f"Selected the epoch with the highest {MONITOR} of the validations: {epoch} of {trainer.current_epoch}, "
            f"with {self._score:.4f}."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what is known of the best epoch so far."""
        return {"score": self._score, "step": self._step, "path": str(self._path)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self._score, self._step = state_dict["score"], state_dict["step"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring the best checkpoint so far along when training is resumed, with anomalib in another folder.

        Raises:
            FileNotFoundError: If it is neither beside the checkpoint that is resumed nor where it was written.
        """
        if self._path is None or trainer.state.fn != TrainerFn.FITTING or trainer.ckpt_path is None:
            return
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:
            rank_zero_warn(
                f"Training was begun without checkpoint_selection=best: only what follows {trainer.ckpt_path} counts."
            )
            return
        if state["score"] is None:
            return
        resumed = Path(trainer.ckpt_path)
        sources = [path for path in (resumed.with_name(self._path.name), Path(state["path"])) if path.is_file()]
        if state["step"] == checkpoint["global_step"]:
            sources.append(resumed)  # it has the same weights: model.ckpt of a complete training, for example
        if not sources:
            raise MissingFileError(
                f"The best checkpoint so far ({MONITOR} {state['score']:.4f}) is not there any more: {state['path']}. "
                f"Put it beside {trainer.ckpt_path}."
            )
        if trainer.is_global_zero and sources[0].resolve() != self._path.resolve():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as (part,):
                shutil.copyfile(sources[0], part)


def _check_images(trainer: Trainer) -> None:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    where = describe_validation(datamodule)
    if not where or not trainer.enable_validation:
        raise InputError(
            "checkpoint_selection=best needs a datamodule with validation images; choose them with its val_split_mode, "
            f"for example from_test. {_LAST}"
        )
    if validates_test_images(datamodule):
        raise InputError(
            f"With checkpoint_selection=best, the checkpoint would be selected on test images: those of the validation "
            f"are {where}. Set some aside with the datamodule's val_split_mode, for example from_test. {_LAST}"
        )
    labels = datamodule.val_data.samples.get("label_index")
    if labels is None or set(labels) < {0, 1}:
        raise InputError(
            f"With checkpoint_selection=best, {MONITOR} needs normal and defective validation images, but there is "
            f"only one kind: {where}. Choose another val_split_mode of the datamodule. {_LAST}"
        )
    if drawn_without_seed(datamodule):
        rank_zero_warn(
            "The validation images are drawn without a seed: a later test would draw others, and test some that the "
            "checkpoint was selected on. Set the datamodule's `seed`."
        )


def _check_metric(pl_module: LightningModule) -> None:
    metrics: Any = getattr(getattr(pl_module, "evaluator", None), "val_metrics", ())
    if MONITOR not in [metric.name for metric in metrics]:
        raise InputError(f"checkpoint_selection=best needs {MONITOR} among the evaluator's val_metrics. {_LAST}")

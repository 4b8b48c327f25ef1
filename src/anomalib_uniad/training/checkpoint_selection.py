# SPDX-License-Identifier: Apache-2.0
"""The epoch with the best validation instead of the last one."""

import shutil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from anomalib_uniad.splits import describe_validation, drawn_without_seed, validates_test_images

CheckpointChoice = Literal["last", "best"]
MONITOR = "image_AUROC"
_LAST = "Or keep the last checkpoint (checkpoint_selection=last)."


class CheckpointSelection(Callback):
    """Makes the epoch with the highest validation ``image_AUROC`` the result of a training.

    The checkpoint callback that keeps the last epoch (anomalib's ``model.ckpt``) gives its place to one that keeps the
    best; with equal values, the earlier epoch. When training ends, its weights and thresholds are loaded into the
    model, so that what is tested and exported is the same. The choice survives a training that is resumed.

    A training does not begin if images are validated that are tested as well: the result would be chosen on them.
    """

    def __init__(self) -> None:
        self.selected: dict[str, Any] | None = None  # counters of the epoch that the model has now
        self._best: BestCheckpoint | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the validation images, and take the place of the callback that keeps the last epoch.

        Raises:
            ValueError: If there is nothing to select by, or it would be selected on test images.
        """
        if stage != "fit":
            return
        self.selected = self._best = None
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        _check_images(trainer)
        _check_metric(pl_module)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        position = next((index for index, item in enumerate(callbacks) if _keeps_one(item)), None)
        if position is None:
            msg = (
                "checkpoint_selection=best needs the trainer's own checkpoint callback, which keeps the last epoch; it "
                f"is switched off, or replaced by another. {_LAST}"
            )
            raise ValueError(msg)
        last: Any = callbacks[position]
        self._best = BestCheckpoint(dirpath=last.dirpath, filename=last.filename or "model")
        callbacks[position] = self._best
        self._best.setup(trainer, pl_module, stage)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the best epoch into the model."""
        if self._best is None or not self._best.best_model_path:
            return
        checkpoint = trainer.strategy.load_checkpoint(self._best.best_model_path)
        pl_module.load_state_dict(checkpoint["state_dict"])
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        self.selected = {
            "epoch": checkpoint["epoch"],
            "global_step": checkpoint["global_step"],
            "epoch_progress": epochs,
        }
        pl_module.on_load_checkpoint(checkpoint)  # thresholds of categories, and for how many epochs it was trained
        score = float(self._best.best_model_score)  # type: ignore[arg-type]
        rank_zero_info(
            f"Selected the epoch with the highest {MONITOR} of the validations: {epochs['current']['ready']} of "
            f"{trainer.current_epoch}, with {score:.4f}."
        )


class BestCheckpoint(ModelCheckpoint):
    """Lightning's callback, which forgets the best checkpoint if it is resumed in another folder, as anomalib does it.

    Args:
        dirpath (str | Path | None): Folder of the file.
        filename (str): Its name, without the suffix.
    """

    def __init__(self, dirpath: str | Path | None, filename: str) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=MONITOR,
            mode="max",
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,  # at validations
        )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring the best checkpoint so far along.

        Raises:
            FileNotFoundError: If it is neither where it was written nor beside the checkpoint that is resumed.
        """
        del pl_module
        if trainer.state.fn != TrainerFn.FITTING or trainer.ckpt_path is None or self.dirpath is None:
            return
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:
            rank_zero_warn(
                f"Training was begun without checkpoint_selection=best: only what follows {trainer.ckpt_path} counts."
            )
            return
        moved = {**state, "dirpath": self.dirpath}
        if state["best_model_path"]:
            source = Path(state["best_model_path"])
            if not source.is_file():
                source = Path(trainer.ckpt_path).parent / source.name
            if not source.is_file():
                msg = (
                    f"The best checkpoint so far ({MONITOR} {float(state['best_model_score']):.4f}) is not there any "
                    f"more: {state['best_model_path']}. Put it beside {trainer.ckpt_path}."
                )
                raise FileNotFoundError(msg)
            target = Path(self.dirpath, source.name)
            if trainer.is_global_zero and source.resolve() != target.resolve():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target.with_suffix(".part"))
                target.with_suffix(".part").replace(target)
            path = str(target)
            moved |= {"best_model_path": path, "kth_best_model_path": path}
            moved["best_k_models"] = {path: state["best_model_score"]}
        checkpoint["callbacks"][self.state_key] = moved


def _keeps_one(callback: Callback) -> bool:
    """Whether it is a callback that keeps the last epoch, as anomalib and Lightning add it, or one of ours."""
    if not isinstance(callback, ModelCheckpoint):
        return False
    return isinstance(callback, BestCheckpoint) or (callback.monitor is None and callback.save_top_k == 1)


def _check_images(trainer: Trainer) -> None:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    where = describe_validation(datamodule)
    if not where or not trainer.enable_validation:
        msg = (
            "checkpoint_selection=best needs a datamodule with validation images; choose them with its val_split_mode, "
            f"for example from_test. {_LAST}"
        )
        raise ValueError(msg)
    if validates_test_images(datamodule):
        msg = (
            f"With checkpoint_selection=best, the checkpoint would be selected on test images: those of the validation "
            f"are {where}. Set some aside with the datamodule's val_split_mode, for example from_test. {_LAST}"
        )
        raise ValueError(msg)
    labels = datamodule.val_data.samples.get("label_index")
    if labels is None or set(labels) < {0, 1}:
        msg = (
            f"With checkpoint_selection=best, {MONITOR} needs normal and defective validation images, but there is "
            f"only one kind: {where}. Choose another val_split_mode of the datamodule. {_LAST}"
        )
        raise ValueError(msg)
    if drawn_without_seed(datamodule):
        rank_zero_warn(
            "The validation images are drawn without a seed: a later test would draw others, and test some that the "
            "checkpoint was selected on. Set the datamodule's `seed`."
        )


def _check_metric(pl_module: LightningModule) -> None:
    metrics: Any = getattr(getattr(pl_module, "evaluator", None), "val_metrics", ())
    if MONITOR not in [metric.name for metric in metrics]:
        msg = f"checkpoint_selection=best needs {MONITOR} among the evaluator's val_metrics. {_LAST}"
        raise ValueError(msg)

# SPDX-License-Identifier: Apache-2.0
"""The last epoch is validated, whatever the interval."""

from lightning.pytorch import Callback, LightningModule, Trainer


class LastEpochValidation(Callback):
    """Have the last epoch validated, for its thresholds and its checkpoint.

    Lightning writes checkpoints after validations, so without this the checkpoint of a training whose length is
    no multiple of ``check_val_every_n_epoch`` would be older than the model that is tested, or missing.
    """

    def __init__(self) -> None:
        self._interval: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the epoch in which training starts, or resumes."""
        self._look(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the epoch that begins."""
        self._look(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the trainer its validation interval back."""
        del pl_module
        if self._interval is not None:
            trainer.check_val_every_n_epoch = self._interval
            self._interval = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the trainer its validation interval back."""
        del exception
        self.on_fit_end(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = pl_module.current_epoch + 1 == trainer.max_epochs
        if last and self._interval is None and trainer.check_val_every_n_epoch is not None:
            self._interval = trainer.check_val_every_n_epoch
            trainer.check_val_every_n_epoch = 1

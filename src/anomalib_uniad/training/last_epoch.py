# SPDX-License-Identifier: Apache-2.0
"""The end of a training is validated, whatever the interval."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LastEpochValidation(Callback):
    """Has the end of a training validated, for its thresholds and its checkpoint.

    Lightning writes checkpoints after validations, so without this the checkpoint of a training whose length is
    no multiple of ``check_val_every_n_epoch``, or that ends by ``max_steps`` within an epoch, would be older than the
    model that is tested, or missing.
    """

    def __init__(self) -> None:
        self._interval: int | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the epoch that begins, if it is the last one."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._validate_now(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same if training is resumed in the middle of the last epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The same if it was the last step, which may be within an epoch; Lightning validates where it is stopped."""
        if 0 <= trainer.max_steps <= trainer.global_step:
            self._validate_now(trainer)
            trainer.should_stop = True

    def _validate_now(self, trainer: Trainer) -> None:
        if self._interval is None and trainer.check_val_every_n_epoch is not None:
            self._interval = trainer.check_val_every_n_epoch
            trainer.check_val_every_n_epoch = 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the trainer its validation interval back."""
        if self._interval is not None:
            trainer.check_val_every_n_epoch = self._interval
            self._interval = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the trainer its validation interval back."""
        self.on_fit_end(trainer, pl_module)

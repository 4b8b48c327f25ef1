# SPDX-License-Identifier: Apache-2.0
"""How long a training takes: measured, said at its start, and shown while it runs."""

import math
import time
from collections import deque
from datetime import datetime, timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from anomalib_uniad.durations import in_words

_SKIPPED = 3  # steps at the start, in which things are loaded, allocated and compiled
_MEASURED = 5, 3.0  # steps, and seconds, from which on a mean says something
_WINDOW = 200  # last steps of which the mean is taken


class TrainingDuration(Callback):
    """Times the first steps of a training and says how long all of it will take; then shows the minutes that are left.

    A step is timed from its end to the end of the next one, with everything in between but validations, which are timed
    for themselves. Before the first validation has been seen, its images are taken to need as long as those of the
    training. ``minutes_left`` in the progress bar, whichever it is, is of the whole training, and follows a training
    that becomes slower, or whose end (``max_steps``) is moved.

    Examples:
        >>> trainer = Trainer(callbacks=[TrainingDuration()], accelerator="cpu", logger=False)
    """

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=_WINDOW)  # seconds of the last batches
        self._skip = 0
        self._said = False
        self._mark: float | None = None  # when the last batch ended
        self._validation: float | None = None  # seconds of the last one
        self._validation_start = 0.0
        self._shown = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._steps.clear()
        self._skip, self._said, self._mark, self._validation, self._shown = _SKIPPED, False, None, None, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Time the step, and say what is known."""
        if not self._said and trainer.strategy.root_device.type != "cpu":
            torch.accelerator.synchronize()  # else it would be timed how fast work is handed to the device
        now = time.monotonic()
        if self._skip:
            self._skip -= 1
        elif self._mark is not None:
            self._steps.append(now - self._mark)
        self._mark = now
        steps, seconds = _MEASURED
        if not self._said and len(self._steps) >= steps and sum(self._steps) >= seconds:
            self._said = True
            self._say(trainer)
        if self._said and trainer.progress_bar_callback is not None and now - self._shown >= 1:
            self._shown = now
            left = torch.tensor(round(self.seconds_left(trainer) / 60, 1))  # on the CPU: nothing waits for a device
            pl_module.log("minutes_left", left, prog_bar=True, logger=False, on_step=True, on_epoch=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the validation."""
        self._validation_start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it, and leave the validation out of the step that it lies in."""
        self._validation = time.monotonic() - self._validation_start
        if self._mark is not None:
            self._mark += self._validation

    def seconds_left(self, trainer: Trainer) -> float:
        """Estimate the seconds from now to the end of the training.

        Args:
            trainer (Trainer): The trainer, in a training.

        Returns:
            float: The estimate; NaN before a step has been timed.
        """
        if not self._steps:
            return math.nan
        step = sum(self._steps) / len(self._steps)
        validation = self._validation
        if validation is None:
            data: Any = getattr(trainer, "datamodule", None)
            images = len(getattr(data, "val_data", None) or ())
            validation = step * images / getattr(data, "train_batch_size", 1) / trainer.world_size
        done, total = batches_of(trainer)
        return step * (total - done) + validation * validations_left(trainer, done, total)

    def _say(self, trainer: Trainer) -> None:
        done, total = batches_of(trainer)
        if math.isinf(total):
            return
        seconds = self.seconds_left(trainer)
        begun = done > len(self._steps) + _SKIPPED  # in an earlier run
        what = f"{total - done:,} steps that are left of {total:,}" if begun else f"{total:,} steps"
        if not begun and total % trainer.num_training_batches == 0:
            per_epoch = int(trainer.num_training_batches)
            what = f"{_count(int(total) // per_epoch, 'epoch')} of {_count(per_epoch, 'step')}"
        spent = 0 if begun else sum(self._steps)
        rank_zero_info(f"{what}: about {in_words(seconds + spent)}, until {_clock(seconds)}.")


def batches_of(trainer: Trainer) -> tuple[int, float]:
    """Count the batches of a training, each of which is a step unless gradients are accumulated.

    Args:
        trainer (Trainer): The trainer, in a training.

    Returns:
        tuple[int, float]: Those that are done, and those that there will be in all; infinite if it has no end.
    """
    per_epoch, ends = trainer.num_training_batches, [math.inf]
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(trainer.max_epochs * per_epoch)
    if trainer.max_steps >= 0:
        gathered = trainer.accumulate_grad_batches
        whole, rest = (
            (0, trainer.max_steps)
            if math.isinf(per_epoch)
            else divmod(
                trainer.max_steps,
                math.ceil(per_epoch / gathered),  # the last step of an epoch takes what is left of it
            )
        )
        ends.append((whole * per_epoch if whole else 0) + rest * gathered)
    end = min(ends)
    return trainer.fit_loop.total_batch_idx + 1, end if math.isinf(end) else int(end)


def validations_left(trainer: Trainer, done: int, total: float) -> int:
    """Count the validations that are to come, that after the last batch that is done and that at the end included.

    Args:
        trainer (Trainer): The trainer, in a training.
        done (int): Batches that are done.
        total (float): Batches that there will be.

    Returns:
        int: Their number.
    """
    per_epoch, batches = trainer.num_training_batches, trainer.val_check_batch or math.inf
    if not trainer.enable_validation or math.isinf(total) or math.isinf(per_epoch):
        return 0
    epochs = trainer.check_val_every_n_epoch or 0  # 0: the interval counts batches, whatever the epoch
    several = epochs and batches < per_epoch  # in each of the epochs that are validated
    interval = batches if several or not epochs else per_epoch * epochs

    def until(batch: int) -> int:
        if not several:
            return int(batch // interval)
        epoch, rest = divmod(batch, per_epoch)
        in_this = rest // interval if (epoch + 1) % epochs == 0 else 0
        return int(epoch // epochs * (per_epoch // interval) + in_this)

    at_end = until(int(total)) == until(int(total) - 1)  # by the model's own callback
    return until(int(total)) + at_end - until(done - 1)


def _clock(seconds: float) -> str:
    now = datetime.now().astimezone()
    end = now + timedelta(seconds=seconds)
    return f"{end:%H:%M}" if end.date() == now.date() else f"{end:%Y-%m-%d %H:%M}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"

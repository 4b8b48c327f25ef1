# SPDX-License-Identifier: Apache-2.0
"""The checkpoint from which an interrupted training is resumed."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

FILE_NAME = "resume.ckpt"
_ASK_EVERY = 50  # batches; several processes have to agree that it is time, which takes some


class ResumeCheckpoint(Callback):
    """Writes ``resume.ckpt`` every few minutes, and when training is interrupted.

    The file lies in ``weights/lightning`` of the run's folder, where anomalib puts ``model.ckpt``. There is one at a
    time; a new one takes the place of the old one at once, so there is a complete one whenever the process is killed.
    If it cannot be written, that is a warning, and training goes on (with several processes, it is an error).
    It is written by an exception, Ctrl-C and SIGTERM as well, if weights and optimizer are in a state between two
    steps then; otherwise the last one stays. It is removed when training has come to the end of ``max_epochs`` or
    ``max_steps``. No file is written if the trainer is not to write checkpoints (``enable_checkpointing=False``,
    ``barebones``, ``fast_dev_run``).

    Not a subclass of Lightning's ``ModelCheckpoint``: Lightning removes callbacks of a class from a trainer if the
    model brings one of its subclasses, which would be the user's own.

    Args:
        interval_minutes (float): Minutes between two files. Defaults to ``10.0``.

    Raises:
        ValueError: If ``interval_minutes`` is not positive.

    Example:
        >>> ResumeCheckpoint(interval_minutes=30).interval_minutes
        30
    """

    def __init__(self, interval_minutes: float = 10.0) -> None:
        if not interval_minutes > 0:
            msg = f"interval_minutes must be greater than 0, got {interval_minutes}; leave the callback out for never."
            raise ValueError(msg)
        self.interval_minutes = interval_minutes
        self._path: Path | None = None  # None: nothing is to be written
        self._training = False
        self._between_steps = True
        self._written = -1  # global step of the file
        self._last_time = 0.0
        self._announced = False

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Choose the file."""
        del pl_module
        if stage != "fit":
            return
        self._path = None
        if trainer.checkpoint_callbacks and not trainer.fast_dev_run:
            path = Path(trainer.default_root_dir) / "weights" / "lightning" / FILE_NAME
            self._path = Path(trainer.strategy.broadcast(str(path)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        del pl_module
        self._training = self._between_steps = True
        self._announced = False
        self._written = trainer.global_step  # where it was resumed, there is a file already; 0 is not worth one
        self._last_time = time.monotonic()
        self._keep_source(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write the file, if it is time and no gradients are waiting for their step.

        At the start of a batch and not at the end of the one before: validation, the schedules and the end of an
        epoch are over, and nothing of them has to be made up for.
        """
        del pl_module, batch
        if self._path is None or batch_idx % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1 and batch_idx % _ASK_EVERY:
            return
        due = time.monotonic() - self._last_time >= 60 * self.interval_minutes
        if trainer.strategy.broadcast(due) and trainer.global_step != self._written:
            try:
                with at_batch(trainer, batch_idx):
                    self._write(trainer)
            except OSError as error:  # a full disk, for example
                if trainer.world_size > 1:  # the other processes wait for this one to be done
                    raise
                self._last_time = time.monotonic()
                rank_zero_warn(f"{self._path} could not be written, training goes on: {error}")

    def _keep_source(self, trainer: Trainer) -> None:
        """Copy the file from which training was resumed, for the case that it is stopped again before the next one."""
        source = trainer.ckpt_path
        if self._path is None or not trainer.is_global_zero or not source or not Path(source).is_file():
            return
        if Path(source).resolve() == self._path.resolve():
            return
        part = self._path.with_suffix(".part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, part)
            part.replace(self._path)
        except OSError as error:
            part.unlink(missing_ok=True)
            rank_zero_warn(f"{self._path} could not be written, training goes on: {error}")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """From here on, weights and optimizer may be changed in part."""
        del trainer, pl_module, optimizer
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over, that of the schedules included."""
        del trainer, pl_module, outputs, batch, batch_idx
        self._between_steps = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the file, if what has been trained can be written without a loss."""
        del pl_module
        if not self._training or self._path is None or trainer.state.fn != TrainerFn.FITTING:
            return
        self._training = False
        # Processes meet when a checkpoint is written; only after SIGTERM do all of them get here.
        alone = trainer.world_size == 1 or isinstance(exception, SIGTERMException)
        if alone and self._between_steps:
            try:
                self._write_interrupted(trainer)
            except Exception as error:  # must not hide the exception that ended the training
                rank_zero_warn(f"{self._path} could not be written: {error!r}")
        if self._announced:
            rank_zero_info(f"Training was interrupted. {self._how_to_resume()}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the file, as there is nothing left to resume."""
        del pl_module
        self._training = False
        epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        complete = 0 <= epochs <= trainer.current_epoch or 0 <= steps <= trainer.global_step
        # anomalib's Engine.train opens the file from which it was resumed once more, for the test.
        source = trainer.ckpt_path and Path(trainer.ckpt_path).resolve()
        if complete and self._path is not None and trainer.is_global_zero and self._path.resolve() != source:
            self._path.unlink(missing_ok=True)

    def _write_interrupted(self, trainer: Any) -> None:
        epoch = trainer.fit_loop.epoch_progress.current
        loop = trainer.fit_loop.epoch_loop
        done = loop.batch_progress.current.processed
        last = done >= trainer.num_training_batches
        pending = 0 if last else done % trainer.accumulate_grad_batches  # their gradients are lost: go back to before
        if trainer.validating and not pending:  # it is repeated
            with at_batch(trainer, done, validating=True):
                self._write(trainer)
        elif trainer.global_step == self._written:
            return
        elif epoch.ready == epoch.completed:  # SIGTERM, which Lightning looks for at the end of an epoch, too
            self._write(trainer)
        elif epoch.started == epoch.completed + 1 and epoch.processed == epoch.completed and not last:
            with at_batch(trainer, done - pending):
                self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if self._path is None:
            return
        # Lightning writes to the folder for temporary files and moves the file from there, which is a slow copy if
        # that is on another disk; a process killed in the meantime must not leave half a file under the final name.
        unfinished = self._path.with_suffix(".part")
        trainer.save_checkpoint(unfinished, weights_only=False)  # the default, but Lightning logs that it is
        if trainer.is_global_zero:
            with unfinished.open("rb") as file:  # on the disk before it takes the place of the last one
                os.fsync(file.fileno())
            unfinished.replace(self._path)
        self._written = trainer.global_step
        self._last_time = time.monotonic()
        if not self._announced:
            self._announced = True
            rank_zero_info(self._how_to_resume())

    def _how_to_resume(self) -> str:
        return f"To resume from {self._path}, repeat the same command with: --ckpt_path {self._path}"


@contextlib.contextmanager
def at_batch(trainer: Any, batch: int, validating: bool = False) -> Iterator[None]:
    """Have the trainer's counters say that the next thing to be done is a batch, or the validation before it.

    Of the states in which Lightning can be interrupted, it resumes only a few without doing or leaving out something
    twice. This is one of them.
    """
    loop = trainer.fit_loop.epoch_loop
    progress, validation = loop.batch_progress, loop.val_loop.batch_progress
    before = progress.state_dict(), validation.state_dict()
    total = progress.total.completed + batch - progress.current.completed
    counters = ("ready", "started", "processed", "completed")
    progress.current.load_state_dict(dict.fromkeys(counters, batch))
    progress.total.load_state_dict(dict.fromkeys(counters, total))
    if not validating:
        progress.is_last_batch = False  # it belongs to the batch that has been fetched
    else:  # as within the first batch of the validation
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation.load_state_dict({"total": begun, "current": begun, "is_last_batch": False})
    try:
        yield
    finally:
        progress.load_state_dict(before[0])
        validation.load_state_dict(before[1])

# SPDX-License-Identifier: Apache-2.0
"""Training that can be resumed at the end of its last epoch as if it had never stopped."""

import contextlib
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import InputError, UserError
from anomalib_uniad.files import replacing

from .checkpoint_files import checkpoint_path, newest_checkpoint, save_whole


class EpochSeed(Callback):
    """Seeds torch, numpy and Python at the start of each training epoch, from seed, epoch and process.

    Lightning restores weights, optimizer, schedule and counters of a checkpoint, but not the state of random number
    generators. With this callback nothing that an epoch draws (order of the images, augmentations, dropout, jitter)
    depends on the epochs before it, so a training that is resumed at the end of an epoch ends with the weights of one
    that was never stopped. Bit for bit, this needs the same hardware, software, numbers of threads and workers, and
    operations that are deterministic, as those of the CPU are.

    Not exact are: a checkpoint from the middle of an epoch, such as those of Lightning's
    ``ModelCheckpoint(every_n_train_steps=...)``, after which Lightning warns and trains the rest of that epoch on
    images in another order; dataloaders and samplers with random generators of their own; ``ReduceLROnPlateau``, which
    Lightning does not update in the epoch in which it resumes.

    Args:
        seed (int | None): Everything random follows from it. ``None`` is drawn from torch's global generator when
            training starts, and taken from the checkpoint when it is resumed. Defaults to ``None``.

    Raises:
        ValueError: If ``seed`` is negative.

    Examples:
        >>> trainer = Trainer(callbacks=[EpochSeed(seed=0)], accelerator="cpu", logger=False)
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None:
            check_at_least("seed", seed, 0)
        self.seed = seed
        self._base_seed = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the seed, the same one in all processes."""
        if stage == "fit":
            drawn = int(torch.randint(2**62, ())) if self.seed is None else self.seed
            self._base_seed = trainer.strategy.broadcast(drawn)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume from the middle of an epoch of version 0.1.0, which seeded steps instead of epochs.

        Where ``max_steps`` ends a training, Lightning would go on with another round of the epoch that is complete.

        Raises:
            ValueError: If the checkpoint is its ``resume.ckpt``; the message says what to do.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        loop = checkpoint["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]
        if "ExactResume" in checkpoint["callbacks"] and not batches["is_last_batch"]:
            raise InputError(
                f"{trainer.ckpt_path} was written by anomalib-uniad 0.1.0 between two batches, where this version "
                "cannot resume a training: resume it with 0.1.0, continue from a model.ckpt, or start again."
            )
        if trainer.max_steps != -1 and batches["is_last_batch"]:
            epochs = loop["epoch_progress"]
            if epochs["current"]["processed"] == epochs["current"]["started"]:
                for part in ("total", "current"):
                    epochs[part]["completed"] = epochs[part]["processed"]
                batches["current"] = dict.fromkeys(batches["current"], 0)
                batches["is_last_batch"] = False

    def state_dict(self) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": self._base_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seed, unless another one was given."""
        if self.seed is None:
            self._base_seed = state_dict["seed"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed the epoch."""
        numbers = (self._base_seed, trainer.current_epoch, trainer.global_rank)
        seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - it is the legacy generator that augmentations use
        random.seed(seed)
        # Order of the images and seeds of the workers are drawn when the dataloader's iterator is made. Lightning makes
        # it after this hook, except in the first epoch of a fit, whose iterator is older than the seed.
        if trainer.current_epoch == 0 or trainer.fit_loop.is_resuming:
            iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


class ResumeCheckpoint(Checkpoint):
    """Writes ``resume.ckpt`` at the end of an epoch, if enough minutes have passed since the last one.

    The file lies in ``weights/lightning`` of the run's folder, where anomalib puts ``model.ckpt``. There is one at a
    time; a new one takes the place of the old one at once, so there is a complete one whenever the process is killed.
    An interruption by Ctrl-C, a signal or an exception costs what was trained since then; it is said what was kept. If
    the file cannot be written, that is a warning, and training goes on. It is removed when training has come to the end
    of ``max_epochs`` or ``max_steps``. No file is written if the trainer is not to write checkpoints
    (``enable_checkpointing=False``, ``barebones``, ``fast_dev_run``).

    It is a ``Checkpoint`` for Lightning to call it last, when early stopping and other checkpoint callbacks are done
    with the epoch. It is no ``ModelCheckpoint``: a model that brings one takes the user's own out of the trainer.

    Args:
        interval_minutes (float): Minutes between two files; 0 writes none. Defaults to ``10.0``.

    Raises:
        ValueError: If ``interval_minutes`` is negative.

    Examples:
        >>> ResumeCheckpoint(interval_minutes=30).interval_minutes
        30
    """

    best_model_path = ""  # anomalib's engine asks the trainer's first checkpoint callback for it

    def __init__(self, interval_minutes: float = 10.0) -> None:
        check_at_least("interval_minutes", interval_minutes, 0)
        self.interval_minutes = interval_minutes
        self._path: Path | None = None  # None: nothing is to be written
        self._training = False
        self._trained_step = 0  # global step at the last start or file
        self._last_time = 0.0
        self._announced = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the file."""
        if stage == "fit":
            others = [callback for callback in trainer.checkpoint_callbacks if callback is not self]
            wanted = self.interval_minutes > 0 and others and not trainer.fast_dev_run  # type: ignore[attr-defined]
            self._path = checkpoint_path(trainer, "resume.ckpt") if wanted else None
            self._announced = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and copy the file from which training is resumed: it may be stopped before the next one."""
        self._training = True
        self._trained_step = trainer.global_step
        self._last_time = time.monotonic()
        source = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path else None
        if self._path is None or not trainer.is_global_zero or source is None or not source.is_file():
            return
        if source != self._path.resolve():
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self._path) as (part,):
                    shutil.copyfile(source, part)
            except OSError as error:
                rank_zero_warn(f"{self._path} could not be written, training goes on: {error}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, if it is time."""
        # Lightning calls this once more for the epoch after which it resumes.
        if self._path is None or trainer.should_stop or trainer.global_step == self._trained_step:
            return
        if trainer.strategy.broadcast(time.monotonic() - self._last_time >= 60 * self.interval_minutes):
            if save_whole(trainer, self._path) and not self._announced:
                rank_zero_info(_how_to_resume(self._path))
                self._announced = True
            self._trained_step = trainer.global_step
            self._last_time = time.monotonic()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what was kept, and how to go on."""
        if not self._training:
            return
        self._training = False
        kept = self._path if self._path is not None and self._path.is_file() else newest_checkpoint(trainer)
        if kept is not None:
            rank_zero_info(f"Training was interrupted. {_how_to_resume(kept)}")
        elif not isinstance(exception, UserError):
            advice = "" if self.interval_minutes else " Set resume_interval to have a checkpoint written now and then."
            rank_zero_info(f"Training was interrupted before its first checkpoint: nothing of it was kept.{advice}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the file, as there is nothing left to resume."""
        self._training = False
        epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        complete = 0 <= epochs <= trainer.current_epoch or 0 <= steps <= trainer.global_step
        # anomalib's Engine.train opens the file from which it was resumed once more, for the test.
        source = trainer.ckpt_path and Path(trainer.ckpt_path).resolve()
        if complete and self._path is not None and trainer.is_global_zero and self._path.resolve() != source:
            with contextlib.suppress(OSError):  # its folder is gone, for example
                self._path.unlink()


class TrainedWeights(Callback):
    """Has the test after a resumed training test what was trained.

    This is a workaround: anomalib's ``Engine.train(ckpt_path=...)`` gives the checkpoint to the training and then again
    to the test, so that the weights from before the training would be tested. The model has to call :meth:`keep` from
    its ``on_load_checkpoint``, as weights are loaded before callbacks are asked.
    """

    def __init__(self) -> None:
        self._outdated: Path | None = None  # checkpoint from which the last training was resumed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget earlier trainings."""
        if stage == "fit":
            self._outdated = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the checkpoint that is older than the model now."""
        self._outdated = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path else None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """From the second test on, checkpoints are loaded as they are."""
        if stage != "fit":
            self._outdated = None

    def keep(self, pl_module: LightningModule, checkpoint: dict[str, Any]) -> bool:
        """Keep the model as it is if it is about to be tested with the checkpoint that its training was resumed from.

        Args:
            pl_module (LightningModule): The model.
            checkpoint (dict[str, Any]): The checkpoint that is about to be loaded; changed in place.

        Returns:
            bool: Whether nothing is to be taken from the checkpoint.
        """
        trainer = pl_module._trainer  # `pl_module.trainer` raises an error if there is none
        if trainer is None or trainer.state.fn != TrainerFn.TESTING or self._outdated is None:
            return False
        if Path(trainer.ckpt_path or "").resolve() != self._outdated:
            return False
        rank_zero_info(f"Testing the weights after the training that was resumed, not those in {trainer.ckpt_path}.")
        checkpoint["state_dict"] = pl_module.state_dict()
        checkpoint["callbacks"] = None  # Lightning then leaves callbacks as they are
        return True


def _how_to_resume(path: Path) -> str:
    return f"To resume from {path}, repeat the same command with: --ckpt_path {path}"

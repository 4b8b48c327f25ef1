# SPDX-License-Identifier: Apache-2.0
"""Training that can be continued from a checkpoint as if it had never stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from .dataloaders import wrap_dataloader
from .exact_loader import STEP, ExactLoader, can_be_exact, mix_seed, seed_everything_quietly


class ExactResume(Callback):
    """Makes a training that is resumed end with the weights of one that was never stopped.

    Lightning restores weights, optimizer, schedule and counters, but neither the state of random number generators
    nor the order of the images. With this callback, both are functions of one seed and of the position in the
    training:

    * Before each training step, the generators are seeded with a number made of seed, epoch, batch and process. What
      dropout and jitter draw does not depend on what validations or dataloaders have drawn before.
    * The datamodule's training dataloader is replaced for the time of the training by one whose order depends on
      seed and epoch, and which goes on where the checkpoint was written. Random augmentations are seeded for each
      batch, also in worker processes.

    A dataloader is left alone if the datamodule does not shuffle in the plain way (own sampler, batch sampler or
    subclass of torch's dataloader, or several dataloaders), if it is given to the trainer without a datamodule, and
    with the trainer's arguments ``overfit_batches`` and ``use_distributed_sampler=False``. Training steps are exact
    then, but the order of the images is the dataloader's own business; Lightning warns when such a training is
    resumed in the middle of an epoch.

    The same weights bit for bit need the same hardware, number of threads and software, and operations that are
    deterministic, as those of the CPU are. Learning-rate schedules that follow a metric (``ReduceLROnPlateau``) are
    not exact: Lightning does not update them in the epoch in which it resumes. What is logged once per epoch, such as
    ``train_loss``, covers the part of that epoch since the resumption.

    Args:
        seed (int | None): Everything random follows from it. ``None`` is drawn from torch's global generator when
            training starts, and taken from the checkpoint when it is resumed. Defaults to ``None``.

    Raises:
        ValueError: If ``seed`` is negative.

    Example:
        >>> trainer = Trainer(callbacks=[ExactResume(seed=0)], accelerator="cpu", logger=False)
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            msg = f"seed must be at least 0 or None, got {seed}."
            raise ValueError(msg)
        self.seed = seed
        self._base_seed = 0
        self._position: dict[str, int] | None = None  # from the checkpoint
        self._loader: ExactLoader | None = None
        self._unwrap: Callable[[], None] | None = None
        self._resumed: tuple[Path, int] | None = None  # checkpoint from which the fit was resumed, its step
        self._outdated: Path | None = None  # checkpoint that is older than what was trained from it

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the seed, and replace the training dataloader."""
        del pl_module
        if stage != "fit":
            return
        self._restore_dataloader()
        self._position = self._loader = self._resumed = self._outdated = None
        drawn = int(torch.randint(2**62, ())) if self.seed is None else self.seed
        self._base_seed = trainer.strategy.broadcast(drawn)
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None and _may_replace_sampler(trainer):
            self._unwrap = wrap_dataloader(datamodule, "train_dataloader", lambda loader: self._exact(trainer, loader))

    def _exact(self, trainer: Trainer, loader: Any) -> Any:
        if not can_be_exact(loader):
            return loader
        processes = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        self._loader = ExactLoader.like(loader, seed=self._base_seed, position=lambda: _position(trainer), **processes)
        return self._loader

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the dataloader go on where the checkpoint was written.

        Lightning does so as well, but not if ``configure_optimizers`` has asked for the number of steps: the
        dataloader is then older than the state of the checkpoint, the seed in it included.
        """
        del trainer, pl_module
        if self._loader is not None:
            self._loader.sampler.base_seed = self._base_seed
            if self._position is not None:
                self._loader.load_state_dict(self._position)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the step. Not by the global step, which is the same for all batches of an accumulated gradient."""
        del pl_module, batch
        seed = mix_seed(self._base_seed, STEP, trainer.current_epoch, batch_idx, trainer.global_rank)
        seed_everything_quietly(seed)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that there are newer weights than those of the checkpoint."""
        del pl_module
        if self._resumed is not None and trainer.global_step > self._resumed[1]:
            self._outdated = self._resumed[0]
        self._resumed = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the datamodule its dataloader back."""
        del trainer, pl_module
        self._restore_dataloader()
        self._loader = None  # not after an exception: other callbacks may write a checkpoint then

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the datamodule its dataloader back; from the second test on, checkpoints are loaded as they are."""
        del trainer, pl_module
        self._restore_dataloader()
        if stage != "fit":
            self._outdated = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the datamodule its dataloader back."""
        del trainer, pl_module, exception
        self._restore_dataloader()
        self._resumed = self._outdated = None

    def _restore_dataloader(self) -> None:
        if self._unwrap is not None:
            self._unwrap()
            self._unwrap = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember from which checkpoint training is resumed."""
        del pl_module
        if trainer.state.fn == TrainerFn.FITTING and trainer.ckpt_path is not None:
            self._resumed = (Path(trainer.ckpt_path).resolve(), checkpoint["global_step"])
            _finish_epoch(checkpoint["loops"]["fit_loop"])

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the position in the epoch."""
        return {"seed": self._base_seed, "position": self._loader and self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seed, unless another one was given, and the position."""
        if self.seed is None:
            self._base_seed = state_dict["seed"]
        self._position = state_dict["position"]

    def keep_trained_weights(
        self, pl_module: LightningModule, checkpoint: dict[str, Any], selected: dict[str, Any] | None = None
    ) -> None:
        """Let the test that follows a resumed training test what was trained.

        anomalib's ``Engine.train(ckpt_path=...)`` gives the checkpoint to the training and then again to the test, so
        that the weights from before the training would be tested. If a test is about to load the checkpoint from which
        the training just before it was resumed, its contents are replaced by the present state of the model. This is
        for the first test after the training only.

        Args:
            pl_module (LightningModule): The model, from whose ``on_load_checkpoint`` this is to be called.
            checkpoint (dict[str, Any]): The checkpoint that is about to be loaded; changed in place.
            selected (dict[str, Any] | None): ``epoch``, ``global_step`` and ``epoch_progress`` of the model's epoch,
                if it is another one than the last. Defaults to ``None``.
        """
        trainer = pl_module._trainer  # `pl_module.trainer` raises an error if there is none
        outdated, path = self._outdated, getattr(trainer, "ckpt_path", None)
        if trainer is None or outdated is None or path is None or trainer.state.fn != TrainerFn.TESTING:
            return
        if Path(path).resolve() != outdated:
            return
        rank_zero_info(f"Testing the weights after the training that was resumed from {path}, not those in this file.")
        checkpoint["state_dict"] = pl_module.state_dict()
        pl_module.on_save_checkpoint(checkpoint)
        checkpoint["callbacks"] = {}  # those of the trainer are newer: model.ckpt, for example, is another file now
        counters = selected or {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "epoch_progress": trainer.fit_loop.epoch_progress.state_dict(),
        }
        checkpoint["epoch"], checkpoint["global_step"] = counters["epoch"], counters["global_step"]
        checkpoint.setdefault("loops", {}).setdefault("fit_loop", {})["epoch_progress"] = counters["epoch_progress"]


def _may_replace_sampler(trainer: Any) -> bool:
    """Whether the user lets the trainer choose the order of the images; it keeps one of the arguments to itself."""
    return not trainer.overfit_batches and trainer._accelerator_connector.use_distributed_sampler


def _position(trainer: Any) -> dict[str, int]:
    """Epoch, and number of batches in it whose step is done."""
    epoch, batch = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress.current
    # Between two epochs, the batches are still those of the last one.
    return {"epoch": epoch.processed, "batch": batch.processed if epoch.started > epoch.processed else 0}


def _finish_epoch(counters: dict[str, Any]) -> None:
    """Complete the counters of a checkpoint that was written at the end of an epoch.

    With ``max_steps``, Lightning would otherwise ask for one more batch of that epoch and count it twice.
    """
    epoch, batch = counters["epoch_progress"], counters["epoch_loop.batch_progress"]
    if epoch["current"]["started"] != epoch["current"]["processed"]:
        return  # in the middle of an epoch
    for numbers in (epoch["total"], epoch["current"]):
        numbers["completed"] = numbers["processed"]
    batch["current"] = dict.fromkeys(batch["current"], 0)
    batch["is_last_batch"] = False

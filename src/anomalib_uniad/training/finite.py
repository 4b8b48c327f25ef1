# SPDX-License-Identifier: Apache-2.0
"""A training whose numbers are no longer finite ends, before it spoils a checkpoint."""

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn.utils import get_total_norm

from anomalib_uniad.category import paths_of
from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import InputError

from .checkpoint_files import newest_checkpoint

_SHOWN = 8  # images that a message names


class _Step(NamedTuple):
    step: int
    epoch: int
    learning_rate: float
    paths: Sequence[str | PurePath | None]


class FiniteTraining(Callback):
    """Ends a training whose loss or weights are not finite, and keeps such weights out of checkpoints.

    On one CPU, the loss is looked at after each step. Elsewhere that would make the processor wait for the device at
    each step: losses are collected on the device and looked at together, every ``interval`` steps, before each
    validation and checkpoint, and at the end of an epoch. The message names the step at which it began.

    Under 16-bit floats with loss scaling, a step whose gradients are not finite is left out, so that one such loss does
    no harm: the training ends if all losses that are looked at together are not finite.

    Args:
        interval (int): Steps after which the losses on a device are looked at. Defaults to ``50``.

    Raises:
        ValueError: If ``interval`` is not positive.

    Examples:
        >>> FiniteTraining(interval=100).interval
        100
    """

    def __init__(self, interval: int = 50) -> None:
        check_at_least("interval", interval, 1)
        self.interval = interval
        self._losses: torch.Tensor | None = None  # (interval,), on the device
        self._steps: list[_Step] = []  # of the losses that were not looked at yet
        self._last: _Step | None = None
        self._learning_rate = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier training."""
        self._losses, self._steps, self._last = None, [], None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the learning rate of the step: schedules change it before the step's end is announced."""
        self._learning_rate = max((float(g["lr"]) for item in trainer.optimizers for g in item.param_groups), default=0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the loss of the step.

        Raises:
            ValueError: If it is time to look, and a loss is not finite.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not torch.is_tensor(loss):  # the step was left out
            return
        if self._losses is None:
            self._losses = torch.zeros(self.interval, device=loss.device)
        self._losses[len(self._steps)] = loss.detach()
        self._last = _Step(trainer.global_step, trainer.current_epoch + 1, self._learning_rate, paths_of(batch))
        self._steps.append(self._last)
        if len(self._steps) == self.interval or not _waits(trainer, loss):
            self._check_losses(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what was collected, and at the weights."""
        self.check(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the time for a validation is spent."""
        self.check(trainer, pl_module)

    def check(self, trainer: Trainer | None, pl_module: LightningModule) -> None:
        """Look at the losses that were collected, and at the parameters; to be called before a checkpoint is written.

        Args:
            trainer (Trainer | None): The trainer, if there is one. All its processes have to call this.
            pl_module (LightningModule): The model.

        Raises:
            ValueError: If something is not finite; the message names step, learning rate and images.
        """
        training = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        if training:
            self._check_losses(trainer)
        trained = [parameter.detach() for parameter in pl_module.parameters() if parameter.requires_grad]
        if not bool(get_total_norm(trained, math.inf).isfinite()):  # the largest of all
            what = "The model has weights that are not finite"
            raise InputError(_message(f"{what} after", self._last, trainer) if training and self._last else f"{what}.")

    def _check_losses(self, trainer: Any) -> None:
        steps, self._steps = self._steps, []
        message = ""
        if self._losses is not None and steps:
            wrong = (~self._losses[: len(steps)].isfinite()).nonzero().flatten().tolist()
            scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
            if wrong and (len(wrong) == len(steps) or not scaled):
                value = float(self._losses[wrong[0]])
                message = _message(f"The loss is not finite ({value}) in", steps[wrong[0]], trainer)
        if trainer.world_size > 1:  # all processes end, with the message of the first that has one
            messages: list[str] = [""] * trainer.world_size
            torch.distributed.all_gather_object(messages, message)
            message = next(filter(None, messages), "")
        if message:
            raise InputError(message)


def _waits(trainer: Trainer, loss: torch.Tensor) -> bool:
    """Whether to look at a loss takes waiting, for a device or for other processes."""
    return loss.device.type != "cpu" or trainer.world_size > 1


def _message(what: str, at: _Step, trainer: Any) -> str:
    paths = [str(path) for path in at.paths if path is not None]
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    images = f"; the images of that step: {', '.join(paths[:_SHOWN])}{more}" if paths else ""
    kept = newest_checkpoint(trainer)
    return (
        f"{what} step {at.step} (epoch {at.epoch}, learning rate {at.learning_rate:g}){images}. Train with a lower "
        "learning_rate or in full precision (trainer.precision=32), and look at these images. "
        + (f"The last good checkpoint is kept: {kept}." if kept else "There is no earlier checkpoint.")
    )

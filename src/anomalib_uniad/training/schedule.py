# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules."""

import math
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR

from anomalib_uniad.errors import InputError

LearningRateSchedule = Literal["step", "cosine", "wsd"]


class WarmupStableDecay(LRScheduler):
    """Linear warm-up, a constant learning rate, and a linear decay to zero, which can be called for early.

    The schedule ("wsd") of https://arxiv.org/abs/2404.06395. While the rate is constant, a training can end whenever
    that is wanted, since all that its end needs is the decay; see :meth:`start_decay`. It is to be stepped after each
    step of the optimizer.

    Args:
        optimizer (Optimizer): The optimizer; the rates of all its groups follow the schedule.
        total_steps (int): Steps of the training.
        warmup_steps (int): Steps of warm-up, on top of the rest. Defaults to ``0``.
        decay_fraction (float): Part of the training that is the decay, from 0 to 1. Defaults to ``0.2``.

    Examples:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = WarmupStableDecay(optimizer, total_steps=100, warmup_steps=4)
        >>> [round(schedule.factor(step), 2) for step in (0, 3, 80, 90, 99, 100)]
        [0.25, 1.0, 1.0, 0.5, 0.05, 0.0]
        >>> schedule.start_decay(40)
        >>> schedule.decay_start, schedule.end
        (40, 50)
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, decay_fraction: float = 0.2
    ) -> None:
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.decay_fraction = decay_fraction
        self._early: tuple[int, int] | None = None  # first step of a decay that was called for, and its steps
        super().__init__(optimizer)

    @property
    def decay_start(self) -> int:
        """The step with which the decay starts, from 0; at it, the rate is still the full one."""
        planned = self.total_steps - round(self.total_steps * self.decay_fraction)
        return planned if self._early is None else self._early[0]

    @property
    def end(self) -> int:
        """The step at which the rate is zero: the number of steps of the training."""
        return self.total_steps if self._early is None else sum(self._early)

    def start_decay(self, step: int) -> None:
        """Have the decay start early, as ``decay_fraction`` of the shortened training; kept in checkpoints.

        Nothing happens if it starts by then anyway, or if it was called for before.

        Args:
            step (int): The step with which it starts, from 0, not before the present one.
        """
        step = max(step, self.last_epoch)
        if self._early is not None or step >= self.decay_start:
            return
        self._early = (step, round(step * self.decay_fraction / (1 - self.decay_fraction)))

    def factor(self, step: int) -> float:
        """What learning rates are multiplied by at a step, from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left, decay_steps = self.end - step, self.end - self.decay_start
        return warmup * max(0.0, min(1.0, left / decay_steps if decay_steps else float(left > 0)))

    def get_lr(self) -> list[Any]:
        """Learning rates of the groups at the present step."""
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return where it is, and whether the decay was called for: a resumed training may have more epochs."""
        return {name: getattr(self, name) for name in ("last_epoch", "base_lrs", "_last_lr", "_step_count", "_early")}


def learning_rate_schedule(
    optimizer: Optimizer,
    trainer: Trainer,
    schedule: LearningRateSchedule,
    warmup_epochs: float,
    decay_epoch: int,
    decay_factor: float,
    decay_fraction: float,
) -> dict[str, Any]:
    """Make the schedule as Lightning takes it.

    Without warm-up, ``"step"`` is torch's ``StepLR``, once per epoch; everything else changes at every step.

    Args:
        optimizer (Optimizer): The optimizer.
        trainer (Trainer): The trainer, which knows how many steps there will be.
        schedule (str): ``"step"`` or ``"cosine"``, see :func:`learning_rate_factor`, or ``"wsd"``, see
            :class:`WarmupStableDecay`.
        warmup_epochs (float): Epochs of linear warm-up, whole or not.
        decay_epoch (int): For ``"step"``: epochs between decays.
        decay_factor (float): For ``"step"``: what the learning rate is multiplied by.
        decay_fraction (float): For ``"wsd"``: part of the training that is the decay.

    Returns:
        dict[str, Any]: ``scheduler`` and ``interval``.

    Raises:
        ValueError: If ``"cosine"`` or ``"wsd"`` has no end to go to, as neither ``max_epochs`` nor ``max_steps`` is
            set.
    """
    if schedule == "step" and warmup_epochs == 0:
        return {"scheduler": StepLR(optimizer, decay_epoch, decay_factor), "interval": "epoch"}
    total_steps = trainer.estimated_stepping_batches
    if schedule != "step" and math.isinf(total_steps):
        raise InputError(
            f"lr_schedule {schedule!r} needs to know where training ends: set trainer.max_epochs or trainer.max_steps."
        )
    trainer.fit_loop.setup_data()  # with max_steps alone, Lightning has not counted the batches yet
    steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    scheduler: LRScheduler
    if schedule == "wsd":
        scheduler = WarmupStableDecay(optimizer, int(total_steps), warmup_steps, decay_fraction)
    else:
        factor = learning_rate_factor(schedule, steps_per_epoch, total_steps, warmup_steps, decay_epoch, decay_factor)
        scheduler = LambdaLR(optimizer, factor)
    return {"scheduler": scheduler, "interval": "step"}


def learning_rate_factor(
    schedule: Literal["step", "cosine"],
    steps_per_epoch: int,
    total_steps: float,
    warmup_steps: int = 0,
    decay_epoch: int = 800,
    decay_factor: float = 0.1,
) -> Callable[[int], float]:
    """What the learning rate is multiplied by, as a function of the step, from 0.

    Args:
        schedule (str): ``"step"`` multiplies by ``decay_factor`` every ``decay_epoch`` epochs; ``"cosine"`` falls
            from 1 to 0 along half a cosine (https://arxiv.org/abs/1608.03983, without restarts).
        steps_per_epoch (int): Steps per epoch.
        total_steps (float): Steps in all.
        warmup_steps (int): Steps of linear warm-up at the start, on top of the schedule. Defaults to ``0``.
        decay_epoch (int): See ``schedule``. Defaults to ``800``.
        decay_factor (float): See ``schedule``. Defaults to ``0.1``.

    Returns:
        Callable[[int], float]: The function.

    Examples:
        >>> factor = learning_rate_factor("cosine", steps_per_epoch=10, total_steps=100, warmup_steps=4)
        >>> [round(factor(step), 3) for step in (0, 3, 50, 100)]
        [0.25, 0.998, 0.5, 0.0]
    """

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        if schedule == "step":
            return warmup * decay_factor ** (step // steps_per_epoch // decay_epoch)
        return warmup * (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2

    return factor

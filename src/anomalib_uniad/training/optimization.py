# SPDX-License-Identifier: Apache-2.0
"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim.lr_scheduler import LambdaLR, StepLR

from anomalib_uniad.errors import InputError

LearningRateSchedule = Literal["step", "cosine"]


def adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float, trainer: Trainer
) -> torch.optim.AdamW:
    """AdamW, with torch's fused kernels where nothing speaks against them.

    Args:
        parameters (Iterable[torch.nn.Parameter]): What is trained.
        learning_rate (float): Learning rate.
        weight_decay (float): Weight decay.
        trainer (Trainer): The trainer; its precision and strategy decide. Under 16-bit floats with loss scaling, a
            fused optimizer would undo the scaling itself, after gradients were clipped.

    Returns:
        torch.optim.AdamW: The optimizer.
    """
    plain = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)) and trainer.precision != "16-mixed"
    fused = plain and trainer.strategy.root_device.type in {"cpu", "cuda"}
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer,
    trainer: Trainer,
    schedule: LearningRateSchedule,
    warmup_epochs: float,
    decay_epoch: int,
    decay_factor: float,
) -> dict[str, Any]:
    """Make the schedule as Lightning takes it.

    Without warm-up, ``"step"`` is torch's ``StepLR``, once per epoch; everything else changes at every step.

    Args:
        optimizer (torch.optim.Optimizer): The optimizer.
        trainer (Trainer): The trainer, which knows how many steps there will be.
        schedule (str): ``"step"`` or ``"cosine"``, see :func:`learning_rate_factor`.
        warmup_epochs (float): Epochs of linear warm-up, whole or not.
        decay_epoch (int): For ``"step"``: epochs between decays.
        decay_factor (float): For ``"step"``: what the learning rate is multiplied by.

    Returns:
        dict[str, Any]: ``scheduler`` and ``interval``.

    Raises:
        ValueError: If ``"cosine"`` has no end to go to, as neither ``max_epochs`` nor ``max_steps`` is set.
    """
    if schedule == "step" and warmup_epochs == 0:
        return {"scheduler": StepLR(optimizer, decay_epoch, decay_factor), "interval": "epoch"}
    total_steps = trainer.estimated_stepping_batches
    if schedule == "cosine" and math.isinf(total_steps):
        msg = "lr_schedule 'cosine' needs to know where training ends: set trainer.max_epochs or trainer.max_steps."
        raise InputError(msg)
    trainer.fit_loop.setup_data()  # with max_steps alone, Lightning has not counted the batches yet
    steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    factor = learning_rate_factor(
        schedule, steps_per_epoch, total_steps, round(warmup_epochs * steps_per_epoch), decay_epoch, decay_factor
    )
    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}


def learning_rate_factor(
    schedule: LearningRateSchedule,
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

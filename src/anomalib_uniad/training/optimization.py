# SPDX-License-Identifier: Apache-2.0
"""Which optimizer a training has, and with which kernels."""

from collections.abc import Iterable
from typing import Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

OptimizerName = Literal["adamw", "muon"]


def fused_kernels(trainer: Trainer) -> bool:
    """Whether torch's fused kernels of AdamW can be used.

    Args:
        trainer (Trainer): The trainer; its precision and strategy decide. Under 16-bit floats with loss scaling, a
            fused optimizer would undo the scaling itself, after gradients were clipped.

    Returns:
        bool: Whether nothing speaks against them.
    """
    plain = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)) and trainer.precision != "16-mixed"
    return plain and trainer.strategy.root_device.type in {"cpu", "cuda"}


def adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float, trainer: Trainer
) -> torch.optim.AdamW:
    """AdamW, with torch's fused kernels where nothing speaks against them.

    Args:
        parameters (Iterable[torch.nn.Parameter]): What is trained.
        learning_rate (float): Learning rate.
        weight_decay (float): Weight decay.
        trainer (Trainer): The trainer, see :func:`fused_kernels`.

    Returns:
        torch.optim.AdamW: The optimizer.
    """
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused_kernels(trainer))

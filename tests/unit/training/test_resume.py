# SPDX-License-Identifier: Apache-2.0
"""Seeds of epochs, and arguments; tests/integration/test_resume.py has trainings that are resumed."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from anomalib_uniad.training.resume import EpochSeed, ResumeCheckpoint


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)


def drawn(trainer: Trainer, seed: int, epoch: int = 1, rank: int = 0) -> tuple[float, float, float]:
    callback = EpochSeed(seed)
    callback.setup(trainer, None, "fit")
    position: Any = SimpleNamespace(
        current_epoch=epoch, global_rank=rank, fit_loop=SimpleNamespace(is_resuming=False, _data_fetcher=[])
    )
    callback.on_train_epoch_start(position, None)
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def test_an_epoch_depends_on_seed_epoch_and_process(trainer: Trainer) -> None:
    first = drawn(trainer, 1)
    assert drawn(trainer, 1) == first
    others = [drawn(trainer, 2), drawn(trainer, 1, epoch=2), drawn(trainer, 1, rank=1)]
    for generator in zip(first, *others, strict=True):
        assert len(set(generator)) == 4


def test_seed_of_the_checkpoint(trainer: Trainer) -> None:
    first, again, given = EpochSeed(), EpochSeed(), EpochSeed(seed=8)
    for callback in (first, again, given):
        callback.setup(trainer, None, "fit")
    assert first.state_dict() != again.state_dict()
    for callback in (again, given):
        callback.load_state_dict(first.state_dict())
    assert again.state_dict() == first.state_dict()
    assert given.state_dict() == {"seed": 8}


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="seed must be at least 0 or None, got -1"):
        EpochSeed(seed=-1)
    for wrong in (0, -1.5, float("nan")):
        with pytest.raises(ValueError, match=f"greater than 0, got {wrong}"):
            ResumeCheckpoint(wrong)

# SPDX-License-Identifier: Apache-2.0
"""Seeds of epochs, and arguments; tests/integration/test_resume.py has trainings that are resumed."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

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


@pytest.mark.parametrize("at_the_end", [False, True])
def test_checkpoint_of_0_1_0(trainer: Trainer, at_the_end: bool) -> None:
    """Its resume.ckpt is from between two batches, its model.ckpt from the end of an epoch."""
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"is_last_batch": at_the_end}}}
    checkpoint = {"callbacks": {"ExactResume": {"seed": 5, "position": {"epoch": 1, "batch": 1}}}, "loops": loops}
    trainer.state.fn = TrainerFn.TESTING
    EpochSeed().on_load_checkpoint(trainer, None, checkpoint)
    trainer.state.fn = TrainerFn.FITTING
    if at_the_end:
        EpochSeed().on_load_checkpoint(trainer, None, checkpoint)
    else:
        with pytest.raises(
            ValueError, match=r"0\.1\.0.*resume it with 0\.1\.0, continue from a model\.ckpt, or start again"
        ):
            EpochSeed().on_load_checkpoint(trainer, None, checkpoint)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        EpochSeed(seed=-1)
    for wrong in (-1.5, float("nan")):
        with pytest.raises(ValueError, match=f"interval_minutes must be at least 0, got {wrong}"):
            ResumeCheckpoint(wrong)

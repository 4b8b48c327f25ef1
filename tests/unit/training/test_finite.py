# SPDX-License-Identifier: Apache-2.0
"""Losses and weights that are not finite end a training, and are in no checkpoint."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from anomalib_uniad import UniAD
from anomalib_uniad.training.finite import FiniteTraining
from small import SMALL

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Scripted(LightningModule):
    """Its losses are those that it is told to have."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = iter(losses)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return (self.weight - self.weight.detach()) + next(self.losses)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.25)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def batches(count: int) -> DataLoader:
    """Batches of ten images each."""
    made = [SimpleNamespace(image_path=[f"{number}/{row}.png" for row in range(10)]) for number in range(count)]
    return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


def fit(losses: list[float], folder: Path, steps: int, *callbacks: Any, **arguments: Any) -> Trainer:
    settings = {"enable_checkpointing": False, "max_epochs": len(losses) // steps, **QUIET, **arguments}
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), **settings)
    trainer.fit(Scripted(losses), batches(steps))
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_message(tmp_path: Path, value: float) -> None:
    message = (
        rf"The loss is not finite \({value}\) in step 5 \(epoch 2, learning rate 0\.015625\); the images of that step: "
        r"1/0\.png, .* 1/7\.png and 2 more\. Train with a lower learning_rate .* There is no earlier checkpoint\."
    )
    with pytest.raises(ValueError, match=message):
        fit([1.0] * 4 + [value, 1.0], tmp_path, 3, FiniteTraining())


@pytest.mark.parametrize(("interval", "seen"), [(4, 4), (50, 6)])
def test_losses_that_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int, seen: int) -> None:
    """As on a device: looked at together, at the latest when the epoch ends, and the first one is named."""
    callback = FiniteTraining(interval)
    monkeypatch.setattr("anomalib_uniad.training.finite._waits", lambda *_: True)
    model = Scripted([1.0, math.nan, 2.0, math.inf, 1.0, 1.0])
    trainer = Trainer(max_epochs=1, callbacks=[callback], enable_checkpointing=False, **QUIET)
    with pytest.raises(ValueError, match=r"\(nan\) in step 2 \(epoch 1, learning rate 0\.125\)"):
        trainer.fit(model, batches(6))
    assert trainer.global_step == seen


def test_loss_scaling_leaves_a_step_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(FiniteTraining):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            trainer.precision_plugin.scaler = object()

    monkeypatch.setattr("anomalib_uniad.training.finite._waits", lambda *_: True)
    assert fit([1.0, math.nan, 1.0], tmp_path, 3, Scaled()).global_step == 3
    with pytest.raises(ValueError, match="step 1 "):
        fit([math.nan] * 3, tmp_path, 3, Scaled())


def test_weights_after_the_last_step(tmp_path: Path) -> None:
    class Spoil(FiniteTraining):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            pl_module.weight.data.fill_(math.inf)

    with pytest.raises(ValueError, match=r"weights that are not finite after step 1 \(epoch 1"):
        fit([1.0], tmp_path, 1, Spoil())


def test_the_last_good_checkpoint_is_kept(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "model", every_n_epochs=1, save_on_train_epoch_end=True)
    with pytest.raises(ValueError, match=rf"The last good checkpoint is kept: {tmp_path}/model\.ckpt\."):
        fit([1.0, 1.0, math.nan, 1.0], tmp_path, 2, FiniteTraining(), keep, enable_checkpointing=True)
    assert torch.load(tmp_path / "model.ckpt", weights_only=True)["global_step"] == 2


def test_no_checkpoint_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = UniAD(**SMALL)
    trainer = Trainer(**QUIET)
    trainer.strategy.connect(model)
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    before = path.read_bytes()
    next(model.model.transformer.parameters()).data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"The model has weights that are not finite\."):
        trainer.save_checkpoint(path, weights_only=True)
    assert path.read_bytes() == before

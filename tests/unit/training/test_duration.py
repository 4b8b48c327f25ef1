# SPDX-License-Identifier: Apache-2.0
"""The duration that is said and shown, against a training whose clock is known."""

import logging
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader, TensorDataset

from anomalib_uniad.training import duration
from anomalib_uniad.training.duration import TrainingDuration
from anomalib_uniad.training.last_epoch import LastEpochValidation
from resumable import small_model

STEP, VALIDATION, BATCHES = 2.0, 7.0, 10  # seconds, batches of an epoch


class Timed(LightningModule):
    """Each step and each validation takes as long as it says, on a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.clock = torch.nn.Linear(1, 1), 1000.0

    def training_step(self, batch, batch_idx):
        self.clock += STEP
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.clock += VALIDATION

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


class Course(Callback):
    """Notes what is estimated at each step, and when."""

    def __init__(self, watched: TrainingDuration) -> None:
        self.watched, self.left, self.validations, self.known = watched, [], [], float("inf")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.left.append((pl_module.clock, self.watched.seconds_left(trainer)))

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validations.append(trainer.global_step)
        self.known = min(self.known, pl_module.clock)


class Bar(TQDMProgressBar):
    """Keeps what is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        self.shown.append(self.get_metrics(trainer, pl_module).get("minutes_left", float("nan")))


def fit(
    monkeypatch: pytest.MonkeyPatch, folder: Path, ckpt_path: Path | None = None, *callbacks: Callback, **arguments
):
    model, watched = Timed(), TrainingDuration()
    monkeypatch.setattr(duration, "time", SimpleNamespace(monotonic=lambda: model.clock))
    course = Course(watched)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[LastEpochValidation(), watched, course, *callbacks],
        **{"enable_progress_bar": False, **arguments},
    )
    data = DataLoader(TensorDataset(torch.ones(BATCHES, 1)))
    trainer.fit(model, data, DataLoader(TensorDataset(torch.ones(1, 1))), ckpt_path=ckpt_path)
    return model, trainer, course


@pytest.mark.parametrize(
    ("arguments", "steps", "validations"),
    [
        ({"max_epochs": 6, "check_val_every_n_epoch": 2}, 60, [20, 40, 60]),
        ({"max_epochs": 5, "check_val_every_n_epoch": 2}, 50, [20, 40, 50]),
        ({"max_epochs": 4, "val_check_interval": 0.5}, 40, list(range(5, 41, 5))),
        ({"max_steps": 47, "check_val_every_n_epoch": 2}, 47, [20, 40, 47]),
        ({"max_steps": 47, "val_check_interval": 15, "check_val_every_n_epoch": None}, 47, [15, 30, 45, 47]),
        ({"max_steps": 40, "val_check_interval": 99, "check_val_every_n_epoch": None}, 40, [40]),
        ({"max_steps": 19, "max_epochs": 9, "accumulate_grad_batches": 3, "check_val_every_n_epoch": 3}, 19, [12, 19]),
    ],
    ids=["epochs", "last epoch", "several in an epoch", "within an epoch", "by steps", "once", "accumulated"],
)
def test_what_is_left_is_what_comes(monkeypatch, tmp_path, arguments, steps, validations) -> None:
    model, trainer, course = fit(monkeypatch, tmp_path, **arguments)
    assert (trainer.global_step, course.validations) == (steps, validations)
    # Exact from the first validation on; before, nobody knows how long one takes.
    known = [item for item in course.left if item[0] >= course.known]
    assert [left for _, left in known] == pytest.approx([model.clock - clock for clock, _ in known])


def test_it_is_said_once(monkeypatch, tmp_path, caplog) -> None:
    bar = Bar()
    with caplog.at_level(logging.INFO):
        fit(monkeypatch, tmp_path, None, bar, max_epochs=20, enable_progress_bar=True, limit_val_batches=0)
    said = [record.getMessage() for record in caplog.records if ": about " in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("20 epochs of 10 steps: about 7 minutes, until ")
    datetime.strptime(said[0][-6:-1], "%H:%M")
    minutes = [shown for shown in bar.shown if shown == shown]
    assert minutes[0] == pytest.approx((200 - 9) * STEP / 60, abs=0.06)
    assert minutes == sorted(minutes, reverse=True)
    assert minutes[-1] == 0


def test_resumed(monkeypatch, tmp_path, caplog) -> None:
    trainer = fit(monkeypatch, tmp_path, max_epochs=3, limit_val_batches=0)[1]
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        model, _, course = fit(monkeypatch, tmp_path, tmp_path / "three.ckpt", max_epochs=8, limit_val_batches=0)
    said = [record.getMessage() for record in caplog.records if ": about " in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("42 steps that are left of 80: about 80 seconds, until ")
    assert [left for _, left in course.left[4:]] == pytest.approx([model.clock - clock for clock, _ in course.left[4:]])


def test_a_training_without_an_end_says_nothing(monkeypatch, tmp_path, caplog) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    with caplog.at_level(logging.INFO):
        fit(monkeypatch, tmp_path, None, Stop(), max_epochs=-1)
    assert "about" not in caplog.text


def test_a_model_brings_it() -> None:
    assert any(isinstance(callback, TrainingDuration) for callback in small_model().configure_callbacks())

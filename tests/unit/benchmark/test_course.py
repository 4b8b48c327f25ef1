# SPDX-License-Identifier: Apache-2.0
"""Seconds and validations of a training go on where its checkpoint was written."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anomalib_uniad.benchmark import course as module
from anomalib_uniad.benchmark.course import Course


def test_a_training_that_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(module.time, "time", lambda: 77.0)
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        current_epoch=1,
        global_step=8,
        max_epochs=8,
        max_steps=16,
        is_global_zero=True,
        callback_metrics={"image_AUROC": torch.tensor(0.5)},
    )
    first = Course(tmp_path / "progress.json")
    clock.now = 105.0  # until the training starts
    first.setup(trainer, None, "fit")
    clock.now = 110.0
    first.on_validation_end(trainer, None)
    first.on_train_epoch_end(trainer, None)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress == {"done": 0.5, "seconds": 5.0, "time": 77.0}
    state = first.state_dict()
    clock.now = 1000.0

    second = Course(tmp_path / "progress.json")
    second.setup(trainer, None, "fit")
    second.load_state_dict(state)
    clock.now = 1002.0
    trainer.current_epoch = 3
    second.on_validation_end(trainer, None)
    trainer.state.fn = "test"
    second.on_validation_end(trainer, None)
    assert second.seconds == 7.0
    assert second.validations == [
        {"epoch": 2, "seconds": 5.0, "image_AUROC": 0.5},
        {"epoch": 4, "seconds": 7.0, "image_AUROC": 0.5},
    ]
    assert state["validations"] == second.validations[:1]

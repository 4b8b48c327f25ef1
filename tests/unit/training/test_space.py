# SPDX-License-Identifier: Apache-2.0
"""Room on the disk is looked at before a training."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from anomalib_uniad import UniAD
from anomalib_uniad.errors import DiskError
from anomalib_uniad.training import feature_cache
from anomalib_uniad.training.feature_store import RESERVE, FeatureStore
from anomalib_uniad.training.space import PICTURE, SpaceCheck, on_same_disk, space_of_run
from small import SMALL


def trainer_of(folder: Path, images: int = 3, **arguments: Any) -> Any:
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False, **arguments)
    trainer.datamodule = SimpleNamespace(test_data=[None] * images)  # type: ignore[attr-defined]
    return trainer


@pytest.mark.filterwarnings("ignore:The following callbacks")
def test_estimate(tmp_path: Path) -> None:
    """Of what a checkpoint really is, and not much more."""
    model = UniAD(**SMALL)
    trainer = trainer_of(tmp_path)
    trainer.strategy.connect(model)
    needed, words = space_of_run(trainer, model)
    path = tmp_path / "model.ckpt"
    model.trainer = trainer
    optimizer = model.configure_optimizers()["optimizer"]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    torch.save({"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}, path)
    one = (needed - 3 * PICTURE) / 2  # the trainer's own checkpoint, and the next one
    assert 0.8 * path.stat().st_size < one < path.stat().st_size
    assert words == f"2 checkpoints of {one / 1e6:.1f} MB, pictures of 3 test images"
    model.visualizer = None
    assert space_of_run(trainer, model)[0] == 2 * one
    assert space_of_run(trainer_of(tmp_path, fast_dev_run=True), model) == (0, "")


def test_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(folder: Path) -> Any:
        asked.append(folder)
        return SimpleNamespace(free=1_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    folder, model = tmp_path / "results" / "v0", nn.Linear(1000, 100)
    message = (
        rf"The training needs 2\.4 MB in {folder} \(2 checkpoints of 1\.2 MB, pictures of 0 test images\), but "
        r"there are only 1\.0 MB: make room, or choose a folder on another disk \(default_root_dir\)\."
    )
    with pytest.raises(DiskError, match=message):
        SpaceCheck().on_fit_start(trainer_of(folder, 0), model)  # type: ignore[arg-type]
    assert asked == [tmp_path], "the folder itself is not there yet"
    model.requires_grad_(False)
    SpaceCheck().on_fit_start(trainer_of(folder, 0), model)  # type: ignore[arg-type]


def test_the_cache_leaves_room_for_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=RESERVE + 10_000_000))
    store = FeatureStore(tmp_path)
    feature_cache.check_space(9_000_000, (1, 2, 2, 2), "float32", store)
    with pytest.raises(DiskError, match=r"need 9\.0 MB in .*, but there are only 8\.0 MB beside the other"):
        feature_cache.check_space(9_000_000, (1, 2, 2, 2), "float32", store, reserved=2_000_000)


def test_disks(tmp_path: Path) -> None:
    assert on_same_disk(tmp_path / "not" / "there", tmp_path)
    if Path("/proc").is_dir():
        assert not on_same_disk(tmp_path, Path("/proc/not/there"))

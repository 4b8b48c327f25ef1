# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that cannot be written where they belong."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.errors import DiskError
from anomalib_uniad.training.checkpoint_files import CheckpointRescue, WholeFileIO
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

pytestmark = pytest.mark.filterwarnings("ignore:.*could not be written:UserWarning")


class Blocked(Callback):
    """Puts a file where the folder of the checkpoints has to be; nothing can be written there from then on."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        Path(trainer.default_root_dir, "weights").write_text("in the way")


class Gone(Blocked):
    """And removes the working directory."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            Path.cwd().rmdir()


class Freed(Blocked):
    """And takes it away before the last epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            Path(trainer.default_root_dir, "weights").unlink()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_mvtec_like(tmp_path_factory.mktemp("data") / "products", sizes=(32, 32), train=2, good=2, bad=2)


def train(root: Path, folder: Path, *callbacks: Callback, **arguments: Any) -> UniAD:
    model = UniAD(**SMALL, visualizer=False, learning_rate=0.01, seed=1)
    data = MultiCategory(root=root, train_batch_size=4, eval_batch_size=4, num_workers=0)
    settings = {"max_epochs": 2, "enable_model_summary": False, **arguments}
    quiet_engine(folder, *callbacks, **settings).train(model, datamodule=data)
    return model


@pytest.mark.parametrize("home", ["working directory", "home"])
def test_the_model_is_saved_elsewhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    expected = train(root, tmp_path / "well").model.transformer.state_dict()
    there = tmp_path / home
    there.mkdir()
    monkeypatch.setenv("HOME", str(there))
    monkeypatch.chdir(there)
    blocked = Blocked()
    if home == "home":
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        blocked = Gone()
    with pytest.raises(DiskError, match=rf"model\.ckpt could not be written .* was saved as {there}/anomalib-uniad-"):
        train(root, tmp_path / "results", blocked)
    monkeypatch.chdir(there)
    (file,) = there.iterdir()
    saved = UniAD.load_from_checkpoint(file)
    assert saved.training_summary["epochs"] == 2
    assert all(value.equal(expected[name]) for name, value in saved.model.transformer.state_dict().items())


def test_nowhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match=r"No space left on device\), and neither could a file in .*: the training is"):
        train(root, tmp_path / "results")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".ckpt", ".part"}]


def test_room_again_before_the_end(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = train(root, tmp_path / "results", Freed())
    (file,) = tmp_path.rglob("*.ckpt")
    assert file.name == "model.ckpt"
    state = torch.load(file, weights_only=True)["state_dict"]
    assert all(value.equal(state[f"model.{name}"]) for name, value in model.model.state_dict().items())


@pytest.mark.parametrize("own", [True, False])
def test_plugins_come_back(tmp_path: Path, own: bool) -> None:
    """One of the user stays in its place."""
    from lightning.pytorch import Trainer

    trainer = Trainer(accelerator="cpu", logger=False, plugins=AsyncCheckpointIO() if own else None)
    before, callback = trainer.strategy.checkpoint_io, CheckpointRescue()
    callback.setup(trainer, None, "test")
    assert trainer.strategy.checkpoint_io is before
    callback.setup(trainer, None, "fit")
    assert isinstance(trainer.strategy.checkpoint_io, WholeFileIO) != own
    callback.teardown(trainer, None, "fit")
    assert trainer.strategy.checkpoint_io is before


def test_an_existing_file_stays_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, path = WholeFileIO(TorchCheckpointIO()), tmp_path / "model.ckpt"
    plugin.save_checkpoint({"step": 1}, path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        plugin.save_checkpoint({"step": 2}, path)
    assert list(plugin.failed) == [path]
    assert [item.name for item in tmp_path.iterdir()] == ["model.ckpt"]
    assert plugin.load_checkpoint(path, weights_only=True) == {"step": 1}
    plugin.save_checkpoint({"step": 3}, path)
    assert not plugin.failed
    assert plugin.load_checkpoint(path, weights_only=True) == {"step": 3}
    plugin.remove_checkpoint(path)
    assert not path.exists()

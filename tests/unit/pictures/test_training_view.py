# SPDX-License-Identifier: Apache-2.0
"""What is drawn of a training, and what loggers get."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.loggers.base import ImageLoggerBase
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.pictures.training_view import TrainingView, _draw
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about loggers and workers


class ImageLogger(CSVLogger, ImageLoggerBase):
    """Keeps the images that it gets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images: dict[str, tuple[np.ndarray, int]] = {}

    def add_image(self, image: np.ndarray, name: str | None = None, **kwargs: Any) -> None:
        self.images[name or ""] = image, kwargs["global_step"]


def view_of(model: UniAD) -> TrainingView:
    return next(callback for callback in model.configure_callbacks() if isinstance(callback, TrainingView))


def test_maps_and_curves(tmp_path: Path) -> None:
    root = make_mvtec_like(tmp_path / "data", ("bolt", "nut"), train=8, good=15, bad=15)
    data = MultiCategory(root=root, train_batch_size=4, eval_batch_size=4, num_workers=0)
    logger = ImageLogger(tmp_path / "logs")
    loggers: Any = [logger, CSVLogger(tmp_path / "csv")]
    model = UniAD(**SMALL, seed=0)
    engine = quiet_engine(tmp_path, max_epochs=4, check_val_every_n_epoch=2)
    engine._cache.args["logger"] = loggers
    engine.fit(model, datamodule=data)
    assert list(logger.images) == ["maps/epoch_0002.png", "maps/epoch_0004.png"]
    steps = [step for _, step in logger.images.values()]
    assert steps[1] == 2 * steps[0] > 0
    first, last = (image for image, _ in logger.images.values())
    assert first.shape == last.shape == (112, 6 * 112, 3)
    assert not np.array_equal(first, last), "the model has learned"
    files = sorted((tmp_path / "csv").rglob("*.png"))
    assert [file.name for file in files] == ["epoch_0002.png", "epoch_0004.png"]
    assert np.array_equal(np.asarray(Image.open(files[1])), last)
    rows = pd.DataFrame(view_of(model).state_dict()["rows"])
    assert list(rows["epoch"]) == [1, 2, 3, 4]
    assert (np.diff(rows["train_loss"]) < 0).all()
    assert (rows["learning_rate"] == 1e-4).all()
    with Image.open(next(tmp_path.rglob("training.png"))) as picture:
        assert picture.width == 1100
        assert picture.height > 600


def test_without_validations_there_are_curves_alone() -> None:
    rows = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "learning_rate": [0.1, 0.01]})
    figure = _draw(rows, {}, [])
    loss, metrics, rate = figure.axes
    assert list(loss.lines[0].get_ydata()) == [2.0, 1.0]
    assert list(rate.lines[0].get_ydata()) == [0.1, 0.01]
    assert not metrics.lines


def test_a_resumed_training_keeps_its_curves() -> None:
    view = TrainingView()
    view.load_state_dict({"rows": [{"epoch": 1, "train_loss": 2.0}]})
    assert view.state_dict() == {"rows": [{"epoch": 1, "train_loss": 2.0}]}


def test_few_maps_of_a_long_training_are_kept() -> None:
    view = TrainingView()
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(fn="fit"), sanity_checking=False, is_global_zero=True, callback_metrics={}, loggers=[]
    )
    for trainer.current_epoch in range(200):
        view._maps[trainer.current_epoch + 1] = {}
        view.on_validation_end(trainer, SimpleNamespace())
        assert len(view._maps) <= 16
    assert {1, 200} <= set(view._maps)
    view._maps = {epoch: {"a.png": np.zeros((8, 8, 3), np.uint8)} for epoch in (1, 2, 3, 50, 98, 99, 100, 101, 150)}
    rows = pd.DataFrame({"epoch": [1, 150], "train_loss": [2.0, 1.0], "learning_rate": [0.1, 0.01]})
    titles = {axes.get_title(loc="left") for axes in _draw(rows, view._maps, ["a.png"]).axes}
    assert {"epoch 1", "epoch 50", "epoch 150"} < titles


def test_no_picture_ends_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = TrainingView()
    view.load_state_dict({"rows": [{"epoch": 1, "train_loss": 2.0, "learning_rate": 0.1}]})
    view._paths = ["gone.png"]
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(fn="fit"), sanity_checking=False, is_global_zero=True, fast_dev_run=False, current_epoch=0
    )
    outputs = SimpleNamespace(anomaly_map=torch.rand(1, 1, 8, 8), image_path=["gone.png"])
    view.on_validation_batch_end(trainer, SimpleNamespace(), outputs, None, 0)
    assert not view._maps
    (tmp_path / "file").touch()
    trainer.default_root_dir = tmp_path / "file" / "run"
    with pytest.warns(UserWarning, match=r"training\.png cannot be written"):
        view.on_fit_end(trainer, SimpleNamespace())
    monkeypatch.chdir(tmp_path)
    trainer.default_root_dir = "."
    view.on_fit_end(trainer, SimpleNamespace())
    assert not Path("training.png").exists(), "the working directory is no folder of a run"
    trainer.default_root_dir = "run"
    view.on_fit_end(trainer, SimpleNamespace())
    assert Path("run", "training.png").is_file()

# SPDX-License-Identifier: Apache-2.0
"""The best epoch of the validations instead of the last one, also after an interruption."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.models import Padim
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from anomalib_uniad import MultiCategory, PerCategoryEvaluator, UniAD
from helpers import make_mvtec_like
from resumable import ALWAYS, BATCHES, NEVER, Stop, small_model
from small import quiet_engine

EPOCHS = 4
SPLIT = {"val_split_mode": "from_test", "val_split_ratio": 0.5, "seed": 0}


class Scripted(PerCategoryEvaluator):
    """Reports given values at the validations."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = values

    def _log_results(self, trainer) -> None:
        if trainer.testing:
            super()._log_results(trainer)
        else:
            self.log("image_AUROC", self.values[trainer.current_epoch])


class Weights(Callback):
    """Keeps the weights of each epoch."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_validation_end(self, trainer, pl_module) -> None:
        self.after.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(value.nan_to_num().equal(second[name].nan_to_num()) for name, value in first.items())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_mvtec_like(tmp_path_factory.mktemp("data") / "products", sizes=(32, 32), train=5, good=4, bad=4)


def data(root: Path, **arguments) -> MultiCategory:
    return MultiCategory(root=root, num_workers=0, train_batch_size=4, eval_batch_size=4, **{**SPLIT, **arguments})


def model(*values: float, minutes: float = NEVER, **arguments) -> UniAD:
    chosen = {"evaluator": Scripted(*values)} if values else {}
    return small_model(5, minutes, **{"checkpoint_selection": "best", **chosen, **arguments})


def engine(folder: Path, *callbacks: Callback, **arguments):
    return quiet_engine(folder, *callbacks, **{"max_epochs": EPOCHS, "check_val_every_n_epoch": 1, **arguments})


def table(folder: Path) -> dict[str, str]:
    with (folder / "UniAD" / "products" / "latest" / "metrics.csv").open() as file:
        return next(csv.DictReader(file))


@pytest.mark.parametrize(
    ("values", "best"), [((0.6, 0.9, 0.7, 0.9), 2), ((0.1, 0.2, 0.3, 0.4), 4), ((0.4, 0.3, 0.2, float("nan")), 1)]
)
def test_best_epoch_is_tested_and_kept(root: Path, tmp_path: Path, values: tuple, best: int) -> None:
    weights, trained = Weights(), model(*values)
    runner = engine(tmp_path, weights)
    runner.train(model=trained, datamodule=data(root))
    state = trained.state_dict()
    assert [same(state, other) for other in weights.after] == [epoch == best for epoch in range(1, EPOCHS + 1)]
    path = Path(runner.best_model_path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.ckpt"]
    assert path.parent.name == "lightning"
    assert same(state, torch.load(path, weights_only=True)["state_dict"])
    row = table(tmp_path)
    assert row["epochs"] == str(best)
    assert row["thresholds"] == "validation images (from_test, ratio 0.5, seed 0)"


def test_last_epoch_is_the_default(root: Path, tmp_path: Path) -> None:
    weights, trained = Weights(), small_model(5, evaluator=Scripted(0.9, 0.8, 0.7, 0.6))
    engine(tmp_path, weights).train(model=trained, datamodule=data(root, val_split_mode="same_as_test"))
    assert same(trained.state_dict(), weights.after[-1])
    row = table(tmp_path)
    assert row["epochs"] == str(EPOCHS)
    assert row["thresholds"] == "test images (same_as_test)"


def test_the_real_metric_is_followed(root: Path, tmp_path: Path) -> None:
    class Values(Callback):
        seen: list[float] = []

        def on_validation_end(self, trainer, pl_module) -> None:
            self.seen.append(float(trainer.callback_metrics["image_AUROC"]))

    runner = engine(tmp_path, Values())
    runner.fit(model=model(learning_rate=10.0), datamodule=data(root))  # so high that the first epoch is the worst
    assert len(set(Values.seen)) > 1
    epochs = torch.load(runner.best_model_path, weights_only=True)["loops"]["fit_loop"]["epoch_progress"]
    assert epochs["current"]["ready"] == Values.seen.index(max(Values.seen)) + 1


@pytest.mark.parametrize(
    "values",
    [
        (0.6, 0.9, 0.7, 0.8),
        *(pytest.param(values, marks=pytest.mark.slow) for values in ((0.3, 0.4, 0.6, 0.5), (0.9, 0.8, 0.7, 0.6))),
    ],
)
@pytest.mark.parametrize("stopped", [BATCHES + 2, 3 * BATCHES + 2])
def test_resumed(root: Path, tmp_path: Path, values: tuple, stopped: int) -> None:
    whole = model(*values)
    engine(tmp_path / "whole").fit(whole, datamodule=data(root))
    with pytest.raises(RuntimeError, match="stopped"):
        engine(tmp_path, Stop("on_train_batch_start", stopped, RuntimeError)).train(
            model(*values, minutes=ALWAYS), datamodule=data(root)
        )
    latest = tmp_path / "UniAD" / "products" / "latest" / "weights" / "lightning"
    runner, resumed = engine(tmp_path), model(*values)
    runner.train(resumed, datamodule=data(root), ckpt_path=latest / "resume.ckpt")
    assert same(resumed.state_dict(), whole.state_dict())
    assert table(tmp_path)["epochs"] == str(1 + values.index(max(values)))
    assert latest.parents[1].resolve().name == "v1"
    assert [file.name for file in latest.iterdir()] == ["model.ckpt"]
    assert same(resumed.state_dict(), torch.load(latest / "model.ckpt", weights_only=True)["state_dict"])


def test_the_best_checkpoint_is_moved_or_lost(root: Path, tmp_path: Path) -> None:
    values = (0.9, 0.8, 0.7, 0.6)
    with pytest.raises(RuntimeError, match="stopped"):
        engine(tmp_path / "a", Stop("on_train_batch_start", 2 * BATCHES + 2, RuntimeError)).fit(
            model(*values, minutes=ALWAYS), datamodule=data(root)
        )
    folder = next((tmp_path / "a").rglob("resume.ckpt")).parent
    shutil.copytree(folder, tmp_path / "moved")
    shutil.rmtree(tmp_path / "a")
    resumed = model(*values)
    engine(tmp_path / "b").fit(resumed, datamodule=data(root), ckpt_path=tmp_path / "moved" / "resume.ckpt")
    assert same(resumed.state_dict(), torch.load(tmp_path / "moved" / "best.ckpt", weights_only=True)["state_dict"])
    (tmp_path / "moved" / "best.ckpt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"best checkpoint so far \(image_AUROC 0\.9000\).*Put it beside .*moved"
    ):
        engine(tmp_path / "c").fit(model(*values), datamodule=data(root), ckpt_path=tmp_path / "moved" / "resume.ckpt")


@pytest.mark.filterwarnings("ignore:.*")
def test_more_epochs_after_the_end(root: Path, tmp_path: Path) -> None:
    """model.ckpt of a complete training is its own best checkpoint; one of the last epoch has no best."""
    first = engine(tmp_path / "best", max_epochs=2)
    trained = model(0.9, 0.8)
    first.fit(trained, datamodule=data(root))
    more = model(0.9, 0.8, 0.7)
    engine(tmp_path / "more", max_epochs=3).fit(more, datamodule=data(root), ckpt_path=first.best_model_path)
    assert same(more.state_dict(), trained.state_dict())
    last = engine(tmp_path / "last", max_epochs=2)
    last.fit(model(checkpoint_selection="last"), datamodule=data(root))
    with pytest.warns(UserWarning, match="begun without checkpoint_selection=best: only what follows"):
        engine(tmp_path / "new", max_epochs=3).fit(more, datamodule=data(root), ckpt_path=last.best_model_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_split_mode": "same_as_test"}, r"selected on test images: .* are test images \(same_as_test\)"),
        ({"val_split_mode": "none"}, "needs a datamodule with validation images"),
        ({"val_split_mode": "from_train"}, r"only one kind: validation images \(from_train"),
    ],
)
def test_refused_before_training(root: Path, tmp_path: Path, arguments: dict, message: str) -> None:
    for datamodule in (data(root, **arguments), MVTecAD(root, "bottle", num_workers=0, **{**SPLIT, **arguments})):
        with pytest.raises(ValueError, match=message):
            engine(tmp_path, Stop("on_train_start", 1, RuntimeError)).train(model(), datamodule=datamodule)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            {"evaluator": PerCategoryEvaluator(val_metrics=[])},
            {},
            "needs image_AUROC among the evaluator's val_metrics",
        ),
        ({"evaluator": False}, {}, "needs image_AUROC among the evaluator's val_metrics"),
        ({}, {"barebones": True}, "needs the trainer's own checkpoint callback"),
        ({}, {"limit_val_batches": 0}, "needs a datamodule with validation images"),
    ],
)
def test_nothing_to_select_with(root: Path, tmp_path: Path, arguments: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(tmp_path, **options).fit(model(**arguments), datamodule=data(root))


@pytest.mark.filterwarnings("ignore:.*")  # pytest.warns gives out Lightning's own warnings as if they were ours
def test_drawn_without_a_seed(root: Path, tmp_path: Path) -> None:
    of_anomalib = MVTecAD(root, "bottle", num_workers=0, train_batch_size=4, val_split_mode="from_test", seed=None)
    with pytest.warns(UserWarning, match="drawn without a seed: a later test would draw others"):
        engine(tmp_path, max_epochs=1).fit(model(0.5), datamodule=of_anomalib)


def test_own_checkpoints_stay(root: Path, tmp_path: Path) -> None:
    own: Any = ModelCheckpoint(tmp_path / "own", "{epoch}", monitor="train_loss", save_top_k=-1)
    runner = engine(tmp_path, own)
    runner.fit(model(0.6, 0.9, 0.7, 0.8), datamodule=data(root))
    assert len(list((tmp_path / "own").iterdir())) == EPOCHS
    assert len(list(tmp_path.rglob("model.ckpt"))) == 1


def test_wrong_value() -> None:
    with pytest.raises(ValueError, match="checkpoint_selection must be one of 'last', 'best', got 'first'"):
        UniAD(checkpoint_selection="first")


@pytest.mark.parametrize("source", [UniAD, Padim])
def test_thresholds_of_a_checkpoint_are_those_of_its_training(root: Path, tmp_path: Path, source: type) -> None:
    def fresh() -> Any:
        if source is UniAD:
            return small_model(5)
        pre_processor = Padim.configure_pre_processor((32, 32))
        arguments = {"n_features": 8, "pre_trained": False, "pre_processor": pre_processor, "visualizer": False}
        return Padim("resnet18", ["layer1"], **arguments)

    runner = engine(tmp_path, max_epochs=1)
    runner.fit(fresh(), datamodule=data(root))
    path = Path(runner.best_model_path)
    engine(tmp_path / "later").test(fresh(), datamodule=data(root, val_split_mode="same_as_test"), ckpt_path=path)
    with next((tmp_path / "later").rglob("metrics.csv")).open() as file:
        assert {row["thresholds"] for row in csv.DictReader(file)} == {
            "validation images (from_test, ratio 0.5, seed 0)"
        }
    untold = torch.load(path, weights_only=True)
    del untold["thresholds_from"]
    torch.save(untold, tmp_path / "untold.ckpt")
    engine(tmp_path / "old").test(fresh(), datamodule=data(root), ckpt_path=tmp_path / "untold.ckpt")
    with next((tmp_path / "old").rglob("metrics.csv")).open() as file:
        assert {row["thresholds"] for row in csv.DictReader(file)} == {""}

# SPDX-License-Identifier: Apache-2.0
"""Trainings that are stopped and resumed end with the same weights as those that are not."""

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from anomalib_uniad import UniAD
from anomalib_uniad.training.resume_checkpoint import at_batch
from helpers import make_mvtec_like
from resumable import ALWAYS, BATCHES, EPOCHS, Stop, data, difference, engine, fit, run_program, small_model

PAPER = {"lr_schedule": "step", "lr_warmup_epochs": 0, "lr_decay_epoch": 2}


class SaveEverywhere(Callback):
    """Writes a checkpoint at each point at which training may be left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []

    def save(self, trainer: Trainer, name: str) -> None:
        self.paths.append(self.folder / f"{len(self.paths):02}-{name}-{trainer.current_epoch}.ckpt")
        trainer.save_checkpoint(self.paths[-1])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            with at_batch(trainer, batch_idx):
                self.save(trainer, f"batch-{batch_idx}")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        with at_batch(trainer, BATCHES, validating=True):
            self.save(trainer, f"validation-{batch_idx}")

    def on_validation_end(self, trainer, pl_module) -> None:
        self.save(trainer, "validated")

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.save(trainer, "epoch")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_mvtec_like(tmp_path_factory.mktemp("data") / "products", sizes=(32, 32), train=5, good=2, bad=2)


@pytest.mark.parametrize(
    ("recipe", "options", "arguments"),
    [
        (PAPER, {}, {}),
        ({"seed": 5}, {"augmented": True}, {"accumulate_grad_batches": 2}),
        ({"seed": 5}, {"augmented": True, "workers": 2}, {"max_epochs": 2}),
        (PAPER, {}, {"max_epochs": -1, "max_steps": 7, "check_val_every_n_epoch": 1}),
        ({"feature_cache": "memory"}, {}, {"max_epochs": 2}),
    ],
    ids=["plain", "accumulated", "workers", "max_steps", "cached"],
)
def test_every_point(root: Path, tmp_path: Path, recipe: dict, options: dict, arguments: dict) -> None:
    torch.manual_seed(1)
    saver = SaveEverywhere(tmp_path)
    model = small_model(**recipe)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    whole = fit(model, data(root, **options), tmp_path, None, saver, **arguments)
    assert any(not value.equal(initial[name]) for name, value in model.state_dict().items() if "decoder" in name)
    assert len(saver.paths) > 8
    different = {}
    for path in saver.paths[:: 3 if options.get("workers") else 1]:
        torch.manual_seed(2)
        resumed = fit(small_model(**recipe), data(root, **options), tmp_path, path, **arguments)
        different[path.name] = difference(resumed, whole)
    assert not any(different.values())


STOPS = {
    ("on_train_batch_start", 5, RuntimeError): 4,
    ("on_after_backward", 5, KeyboardInterrupt): 4,
    ("on_before_optimizer_step", 5, RuntimeError): 4,
    ("on_train_batch_end", 5, RuntimeError): None,  # for all that is known, the optimizer has done half of its step
    ("on_validation_batch_start", 2, KeyboardInterrupt): 6,
    ("on_validation_end", 1, RuntimeError): 6,
    ("on_train_epoch_end", 2, RuntimeError): None,
    ("on_train_epoch_start", 2, RuntimeError): None,
    ("on_train_batch_start", 5, signal.SIGTERM): 5,
    ("on_validation_start", 1, signal.SIGTERM): 6,
}
OUTCOMES = {RuntimeError: RuntimeError, KeyboardInterrupt: SystemExit, signal.SIGTERM: SIGTERMException}


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory) -> dict:
    return fit(small_model(seed=5), data(root), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("hook", "calls", "exception"), STOPS)
def test_interruption(root: Path, tmp_path: Path, uninterrupted: dict, hook: str, calls: int, exception: Any) -> None:
    expected, outcome = STOPS[hook, calls, exception], OUTCOMES[exception]
    file = tmp_path / "weights" / "lightning" / "resume.ckpt"
    with pytest.raises(outcome):
        fit(small_model(5), data(root), tmp_path, None, Stop(hook, calls, exception), enable_checkpointing=True)
    assert file.is_file() == (expected is not None)
    if expected is None:
        return
    assert torch.load(file, weights_only=True)["global_step"] == expected
    # Once more, to see that nothing of the interruption is left in the counters; the next file is a regular one.
    with pytest.raises(RuntimeError, match="stopped"):
        stop = Stop("on_train_batch_end", 2, RuntimeError)
        fit(small_model(5, ALWAYS), data(root), tmp_path / "2", file, stop, enable_checkpointing=True)
    file = tmp_path / "2" / "weights" / "lightning" / "resume.ckpt"
    assert torch.load(file, weights_only=True)["global_step"] == expected + 1
    assert not difference(fit(small_model(5), data(root), tmp_path, file), uninterrupted)


def test_one_file_for_the_time_of_the_training(root: Path, tmp_path: Path) -> None:
    class Look(Callback):
        seen: list[int] = []

        def on_train_batch_end(self, trainer, *args) -> None:
            assert [path.name for path in (tmp_path / "weights" / "lightning").glob("*")] in ([], ["resume.ckpt"])
            self.seen.append((tmp_path / "weights" / "lightning" / "resume.ckpt").is_file())

    fit(small_model(5, ALWAYS), data(root), tmp_path, None, Look(), enable_checkpointing=True)
    assert Look.seen == [False] + [True] * (EPOCHS * BATCHES - 1)
    assert not any((tmp_path / "weights" / "lightning").iterdir())


@pytest.mark.filterwarnings("ignore:.*")  # pytest.warns gives out Lightning's own warnings as if they were ours
def test_a_full_disk_does_not_end_the_training(
    root: Path, tmp_path: Path, uninterrupted: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", full)
    with pytest.warns(UserWarning, match=r"resume.ckpt could not be written, training goes on: No space left"):
        writes_nothing = ModelCheckpoint(save_top_k=0)
        trained = fit(small_model(5, ALWAYS), data(root), tmp_path, None, writes_nothing, enable_checkpointing=True)
    assert not difference(trained, uninterrupted)


@pytest.mark.parametrize("arguments", [{"enable_checkpointing": False}, {"fast_dev_run": True}, {"barebones": True}])
def test_no_file_if_checkpoints_are_off(root: Path, tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        stop = Stop("on_train_batch_start", 1 if "fast_dev_run" in arguments else 4, RuntimeError)
        fit(small_model(5, ALWAYS), data(root), tmp_path, None, stop, **{"enable_checkpointing": None, **arguments})
    assert not list(tmp_path.rglob("*.ckpt"))


def test_file_stays_if_training_stops_early(root: Path, tmp_path: Path) -> None:
    """There may be more to come: max_time, for example, is over before max_epochs."""

    class Enough(Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            trainer.should_stop = trainer.global_step == 4

    fit(small_model(5, ALWAYS), data(root), tmp_path, None, Enough(), enable_checkpointing=True)
    assert (tmp_path / "weights" / "lightning" / "resume.ckpt").is_file()


def test_own_checkpoints_stay(root: Path, tmp_path: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", every_n_train_steps=2, save_top_k=-1)
    fit(small_model(5, ALWAYS), data(root), tmp_path, None, own, enable_checkpointing=True)
    assert len(list((tmp_path / "own").iterdir())) == EPOCHS * BATCHES // 2


def has_weights_of(model: UniAD, path: Path) -> bool:
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(value.nan_to_num().equal(state[name].nan_to_num()) for name, value in model.state_dict().items())


def test_killed_and_resumed_with_the_engine(root: Path, tmp_path: Path, uninterrupted: dict) -> None:
    stopped = run_program(root, tmp_path, "killed")
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    run = tmp_path / "UniAD" / "products"
    checkpoint = (run / "latest").resolve() / "weights" / "lightning" / "resume.ckpt"
    assert f"--ckpt_path {checkpoint}" in stopped.stderr
    assert torch.load(checkpoint, weights_only=True)["global_step"] == EPOCHS * BATCHES - 1

    runner, model = engine(tmp_path), small_model(5)
    results = runner.train(model=model, datamodule=data(root), ckpt_path=checkpoint)[0]
    state = uninterrupted["state"]
    different = [k for k, v in model.state_dict().items() if not torch.equal(v, state[f"weights {k}"])]
    assert not different, "the trained weights are still there after the test"
    assert (run / "latest").resolve().name == "v1"
    best = Path(runner.best_model_path)
    assert best == (run / "latest").resolve() / "weights" / "lightning" / "model.ckpt"
    assert has_weights_of(model, best)
    assert sorted(path.name for path in best.parent.iterdir()) == ["model.ckpt"]
    with (best.parents[2] / "metrics.csv").open() as file:
        assert {row["epochs"] for row in csv.DictReader(file)} == {str(EPOCHS)}
    assert results == engine(tmp_path / "again").test(small_model(), datamodule=data(root), ckpt_path=best)[0]

    # From now on, a checkpoint is what it says.
    runner.test(model, datamodule=data(root), ckpt_path=checkpoint)
    assert has_weights_of(model, checkpoint)


def test_resumed_in_the_same_session(root: Path, tmp_path: Path, uninterrupted: dict) -> None:
    """As in a notebook: the trainer and its folder are the same, and the test needs the file once more."""
    stop = Stop("on_train_batch_start", 5, RuntimeError)
    runner, model = engine(tmp_path, stop), small_model(5, ALWAYS)
    with pytest.raises(RuntimeError, match="stopped"):
        runner.train(model, datamodule=data(root))
    results = runner.train(model, datamodule=data(root), ckpt_path=next(tmp_path.rglob("resume.ckpt")))
    assert results[0].keys() >= {"image_AUROC"}
    assert all(value.equal(uninterrupted["state"][f"weights {key}"]) for key, value in model.state_dict().items())


def test_stopped_again_before_the_next_checkpoint(root: Path, tmp_path: Path, uninterrupted: dict) -> None:
    latest = tmp_path / "UniAD" / "products" / "latest" / "weights" / "lightning" / "resume.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        engine(tmp_path, Stop("on_train_batch_start", 5, RuntimeError)).train(
            small_model(5, ALWAYS), datamodule=data(root)
        )
    first = latest.resolve()
    seldom = 1e6
    with pytest.raises(RuntimeError, match="stopped"):  # within the first step, where nothing new is written
        engine(tmp_path, Stop("on_before_optimizer_step", 1, RuntimeError)).train(
            small_model(5, seldom), datamodule=data(root), ckpt_path=latest
        )
    assert latest.resolve() != first
    assert latest.read_bytes() == first.read_bytes()
    runner, model = engine(tmp_path), small_model(5)
    runner.train(model, datamodule=data(root), ckpt_path=latest)
    assert all(value.equal(uninterrupted["state"][f"weights {key}"]) for key, value in model.state_dict().items())


def test_another_checkpoint_can_be_tested_after_a_resumed_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        engine(tmp_path, Stop("on_train_batch_start", 5, RuntimeError)).fit(small_model(5), datamodule=data(root))
    checkpoint = next(tmp_path.rglob("resume.ckpt"))
    other = tmp_path / "other.ckpt"
    other.write_bytes(checkpoint.read_bytes())
    for path in (other, checkpoint):  # after a test of the other one, this one is meant as well
        runner, model = engine(tmp_path), small_model(5)
        runner.fit(model, datamodule=data(root), ckpt_path=checkpoint)
        runner.test(model, datamodule=data(root), ckpt_path=other)
        runner.test(model, datamodule=data(root), ckpt_path=path)
        assert has_weights_of(model, path)


def test_two_processes(root: Path, tmp_path: Path) -> None:
    done = run_program(root, tmp_path, "distributed")
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "stopped/weights/lightning/resume.ckpt", weights_only=True)["global_step"] == 4
    whole, resumed = (torch.load(tmp_path / name / "model.ckpt", weights_only=True) for name in ("whole", "resumed"))
    assert resumed["global_step"] == whole["global_step"] == 6
    for name, value in whole["state_dict"].items():
        assert resumed["state_dict"][name].equal(value), name

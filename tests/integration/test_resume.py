# SPDX-License-Identifier: Apache-2.0
"""Trainings that are stopped and resumed end with the same weights as those that are not."""

import csv
import errno
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from anomalib_uniad import UniAD
from helpers import make_mvtec_like
from resumable import ALWAYS, BATCHES, EPOCHS, NEVER, Stop, data, difference, engine, fit, run_program, small_model

PAPER = {"lr_schedule": "step", "lr_warmup_epochs": 0, "lr_decay_epoch": 2}
FAST = {"feature_norm": "standard", "optimizer": "muon", "lr_schedule": "wsd", "lr_decay_fraction": 0.5}
FILE = Path("weights", "lightning", "resume.ckpt")


def global_step(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_mvtec_like(tmp_path_factory.mktemp("data") / "products", sizes=(32, 32), train=5, good=2, bad=2)


@pytest.mark.parametrize(
    ("recipe", "options", "arguments", "epochs"),
    [
        (PAPER, {"augmented": True}, {"max_epochs": -1, "max_steps": 7, "check_val_every_n_epoch": 1}, (1, 2)),
        ({"seed": 5}, {"augmented": True, "workers": 2}, {"accumulate_grad_batches": 2}, (1,)),
        ({"seed": 5, "feature_cache": "memory"}, {}, {}, (2,)),
        ({"seed": 5, "feature_cache": "memory", **FAST}, {}, {}, (1,)),
    ],
    ids=["max_steps", "workers", "cached", "fast"],
)
def test_same_weights(
    root: Path, tmp_path: Path, recipe: dict, options: dict, arguments: dict, epochs: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    model = small_model(**recipe)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    whole = fit(model, data(root, **options), tmp_path, **arguments)
    assert any(not value.equal(initial[name]) for name, value in model.state_dict().items() if "decoder" in name)
    for finished in epochs:
        torch.manual_seed(1)
        folder = tmp_path / str(finished)
        stop = Stop("on_train_batch_end", finished * BATCHES + 1, RuntimeError)
        with pytest.raises(RuntimeError, match="stopped"):
            fit(
                small_model(minutes=ALWAYS, **recipe),
                data(root, **options),
                folder,
                None,
                stop,
                **arguments,
                enable_checkpointing=True,
            )
        torch.manual_seed(2)
        resumed = fit(small_model(**recipe), data(root, **options), tmp_path, folder / FILE, **arguments)
        assert not difference(resumed, whole)
        assert resumed["events"][0][:2] == (finished, 0)


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory) -> dict:
    return fit(small_model(seed=5), data(root), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("hook", "calls", "exception", "outcome", "steps"),
    [
        ("on_train_batch_start", BATCHES, RuntimeError, RuntimeError, None),  # no epoch has ended
        ("on_before_optimizer_step", 2 * BATCHES, KeyboardInterrupt, SystemExit, BATCHES),
        ("on_validation_batch_start", 2, RuntimeError, RuntimeError, BATCHES),
        ("on_train_epoch_start", 3, RuntimeError, RuntimeError, 2 * BATCHES),
        ("on_train_batch_start", BATCHES + 2, int(signal.SIGTERM), SIGTERMException, BATCHES),
    ],
)
def test_interruption(
    root: Path,
    tmp_path: Path,
    uninterrupted: dict,
    caplog: pytest.LogCaptureFixture,
    hook: str,
    calls: int,
    exception: Any,
    outcome: type[BaseException],
    steps: int | None,
) -> None:
    stop = Stop(hook, calls, exception)
    with pytest.raises(outcome):
        fit(small_model(5, ALWAYS), data(root), tmp_path, None, stop, enable_checkpointing=True)
    file = tmp_path / FILE
    assert file.is_file() == (steps is not None)
    message = f"Training was interrupted. To resume from {file}, repeat the same command with: --ckpt_path {file}"
    assert (message in caplog.text) == (steps is not None)
    if steps is not None:
        assert [path.name for path in file.parent.iterdir()].count("resume.ckpt") == 1
        assert not list(file.parent.glob("*.part"))
        assert global_step(file) == steps
        assert not difference(fit(small_model(5), data(root), tmp_path, file), uninterrupted)


def test_interruption_without_resume_checkpoints(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def interrupted(calls: int) -> str:
        caplog.clear()
        with pytest.raises(SystemExit):
            stop = Stop("on_train_batch_end", calls, KeyboardInterrupt)
            engine(tmp_path, stop).train(small_model(5, 0), datamodule=data(root))
        return caplog.text

    nothing = "Training was interrupted before its first checkpoint: nothing of it was kept. Set resume_interval to"
    assert nothing in interrupted(BATCHES)
    text, file = interrupted(2 * BATCHES + 1), tmp_path / "UniAD" / "products" / "v1" / FILE
    kept = file.with_name("model.ckpt")
    assert f"Training was interrupted. To resume from {kept}, repeat the same command with: --ckpt_path {kept}" in text
    assert kept.is_file()
    assert not file.exists()


def test_one_file_for_the_time_of_the_training(root: Path, tmp_path: Path) -> None:
    class Look(Callback):
        seen: list[bool] = []

        def on_train_batch_end(self, trainer, *args) -> None:
            assert [path.name for path in (tmp_path / FILE).parent.glob("*")] in ([], ["resume.ckpt"])
            self.seen.append((tmp_path / FILE).is_file())

    fit(small_model(5, ALWAYS), data(root), tmp_path, None, Look(), enable_checkpointing=True)
    assert Look.seen == [False] * BATCHES + [True] * (EPOCHS - 1) * BATCHES
    assert not any((tmp_path / FILE).parent.iterdir())


def test_not_before_the_interval_is_over(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        stop = Stop("on_train_batch_end", EPOCHS * BATCHES, RuntimeError)
        fit(small_model(5, NEVER), data(root), tmp_path, None, stop, enable_checkpointing=True)
    assert not list(tmp_path.rglob("resume.ckpt"))


@pytest.mark.filterwarnings("ignore:.*")  # pytest.warns gives out Lightning's own warnings as if they were ours
def test_a_full_disk_does_not_end_the_training(
    root: Path, tmp_path: Path, uninterrupted: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text("the last one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Look(Callback):
        def on_train_end(self, *args) -> None:
            assert [path.read_text() for path in (tmp_path / FILE).parent.iterdir()] == ["the last one"]

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning, match=r"resume.ckpt could not be written: .* No space left"):
        callbacks = [ModelCheckpoint(save_top_k=0), Look()]
        trained = fit(small_model(5, ALWAYS), data(root), tmp_path, None, *callbacks, enable_checkpointing=True)
    assert not difference(trained, uninterrupted)


@pytest.mark.parametrize("arguments", [{"enable_checkpointing": False}, {"fast_dev_run": True}, {"barebones": True}])
def test_no_file_if_checkpoints_are_off(root: Path, tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        stop = Stop("on_train_end" if "fast_dev_run" in arguments else "on_train_epoch_start", 1, RuntimeError)
        stop.calls += "fast_dev_run" not in arguments  # in the second epoch
        fit(small_model(5, ALWAYS), data(root), tmp_path, None, stop, **{"enable_checkpointing": None, **arguments})
    assert not list(tmp_path.rglob("*.ckpt"))


def test_file_stays_if_training_stops_early(root: Path, tmp_path: Path, uninterrupted: dict) -> None:
    """There may be more to come: max_time, for example, is over before max_epochs."""

    class Enough(Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            trainer.should_stop = trainer.global_step == BATCHES + 1

    fit(small_model(5, ALWAYS), data(root), tmp_path, None, Enough(), enable_checkpointing=True)
    assert global_step(tmp_path / FILE) == BATCHES, "not the epoch that was cut short"
    assert not difference(fit(small_model(5), data(root), tmp_path, tmp_path / FILE), uninterrupted)


def test_early_stopping_goes_on_counting(root: Path, tmp_path: Path) -> None:
    def early() -> EarlyStopping:
        return EarlyStopping("train_loss", mode="max", patience=2, check_on_train_epoch_end=True)

    whole = fit(small_model(5), data(root), tmp_path, None, early(), max_epochs=9)
    with pytest.raises(RuntimeError, match="stopped"):
        callbacks = [early(), Stop("on_train_batch_end", 2 * BATCHES + 1, RuntimeError)]
        fit(small_model(5, ALWAYS), data(root), tmp_path, None, *callbacks, max_epochs=9, enable_checkpointing=True)
    resumed = fit(small_model(5), data(root), tmp_path, tmp_path / FILE, early(), max_epochs=9)
    assert whole["state"]["counters"].tolist() == [3, 3 * BATCHES]
    assert not difference(resumed, whole)


@pytest.mark.filterwarnings("ignore:.*")
def test_own_checkpoints(root: Path, tmp_path: Path, uninterrupted: dict) -> None:
    """They stay in the trainer; one from the end of an epoch is as exact, one from the middle of an epoch is not."""
    own = ModelCheckpoint(tmp_path / "own", "{step}", every_n_train_steps=2, save_top_k=-1)
    ends = ModelCheckpoint(tmp_path / "ends", "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    fit(small_model(5, ALWAYS), data(root), tmp_path, None, own, ends, enable_checkpointing=True)
    assert len(list((tmp_path / "own").iterdir())) == EPOCHS * BATCHES // 2
    path = tmp_path / "ends" / "epoch=1.ckpt"
    assert not difference(fit(small_model(5), data(root), tmp_path, path), uninterrupted)
    with pytest.warns(UserWarning, match="resuming from a checkpoint that ended before the epoch ended"):
        resumed = fit(small_model(5), data(root), tmp_path, tmp_path / "own" / "step=4.ckpt")
    assert resumed["state"]["counters"].equal(uninterrupted["state"]["counters"])


def has_weights_of(model: UniAD, path: Path) -> bool:
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(value.nan_to_num().equal(state[name].nan_to_num()) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_killed_and_resumed_with_the_engine(root: Path, tmp_path: Path, uninterrupted: dict) -> None:
    stopped = run_program(root, tmp_path, "killed")
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    run = tmp_path / "UniAD" / "products"
    checkpoint = (run / "latest").resolve() / FILE
    assert f"--ckpt_path {checkpoint}" in stopped.stderr
    assert global_step(checkpoint) == (EPOCHS - 1) * BATCHES

    runner, model = engine(tmp_path), small_model(5)
    results = runner.train(model=model, datamodule=data(root), ckpt_path=checkpoint)[0]
    state = uninterrupted["state"]
    different = [k for k, v in model.state_dict().items() if not torch.equal(v, state[f"weights {k}"])]
    assert not different, "the trained weights are still there after the test"
    assert model.metadata.training["epochs"] == EPOCHS
    assert (run / "latest").resolve().name == "v1"
    best = Path(runner.best_model_path)
    assert best == (run / "latest").resolve() / FILE.with_name("model.ckpt")
    assert has_weights_of(model, best)
    assert sorted(path.name for path in best.parent.iterdir()) == ["model.ckpt"]
    with (best.parents[2] / "metrics.csv").open() as file:
        assert {row["epochs"] for row in csv.DictReader(file)} == {str(EPOCHS)}
    assert results == engine(tmp_path / "again").test(small_model(), datamodule=data(root), ckpt_path=best)[0]

    # From now on, a checkpoint is what it says.
    runner.test(model, datamodule=data(root), ckpt_path=checkpoint)
    assert has_weights_of(model, checkpoint)


def interrupted_by_engine(root: Path, folder: Path, epochs: int = 1) -> Path:
    """Stop a training of the engine in the middle of an epoch; return the checkpoint."""
    stop = Stop("on_train_batch_start", epochs * BATCHES + 2, RuntimeError)
    with pytest.raises(RuntimeError, match="stopped"):
        engine(folder, stop).train(small_model(5, ALWAYS), datamodule=data(root))
    return folder / "UniAD" / "products" / "latest" / FILE


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
    latest = interrupted_by_engine(root, tmp_path)
    first = latest.resolve()
    with pytest.raises(RuntimeError, match="stopped"):
        engine(tmp_path, Stop("on_train_batch_end", 2, RuntimeError)).train(
            small_model(5, ALWAYS), datamodule=data(root), ckpt_path=latest
        )
    assert latest.resolve() != first
    assert latest.read_bytes() == first.read_bytes()
    runner, model = engine(tmp_path), small_model(5)
    runner.train(model, datamodule=data(root), ckpt_path=latest)
    assert all(value.equal(uninterrupted["state"][f"weights {key}"]) for key, value in model.state_dict().items())


def test_another_checkpoint_can_be_tested_after_a_resumed_training(root: Path, tmp_path: Path) -> None:
    checkpoint = interrupted_by_engine(root, tmp_path)
    other = tmp_path / "other.ckpt"
    other.write_bytes(checkpoint.read_bytes())
    runner, model = engine(tmp_path), small_model(5)
    runner.fit(model, datamodule=data(root), ckpt_path=checkpoint.resolve())
    runner.test(model, datamodule=data(root), ckpt_path=other)
    assert has_weights_of(model, other)
    runner.test(model, datamodule=data(root), ckpt_path=next(tmp_path.rglob("model.ckpt")))
    runner.test(model, datamodule=data(root), ckpt_path=next(tmp_path.rglob("v0/**/resume.ckpt")))
    assert has_weights_of(model, other), "after a test of the other one, this one is meant as well"


@pytest.mark.slow
def test_two_processes_of_the_engine_have_one_folder(root: Path, tmp_path: Path) -> None:
    """anomalib makes one in each process, and lets `latest` point to the last one."""
    done = run_program(root, tmp_path, "processes")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "UniAD" / "products"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "v0"]
    latest = (folder / "latest").resolve()
    assert latest.name == "v0"
    assert {"metrics.csv", "predictions.csv", "model.yaml"} <= {path.name for path in latest.iterdir()}
    assert (latest / FILE.with_name("model.ckpt")).is_file()
    with (latest / "predictions.csv").open() as file:
        assert len(list((latest / "images").rglob("*.png"))) == len(list(csv.DictReader(file))) == 8


@pytest.mark.slow
def test_two_processes(root: Path, tmp_path: Path) -> None:
    done = run_program(root, tmp_path, "distributed")
    assert done.returncode == 0, done.stderr
    assert global_step(tmp_path / "stopped" / FILE) == 4
    whole, resumed = (torch.load(tmp_path / name / "model.ckpt", weights_only=True) for name in ("whole", "resumed"))
    assert resumed["global_step"] == whole["global_step"] == 6
    for name, value in whole["state_dict"].items():
        assert resumed["state_dict"][name].equal(value), name
    alone = small_model(5, **FAST)
    backbone = "model.backbone."  # random, and so another one
    weights = {n.removeprefix(backbone): v for n, v in whole["state_dict"].items() if n.startswith(backbone)}
    alone.model.backbone.load_state_dict(weights)
    fit(alone, data(root), tmp_path / "alone", max_epochs=1)
    for name, value in alone.model.feature_norm.state_dict().items():
        torch.testing.assert_close(whole["state_dict"][f"model.feature_norm.{name}"], value)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(root: Path, tmp_path: Path) -> None:
    done = run_program(root, tmp_path, "global_batch")
    assert done.returncode == 0, done.stderr

    def losses(name: str) -> list[float]:
        files = [json.loads(file.read_text()) for file in tmp_path.glob(f"{name}-*.json")]
        assert len(files) == int(name.split("-")[1])
        return [sum(values) / len(values) for values in zip(*files, strict=True)]

    alone, both = losses("0-1-5"), losses("0-2-5")
    assert len(both) == 6
    assert both == pytest.approx(alone, rel=1e-4)
    assert both[-1] < 0.95 * both[0]
    seeds = [losses(f"1-1-{seed}")[-1] for seed in (5, 6, 7)]
    spread = max(seeds) - min(seeds)
    assert min(seeds) - spread <= losses("1-2-5")[-1] <= max(seeds) + spread


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["0", "1"])
def test_one_of_two_processes_is_killed(root: Path, tmp_path: Path, killed: str, monkeypatch) -> None:
    """The other one says so, and the training is resumed by one alone."""
    monkeypatch.setenv("KILLED", killed)
    done = run_program(root, tmp_path, "killed_process")
    assert done.returncode != 0
    # Every five seconds, Lightning looks for dead children and kills the others; it can be faster than our sentence.
    ours = "error: Another process of this training was killed or cannot be reached (connection "
    lightnings = "terminated with code -9. Forcefully terminating all other processes"
    said = [line for line in done.stderr.splitlines() if "error: " in line or "Child process" in line]
    assert 1 <= len(said) <= (2 if killed == "1" else 1)
    assert all(ours in line or (killed == "1" and lightnings in line) for line in said)
    assert "Traceback" not in done.stderr
    file = tmp_path / "UniAD" / "products" / "latest" / FILE
    assert time.time() - file.stat().st_mtime < 60  # it is written a step before
    assert global_step(file) == 2
    runner, model = engine(tmp_path), small_model(5)
    runner.train(model, datamodule=data(root), ckpt_path=file.resolve())
    assert model.metadata.training["epochs"] == EPOCHS

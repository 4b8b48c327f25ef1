# SPDX-License-Identifier: Apache-2.0
"""A training that ends early, by a judge whose words are known."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from anomalib_uniad import UniAD
from anomalib_uniad.errors import InputError
from anomalib_uniad.training import held_out
from anomalib_uniad.training.early_stop import EarlyStop, evaluations_without_gain
from helpers import make_mvtec_like
from resumable import ALWAYS, Stop, data, difference, fit, small_model
from small import SMALL

WSD = {"lr_schedule": "wsd", "lr_warmup_epochs": 0, "lr_decay_fraction": 0.25, "early_stopping": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mvtec_like(tmp_path_factory.mktemp("data"), ["bottle"], (32, 32), train=25)


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "FEWEST", 5)


def judged(model: UniAD, results: Iterator[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Put other results in the place of what the judge would find; return what it is given."""
    seen = []

    def judge(defective: np.ndarray, normal: np.ndarray) -> tuple[float, float]:
        seen.append((defective, normal))
        value = next(results)
        return value, value

    next(callback for callback in model._training_callbacks if isinstance(callback, EarlyStop))._judge = judge
    return seen


class Rates(Callback):
    """Learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"] / pl_module.learning_rate)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([0.5] * 2, 0),
        ([0.5] * 3, 0),
        ([0.5] * 6, 3),
        ([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9], 1),
        ([0.5, 0.51, 0.49, 0.5, 0.512, 0.496], 3),  # noise
        ([0.5 + 0.002 * step for step in range(12)], 0),  # small gains add up: 0.6 points in three
        ([0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7], 4),
    ],
)
def test_what_counts_as_gain(results: list[float], expected: int) -> None:
    assert evaluations_without_gain(results) == expected


def test_it_ends_once_nothing_is_gained(root: Path, tmp_path: Path, caplog) -> None:
    model, rates = small_model(3, **WSD), Rates()
    seen = judged(model, itertools.chain([0.3, 0.4, 0.5], itertools.repeat(0.6)))
    with caplog.at_level(logging.INFO):  # 20 images are trained on, 5 held out; evaluations every 5 steps
        trainer_state = fit(model, data(root), tmp_path, None, rates, max_epochs=20, check_val_every_n_epoch=20)
    # Means of three: 0.4, 0.5, 0.567, 0.6 at the sixth evaluation, and three more without a gain.
    decay, end = 45, 60
    assert len(seen) == decay // 5
    assert [len(scores) for scores in seen[0]] == [5, 5]
    assert all(np.isfinite(scores).all() for pair in seen for scores in pair)
    assert trainer_state["state"]["counters"].tolist()[1] == end
    assert rates.rates == pytest.approx([1.0] * decay + [(end - step) / 15 for step in range(decay, end)])
    assert trainer_state["events"][-1][1] == "validated"
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("early_stopping")]
    assert said == [
        "early_stopping: the training may end early, judged on 5 good images that are not trained on and copies of "
        "them with synthetic defects.",
        "early_stopping: for 15 steps, held-out good images and synthetic defects have been told apart no better "
        "(image AUROC 60.0%, found at 5 % false alarms 60.0%). The learning rate falls from now on, and the training "
        "ends after step 60, not 100.",
    ]


def test_it_does_not_end_while_there_is_gain(root: Path, tmp_path: Path) -> None:
    model, rates = small_model(3, **WSD), Rates()
    seen = judged(model, (0.01 * step for step in itertools.count()))
    state = fit(model, data(root), tmp_path, None, rates, max_epochs=8)
    assert state["state"]["counters"].tolist() == [8, 40]
    assert len(seen) == 14  # every 2 steps of 40, until the decay starts as planned
    assert rates.rates == pytest.approx([1.0] * 30 + [(40 - step) / 10 for step in range(30, 40)])


@pytest.mark.parametrize(
    "stop", [pytest.param(6, marks=pytest.mark.slow, id="before the decision"), pytest.param(11, id="in the decay")]
)
def test_resumed(root: Path, tmp_path: Path, stop: int) -> None:
    def results() -> Iterator[float]:
        return itertools.chain([0.3, 0.4, 0.5], itertools.repeat(0.6))

    def train(name: str, first: int = 0, ckpt_path: Path | None = None, *callbacks: Callback) -> dict:
        model = small_model(5, ALWAYS, **WSD)
        judged(model, itertools.islice(results(), first, None))
        callbacks += (ModelCheckpoint(tmp_path / name, "model"),)
        settings = {"max_epochs": 20, "check_val_every_n_epoch": 7, "enable_checkpointing": True}
        return fit(model, data(root), tmp_path / name, ckpt_path, *callbacks, **settings)

    whole = train("whole")
    with pytest.raises(RuntimeError, match="stopped"):
        train("stopped", 0, None, Stop("on_train_epoch_start", stop, RuntimeError))
    file = tmp_path / "stopped" / "weights" / "lightning" / "resume.ckpt"
    resumed = train("resumed", stop - 1, file)  # an evaluation at the end of each epoch
    assert whole["state"]["counters"].tolist()[1] == 60
    assert difference(resumed, whole) == []


def test_it_says_that_it_cannot_judge(root: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(held_out, "FEWEST", 20)
    model = small_model(3, **WSD)
    with caplog.at_level(logging.INFO):
        state = fit(model, data(root), tmp_path, max_epochs=2)
    assert state["state"]["counters"].tolist() == [2, 14]  # all 25 images are trained on
    assert "early_stopping cannot judge by 5 held-out good images (it takes 20, and 3 of a product)" in caplog.text


def test_untrained_it_is_judged_by_the_model(root: Path, tmp_path: Path) -> None:
    model = small_model(3, **WSD, feature_cache="memory")
    stop = next(callback for callback in model._training_callbacks if isinstance(callback, EarlyStop))
    found = []
    judge = stop._judge
    stop._judge = lambda *scores: found.append((scores, judge(*scores))) or found[-1][1]
    module = data(root)
    fit(model, module, tmp_path, max_epochs=4, check_val_every_n_epoch=4)
    (defective, normal), (auroc, share) = found[0]
    above = (defective[:, None] > normal[None]).mean() + (defective[:, None] == normal[None]).mean() / 2
    assert auroc == pytest.approx(above)
    assert share == pytest.approx((defective > normal.max()).mean())
    assert len(module.train_data) == 25  # as it was


@pytest.mark.parametrize("arguments", [{"lr_schedule": "cosine"}, {"lr_schedule": "wsd", "lr_decay_fraction": 0.0}])
def test_it_needs_a_decay(arguments: dict) -> None:
    with pytest.raises(InputError, match="early_stopping ends a training by the decay of lr_schedule=wsd"):
        UniAD(**SMALL, early_stopping=True, **arguments)

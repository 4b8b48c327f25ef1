# SPDX-License-Identifier: Apache-2.0
"""The Lightning module: arguments, optimiser, seeds."""

from types import SimpleNamespace

import pytest
import torch
from anomalib import LearningType
from anomalib.metrics import Evaluator
from anomalib.models import get_model
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from omegaconf import OmegaConf
from torchvision.transforms.v2 import Resize

from anomalib_uniad import PerCategoryEvaluator, UniAD

SMALL = {
    "backbone": "resnet18",
    "pre_trained": False,
    "image_size": 64,
    "hidden_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "feedforward_dim": 16,
    "neighbor_size": 3,
}


def test_it_stands_directly_under_anomalibs_base() -> None:
    assert UniAD.__bases__ == (AnomalibModule,)
    model = UniAD(**SMALL)
    assert model.learning_type == LearningType.ONE_CLASS
    assert isinstance(model.evaluator, PerCategoryEvaluator)
    assert isinstance(model.evaluator, Evaluator)


def test_one_value_stands_for_all() -> None:
    model = UniAD(**{**SMALL, "neighbor_mask": [True, False, True]})
    assert model.input_size == model.model.image_size == (64, 64)
    layer = model.model.transformer.decoder.layers[0]
    assert layer.encoder_attention.visible is None
    assert layer.previous_attention.visible is not None


def test_hyper_parameters_are_plain_whatever_the_config_is_made_of() -> None:
    lists = {"layers": ["layer1", "layer2"], "image_size": [64, 96], "neighbor_size": [3, 3]}
    config = OmegaConf.create({**SMALL, **lists})
    model = get_model(OmegaConf.create({"class_path": "UniAD", "init_args": config}))
    assert type(model) is UniAD
    assert model.hparams["layers"] == ("layer1", "layer2")
    assert model.hparams["image_size"] == (64, 96)
    assert type(model.hparams["neighbor_size"]) is tuple


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (64, 64, 3)}, "image_size must be one value or 2 values"),
        ({"neighbor_size": (3,)}, "neighbor_size must be one value or 2"),
        ({"neighbor_mask": (True, False)}, "neighbor_mask must be one value or 3"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"lr_decay_epoch": 0}, "lr_decay_epoch must be at least 1"),
        ({"lr_decay_factor": -0.1}, "lr_decay_factor must be at least 0"),
        ({"gradient_clip_norm": -1}, "gradient_clip_norm must be at least 0"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniAD(**{**SMALL, **arguments})


def test_pre_processor_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resizes images to .*128.* but image_size is \(64, 64\)"):
        UniAD(**SMALL, pre_processor=PreProcessor(Resize((128, 128))))
    UniAD(**SMALL, pre_processor=PreProcessor(Resize((64, 64))))
    UniAD(**SMALL, pre_processor=False)


def test_recipe_of_the_paper() -> None:
    model = UniAD(**SMALL)
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-4, 1e-4, (0.9, 0.999))
    assert {id(p) for p in group["params"]} == {id(p) for p in model.model.transformer.parameters()}
    rates = []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:800] == pytest.approx([1e-4] * 800)
    assert rates[800:] == pytest.approx([1e-5] * 200)
    assert model.trainer_arguments == {"gradient_clip_val": 0.1, "num_sanity_val_steps": 0}
    assert "max_epochs" not in model.trainer_arguments


@pytest.mark.parametrize(
    ("epochs", "interval", "message"),
    [(15, 10, "from epoch 10"), (5, 10, "from no epoch at all"), (20, 10, None), (-1, 10, None), (15, None, None)],
)
def test_warns_when_thresholds_would_be_old(epochs: int, interval: int | None, message: str | None, caplog) -> None:
    model = UniAD(**SMALL)
    model._trainer = SimpleNamespace(max_epochs=epochs, check_val_every_n_epoch=interval)
    model.on_fit_start()
    assert (message in caplog.text) if message else not caplog.text


def test_seed_fixes_the_weights_and_leaves_the_random_state() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = UniAD(**SMALL, seed=5).state_dict()
    assert torch.rand(3).equal(expected)
    second, third = UniAD(**SMALL, seed=5).state_dict(), UniAD(**SMALL, seed=6).state_dict()
    trained = [key for key in first if "transformer" in key and "query" in key]
    assert all(first[key].equal(second[key]) for key in first if key.startswith("model."))
    assert not any(first[key].equal(third[key]) for key in trained)


def test_seed_fixes_the_training(monkeypatch) -> None:
    model = UniAD(**SMALL, seed=5)
    torch.manual_seed(0)
    model.setup("test")
    untouched = torch.rand(1)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # undone afterwards
        monkeypatch.setenv(name, "0")
    draws = []
    for _ in range(2):
        model.setup("fit")
        draws.append(torch.rand(1))
    assert draws[0].equal(draws[1])
    torch.manual_seed(0)
    assert torch.rand(1).equal(untouched)

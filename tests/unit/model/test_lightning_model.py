# SPDX-License-Identifier: Apache-2.0
"""The Lightning module: arguments, optimiser, seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.metrics import Evaluator
from anomalib.models import get_model
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

from anomalib_uniad import PerCategoryEvaluator, UniAD
from anomalib_uniad.errors import InputError, UserError
from small import SMALL


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_a_number_is_never_normal(value: float) -> None:
    model = UniAD(**SMALL, seed=0).eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for level in ("image", "pixel"):
        for name, number in ((f"_{level}_threshold", 1e6), (f"{level}_min", 0), (f"{level}_max", 2e6)):
            getattr(model.post_processor, name).fill_(number)
    with torch.no_grad():
        good = model(images)
        images[1, 0, 0, 0] = value
        found = model(images)
    assert good.pred_label.tolist() == [False] * 3
    assert found.pred_label.tolist() == [False, True, False]
    assert not found.pred_score[1].isfinite()
    assert found.pred_score[::2].equal(good.pred_score[::2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (64, 64, 3)}, "image_size must be one int or 2 of them"),
        ({"neighbor_size": (3,)}, "neighbor_size must be one int or 2"),
        ({"neighbor_mask": (True, False)}, "neighbor_mask must be one bool or 3"),
        ({"image_size": (0, 64)}, "image_size must be at least 1, got 0"),
        ({"image_size": 64.0}, r"image_size must be one int or 2 of them, got 64\.0"),
        ({"neighbor_size": (3.5, 3)}, "neighbor_size must be one int"),
        ({"neighbor_mask": "yes"}, "neighbor_mask must be one bool"),
        ({"neighbor_mask": ["no"] * 3}, "neighbor_mask must be one bool"),
        ({"layers": "layer1"}, "layers must be a list"),
        ({"layers": 2}, "layers must be a list"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"jitter_scale": float("nan")}, "jitter_scale"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"lr_decay_epoch": 0}, "lr_decay_epoch must be at least 1"),
        ({"lr_decay_factor": -0.1}, "lr_decay_factor must be at least 0"),
        ({"gradient_clip_norm": -1}, "gradient_clip_norm must be at least 0"),
        ({"feature_cache_copies": ["rotate_90"]}, "set feature_cache to memory or disk"),
        ({"product_sampling": "variance"}, "product_sampling=variance looks at cached features: set feature_cache to"),
        ({"product_sampling": "all"}, "product_sampling must be one of 'uniform', 'variance', got 'all'"),
        ({"feature_cache_copies": ["turn"], "feature_cache": "disk"}, "feature_cache_copies has 'turn', but the"),
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


def test_pixels_are_normalised_as_the_backbone_was_trained() -> None:
    """By timm's values: also in the exported model, with a crop, and after a checkpoint, which keeps its own."""
    image = torch.rand(1, 3, 64, 64)
    lite = {**SMALL, "backbone": "tf_efficientnet_lite0"}
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    for arguments in (lite, {**lite, "crop": (0, 0, 64, 64)}):
        prepare = UniAD(**arguments).pre_processor
        torch.testing.assert_close(prepare(image), 2 * image - 1)
        torch.testing.assert_close(prepare.transform(image), 2 * image - 1)
    of_imagenet = UniAD(**SMALL)
    torch.testing.assert_close(of_imagenet.pre_processor(image), (image - mean) / std)

    older, model = UniAD(**lite), UniAD(**lite)
    older.pre_processor = UniAD.configure_pre_processor((64, 64))  # as before
    checkpoint: dict = {}
    older.on_save_checkpoint(checkpoint)
    model.on_load_checkpoint(checkpoint)
    torch.testing.assert_close(model.pre_processor(image), (image - mean) / std)
    own = UniAD(**lite, pre_processor=PreProcessor(Resize((64, 64))))
    assert own.pre_processor(image).equal(image)


def test_recipe_of_the_paper() -> None:
    model = UniAD(**SMALL)
    model.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
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
    ("name", "other"), [("neighbor_size", 5), ("neighbor_mask", False), ("image_score", "mean"), ("hidden_dim", 32)]
)
def test_checkpoint_of_another_model_is_refused(name: str, other: object) -> None:
    model = UniAD(**{**SMALL, "image_size": 128})
    checkpoint = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    checkpoint["hyper_parameters"]["neighbor_size"] = [3, 3]  # a list is as good as a tuple
    model.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=rf"of another model.*{name}: .* in the checkpoint, .* in the model"):
        UniAD(**{**SMALL, "image_size": 128, name: other}).on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("trained", "other"),
    [({"optimizer": "muon"}, "optimizer=muon, but the model has adamw"), ({"lr_schedule": "wsd"}, "lr_schedule=wsd, ")],
)
def test_a_training_goes_on_with_its_optimizer(trained: dict, other: str) -> None:
    before = UniAD(**SMALL, **trained)
    checkpoint = {"hyper_parameters": dict(before.hparams), "state_dict": before.state_dict()}
    model = UniAD(**SMALL)
    model.on_load_checkpoint(checkpoint)  # nothing is trained
    model.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    model.trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(ValueError, match=f"The checkpoint was trained with {other}.*initial_checkpoint"):
        model.on_load_checkpoint(checkpoint)


def test_checkpoint_of_another_method_is_refused() -> None:
    checkpoint = {"hyper_parameters": {"backbone": "resnet18"}, "state_dict": {"model.memory_bank": torch.zeros(3, 4)}}
    with pytest.raises(ValueError, match="is not a checkpoint of UniAD, but of a model with memory_bank"):
        UniAD(**SMALL).on_load_checkpoint(checkpoint)


def test_weights_of_other_shapes_are_refused() -> None:
    model = UniAD(**SMALL)
    checkpoint = {"hyper_parameters": dict(model.hparams), "state_dict": dict(model.state_dict())}
    for other, message in (
        ({"layers": (1, 2)}, r"--config\): layers: \(0, 1, 2, 3\) in the checkpoint, \(1, 2\) in the model\.$"),
        (
            {"backbone": "resnet10t"},
            r"--config\): backbone: resnet18 in the checkpoint, resnet10t in the model",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            UniAD(**{**SMALL, **other}).on_load_checkpoint(checkpoint)
    UniAD(**{**SMALL, "backbone": "resnet18.tv_in1k"}).on_load_checkpoint(checkpoint)  # the same by another name
    larger = UniAD(**{**SMALL, "backbone": "resnet34"})  # has all weights of resnet18, in the same shapes
    with pytest.raises(ValueError, match="backbone: resnet34 in the checkpoint, resnet18 in the model"):
        model.on_load_checkpoint({"hyper_parameters": dict(larger.hparams), "state_dict": larger.state_dict()})
    del checkpoint["hyper_parameters"]
    checkpoint["state_dict"]["model.transformer.output_projection.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"output_projection.bias: \(3,\) in the checkpoint, \(\d+,\) in the model\.$"):
        model.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("hyper_parameters", "window_shape", "ring", r"has arguments that UniAD of .*: window_shape\. It was"),
        ("state_dict", "model.gate", torch.ones(1), r"has weights that UniAD of .*: model\.gate\. It was"),
    ],
)
def test_checkpoint_of_a_newer_version_is_refused(
    part: str, name: str, value: object, message: str, tmp_path: Path
) -> None:
    """Lightning would leave out an argument that it does not know, and the model predict something else."""
    checkpoint: dict = {"hyper_parameters": dict(UniAD(**SMALL).hparams), "state_dict": UniAD(**SMALL).state_dict()}
    checkpoint["pytorch-lightning_version"] = "2.6.0"
    checkpoint[part][name] = value
    file = tmp_path / "model.ckpt"
    torch.save(checkpoint, file)
    with pytest.raises(InputError, match=message):
        UniAD.load_from_checkpoint(file)
    with pytest.raises(InputError, match=message):
        UniAD(**SMALL, initial_checkpoint=file)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(InputError, match=message):
        trainer.predict(UniAD(**SMALL), DataLoader([0]), ckpt_path=file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"There is no checkpoint .*a\.ckpt: its folder has b\.ckpt\."),
        ("", r"a\.ckpt is not a checkpoint that torch can read"),
        ("cut", r"a\.ckpt is not a checkpoint that torch can read"),
        (np.dtype("float32").type, r"objects of the class numpy\.float32 in it.*import-checkpoint"),
        ({"state_dict": {}}, r"a\.ckpt is not a checkpoint of Lightning: .* weights/lightning\.$"),
        ({"state_dict": {}, "arch": []}, r"a\.ckpt is not a checkpoint of Lightning: .*import-checkpoint`\.$"),
        (
            {"state_dict": {"model.memory_bank": torch.zeros(1)}, "pytorch-lightning_version": "2.6.0"},
            r"a\.ckpt is not a checkpoint of UniAD, but of a model with memory_bank\.",
        ),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "b.ckpt").touch()
    file = tmp_path / "a.ckpt"
    if content == "":
        file.touch()
    elif content is not None:
        torch.save(content, file)
    if content == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=message):
        UniAD.load_from_checkpoint(file)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(UserError, match=message):
        trainer.predict(UniAD(**SMALL), DataLoader([0]), ckpt_path=file)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"is a folder: give the file .*, such as .*model\.ckpt\.$"):
        UniAD.load_from_checkpoint(tmp_path)


def test_checkpoints_keep_thresholds_of_categories_and_the_summary() -> None:
    """Without callbacks, which checkpoints of weights alone and `load_from_checkpoint` do not ask."""
    model = UniAD(**SMALL)
    model.evaluator.category_thresholds = {"cable": {"image": 1.5, "pixel": 2.5}}
    model.training_summary = {"epochs": 3, "categories": ["cable"]}
    checkpoint: dict = {}
    model.on_save_checkpoint(checkpoint)
    again = UniAD(**SMALL)
    again.on_load_checkpoint(checkpoint)
    assert again.evaluator.category_thresholds == again.category_thresholds == {"cable": {"image": 1.5, "pixel": 2.5}}
    assert again.metadata.training == {"epochs": 3}
    assert again.metadata.categories == ("cable",)
    without = UniAD(**SMALL, evaluator=False)
    without.on_load_checkpoint(checkpoint)
    assert without.metadata.category_thresholds == {"cable": {"image": 1.5, "pixel": 2.5}}


def test_checkpoint_of_0_1_0_is_loaded(tmp_path: Path) -> None:
    """All that version 0.1.0 wrote into a checkpoint of SMALL, but for the values of the weights."""
    checkpoint = json.loads(Path(__file__).with_name("checkpoint_0.1.0.json").read_text(encoding="utf-8"))
    weights = {name: torch.full(shape, 0.5) for name, shape in checkpoint.pop("parameters").items()}
    backbone = {f"model.backbone.{k}": v for k, v in UniAD(**SMALL).model.backbone.state_dict().items()}
    torch.save({**checkpoint, "state_dict": {**weights, **backbone}}, tmp_path / "model.ckpt")
    model = UniAD.load_from_checkpoint(tmp_path / "model.ckpt")
    assert all(model.state_dict()[name].eq(0.5).all() for name in weights)
    assert model.hparams["seed"] == 5
    assert model.metadata.training == {"dataset": "Products", "images": 8, "epochs": 2, "seed": 5}
    assert model.metadata.categories == ("bottle", "cable")
    assert model.evaluator.category_thresholds == checkpoint["category_thresholds"]


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

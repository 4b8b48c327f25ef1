# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.data.transforms import ExportableCenterCrop
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from anomalib_uniad import UniADModel
from anomalib_uniad.training import feature_key
from anomalib_uniad.training.feature_key import (
    check_deterministic,
    describe_extractor,
    describe_files,
    describe_transform,
    key_of,
    key_parts,
)
from helpers import make_mvtec_like, write_image, write_mask

NORMALIZE = v2.Normalize([0.5], [0.5])


class Info:
    def __init__(self, names: list[str]) -> None:
        self.names = names

    def module_name(self) -> list[str]:
        return self.names


class Extractor(nn.Module):
    """The parts of a model that the key looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        nn.init.ones_(self.backbone[0].weight)
        nn.init.ones_(self.backbone[0].bias)
        self.backbone.name = "small"
        self.backbone.features = nn.Identity()
        self.backbone.features.feature_info = Info(["layer1", "layer2"])
        self.backbone.strides = [2, 4]
        self.neck = nn.Upsample(size=(4, 4))
        self.image_size = (64, 64)
        self.grid_size = (4, 4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_mvtec_like(tmp_path / "data", ["bottle"], (20, 20), train=3, good=1, bad=2)


def make_dataset(root: Path, train: bool = False):
    datamodule = MVTecAD(root=root, category="bottle", num_workers=0)
    datamodule.setup()
    return datamodule.train_data if train else datamodule.val_data


def make_key(root: Path, dataset=None, **arguments) -> str:
    values = {"transform": NORMALIZE, "model": Extractor(), "dtype": "float32", "device_type": "cpu", "masks": True}
    dataset, values = dataset or make_dataset(root), {**values, **arguments}
    return key_of({**key_parts(dataset, **values), "files": describe_files(dataset, values["masks"])})


def test_the_same_gives_the_same(root: Path) -> None:
    key = make_key(root)
    assert key == make_key(root, transform=v2.Normalize([0.5], [0.5]), model=Extractor())
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")


def change_weight(model: Extractor) -> None:
    model.backbone[0].weight.data[0, 0, 0, 0] += 1e-3


def change_buffer(model: Extractor) -> None:
    model.backbone[1].running_mean += 1


def change_dtype_of_weights(model: Extractor) -> None:
    model.backbone.to(torch.bfloat16)


def change_padding(model: Extractor) -> None:
    model.backbone[0].padding_mode = "reflect"


def change_name(model: Extractor) -> None:
    model.backbone.name = "other"


def change_layers(model: Extractor) -> None:
    model.backbone.features.feature_info = Info(["layer1", "layer3"])


def change_strides(model: Extractor) -> None:
    model.backbone.strides = [2, 8]


def change_neck(model: Extractor) -> None:
    model.neck = nn.Upsample(size=(4, 4), mode="bilinear")


def change_image_size(model: Extractor) -> None:
    model.image_size = (64, 80)


def change_grid_size(model: Extractor) -> None:
    model.grid_size = (4, 5)


@pytest.mark.parametrize(
    "change",
    [
        change_weight,
        change_buffer,
        change_dtype_of_weights,
        change_padding,
        change_name,
        change_layers,
        change_strides,
        change_neck,
        change_image_size,
        change_grid_size,
    ],
)
def test_the_extractor_counts(root: Path, change) -> None:
    model = Extractor()
    change(model)
    assert make_key(root, model=model) != make_key(root)


@pytest.mark.parametrize(
    "arguments",
    [{"dtype": "float16"}, {"device_type": "cuda"}, {"masks": False}, {"transform": None}],
    ids=["dtype", "device", "masks", "transform"],
)
def test_the_arguments_count(root: Path, arguments: dict) -> None:
    assert make_key(root, **arguments) != make_key(root)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (v2.Normalize([0.5], [0.5]), v2.Normalize([0.5], [0.25])),
        (v2.Resize(8), v2.Resize(9)),
        (v2.Resize(8), v2.Resize(8, interpolation=InterpolationMode.BICUBIC)),
        (v2.Resize(8), v2.Resize(8, antialias=False)),
        # What their repr does not show:
        (v2.ToDtype(torch.float32), v2.ToDtype(torch.float16)),
        (v2.Pad(1, fill={torch.Tensor: 0}), v2.Pad(1, fill={torch.Tensor: 1})),
        (v2.CenterCrop(8), ExportableCenterCrop(8)),
        (v2.Compose([v2.Resize(8), v2.Grayscale(3)]), v2.Compose([v2.Grayscale(3), v2.Resize(8)])),
        (v2.Compose([v2.Resize(8)]), None),
    ],
)
def test_transforms_count(root: Path, one, other) -> None:
    assert make_key(root, transform=one) != make_key(root, transform=other)
    first, second = make_dataset(root), make_dataset(root)
    first.augmentations, second.augmentations = one, other
    assert make_key(root, first) != make_key(root, second)


def test_a_transform_from_a_checkpoint_is_the_same() -> None:
    """Checkpoints bring back lists and enums."""
    ours = v2.Compose([v2.Resize((8, 8)), v2.Normalize((0.5,), (0.5,))])
    theirs = v2.Compose([v2.Resize([8, 8], interpolation=InterpolationMode("bilinear")), v2.Normalize([0.5], [0.5])])
    assert describe_transform(ours) == describe_transform(theirs)


@pytest.mark.parametrize("package", feature_key.PACKAGES)
def test_versions_count(root: Path, package: str, monkeypatch) -> None:
    before, version = make_key(root), feature_key.version_of
    monkeypatch.setattr(feature_key, "version_of", lambda name: "9.9.9" if name == package else version(name))
    assert make_key(root) != before


def test_the_format_counts(root: Path, monkeypatch) -> None:
    before = make_key(root)
    monkeypatch.setattr(feature_key, "FORMAT_VERSION", 2)
    assert make_key(root) != before


IMAGE = "bottle/test/good/000.png"
MASK = "bottle/ground_truth/broken/000_mask.png"


@pytest.mark.parametrize("name", [IMAGE, MASK])
def test_files_count(root: Path, name: str) -> None:
    before, file = make_key(root), root / name
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    touched = make_key(root)
    assert touched != before
    (write_mask(file, write_image(root / "x.png", (9, 9))) if name == MASK else write_image(file, (9, 9), seed=5))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size != status.st_size
    assert make_key(root) not in {before, touched}  # another size, the same time


def test_masks_of_a_training_do_not_count(root: Path) -> None:
    before = make_key(root, masks=False)
    os.utime(root / MASK, ns=(1, 1))
    assert make_key(root, masks=False) == before


def test_the_folder_counts(root: Path, tmp_path: Path) -> None:
    before = make_key(root)
    link = tmp_path / "link"
    link.symlink_to(root)
    assert make_key(link) == before
    root.rename(tmp_path / "moved")
    assert make_key(tmp_path / "moved") != before


def test_labels_order_and_number_count(root: Path) -> None:
    keys = {make_key(root)}
    relabelled, reordered, shorter = make_dataset(root), make_dataset(root), make_dataset(root)
    relabelled._samples.loc[0, "label_index"] = 0
    reordered._samples = reordered.samples.iloc[::-1]
    shorter._samples = shorter.samples.iloc[:-1]
    keys.update(make_key(root, dataset) for dataset in (relabelled, reordered, shorter))
    assert len(keys) == 4


def test_the_class_of_the_dataset_counts(root: Path) -> None:
    dataset = make_dataset(root)
    before = make_key(root, dataset)
    dataset.__class__ = type("Inverted", (type(dataset),), {})
    assert make_key(root, dataset) != before


def test_the_range_of_pixel_values_counts(root: Path) -> None:
    dataset = make_dataset(root)
    keys = [make_key(root, dataset)]
    for dataset.value_range in ((0.0, 4095.0), [0.0, 4095.0], (0.0, 65535.0)):
        keys.append(make_key(root, dataset))
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_images_without_files_need_a_content_key(root: Path) -> None:
    dataset = make_dataset(root)
    dataset._samples["image_path"] = ["archive.zip/0.png"] * len(dataset)
    with pytest.raises(ValueError, match=r"whether 'archive\.zip/0\.png' has changed: No such file.*content_key"):
        make_key(root, dataset)
    dataset.content_key = "v1"
    assert make_key(root, dataset)


def test_contents_that_are_no_files(root: Path) -> None:
    dataset = make_dataset(root)
    dataset.content_key = "v1"
    before = make_key(root, dataset)
    os.utime(root / IMAGE, ns=(1, 1))
    assert make_key(root, dataset) == before
    dataset.content_key = "v2"
    assert make_key(root, dataset) != before
    dataset._samples = dataset.samples.iloc[::-1]
    assert make_key(root, dataset) != before


def test_several_masks_per_image(root: Path) -> None:
    dataset = make_dataset(root)
    masks = sorted((root / "bottle/ground_truth/broken").iterdir())
    dataset._samples["mask_path"] = [[str(mask) for mask in masks]] * len(dataset)
    before = make_key(root, dataset)
    os.utime(masks[1], ns=(1, 1))
    assert make_key(root, dataset) != before


def test_the_extractor_of_the_model() -> None:
    """All that is looked for is there."""
    from anomalib_uniad import UniADModel

    model = UniADModel("resnet18", pre_trained=False, image_size=(64, 80), hidden_dim=16, neighbor_size=(3, 3))
    found = describe_extractor(model)
    assert found["backbone"] == "resnet18"
    assert found["layers"] == ["act1", "layer1", "layer2", "layer3"]
    assert found["strides"] == [2, 4, 8, 16]
    assert found["image_size"] == [64, 80]
    assert found["grid_size"] == [4, 5]


@pytest.mark.parametrize(
    "transform",
    [
        None,
        v2.Resize(8),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), nn.Sequential(NORMALIZE, v2.Pad(2))]),
        ExportableCenterCrop(8),
    ],
)
def test_deterministic_transforms_are_accepted(transform) -> None:
    check_deterministic(transform, "train_augmentations")


class MyResize(v2.Resize):
    pass


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (v2.RandomHorizontalFlip(0.1), "RandomHorizontalFlip"),
        (v2.Compose([v2.Resize(8), v2.Compose([v2.ColorJitter()])]), "ColorJitter"),
        (nn.Sequential(v2.GaussianNoise()), "GaussianNoise"),
        (v2.RandomApply([v2.Resize(8)]), "RandomApply"),
        (v2.Lambda(lambda x: x), "Lambda"),
        (MyResize(8), "MyResize"),
        (lambda image: image, "function"),
    ],
)
def test_random_and_unknown_transforms_are_refused(transform, name: str) -> None:
    with pytest.raises(ValueError, match=rf"val_augmentations has {name}, .* \(feature_cache=off\)"):
        check_deterministic(transform, "val_augmentations")


def test_padding_of_the_backbone_counts() -> None:
    """The weights do not show it."""
    size = {"image_size": (64, 64), "neighbor_size": (3, 3), "hidden_dim": 16, "num_heads": 2, "feedforward_dim": 16}
    torch.manual_seed(0)
    first = UniADModel("tf_efficientnet_b0", pre_trained=False, **size)
    described = [describe_extractor(first)]
    for padding, mode in (("timm", "zeros"), ("static", "reflect"), ("timm", "reflect")):
        model = UniADModel(
            "tf_efficientnet_b0",
            pre_trained=False,
            backbone_padding=padding,
            backbone_padding_mode=mode,
            **size,
        )
        model.load_state_dict(first.state_dict())
        described.append(describe_extractor(model))
    assert len({part["weights"] for part in described}) == 1
    structures = [part["structure"] for part in described]
    assert len(set(structures[:3])) == 3  # at 64 px, both amounts are the same for this backbone
    assert structures[3] == structures[2]

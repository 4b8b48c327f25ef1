# SPDX-License-Identifier: Apache-2.0
"""Computing features, and what is checked before."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageItem
from anomalib.data.datasets.image.mvtecad import MVTecADDataset
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Compose, Normalize, Resize
from torchvision.tv_tensors import Image, Mask

from anomalib_uniad.training import feature_cache
from anomalib_uniad.training import feature_checks as checks
from anomalib_uniad.training.feature_build import FeatureBuilder, MemoryWriter
from helpers import make_mvtec_like


class Images(Dataset):
    """Twenty images, more than one batch; image number i is i/20 everywhere and has a mask in one corner."""

    def __init__(self, sizes=((8, 12),), labels=(0, 1)) -> None:
        self.sizes, self.labels = sizes, labels

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> ImageItem:
        size, label = self.sizes[row % len(self.sizes)], self.labels[row % len(self.labels)]
        mask = torch.zeros(size, dtype=torch.bool)
        mask[: size[0] // 2, : size[1] // 2] = bool(label)
        return ImageItem(
            image=Image(torch.full((3, *size), row / 20)),
            gt_mask=None if label is None else Mask(mask),
            gt_label=None if label is None else torch.tensor(label),
        )


class Model(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.factor = factor
        self.modes: list[tuple[bool, bool, bool]] = []

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        self.modes.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return self.norm(images)[..., ::2, ::2] * self.factor


def build(dataset=None, space=None, **arguments) -> tuple[dict[str, np.ndarray], Model]:
    model = arguments.pop("model", None) or Model()
    values = {"transform": None, "device": torch.device("cpu"), "dtype": "float32", "masks": True, **arguments}
    writer = MemoryWriter()
    check = space or (lambda needed, shape: None)
    FeatureBuilder(dataset or Images(), model=model, **values).build(writer, check)
    return writer.arrays, model


def test_all_images_in_order() -> None:
    arrays, model = build()
    assert arrays["features"].shape == (20, 3, 4, 6)
    expected = np.arange(20) / 20 / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(arrays["features"][:, 0, 0, 0], expected, rtol=1e-6)
    assert arrays["labels"].tolist() == [0, 1] * 10
    assert arrays["masks"].shape == (20, 8, 12)
    assert arrays["masks"][0].max() == 0
    assert arrays["masks"][1].sum() == 4 * 6
    assert model.training
    assert model.norm.training
    assert model.norm.num_batches_tracked == 0


def test_without_gradient_training_mode_and_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, model = build()
    assert model.modes == [(False, False, False)] * 2


def test_workers_do_not_change_anything() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    arrays, _ = build(num_workers=1)
    assert torch.rand(1).equal(expected)  # nor are random numbers taken
    np.testing.assert_array_equal(arrays["features"], build()[0]["features"])


def test_the_transform_is_applied_to_image_and_mask() -> None:
    transform = Compose([Resize((4, 4), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    arrays, _ = build(transform=transform)
    image, mask = transform(Images()[1].image, Images()[1].gt_mask)
    np.testing.assert_allclose(arrays["features"][1], Model().eval().extract(image[None])[0].detach(), rtol=1e-6)
    np.testing.assert_array_equal(arrays["masks"][1], mask.numpy())


def test_without_masks_and_labels() -> None:
    assert "masks" not in build(masks=False)[0]
    arrays, _ = build(Images(labels=(0, None)))
    assert arrays["labels"].tolist() == [0, -1] * 10
    assert arrays["masks"][1].min() == 255
    assert arrays["masks"][0].max() == 0


def test_weights_of_another_type() -> None:
    model = Model()
    model.norm.bfloat16()
    arrays, _ = build(model=model)
    assert arrays["features"].dtype == np.float32


def test_float16() -> None:
    arrays, _ = build(dtype="float16")
    assert arrays["features"].dtype == np.float16
    with pytest.raises(ValueError, match=r"Features reach 7\.5e\+04, .* \(feature_cache_dtype=float32\)"):
        build(dtype="float16", model=Model(factor=1e5))


def test_images_of_different_sizes(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        arrays, _ = build(Images(sizes=((8, 12), (6, 6))), transform=Resize((8, 8)))
    assert arrays["features"].shape == (20, 3, 4, 4)
    assert caplog.text.count("The images have 2 different sizes") == 1
    with pytest.raises(ValueError, match="different sizes after the pre-processor"):
        build(Images(sizes=((8, 12), (6, 6))))


def test_items_that_are_no_images() -> None:
    class Videos(Images):
        def __getitem__(self, row: int) -> SimpleNamespace:
            return SimpleNamespace(image=torch.zeros(5, 3, 8, 8), gt_label=None, gt_mask=None)

    with pytest.raises(ValueError, match=r"needs images of shape \(3, H, W\), but Videos gives \(5, 3, 8, 8\)"):
        build(Videos())


def test_space_is_checked_before_anything_is_written() -> None:
    def refuse(needed: int, shape: tuple[int, ...]) -> None:
        assert (needed, shape) == (20 * 3 * 4 * 6 * 2 + 20 * 8 * 12, (20, 3, 4, 6))
        raise OSError("full")

    model = Model()
    with pytest.raises(OSError, match="full"):
        build(space=refuse, dtype="float16", model=model)
    assert len(model.modes) == 1
    assert model.training


def test_messages_about_space() -> None:
    said: list[str] = []
    checks.check_space(10**9, (100, 272, 14, 14), "float32", 2 * 10**9, "/features", said.append)
    checks.check_space(10**9, (100, 272, 14, 14), "float32", None, "memory", said.append)
    text = "The features of 100 images, 272x14x14 float32, need 1.00 GB in"
    assert said == [f"{text} /features (free: 2.00 GB).", f"{text} memory."]
    with pytest.raises(OSError, match=r"in /features, but there are only 0\.50 GB\. .*`anomalib-uniad cache clear`"):
        checks.check_space(10**9, (1, 1), "float32", 5 * 10**8, "/features", said.append)
    with pytest.raises(OSError, match=r"in memory, but there are only 0\.0 MB\. .*feature_cache=disk"):
        checks.check_space(10**9, (1, 1), "float32", 0, "memory", said.append)


def test_available_memory(monkeypatch) -> None:
    assert checks.available_memory() is None or checks.available_memory() > 0
    monkeypatch.setattr(checks.Path, "read_text", lambda path: "MemFree:  1 kB\nMemAvailable:   2048 kB\n")
    assert checks.available_memory() == 2 * 2**20


@pytest.mark.parametrize(("needed", "free", "fits"), [(70, 140, True), (71, 140, False), (0, 0, True)])
def test_half_of_the_device(needed: int, free: int, fits: bool) -> None:
    assert checks.fits_on_device(needed * 10**9, free * 10**9) is fits


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([1, 2], "needs a torch DataLoader that makes batches, not list"),
        (DataLoader(Images(), batch_size=None), "needs a torch DataLoader that makes batches"),
    ],
)
def test_other_loaders_are_refused(loader, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checks.check_loader(loader)


def test_other_datasets_are_refused() -> None:
    with pytest.raises(ValueError, match="needs an image dataset of anomalib, not Images"):
        checks.check_dataset(Images(), "train_augmentations")


def test_datasets_with_their_own_reading_need_a_content_key(tmp_path: Path) -> None:
    class Inverted(MVTecADDataset):
        def __getitem__(self, index: int):
            item = super().__getitem__(index)
            return item.update(in_place=False, image=1 - item.image)

    root = make_mvtec_like(tmp_path, ["bottle"], train=1, good=1, bad=1)
    dataset = Inverted(root=root, category="bottle", split="train")
    with pytest.raises(ValueError, match=r"Inverted reads its items itself.*content_key.*feature_cache=off"):
        checks.check_dataset(dataset, "train_augmentations")
    dataset.content_key = "inverted"
    checks.check_dataset(dataset, "train_augmentations")


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "_CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("4096\n")
    free = checks.available_memory()
    (tmp_path / "memory.max").write_text("8192\n")
    assert free is None or (free > 8192 and checks.available_memory() == 4096)
    # What files use as a cache is not in the way.
    (tmp_path / "memory.stat").write_text("anon 1024\ninactive_file 1000\nactive_file 500\n")
    assert checks.available_memory() == 8192 - 4096 + 1500


def test_memory_of_several_processes(monkeypatch) -> None:
    for available, part in ((9000, 3000), (None, None)):
        monkeypatch.setattr(checks, "available_memory", lambda available=available: available)
        assert feature_cache._part_of_memory(3) == part
    with pytest.raises(OSError, match=r"in memory of each of 3 processes, .*feature_cache=disk"):
        checks.check_space(10**9, (1, 2, 2, 2), "float32", 10**8, "memory of each of 3 processes", print)


def test_batches_that_are_changed_on_their_way_are_refused() -> None:
    class Moved(LightningDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    checks.check_transfer(LightningDataModule(), LightningModule())
    for owners in ((Moved(), LightningModule()), (LightningModule(), Moved())):
        with pytest.raises(ValueError, match=r"Moved has its own on_after_batch_transfer.*feature_cache=off"):
            checks.check_transfer(*owners)


def test_something_to_do_after_each_batch() -> None:
    calls: list[int] = []

    def stop() -> None:
        calls.append(len(model.modes))
        if len(calls) == 2:
            raise InterruptedError

    model = Model()
    with pytest.raises(InterruptedError):
        build(Images(), model=model, after_batch=stop)
    assert calls == [1, 2]


def test_depth_is_refused() -> None:
    from anomalib.data.datasets.base.depth import AnomalibDepthDataset

    with pytest.raises(ValueError, match="not AnomalibDepthDataset"):
        checks.check_dataset(AnomalibDepthDataset(), "train_augmentations")


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a model with `backbone` and `extract`; Linear has not"):
        checks.check_model(nn.Linear(1, 1))


def test_strategies_that_split_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match="works on one device and with DDP, not with SimpleNamespace"):
        checks.check_strategy(SimpleNamespace(strategy=SimpleNamespace()))


def test_pre_processors_with_hooks_of_their_own_are_refused() -> None:
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import RandomHorizontalFlip

    class Mine(PreProcessor):
        def on_validation_batch_start(self, *args, **kwargs) -> None:
            pass

    def active(pre_processor, callbacks):
        return checks.active_pre_processor(
            SimpleNamespace(callbacks=callbacks), SimpleNamespace(pre_processor=pre_processor)
        )

    mine, random, plain = Mine(), PreProcessor(RandomHorizontalFlip()), PreProcessor(Resize(8))
    with pytest.raises(ValueError, match="Mine has its own on_validation_batch_start"):
        active(mine, [mine])
    with pytest.raises(ValueError, match="pre_processor has RandomHorizontalFlip"):
        active(random, [random])
    assert active(plain, [plain]) is plain
    assert active(plain, []) is None  # the trainer would not run it


def test_arguments_of_the_callback() -> None:
    from anomalib_uniad.training.feature_cache import FeatureCache

    with pytest.raises(ValueError, match="must be 'memory' or 'disk', got 'off'"):
        FeatureCache("off")
    with pytest.raises(ValueError, match="must be 'float32' or 'float16', got 'bfloat16'"):
        FeatureCache("memory", "bfloat16")

# SPDX-License-Identifier: Apache-2.0
"""What the feature cache refuses before a training, and how much room it needs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import AnomalibDataset
from anomalib.data.datasets.base.depth import AnomalibDepthDataset
from anomalib.data.datasets.image.mvtecad import MVTecADDataset
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import Compose, Normalize, RandomHorizontalFlip, Resize

from anomalib_uniad.deploy.pre_processor import AntialiasedPreProcessor
from anomalib_uniad.training import feature_cache
from anomalib_uniad.training.cached_dataset import CachedDataset
from anomalib_uniad.training.feature_store import FeatureStore
from helpers import make_mvtec_like


@pytest.mark.parametrize(
    ("free", "where", "message"),
    [
        (2 * 10**9, None, " in memory (free: 2.00 GB)."),
        (None, None, " in memory."),
        (2 * 10**9, "/f", " in /f (free: "),
    ],
)
def test_messages_about_space(
    monkeypatch: pytest.MonkeyPatch, free: int | None, where: str | None, message: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(feature_cache, "rank_zero_info", said.append)
    monkeypatch.setattr(feature_cache, "available_memory", lambda: free)
    monkeypatch.setattr(FeatureStore, "free", lambda store: free)
    store = None if where is None else FeatureStore(where)
    feature_cache.check_space(10**9, (100, 272, 14, 14), "float32", store)
    assert said[0].startswith(f"The features of 100 images, 272x14x14 float32, need 1.00 GB{message}")


@pytest.mark.parametrize(
    ("where", "processes", "message"),
    [
        ("/f", 1, r"in /f, but there are only 0\.90 GB\. .*`anomalib-uniad cache clear`"),
        (None, 1, r"in memory, but there are only 0\.90 GB\. .*feature_cache=disk"),
        (None, 3, r"in memory of each of 3 processes, but there are only 0\.30 GB\. .*feature_cache=disk"),
    ],
)
def test_too_little_space(monkeypatch: pytest.MonkeyPatch, where: str | None, processes: int, message: str) -> None:
    monkeypatch.setattr(feature_cache, "available_memory", lambda: 9 * 10**8)
    monkeypatch.setattr(FeatureStore, "free", lambda store: 9 * 10**8)
    with pytest.raises(OSError, match=message):
        store = None if where is None else FeatureStore(where)
        feature_cache.check_space(10**9, (1, 2, 2, 2), "float32", store, processes)


def test_available_memory(monkeypatch) -> None:
    assert feature_cache.available_memory() is None or feature_cache.available_memory() > 0
    monkeypatch.setattr(
        feature_cache.Path, "read_text", lambda path, encoding: "MemFree:  1 kB\nMemAvailable:   2048 kB\n"
    )
    assert feature_cache.available_memory() == 2 * 2**20


def make_dataset() -> CachedDataset:
    import pandas as pd

    source = AnomalibDataset()
    source._samples = pd.DataFrame({"image_path": ["a.png", "b.png"]})
    return CachedDataset(source)


def test_other_loaders_are_refused() -> None:
    dataset, other = make_dataset(), make_dataset()
    feature_cache.check_loader(DataLoader(dataset, collate_fn=dataset.collate_fn), dataset)
    for loader, message in [
        ([1, 2], "needs a torch DataLoader that makes batches, not list"),
        (DataLoader(dataset, batch_size=None), "needs a torch DataLoader that makes batches"),
        (DataLoader(other, collate_fn=other.collate_fn), "whose dataloaders read its train_data and val_data"),
        (DataLoader(dataset, collate_fn=list), r"its own collate_fn \(list\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            feature_cache.check_loader(loader, dataset)


@pytest.mark.parametrize("dataset", [TensorDataset(torch.zeros(1)), AnomalibDepthDataset()])
def test_other_datasets_are_refused(dataset) -> None:
    with pytest.raises(ValueError, match=f"needs an image dataset of anomalib, not {type(dataset).__name__}"):
        feature_cache.check_dataset(dataset, "train_augmentations")


def test_datasets_with_their_own_batches_are_refused() -> None:
    class Mixed(AnomalibDataset):
        collate_fn = staticmethod(lambda items: items)

    with pytest.raises(ValueError, match=r"its own collate_fn \(<lambda>\)"):
        feature_cache.check_dataset(Mixed(), "train_augmentations")


def test_datasets_with_their_own_reading_need_a_content_key(tmp_path: Path) -> None:
    class Inverted(MVTecADDataset):
        def __getitem__(self, index: int):
            item = super().__getitem__(index)
            return item.update(in_place=False, image=1 - item.image)

    root = make_mvtec_like(tmp_path, ["bottle"], train=1, good=1, bad=1)
    dataset = Inverted(root=root, category="bottle", split="train")
    with pytest.raises(ValueError, match=r"Inverted reads its items itself.*content_key.*feature_cache=off"):
        feature_cache.check_dataset(dataset, "train_augmentations")
    dataset.content_key = "inverted"
    feature_cache.check_dataset(dataset, "train_augmentations")


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(feature_cache, "_CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("4096\n")
    free = feature_cache.available_memory()
    (tmp_path / "memory.max").write_text("8192\n")
    assert free is None or (free > 8192 and feature_cache.available_memory() == 4096)
    # What files use as a cache is not in the way.
    (tmp_path / "memory.stat").write_text("anon 1024\ninactive_file 1000\nactive_file 500\n")
    assert feature_cache.available_memory() == 8192 - 4096 + 1500


def test_batches_that_are_changed_on_their_way_are_refused() -> None:
    class Moved(LightningDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    feature_cache.check_transfer(LightningDataModule(), LightningModule())
    for owners in ((Moved(), LightningModule()), (LightningModule(), Moved())):
        with pytest.raises(ValueError, match=r"Moved has its own on_after_batch_transfer.*feature_cache=off"):
            feature_cache.check_transfer(*owners)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a model with `backbone` and `extract`; Linear has not"):
        feature_cache.check_model(nn.Linear(1, 1))


def test_strategies_that_split_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match="works on one device and with DDP, not with SimpleNamespace"):
        feature_cache.check_strategy(SimpleNamespace(strategy=SimpleNamespace()))


def test_pre_processors_that_do_more_are_refused() -> None:
    class Nothing(AntialiasedPreProcessor):
        def on_validation_batch_start(self, *args, **kwargs) -> None:
            pass

    def transform(pre_processor, used: bool = True):
        trainer = SimpleNamespace(callbacks=[pre_processor] if used else [])
        return feature_cache.transform_of_images(trainer, SimpleNamespace(pre_processor=pre_processor))

    resize = Compose([Resize((8, 8)), Normalize([0.5] * 3, [0.5] * 3)])
    assert transform(AntialiasedPreProcessor(resize)) is resize
    assert transform(PreProcessor()) is None
    assert transform(PreProcessor(resize), used=False) is None
    assert transform(None) is None
    for wrong, message in [
        (PreProcessor(resize), "on_train_batch_start of PreProcessor .* does not leave batches that bring"),
        (Nothing(resize), "on_validation_batch_start of Nothing does something else"),
        (AntialiasedPreProcessor(RandomHorizontalFlip()), "pre_processor has RandomHorizontalFlip"),
        (nn.Identity(), "knows pre-processors of anomalib, not Identity"),
    ]:
        with pytest.raises(ValueError, match=message):
            transform(wrong)


def test_arguments_of_the_callback() -> None:
    with pytest.raises(ValueError, match="mode must be one of 'memory', 'disk', got 'off'"):
        feature_cache.FeatureCache("off")
    with pytest.raises(ValueError, match="dtype must be one of 'float32', 'float16', got 'bfloat16'"):
        feature_cache.FeatureCache("memory", "bfloat16")

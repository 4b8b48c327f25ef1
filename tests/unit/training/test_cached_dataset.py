# SPDX-License-Identifier: Apache-2.0
"""Features that are computed once, and the batches that bring them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms.v2 import Compose, Normalize, Resize
from torchvision.tv_tensors import Image, Mask

from anomalib_uniad.training.cached_dataset import CachedDataset, CachedPart, compute_features
from anomalib_uniad.training.feature_statistics import shares_of_products
from anomalib_uniad.training.feature_store import MemoryWriter

COUNT = 7
FEATURES = np.arange(COUNT * 2 * 3 * 3, dtype=np.float16).reshape(COUNT, 2, 3, 3)


def make_dataset(labels=(0, 1, 0, 1, 0, 1, 0), masks: bool = True) -> CachedDataset:
    arrays = {"features": FEATURES, "labels": np.array(labels, dtype=np.int8)}
    if masks:
        arrays["masks"] = np.stack([np.full((5, 6), label % 256, dtype=np.uint8) for label in labels])
    dataset = CachedDataset(make_source([f"{row}_mask.png" if label else None for row, label in enumerate(labels)]))
    dataset.fill([CachedPart(range(COUNT), arrays)], torch.device("cpu"))
    return dataset


def make_source(masks: list) -> AnomalibDataset:
    source = AnomalibDataset()
    source._samples = pd.DataFrame({"image_path": [f"{row}.png" for row in range(len(masks))], "mask_path": masks})
    return source


def test_a_batch_is_the_rows_in_order() -> None:
    batch = make_dataset().__getitems__([5, 0, 3])
    assert isinstance(batch, ImageBatch)
    assert batch.features.dtype == torch.float16
    np.testing.assert_array_equal(batch.features.numpy(), FEATURES[[5, 0, 3]])
    assert batch.image.shape == (3, 3, 1, 1)
    assert len(batch) == batch.batch_size == 3
    assert batch.gt_label.tolist() == [True, False, True]
    assert batch.gt_mask.dtype == torch.bool
    assert batch.gt_mask.flatten(1).all(1).tolist() == [True, False, True]
    assert batch.image_path == ["5.png", "0.png", "3.png"]
    assert batch.mask_path == ["5_mask.png", "None", "3_mask.png"]  # as anomalib's own batches have it
    assert make_dataset()[4].image_path == ["4.png"]


def test_what_a_batch_does_not_have() -> None:
    batch = make_dataset(masks=False).__getitems__([0, 1])
    assert batch.gt_mask is None
    assert batch.mask_path is None  # the first has none
    unknown = make_dataset(labels=(0, -1, 0, 1, 0, 1, 0)).__getitems__([0, 1])
    assert unknown.gt_label is None
    assert unknown.gt_mask is None  # -1 is 255 in its mask


def test_anomalibs_views_of_a_batch() -> None:
    batch = make_dataset().__getitems__([1, 2])
    items = batch.items
    assert [type(item) for item in items] == [ImageItem, ImageItem]
    assert items[0].gt_mask.all()
    assert batch.to_numpy().gt_label.tolist() == [True, False]
    updated = batch.update(in_place=False, pred_score=torch.tensor([0.1, 0.2]))
    assert updated.features is batch.features
    assert "features" in batch.keys(include_none=False)


def test_parts_and_copies() -> None:
    """Rows 0, 2 and 5 of one product, the others of another one, of which each image has two copies."""
    first, second = [5, 0, 2], [1, 3, 4, 6]

    def part(rows: list[int], plus: float = 0) -> CachedPart:
        arrays = {"features": FEATURES[rows] + np.float16(plus), "labels": np.array(rows, np.int8) % 2}
        return CachedPart(rows, arrays)

    dataset = CachedDataset(make_source([None] * COUNT))
    dataset.fill([part(first), part(second), part(second, 1000), part(second, 2000)], torch.device("cpu"))
    rows = [6, 0, 5, 3, 1, 2] * 50
    torch.manual_seed(3)
    batch = dataset.__getitems__(rows)
    assert batch.gt_label.tolist() == [bool(row % 2) for row in rows]
    versions = (batch.features[:, 0, 0, 0].numpy() - FEATURES[rows, 0, 0, 0]) / 1000
    assert set(versions[np.isin(rows, first)]) == {0}
    drawn = np.bincount(versions[np.isin(rows, second)].round().astype(int))
    assert drawn.min() > 30 and len(drawn) == 3  # 150 in all
    torch.manual_seed(3)
    assert dataset.__getitems__(rows).features.equal(batch.features)


def test_products_that_differ_more_are_drawn_more_often() -> None:
    """The variance is that about the mean image of a product: what differs from place to place is not counted."""
    generator = np.random.default_rng(0)
    products = [[0, 3, 6, 7, 10], [*range(20, 50)], [1, 2, 4, 5, 8, 9, *range(11, 20)]]
    mean = generator.normal(size=(3, 2, 3, 3)) * [[[10]], [[0.1]]]
    features = np.zeros((50, 2, 3, 3), np.float32)
    for rows, middle, scale in zip(products, mean, (1, 0.5, 2), strict=True):
        spread = np.reshape([3, 0.05], (2, 1, 1)) * scale
        features[rows] = middle + spread * generator.normal(size=(len(rows), 2, 3, 3))
    dataset = CachedDataset(make_source([None] * 50))
    dataset.fill([CachedPart(range(50), {"features": features, "labels": np.arange(50) % 2})], torch.device("cpu"))
    before = dataset.__getitems__([3, 1]).features.clone()

    overall = features.astype(float).var(axis=(0, 2, 3))
    within = [features[rows].astype(float).var(axis=0, ddof=1).mean(axis=(1, 2)) for rows in products]
    squares = np.mean(within / overall, axis=1) ** 2
    shares = shares_of_products(dataset, products)
    dataset.sample(products, shares)
    np.testing.assert_allclose(shares, 0.8 * squares / squares.sum() + 0.2 / 3, rtol=1e-6)
    assert shares[2] > 4 * shares[0]

    torch.manual_seed(0)
    epochs = [dataset.__getitems__(torch.randperm(50).tolist()) for _ in range(300)]
    paths = [int(path.removesuffix(".png")) for batch in epochs for path in batch.image_path]
    np.testing.assert_array_equal(torch.cat([batch.features for batch in epochs]).numpy(), features[paths])
    assert torch.cat([batch.gt_label for batch in epochs]).tolist() == [bool(row % 2) for row in paths]
    drawn = np.bincount(paths, minlength=50)
    for rows, share in zip(products, shares, strict=True):
        assert abs(drawn[rows].sum() / 300 - 50 * share) < 0.2
        assert drawn[rows].min() > 0.2 * drawn[rows].mean()
    assert dataset.without_copies().__getitems__([3, 1]).features.equal(before)


def test_drawing_products_of_one_image_or_of_the_same_image() -> None:
    def shares(features: np.ndarray, products: list[list[int]]) -> list[float]:
        dataset = CachedDataset(make_source([None] * 4))
        arrays = {"features": features, "labels": np.zeros(4)}
        dataset.fill([CachedPart(range(4), arrays)], torch.device("cpu"))
        found = shares_of_products(dataset, products)
        dataset.sample(products, found)
        drawn = [path for _ in range(200) for path in dataset.__getitems__([0, 1, 2, 3]).image_path]
        for rows in products:  # none is left out, however small its share
            assert {f"{row}.png" for row in rows} <= set(drawn)
        return found.tolist()

    different = np.arange(4 * 2 * 3 * 3, dtype=np.float32).reshape(4, 2, 3, 3)
    assert shares(different, [[0, 1], [2], [3]]) == pytest.approx([0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3])
    assert shares(different, [[0], [1], [2], [3]]) == [0.25] * 4
    assert shares(np.ones_like(different), [[0, 1], [2, 3]]) == [0.5, 0.5]
    assert shares(different[[0, 0, 2, 3]], [[0, 1], [2, 3]]) == pytest.approx([0.1, 0.9])


def test_released_features_are_not_used() -> None:
    dataset = make_dataset()
    dataset.release()
    assert len(dataset) == COUNT
    with pytest.raises(RuntimeError, match="from the start of a training to its end"):
        dataset.__getitems__([0])


@pytest.mark.parametrize(("free", "fits"), [(2 * FEATURES.nbytes, True), (2 * FEATURES.nbytes - 2, False)])
def test_half_of_the_device_is_for_features(monkeypatch: pytest.MonkeyPatch, free: int, fits: bool) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: moved.append(device) or tensor)
    dataset = CachedDataset(make_source([None] * COUNT))
    arrays = {"features": FEATURES, "labels": np.zeros(COUNT)}
    dataset.fill([CachedPart(range(COUNT), arrays)], torch.device("cuda", 0))
    assert moved == [torch.device("cuda", 0)] * fits
    assert dataset._pin == (not fits)


def test_lightning_can_distribute_it() -> None:
    """What Lightning does with a dataloader if there are several processes."""
    from lightning.pytorch.utilities.data import _update_dataloader

    dataset = make_dataset()
    loader = DataLoader(dataset, batch_size=2, shuffle=True, collate_fn=dataset.collate_fn)
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(loader.dataset, 2, rank, shuffle=True, seed=1)
        part = _update_dataloader(loader, sampler)
        parts.append([path for batch in part for path in batch.image_path])
    assert len(parts[0]) == len(parts[1]) == 4
    assert {*parts[0], *parts[1]} == {f"{row}.png" for row in range(COUNT)}


def test_it_looks_like_the_dataset_of_images() -> None:
    source = make_source(["m", None, "", ["x", "y"]])
    source._samples.attrs["task"] = "segmentation"
    source.category = "bottle"
    dataset = CachedDataset(source)
    assert (dataset.name, dataset.category, dataset.task, len(dataset)) == ("Anomalib", "bottle", "segmentation", 4)
    assert dataset.samples is source.samples
    arrays = {"features": FEATURES[:4], "labels": np.zeros(4, np.int8)}
    dataset.fill([CachedPart(range(4), arrays)], torch.device("cpu"))
    paths = [dataset[row].mask_path for row in range(4)]
    assert paths == [["m"], None, None, ["x"]]  # of several masks the first, as items of images have it
    source._samples = source.samples[["image_path"]]
    without = CachedDataset(source)
    without.fill([CachedPart(range(4), arrays)], torch.device("cpu"))
    assert without[0].mask_path is None


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


def compute(dataset=None, space=None, **arguments) -> tuple[dict[str, np.ndarray], Model]:
    model = arguments.pop("model", None) or Model()
    values = {"transform": None, "device": torch.device("cpu"), "dtype": "float32", "masks": True, **arguments}
    writer = MemoryWriter()
    check = space or (lambda needed, shape: None)
    compute_features(dataset or Images(), model=model, writer=writer, check_space=check, **values)
    return writer.arrays, model


def test_all_images_in_order() -> None:
    arrays, model = compute()
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
        _, model = compute()
    assert model.modes == [(False, False, False)] * 2


def test_workers_do_not_change_anything() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    arrays, _ = compute(num_workers=1)
    assert torch.rand(1).equal(expected)  # nor are random numbers taken
    np.testing.assert_array_equal(arrays["features"], compute()[0]["features"])


def test_the_transform_is_applied_to_image_and_mask() -> None:
    transform = Compose([Resize((4, 4), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    arrays, _ = compute(transform=transform)
    image, mask = transform(Images()[1].image, Images()[1].gt_mask)
    np.testing.assert_allclose(arrays["features"][1], Model().eval().extract(image[None])[0].detach(), rtol=1e-6)
    np.testing.assert_array_equal(arrays["masks"][1], mask.numpy())


def test_some_rows_and_copies() -> None:
    arrays, _ = compute(rows=[3, 7, 4], copy=lambda image, position: image + position)
    expected = (torch.tensor([3, 7, 4]) / 20 + torch.arange(3)) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(arrays["features"][:, 0, 0, 0], expected, rtol=1e-6)
    assert arrays["labels"].tolist() == [1, 1, 0]
    assert arrays["masks"].shape == (3, 8, 12)
    one_by_one, _ = compute(rows=range(20), copy=lambda image, position: image + position)
    np.testing.assert_allclose(one_by_one["features"][17, 0, 0, 0], (17 / 20 + 17) / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_without_masks_and_labels() -> None:
    assert "masks" not in compute(masks=False)[0]
    arrays, _ = compute(Images(labels=(0, None)))
    assert arrays["labels"].tolist() == [0, -1] * 10
    assert arrays["masks"][1].min() == 255
    assert arrays["masks"][0].max() == 0


def test_weights_of_another_type() -> None:
    model = Model()
    model.norm.bfloat16()
    arrays, _ = compute(model=model)
    assert arrays["features"].dtype == np.float32


def test_float16() -> None:
    arrays, _ = compute(dtype="float16")
    assert arrays["features"].dtype == np.float16
    with pytest.raises(ValueError, match=r"Features reach 7\.5e\+04, .* \(feature_cache_dtype=float32\)"):
        compute(dtype="float16", model=Model(factor=1e5))


def test_images_of_different_sizes() -> None:
    arrays, _ = compute(Images(sizes=((8, 12), (6, 6))), transform=Resize((8, 8)))
    assert arrays["features"].shape == (20, 3, 4, 4)
    with pytest.raises(ValueError, match="different sizes after the pre-processor"):
        compute(Images(sizes=((8, 12), (6, 6))))


def test_items_that_are_no_images() -> None:
    class Videos(Images):
        def __getitem__(self, row: int) -> SimpleNamespace:
            return SimpleNamespace(image=torch.zeros(5, 3, 8, 8), gt_label=None, gt_mask=None)

    with pytest.raises(ValueError, match=r"needs images of shape \(3, H, W\), but Videos gives \(5, 3, 8, 8\)"):
        compute(Videos())


def test_space_is_checked_before_anything_is_written() -> None:
    def refuse(needed: int, shape: tuple[int, ...]) -> None:
        assert (needed, shape) == (20 * 3 * 4 * 6 * 2 + 20 * 8 * 12, (20, 3, 4, 6))
        raise OSError("full")

    model = Model()
    with pytest.raises(OSError, match="full"):
        compute(space=refuse, dtype="float16", model=model)
    assert len(model.modes) == 1
    assert model.training

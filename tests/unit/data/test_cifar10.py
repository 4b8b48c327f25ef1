# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10: which images are in which set, and files that are not as they should be."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.transforms.v2 import Resize

from anomalib_uniad.data import CIFAR10
from anomalib_uniad.data.cifar10 import CIFAR10Dataset
from anomalib_uniad.data.cifar10_files import CLASSES
from cifar_files import NAMES, accept, make_cifar

FOLDER = "cifar-10-batches-py"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_cifar(tmp_path_factory.mktemp("data") / "CIFAR10")


def make(root: Path, **arguments) -> CIFAR10:
    datamodule = CIFAR10(root, num_workers=0, **{"verify": False, **arguments})
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize("normal", [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [0, 2, 4, 6, 8], [1, 3, 5, 7, 9], [7]])
def test_sets_are_those_of_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch, normal: list[int]) -> None:
    accept(root, monkeypatch)
    datamodule = make(root, normal_classes=normal, verify=True)
    for data, train in ((datamodule.train_data, True), (datamodule.test_data, False)):
        source = datasets.CIFAR10(root, train=train)
        wanted = [number for number, label in enumerate(source.targets) if not train or label in normal]
        assert sorted(data.samples.position) == wanted
        for index in range(len(data)):
            item, row = data[index], data.samples.iloc[index]
            image, label = source[row.position]
            torch.testing.assert_close(
                torch.Tensor(item.image), torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
            )
            assert item.image.dtype == torch.float32
            assert int(item.gt_label) == (label not in normal)
            assert item.gt_mask is None
            split = "train" if train else "test"
            assert item.image_path == str(root / split / NAMES[label] / f"{row.position:05}.png")
        assert data.samples.image_path.is_unique
        assert data.samples.attrs["task"] == "classification"
    assert not any(datamodule.train_data.samples.label_index)
    assert list(CLASSES) == NAMES


@pytest.mark.parametrize("given", [(0, 8), ["airplane", "ship"], "airplane, ship", "[0, 8]", ["0", "ship"]])
def test_ways_to_name_classes(given) -> None:
    assert CIFAR10(normal_classes=given).normal_classes == (0, 8)
    assert CIFAR10(normal_classes=3).normal_classes == (3,)
    assert CIFAR10().normal_classes == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normal_classes": [0, 10]}, r"Unknown class 10 in normal_classes: classes are 0 to 9, or airplane, auto"),
        ({"normal_classes": "cat, cow"}, "Unknown class 'cow'"),
        ({"normal_classes": [True]}, "Unknown class True"),
        ({"normal_classes": [0.5]}, r"Unknown class 0\.5"),
        ({"normal_classes": ""}, "Unknown class ''"),
        ({"normal_classes": [3, "cat"]}, "given twice in normal_classes: cat"),
        ({"normal_classes": []}, "must be 1 to 9 of the 10 classes, got 0"),
        ({"normal_classes": range(10)}, "must be 1 to 9 of the 10 classes, got 10"),
        ({"val_split_mode": "synthetic"}, "no val_split_mode 'synthetic': its images are no files"),
        ({"val_split_mode": "from_dir"}, "no val_split_mode 'from_dir'"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CIFAR10(**arguments)


def test_validation_split(root: Path) -> None:
    whole = make(root, val_split_mode="same_as_test")
    assert whole.val_data.samples.equals(whole.test_data.samples)
    first, again, other = (make(root, val_split_mode="from_test", val_split_ratio=0.4, seed=s) for s in (1, 1, 2))
    paths = {*first.val_data.samples.image_path, *first.test_data.samples.image_path}
    assert paths == set(whole.test_data.samples.image_path)
    assert len(first.val_data) == 12
    assert first.val_data.samples.label_index.sum() == 6
    assert first.val_data.samples.equals(again.val_data.samples)
    assert not first.val_data.samples.equals(other.val_data.samples)
    row = first.val_data.samples.iloc[5]
    same = int(np.flatnonzero(whole.test_data.samples.image_path == row.image_path)[0])
    assert torch.equal(first.val_data[5].image, whole.test_data[same].image)


def test_copies_share_the_images(root: Path) -> None:
    data = make(root).test_data
    copied = copy.deepcopy(data)
    assert np.shares_memory(copied._images, data._images)
    assert copied.samples is not data.samples
    assert copied.content_key == data.content_key
    assert torch.equal(pickle.loads(pickle.dumps(data))[3].image, data[3].image)


def test_content_key_follows_the_images(root: Path, tmp_path: Path) -> None:
    other = make_cifar(tmp_path, test=4)
    keys = {
        CIFAR10Dataset(path, [0], split, verify=False).content_key
        for path in (root, other)
        for split in ("train", "test")
    }
    assert len(keys) == 3, "the training images are the same"


def test_batches_are_of_the_size_of_the_augmentations(root: Path) -> None:
    batch = next(iter(make(root, augmentations=Resize(48), train_batch_size=5).train_dataloader()))
    assert batch.image.shape == (5, 3, 48, 48)
    assert batch.gt_mask is None
    assert not batch.gt_label.any()


def test_a_part_of_the_data_set_has_to_be_asked_for(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"data_batch_1, .* in .*{FOLDER} is not as torchvision knows it.*`verify`"):
        CIFAR10(root).prepare_data()
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    message = (
        rf"not complete in .*{FOLDER}: there is no batches.meta, .*Download https://.*tar.gz and unpack it in "
        rf".*has the folder {FOLDER}. The download failed: no route to host"
    )
    with pytest.raises(FileNotFoundError, match=message):
        CIFAR10(tmp_path).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"there is no batches\.meta"):
        CIFAR10(tmp_path).setup()


def test_downloads(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(root, monkeypatch)

    def download(url: str, folder: Path, filename: str, md5: str) -> None:
        make_cifar(Path(folder))

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    datamodule = CIFAR10(tmp_path / "new", num_workers=0)
    datamodule.prepare_data()
    monkeypatch.delattr("torchvision.datasets.cifar.download_and_extract_archive")
    datamodule.prepare_data()  # once is enough
    datamodule.setup()
    assert len(datamodule.test_data) == 30


def damaged(root: Path, name: str, content) -> Path:
    data = content if isinstance(content, bytes) else pickle.dumps(content)
    (root / FOLDER / name).write_bytes(data)
    return root


IMAGES = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch", b"", "test files in .* cannot be read as CIFAR-10: EOFError"),
        ("data_batch_2", b"no pickle", "training files in .* cannot be read as CIFAR-10: UnpicklingError"),
        ("test_batch", {"images": IMAGES}, "cannot be read as CIFAR-10: KeyError"),
        ("test_batch", [1, 2], "cannot be read as CIFAR-10: TypeError"),
        ("test_batch", {"data": IMAGES[:, :5], "labels": [0, 1]}, "cannot be read as CIFAR-10: ValueError"),
        ("test_batch", {"data": IMAGES, "labels": [0]}, "need a label from 0 to 9 for each of their 2 images"),
        ("test_batch", {"data": IMAGES, "labels": [0, 10]}, "need a label from 0 to 9"),
        ("test_batch", {"data": IMAGES, "labels": ["a", "b"]}, "cannot be read as CIFAR-10: ValueError"),
        ("test_batch", {"data": IMAGES.astype(float), "labels": [0, 1]}, "2 images of bytes"),
        ("batches.meta", {"label_names": ["cow"]}, "The classes in .* are cow; those of CIFAR-10 are airplane"),
        ("batches.meta", {}, "cannot be read as CIFAR-10: KeyError"),
        ("test_batch", {"data": IMAGES, "labels": [8, 9]}, r"no test image of the normal classes \[0, 1, 2, 3, 4\]"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content, message: str) -> None:
    damaged(make_cifar(tmp_path), name, content)
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


def test_missing_and_misplaced(tmp_path: Path) -> None:
    make_cifar(tmp_path / "a")
    (tmp_path / "a" / FOLDER / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no data_batch_3\. Download"):
        make(tmp_path / "a")
    with pytest.raises(ValueError, match=r"The root .*test_batch is a file"):
        make(tmp_path / "a" / FOLDER / "test_batch")

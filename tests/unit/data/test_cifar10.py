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
from anomalib_uniad.data.cifar10 import CLASSES, CIFAR10Dataset
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
        ({"normal_classes": 1.5}, r"Unknown class 1\.5 in normal_classes"),
        ({"normal_classes": None}, "Unknown class None in normal_classes"),
        ({"normal_classes": ""}, "Unknown class ''"),
        ({"normal_classes": [3, "cat"]}, "given twice in normal_classes: cat"),
        ({"normal_classes": []}, "must be 1 to 9 of the 10 classes, got 0"),
        ({"normal_classes": range(10)}, "must be 1 to 9 of the 10 classes, got 10"),
        ({"val_split_mode": "synthetic"}, "no val_split_mode 'synthetic': its images are no files"),
        ({"val_split_mode": "from_dir"}, "no val_split_mode 'from_dir'"),
        ({"val_split_ratio": 1.5}, r"^val_split_ratio is 1\.5, it has to be a number between 0 and 1"),
        ({"val_split_ratio": 0.0}, r"^val_split_ratio is 0\.0"),
        ({"val_split_ratio": True}, "^val_split_ratio is True"),
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
    with pytest.raises(
        ValueError, match=rf"data_batch_1, .* in .*{FOLDER} is not as torchvision knows it.*trust.*`verify`"
    ):
        CIFAR10(root).prepare_data()
    with pytest.raises(ValueError, match=r"test_batch, .* is not as torchvision knows it"):
        CIFAR10Dataset(root, [0], "test")
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
WHOLE = "have to be whole numbers from"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch", b"", r"/test_batch cannot be read as CIFAR-10: EOFError"),
        ("data_batch_2", b"no pickle", r"/data_batch_2 cannot be read as CIFAR-10: UnpicklingError"),
        ("test_batch", {"images": IMAGES}, "cannot be read as CIFAR-10: KeyError"),
        ("test_batch", [1, 2], "cannot be read as CIFAR-10: TypeError"),
        (
            "test_batch",
            {"data": IMAGES[:, :5], "labels": [0, 1]},
            r"/test_batch are no images of CIFAR-10: .* \(n, 3072\)",
        ),
        (
            "test_batch",
            {"data": IMAGES.astype(float), "labels": [0, 1]},
            "data in .*/test_batch are no images of CIFAR-10",
        ),
        ("test_batch", {"data": IMAGES.tolist(), "labels": [0, 1]}, "data in .*/test_batch are no images of CIFAR-10"),
        ("data_batch_2", {"data": IMAGES, "labels": [0]}, f"data_batch_2 {WHOLE} 0 to 9, one for each of its 2 images"),
        ("test_batch", {"data": IMAGES, "labels": [0, 10]}, f"/test_batch {WHOLE}"),
        ("test_batch", {"data": IMAGES, "labels": [0, 0.5]}, f"/test_batch {WHOLE}"),
        ("test_batch", {"data": IMAGES, "labels": [False, True]}, f"/test_batch {WHOLE}"),
        ("test_batch", {"data": IMAGES, "labels": ["a", "b"]}, f"/test_batch {WHOLE}"),
        ("test_batch", {"data": IMAGES, "labels": [[0], [0, 1]]}, f"/test_batch {WHOLE}"),
        ("test_batch", {"data": IMAGES, "labels": None}, f"/test_batch {WHOLE}"),
        (
            "test_batch",
            b"cmodule_of_nobody\nThing\n.",
            "/test_batch cannot be read as CIFAR-10: .*module_of_nobody.Thing",
        ),
        (
            "test_batch",
            b"cbuiltins\neval\n.",
            r"it has builtins\.eval, which has no place in a data set and is not loaded",
        ),
        (
            "batches.meta",
            {"label_names": ["cow"]},
            r"The classes in .*batches.meta are \['cow'\]; .* \['airplane', 'auto",
        ),
        ("batches.meta", {}, "/batches.meta cannot be read as CIFAR-10: KeyError"),
        ("test_batch", {"data": IMAGES, "labels": [8, 9]}, r"no test image of the normal classes \[0, 1, 2, 3, 4\]"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content, message: str) -> None:
    damaged(make_cifar(tmp_path), name, content)
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


class Opens:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch", "batches.meta"])
def test_nothing_in_the_files_is_executed(tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    content = {"data": IMAGES, "labels": [0, 1], "label_names": NAMES, "more": Opens(made)}
    damaged(make_cifar(tmp_path), name, content)
    with pytest.raises(
        ValueError, match=rf"/{name} cannot be read as CIFAR-10: .*it has _?io\.open, which has no place"
    ):
        make(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}.* is not as torchvision knows it"):
        make(tmp_path, verify=True)
    assert not made.exists()
    pickle.loads((tmp_path / FOLDER / name).read_bytes())["more"].close()
    assert made.exists(), "the danger is real"


def as_python_2_wrote_it(pixels: np.ndarray) -> bytes:
    """The original files are such: arrays of numpy 1 with their bytes as text."""
    raw = pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x02M\x00\x0c\x86"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    text = b"T" + len(raw).to_bytes(4, "little") + raw
    return b"\x80\x02}(U\x04data" + array + dtype + text + b"tbU\x06labels](K\x03K\x07eu."


@pytest.mark.parametrize("way", [0, 2, 4, 5, "numpy 1", "Python 2"])
def test_ways_to_write_the_files(tmp_path: Path, way: int | str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    content = {"data": pixels, "labels": [np.int64(3), 7], "batch_label": b"test", "filenames": ["a.png", "b.png"]}
    data = pickle.dumps(content, protocol=way if isinstance(way, int) else 2)
    if way == "numpy 1":
        data = data.replace(b"numpy._core.", b"numpy.core.")
    elif way == "Python 2":
        data = as_python_2_wrote_it(pixels)
    damaged(make_cifar(tmp_path), "test_batch", data)
    dataset = make(tmp_path, normal_classes=[3]).test_data
    assert dataset.samples.sort_values("position")["class_index"].tolist() == [3, 7]
    expected = pixels.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(dataset._images, expected)


def test_missing_and_misplaced(tmp_path: Path) -> None:
    make_cifar(tmp_path / "a")
    (tmp_path / "a" / FOLDER / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no data_batch_3\. Download"):
        make(tmp_path / "a")
    with pytest.raises(ValueError, match=r"The root .*test_batch is a file"):
        make(tmp_path / "a" / FOLDER / "test_batch")

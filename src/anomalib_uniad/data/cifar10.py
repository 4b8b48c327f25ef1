# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 with some of its classes as normal and the others as anomalous; image level only, there are no masks."""

import copy
import hashlib
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageItem
from anomalib.data.utils import LabelName, Split, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from PIL import Image
from torchvision import datasets
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.v2 import Transform
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_uniad.checks import check_loading
from anomalib_uniad.errors import DiskError, ExistingFileError, InputError, MissingFileError
from anomalib_uniad.files import save_picture
from anomalib_uniad.splits import check_ratios

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Names of the classes, in the order of their labels."""

_FOLDER = datasets.CIFAR10.base_folder


class CIFAR10(AnomalibDataModule):
    """CIFAR-10, with some classes as normal and all others as anomalous.

    Trains on the training images of the normal classes. All 10,000 test images are tested, in one pool: those of the
    normal classes are normal, those of the others anomalous. There are no masks, so image-level metrics are all that
    there is. Files and folders are those of ``torchvision.datasets.CIFAR10``. Images are 32 x 32 pixels; the model's
    pre-processor enlarges them. Their paths, ``<root>/<split>/<class>/<number in the split>.png``, are made up: all
    images are read at once. But anomalib's heatmaps show an image from its file, so for a model with a visualizer, the
    test images are written there; with 10,000 of them, ``visualizer: false`` saves time and space.

    Args:
        root (Path | str | None): Folder that has ``cifar-10-batches-py`` in it, or gets it by download; ``None`` uses
            the folder of anomalib for data sets. Defaults to ``"./datasets/CIFAR10"``.
        normal_classes (Sequence[int | str] | int | str): Classes that are normal, as labels from 0 to 9 or as names
            (``airplane``, ``automobile``, ``bird``, ``cat``, ``deer``, ``dog``, ``frog``, ``horse``, ``ship``,
            ``truck``); also one string of them with commas in between. Defaults to ``(0, 1, 2, 3, 4)``.
        train_batch_size (int): Batch size for training. Defaults to ``32``.
        eval_batch_size (int): Batch size for validation and test. Defaults to ``32``.
        num_workers (int): Number of workers of each dataloader. Defaults to ``8``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations where none are given above. Defaults to ``None``.
        val_split_mode (ValSplitMode | str): Where the validation set comes from: ``"same_as_test"``, ``"from_test"``,
            ``"from_train"`` (normal images only) or ``"none"``. Defaults to ``"same_as_test"``.
        val_split_ratio (float): Part of the images that is split off for validation. Defaults to ``0.5``.
        seed (int | None): Seed of that split. Defaults to ``None``.
        verify (bool): Compare the files with torchvision's checksums. ``False`` reads any files of the same names and
            format, for example a part of the data set; only from somebody that you trust, although whatever is no
            array, text, number or container of them in these pickles is refused. Defaults to ``True``.

    Raises:
        ValueError: If there are no normal classes, or no others, one is unknown or given twice, the split mode has
            no images to split, or its ratio is not between 0 and 1.

    Examples:
        >>> datamodule = CIFAR10(normal_classes="airplane, ship")
        >>> datamodule.normal_classes
        (0, 8)
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/CIFAR10",
        normal_classes: Sequence[int | str] | int | str = (0, 1, 2, 3, 4),
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        val_split_mode: ValSplitMode | str = "same_as_test",
        val_split_ratio: float = 0.5,
        seed: int | None = None,
        verify: bool = True,
    ) -> None:
        check_ratios(val_split_ratio=val_split_ratio)
        check_loading(train_batch_size, eval_batch_size, num_workers)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode="from_dir",
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        if self.val_split_mode in {ValSplitMode.SYNTHETIC, ValSplitMode.FROM_DIR}:
            raise InputError(
                f"CIFAR10 has no val_split_mode {self.val_split_mode.value!r}: its images are no files. "
                "Choose same_as_test, from_test, from_train or none."
            )
        self.root = Path(resolve_dataset_root(root, "CIFAR10")).expanduser()
        self.normal_classes = _labels(normal_classes)
        self.verify = verify
        self.images_checked = True  # they are no files of their own

    def prepare_data(self) -> None:
        """Download the data set, if it is not there and ``verify`` says what it must be.

        Raises:
            FileNotFoundError: If it is not there and cannot be downloaded; the message says which files to put where.
            ValueError: If one of the files is not the one that torchvision knows.
            OSError: If the model has a visualizer, and test images cannot be written for it.
        """
        try:
            _check_files(self.root, self.verify)
        except FileNotFoundError as missing:
            if not self.verify:
                raise
            try:
                datasets.CIFAR10(self.root, download=True)
            except (OSError, RuntimeError) as error:
                raise MissingFileError(f"{missing} The download failed: {error}.") from error
        model = getattr(self.trainer, "lightning_module", None)
        if getattr(model, "visualizer", None) is not None:
            CIFAR10Dataset(self.root, self.normal_classes, Split.TEST, self.verify).write_images()

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data = CIFAR10Dataset(self.root, self.normal_classes, Split.TRAIN, self.verify)
        self.test_data = CIFAR10Dataset(self.root, self.normal_classes, Split.TEST, self.verify)


class CIFAR10Dataset(AnomalibDataset):
    """The training images of the normal classes, or all test images.

    Args:
        root (Path | str): Folder that has ``cifar-10-batches-py`` in it.
        normal_classes (Sequence[int]): Labels of the normal classes.
        split (str | Split): ``"train"`` or ``"test"``.
        verify (bool): Compare the files with torchvision's checksums. Defaults to ``True``.
        augmentations (Transform | None): Augmentations of the images. Defaults to ``None``.

    Attributes:
        content_key (str): Digest of the images, from which a feature cache sees that they are the same.

    Raises:
        FileNotFoundError: If one of the files is missing.
        ValueError: If the files have another content than those of CIFAR-10, or no image of a normal class.
    """

    def __init__(
        self,
        root: Path | str,
        normal_classes: Sequence[int],
        split: str | Split,
        verify: bool = True,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        split = Split(split).value
        self._images, labels = _read(Path(root), split == "train", verify)
        self.content_key = hashlib.sha256(self._images.data).hexdigest()
        frame = pd.DataFrame({"position": np.arange(len(labels)), "class_index": labels, "split": split})
        frame["class_name"] = [CLASSES[label] for label in labels]
        normal = frame["class_index"].isin(list(normal_classes))
        if not normal.any():
            raise InputError(f"There is no {split} image of the normal classes {list(normal_classes)} in {root}.")
        frame["label_index"] = np.where(normal, LabelName.NORMAL, LabelName.ABNORMAL).astype(int)
        frame["label"] = np.where(normal, "normal", "anomalous")
        names = zip(frame["class_name"], frame["position"], strict=True)
        frame["image_path"] = [str(Path(root, split, name, f"{number:05d}.png")) for name, number in names]
        frame["mask_path"] = ""
        frame.attrs["task"] = TaskType.CLASSIFICATION.value
        self.samples = frame[normal] if split == "train" else frame

    @property
    def samples(self) -> pd.DataFrame:
        """Table of the images: path, split, label, class, and position in torchvision's data set."""
        return AnomalibDataset.samples.__get__(self)

    @samples.setter
    def samples(self, samples: pd.DataFrame) -> None:
        # Sorted as by anomalib, which would also look for the files.
        self._samples = samples.sort_values(by="image_path", ignore_index=True)

    def __getitem__(self, index: int) -> ImageItem:
        """Get an image (3, 32, 32) with values from 0 to 1, or as the augmentations leave it."""
        row = self.samples.iloc[index]
        image = to_dtype(to_image(self._images[row["position"]]), torch.float32, scale=True)
        if self.augmentations:
            image = self.augmentations(image)
        return ImageItem(image=image, gt_label=torch.tensor(row["label_index"]), image_path=row["image_path"])

    def write_images(self) -> None:
        """Write the images to their paths; those that are there already are left as they are.

        Raises:
            FileExistsError: If something else than the image is at its path.
            OSError: If they cannot be written.
        """
        for name, position in zip(self.samples["image_path"], self.samples["position"], strict=True):
            path, pixels = Path(name), self._images[position]
            if path.exists():
                try:
                    same = np.array_equal(np.asarray(Image.open(path)), pixels)
                except OSError:
                    same = False
                if not same:
                    msg = f"{path} is not the image of CIFAR-10 that it is to show in heatmaps. Move its folder away."
                    raise ExistingFileError(msg)
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_picture(Image.fromarray(pixels), path)
            except OSError as error:
                raise DiskError(
                    f"Heatmaps need {path}, which cannot be written: {error}. Turn them off "
                    "(--model.visualizer false), or copy the data set to a folder that can be written to."
                ) from error

    def __deepcopy__(self, memo: dict) -> "CIFAR10Dataset":
        """Copy all but the images, which nobody changes: anomalib copies datasets to split them."""
        memo[id(self._images)] = self._images
        copied = copy.copy(self)
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied


def _labels(classes: Any) -> tuple[int, ...]:
    """Turn what the user gave as normal classes into labels."""
    if isinstance(classes, str):
        classes = [name.strip(" \"'") for name in classes.strip("[] ").split(",")]
    given = list(classes) if isinstance(classes, Iterable) else [classes]
    labels = []
    for item in given:
        label = CLASSES.index(item) if item in CLASSES else item
        label = int(label) if isinstance(label, str) and label.isdecimal() else label
        if not _is_label(label):
            raise InputError(f"Unknown class {item!r} in normal_classes: classes are 0 to 9, or {', '.join(CLASSES)}.")
        labels.append(int(label))
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"Classes given twice in normal_classes: {', '.join(CLASSES[label] for label in twice)}.")
    if not 0 < len(labels) < len(CLASSES):
        msg = f"normal_classes must be 1 to {len(CLASSES) - 1} of the {len(CLASSES)} classes, got {len(labels)}."
        raise InputError(msg)
    return tuple(labels)


def _check_files(root: Path, verify: bool) -> None:
    """Refuse missing files, and files with another checksum than torchvision's if they are to be verified.

    Only a missing file is a ``FileNotFoundError``, which a download mends; it would overwrite all others.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"The root {root} is a file: set `root` to the folder that has {_FOLDER} in it.")
    source, folder = datasets.CIFAR10, root / _FOLDER
    files = {**dict(source.train_list), **dict(source.test_list), source.meta["filename"]: source.meta["md5"]}
    there = [name for name in files if (folder / name).is_file()]
    wrong = [name for name in there if verify and not check_integrity(folder / name, files[name])]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)} in {folder} is not as torchvision knows it: damaged, a part of the data set, or "
            "something else. Move the folder away to have it downloaded again, or, if you know where it comes from and "
            "trust that, set `verify` to false to read it as it is."
        )
    if missing := sorted(set(files) - set(there)):
        raise MissingFileError(
            f"CIFAR-10 is not complete in {folder}: there is no {', '.join(missing)}. Download {source.url} and unpack "
            f"it in {root}, so that it has the folder {_FOLDER}."
        )


def _read(root: Path, train: bool, verify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read the images (n, 32, 32, 3) and labels (n,) of one split."""
    _check_files(root, verify)  # torchvision would not say which of them is wrong
    if verify:
        source = datasets.CIFAR10(root, train=train)
        return np.ascontiguousarray(source.data), np.asarray(source.targets)
    meta = root / _FOLDER / datasets.CIFAR10.meta["filename"]
    (names,) = _load(meta, datasets.CIFAR10.meta["key"])
    if names != list(CLASSES):
        raise InputError(f"The classes in {meta} are {names!r}; those of CIFAR-10 are {list(CLASSES)}.")
    images, labels = [], []
    for name, _ in datasets.CIFAR10.train_list if train else datasets.CIFAR10.test_list:
        file = root / _FOLDER / name
        pixels, given = _load(file, "data", "labels")
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
            msg = f"The data in {file} are no images of CIFAR-10: they have to be an array (n, 3072) of bytes."
            raise InputError(msg)
        if not isinstance(given, list) or len(given) != len(pixels) or not all(map(_is_label, given)):
            count = len(pixels)
            msg = f"The labels in {file} have to be whole numbers from 0 to 9, one for each of its {count} images."
            raise InputError(msg)
        images.append(pixels)
        labels.extend(given)
    stacked = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(stacked), np.array(labels, dtype=int)


def _is_label(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(0 <= value < len(CLASSES))


def _load(file: Path, *keys: str) -> list[Any]:
    """Read values of the dictionary in an unverified file."""
    try:
        with file.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
        return [content[key] for key in keys]
    except Exception as error:  # damaged pickles raise anything
        raise InputError(f"{file} cannot be read as CIFAR-10: {error!r}.") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, text, numbers and containers of them, and refuses whatever else a pickle can make or call."""

    allowed = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look up what the pickle names; only what arrays are made of is there."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it has {module}.{name}, which has no place in a data set and is not loaded")
        return super().find_class(module, name)

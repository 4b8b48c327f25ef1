# SPDX-License-Identifier: Apache-2.0
"""A small CIFAR-10 in the files of the large one."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def make_cifar(root: Path, train: int = 2, test: int = 3) -> Path:
    """Write images of one colour per class, with noise.

    Args:
        root: Folder that gets ``cifar-10-batches-py``.
        train: Images of each class in each of the five training files.
        test: Images of each class in the test file.

    Returns:
        ``root``.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, name in enumerate(["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]):
        labels = np.arange(10 * (test if name == "test_batch" else train)) % 10
        noise = np.random.default_rng(seed).integers(0, 20, (len(labels), 3072))
        pixels = (noise + 20 * labels[:, None]).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    return root


def accept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take these files for the real ones."""

    def digest(name: str) -> str:
        return calculate_md5(root / "cifar-10-batches-py" / name)

    for split in ("train_list", "test_list"):
        names = [name for name, _ in getattr(datasets.CIFAR10, split)]
        monkeypatch.setattr(datasets.CIFAR10, split, [[name, digest(name)] for name in names])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": digest("batches.meta")})

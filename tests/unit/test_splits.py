# SPDX-License-Identifier: Apache-2.0
"""What is said about validation images is what is in the datasets."""

from types import SimpleNamespace

import pandas as pd
import pytest
from anomalib.data import Folder, MVTecAD, MVTecAD2
from anomalib.data.utils import ValSplitMode

import layouts
from anomalib_uniad import splits
from helpers import make_mvtec_like
from multi_category_data import make


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_mvtec_like(tmp_path_factory.mktemp("x") / "products", ["bottle", "cable", "my_part"])


def set_up(datamodule):
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("same_as_test", "test images (same_as_test)"),
        ("from_test", "validation images (from_test, ratio 0.5, seed 3)"),
        ("from_train", "validation images (from_train, ratio 0.5, seed 3)"),
        ("synthetic", "validation images (synthetic, ratio 0.5, seed 3)"),
        ("none", ""),
    ],
)
def test_modes(root, mode, expected) -> None:
    for datamodule in (
        make(root, val_split_mode=mode, val_split_ratio=0.5, seed=3),
        set_up(MVTecAD(root, "bottle", num_workers=0, val_split_mode=mode, val_split_ratio=0.5, seed=3)),
    ):
        assert splits.describe_validation(datamodule) == expected
        assert splits.validates_test_images(datamodule) == (mode == "same_as_test")
        assert not splits.drawn_without_seed(datamodule)


def test_own_validation_set(tmp_path) -> None:
    layouts.mvtec_ad_2(tmp_path / "2", ["can"])
    datamodule = set_up(MVTecAD2(tmp_path / "2", "can", num_workers=0))
    assert splits.describe_validation(datamodule) == "validation images"  # it knows no modes
    assert not splits.validates_test_images(datamodule)
    datamodule.val_split_mode = ValSplitMode.FROM_DIR
    assert splits.describe_validation(datamodule) == "validation images (from_dir)"
    datamodule.val_data = datamodule.test_data  # whatever the mode says
    assert splits.describe_validation(datamodule) == "test images (from_dir)"


def test_without_seed(tmp_path) -> None:
    make_mvtec_like(tmp_path, ["bottle"])
    folder = Folder(
        "bottle", normal_dir="train/good", root=tmp_path / "bottle", abnormal_dir="test/broken", num_workers=0
    )
    assert splits.describe_validation(set_up(folder)) == "validation images (from_test, ratio 0.5, no seed)"
    assert splits.drawn_without_seed(folder)


@pytest.mark.parametrize("datamodule", [None, SimpleNamespace(), SimpleNamespace(val_split_mode="from_test")])
def test_nothing_is_known(datamodule) -> None:
    assert splits.describe_validation(datamodule) == ""
    assert not splits.validates_test_images(datamodule)


def test_drawn_per_category_from_the_seed(root) -> None:
    def images(seed: int) -> pd.DataFrame:
        return make(root, val_split_mode="from_test", val_split_ratio=0.5, seed=seed).val_data.samples

    first = images(1)
    counts = first.groupby(["category", "label_index"]).size()
    assert len(counts) == 6, "each category, normal and defective"
    assert counts.between(1, 2).all()  # of 3 each
    assert images(1).image_path.tolist() == first.image_path.tolist()
    assert any(images(seed).image_path.tolist() != first.image_path.tolist() for seed in range(2, 5))

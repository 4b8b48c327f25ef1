# SPDX-License-Identifier: Apache-2.0
"""`MultiCategory` with nothing but a root."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomalib_uniad import MultiCategory
from anomalib_uniad.category import categories_of
from anomalib_uniad.errors import InputError
from anomalib_uniad.splits import describe_validation
from helpers import make_mvtec_like, write_image, write_mask
from multi_category_data import SETS, outputs

pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("error::FutureWarning:anomalib_uniad"),
]


def product(folder: Path, good: int, bad: int = 0, masks: bool = False, suffix: str = "png", seed: int = 0) -> None:
    for number in range(good):
        write_image(folder / "good" / f"{number}.{suffix}", (64, 80), seed + number)
    for number in range(bad):
        mask = write_image(folder / "bad" / f"{number}.{suffix}", (64, 80), seed + 500 + number, defect=True)
        if masks:
            write_mask(folder / "masks" / f"{number}.png", mask)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = make_mvtec_like(tmp_path_factory.mktemp("x") / "Größe 1", ["mvtec"], (96, 64), train=10, good=5, bad=5)
    product(root / "with masks", 20, 5, masks=True, seed=1000)
    product(root / "ohne Masken", 30, 2, suffix="JPG", seed=2000)
    product(root / "只有好的", 3, suffix="bmp", seed=3000)
    return root


def set_up(root: Path, **arguments) -> MultiCategory:
    datamodule = MultiCategory(root=root, num_workers=0, **arguments)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def counts(datamodule: MultiCategory, name: str) -> dict[str, tuple[int, int]]:
    samples: pd.DataFrame = getattr(datamodule, name).samples
    return {
        category: ((rows.label_index == 0).sum(), (rows.label_index == 1).sum())
        for category, rows in samples.groupby("category")
    }


def test_products_of_all_kinds(root, caplog) -> None:
    caplog.set_level(logging.INFO, "anomalib_uniad")
    datamodule = set_up(root)
    assert datamodule.categories == ["mvtec", "ohne Masken", "with masks", "只有好的"]
    assert (datamodule.name, datamodule.category) == ("Größe 1", "")
    assert datamodule.categories_with_masks == ["mvtec", "with masks"]
    # A fifth of the good images is tested where there are no good test images, then a fifth of all is set aside.
    assert counts(datamodule, "train_data") == {
        "mvtec": (8, 0),
        "ohne Masken": (19, 0),
        "with masks": (13, 0),
        "只有好的": (1, 0),
    }
    assert counts(datamodule, "val_data") == {
        "mvtec": (2 + 1, 1),
        "ohne Masken": (5 + 1, 1),
        "with masks": (3 + 1, 1),
        "只有好的": (1, 0),
    }
    assert counts(datamodule, "test_data") == {
        "mvtec": (4, 4),
        "ohne Masken": (5, 1),
        "with masks": (3, 4),
        "只有好的": (1, 0),
    }
    paths = [path for name in SETS for path in getattr(datamodule, name).samples.image_path]
    files = [path for path in root.rglob("*.*") if not {"masks", "ground_truth"} & set(path.parts)]
    assert sorted(paths) == sorted(map(str, files))
    assert categories_of(paths, datamodule) == [Path(path).relative_to(root).parts[0] for path in paths]
    assert len(set(outputs(datamodule))) == len(datamodule.test_data)
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
        for batch in loader:
            masked = set(categories_of(batch.image_path, datamodule)) & set(datamodule.categories_with_masks)
            assert batch.gt_label.any() or batch.gt_mask is None or not batch.gt_mask.any()
            if batch.gt_mask is not None and batch.gt_label.any():
                assert masked == set(categories_of(batch.image_path, datamodule))
                assert (batch.gt_mask.flatten(1).any(1) == batch.gt_label).all()

    assert describe_validation(datamodule) == "validation images (mixed, ratio 0.2, seed 0)"
    text = caplog.text
    assert f"{root}, thresholds from validation images (mixed, ratio 0.2, seed 0)" in text
    assert "mvtec: MVTec AD: train/good, test, ground_truth, with masks; training 8 good; validation 3 good" in text
    assert "ohne Masken: good, bad; training 19 good; validation 6 good and 1 defective; test 5 good and 1 def" in text
    assert "只有好的: only good images: good; training 1 good; validation 1 good; test 1 good; no good test" in text
    assert "Few good images, from which little can be learnt: 只有好的 (3)" in text


def test_the_same_split_each_time(root) -> None:
    def paths(**arguments) -> list[list[str]]:
        datamodule = set_up(root, **arguments)
        return [getattr(datamodule, name).samples.image_path.tolist() for name in SETS]

    assert paths() == paths() == paths(seed=0)
    assert paths(seed=1) != paths(seed=2)


@pytest.mark.parametrize("mode", ["same_as_test", "from_test", "from_train", "synthetic", "none"])
def test_modes_of_anomalib(root, mode) -> None:
    datamodule = set_up(root, val_split_mode=mode, normal_split_ratio=0.5)
    assert counts(datamodule, "train_data")["mvtec"] == ((5, 0) if mode in ("from_train", "synthetic") else (10, 0))
    assert hasattr(datamodule, "val_data") == (mode != "none")
    tested = {"mvtec": (5, 5), "ohne Masken": (15, 2), "with masks": (10, 5), "只有好的": (2, 0)}
    halves = {name: ((good + 1) // 2, (bad + 1) // 2) for name, (good, bad) in tested.items()}
    assert counts(datamodule, "test_data") == (halves if mode == "from_test" else tested)


def test_one_product_and_ratios(root) -> None:
    datamodule = set_up(root, categories="with masks", source="Folder", val_split_ratio=0.4, test_split_ratio=0.5)
    assert (datamodule.name, datamodule.category) == ("Größe 1", "with masks")
    assert counts(datamodule, "train_data") == {"with masks": (6, 0)}
    assert counts(datamodule, "val_data") == {"with masks": (4 + 4, 2)}
    assert counts(datamodule, "test_data") == {"with masks": (6, 3)}
    assert counts(set_up(root, categories="with masks", normal_split_ratio=0.25), "test_data")["with masks"][0] == 4


def test_nothing_but_a_single_image(tmp_path) -> None:
    product(tmp_path / "bottle", 1)
    with pytest.raises(InputError, match="nothing is left to set thresholds and to test; at least 3 good images"):
        set_up(tmp_path)


def test_a_single_image(tmp_path, caplog) -> None:
    """It is trained on, and what cannot be done without more is said."""
    product(tmp_path / "bottle", 1)
    product(tmp_path / "cable", 5, 2)
    datamodule = set_up(tmp_path)
    assert "No images are left to set thresholds, more are needed: bottle." in caplog.text
    assert "No images are left to test, more are needed: bottle." in caplog.text
    assert counts(datamodule, "train_data") == {"bottle": (1, 0), "cable": (3, 0)}
    caplog.clear()
    set_up(tmp_path, categories=["cable"])
    assert "No images" not in caplog.text


def test_only_good_images(tmp_path) -> None:
    for name in ("a", "b"):
        product(tmp_path / name, 10, seed=ord(name))
    datamodule = set_up(tmp_path)
    assert counts(datamodule, "train_data") == {"a": (6, 0), "b": (6, 0)}
    assert counts(datamodule, "val_data") == {"a": (2, 0), "b": (2, 0)}
    assert counts(datamodule, "test_data") == {"a": (2, 0), "b": (2, 0)}
    assert len(list(datamodule.test_dataloader())) == 1
    synthetic = set_up(tmp_path, test_split_mode="synthetic", val_split_mode="same_as_test")
    assert counts(synthetic, "test_data") == {"a": (1, 1), "b": (1, 1)}


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1"])
def test_kinds_of_pixels(tmp_path, mode) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    (tmp_path / "p").mkdir()
    for number in range(3):
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / "p" / f"{number}.{'tif' if mode == 'CMYK' else 'PNG'}")
    batch = next(iter(set_up(tmp_path).train_dataloader()))
    expected = np.asarray(image.convert("RGB"), np.float32) / 255
    assert np.allclose(batch.image[0].permute(1, 2, 0).numpy(), expected)


def test_more_than_8_bits(tmp_path) -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    (tmp_path / "p").mkdir()
    for number in range(3):
        Image.fromarray(pixels).save(tmp_path / "p" / f"{number}.png")
    with pytest.raises(ValueError, match=r"3 of 3 files cannot be used: .*p/2\.png \(it has more than 8 bits"):
        set_up(tmp_path)
    batch = next(iter(set_up(tmp_path, value_range=[0, 40000]).train_dataloader()))
    assert np.allclose(batch.image[0, 0].numpy(), np.clip(pixels / 40000, 0, 1), atol=1e-6)


def test_nothing_without_a_root() -> None:
    with pytest.raises(ValueError, match="Set root to the folder with your products, or source to a data set"):
        MultiCategory()


def test_problems_are_told_before_anything_starts(root, tmp_path) -> None:
    product(tmp_path / "nut", 3)
    write_image(tmp_path / "nut" / "new" / "1.png")
    with pytest.raises(ValueError, match=r"- nut: there are images in new, .* such as abnormal_dir: \[new\], or move"):
        MultiCategory(root=tmp_path)
    assert counts(set_up(tmp_path, abnormal_dir=["new"]), "test_data") == {"nut": (1, 1)}

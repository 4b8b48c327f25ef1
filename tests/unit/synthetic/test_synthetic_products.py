# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomalib_uniad.synthetic import PRODUCTS, synthetic_products
from anomalib_uniad.synthetic.product import VISIBLE
from anomalib_uniad.synthetic.synthetic_products import CATEGORIES, SyntheticProducts, generate_category


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate a handful of images per category instead of a hundred."""
    monkeypatch.setattr(synthetic_products, "TRAIN_GOOD", 3)
    monkeypatch.setattr(synthetic_products, "TEST_GOOD", 2)
    monkeypatch.setattr(synthetic_products, "TEST_PER_DEFECT", 1)


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.png"))
    }


@pytest.mark.usefixtures("few_images")
def test_same_bytes_each_time(tmp_path: Path) -> None:
    for run in ("first", "second"):
        for category in ("fabric", "washer"):
            generate_category(tmp_path / run, category)
    assert _digests(tmp_path / "first") == _digests(tmp_path / "second")


def test_images_are_always_the_same() -> None:
    """Mean colours of 4x4 blocks and sizes of masks, with room for the rounding of other processors and versions."""
    # numpy 1 rounds a few pixels in the other direction.
    tolerance = 0.02 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 0.05
    expected = json.loads(Path(__file__).with_name("product_images.json").read_text())
    assert list(expected) == list(PRODUCTS)
    for name, product in PRODUCTS.items():
        assert list(expected[name]) == ["good", *product.defects]
        for number, defect in enumerate((None, *product.defects)):
            image, mask = product.render(np.random.default_rng([5, number]), defect)
            known = expected[name][defect or "good"]
            blocks = image.reshape(4, 48, 4, 48, 3).mean(axis=(1, 3, 4))
            np.testing.assert_allclose(blocks, known["blocks"], atol=tolerance, err_msg=f"{name} {defect}")
            assert (mask > 0).sum() == pytest.approx(known["mask"], abs=5), f"{name} {defect}"


@pytest.mark.usefixtures("few_images")
def test_layout_and_subsets(tmp_path: Path) -> None:
    datamodule = SyntheticProducts(root=tmp_path, category="circuit_board", num_workers=0)
    datamodule.prepare_data()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(CATEGORIES)
    for category in CATEGORIES:
        folder = tmp_path / category
        assert sorted(path.name for path in folder.iterdir()) == ["ground_truth", "test", "train"]
        defects = sorted(PRODUCTS[category].defects)
        assert sorted(path.name for path in (folder / "test").iterdir()) == sorted([*defects, "good"])
        assert sorted(path.name for path in (folder / "ground_truth").iterdir()) == defects

    datamodule.setup()
    assert len(datamodule.train_data) == 3
    assert datamodule.train_data.samples.label_index.sum() == 0
    assert len(datamodule.test_data) == 2 + len(PRODUCTS["circuit_board"].defects)
    item = datamodule.test_data[len(datamodule.test_data) - 1]
    assert item.image.shape == (3, 192, 192)
    assert item.gt_mask.shape == (192, 192)
    assert bool(item.gt_mask.any()) == bool(item.gt_label)


@pytest.mark.usefixtures("few_images")
def test_no_image_is_in_training_and_test(tmp_path: Path) -> None:
    generate_category(tmp_path, "oak")
    digests = _digests(tmp_path / "oak")
    images = [digest for name, digest in digests.items() if not name.startswith("ground_truth")]
    assert len(set(images)) == len(images) == 3 + 2 + 3


@pytest.mark.parametrize("category", CATEGORIES)
def test_masks_cover_what_a_defect_changes(category: str) -> None:
    product = PRODUCTS[category]
    for number, defect in enumerate(product.defects):
        image, mask = product.render(np.random.default_rng([number, 7]), defect)
        twin, empty = product.render(np.random.default_rng([number, 7]))
        assert image.shape == twin.shape == (192, 192, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert not empty.any()
        assert set(np.unique(mask)) == {0, 255}
        changed = np.abs(image.astype(int) - twin.astype(int)).max(axis=2)
        # Rounding to grey levels adds one at most.
        assert changed[mask == 0].max() <= VISIBLE * 255 + 1
        assert changed[mask == 255].mean() > 2 * VISIBLE * 255, defect
        assert 60 <= (mask > 0).sum() < 0.2 * mask.size, defect


def test_good_samples_differ_from_each_other() -> None:
    for product in PRODUCTS.values():
        first, second = (product.render(np.random.default_rng(seed))[0].astype(int) for seed in (1, 2))
        assert np.abs(first - second).mean() > 1


@pytest.mark.usefixtures("few_images")
def test_interrupted_generation_leaves_nothing_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    datamodule = SyntheticProducts(root=tmp_path, category="oak", num_workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(type(PRODUCTS["fabric"]), "spoil", interrupt)
        with pytest.raises(KeyboardInterrupt):
            datamodule.prepare_data()
    done = sorted(path.name for path in tmp_path.iterdir())
    assert done == ["blister", "bottle_cap", "circuit_board"]
    before = _digests(tmp_path)

    datamodule.prepare_data()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(CATEGORIES)
    assert before.items() <= _digests(tmp_path).items()


@pytest.mark.usefixtures("few_images")
def test_existing_categories_are_used_as_they_are(tmp_path: Path) -> None:
    for category in CATEGORIES:
        for part in ("train/good", "test", "ground_truth"):
            (tmp_path / category / part).mkdir(parents=True)
    (tmp_path / "washer" / "notes.txt").write_text("mine")
    SyntheticProducts(root=tmp_path).prepare_data()
    assert not list(tmp_path.rglob("*.png"))
    assert (tmp_path / "washer" / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("few_images")
def test_the_first_of_two_processes_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The other process completes the category between our check and our rename.
    original = synthetic_products._is_generated
    calls = iter([False])
    generate_category(tmp_path, "washer")
    (tmp_path / "washer" / "marker").touch()
    monkeypatch.setattr(
        synthetic_products, "_is_generated", lambda folder: next(calls, None) is None and original(folder)
    )
    generate_category(tmp_path, "washer")
    assert [path.name for path in tmp_path.iterdir()] == ["washer"]
    assert (tmp_path / "washer" / "marker").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_refuses_what_it_did_not_make(tmp_path: Path, kind: str) -> None:
    taken = tmp_path / "blister"
    if kind == "file":
        taken.write_text("mine")
    else:
        (taken / "photos").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"blister exists but has no train/good.*another root"):
        SyntheticProducts(root=tmp_path).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == ["blister"]


def test_unknown_category() -> None:
    with pytest.raises(ValueError, match=r"Unknown category 'bottle'; there are blister, bottle_cap, .*washer"):
        SyntheticProducts(category="bottle")


def test_default_root() -> None:
    datamodule = SyntheticProducts()
    assert datamodule.root == Path("datasets/SyntheticProducts")
    assert datamodule.name == "SyntheticProducts"


@pytest.mark.usefixtures("few_images")
def test_png_files_hold_rgb(tmp_path: Path) -> None:
    generate_category(tmp_path, "bottle_cap")
    blue, _, red = cv2.imread(str(tmp_path / "bottle_cap/train/good/000.png"))[96, 40]
    assert red > 2 * blue

# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from anomalib_uniad import MetaFile, MultiCategory
from anomalib_uniad.cli import main
from anomalib_uniad.data.make_meta import make_meta
from helpers import make_mvtec_like, write_image, write_mask

COLUMNS = ["image_path", "mask_path", "label", "label_index", "split", "category"]


def same_samples(first, second) -> None:
    for datamodule in (first, second):
        datamodule.setup()
    for name in ("train_data", "val_data", "test_data"):
        samples, others = (getattr(datamodule, name).samples for datamodule in (first, second))
        assert len(samples)
        assert samples[COLUMNS].astype(object).equals(others[COLUMNS].astype(object))
        assert samples.attrs == others.attrs
    images, others = (next(iter(datamodule.test_dataloader())) for datamodule in (first, second))
    assert (images.image == others.image).all()
    assert (images.gt_mask == others.gt_mask).all()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_mvtec_like(tmp_path / "products", ["bottle", "cable"], {"cable": (48, 80)})


def test_several_categories(root: Path, capsys) -> None:
    main(["make-meta", str(root)])
    out = capsys.readouterr().out
    assert out == f"Wrote {root}/train.json: 8 images.\nWrote {root}/test.json: 12 images.\n"
    same_samples(MetaFile(root, num_workers=0), MultiCategory("MVTecAD", root, num_workers=0))
    own = MultiCategory(root=root, num_workers=0)
    same_samples(MetaFile(root, num_workers=0, val_split_mode="mixed"), own)
    lines = (root / "test.json").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "filename": "bottle/test/broken/000.png",
        "label": 1,
        "label_name": "broken",
        "maskname": "bottle/ground_truth/broken/000_mask.png",
        "clsname": "bottle",
    }
    assert not list(root.glob(".*"))


def test_one_category(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "meta"
    make_meta(root, output, categories=["cable"])
    datamodule = MetaFile(root, output / "train.json", num_workers=0)
    assert datamodule.categories == ["cable"]
    same_samples(datamodule, MultiCategory("MVTecAD", root, "cable", num_workers=0))


def test_any_layout(tmp_path: Path) -> None:
    for number in range(10):
        write_image(tmp_path / "Größe 1" / "OK" / f"{number}.JPG", (16, 16), number)
    mask = write_image(tmp_path / "Größe 1" / "kratzer" / "a.bmp", (16, 16), 10, True)
    for part in range(2):
        write_mask(tmp_path / "Größe 1" / "masks" / "a" / f"{part}.png", mask)
    main(["make-meta", str(tmp_path), "--abnormal_dir", "kratzer", "--normal_split_ratio", "0.3", "--seed", "3"])
    own = MultiCategory(root=tmp_path, abnormal_dir="kratzer", normal_split_ratio=0.3, seed=3, num_workers=0)
    same_samples(MetaFile(tmp_path, num_workers=0, val_split_mode="mixed", seed=3), own)
    assert (len(own.train_data), len(own.val_data), len(own.test_data)) == (6, 1 + 1, 2 + 1)


@pytest.mark.parametrize("there", ["train.json", "test.json"])
def test_nothing_is_overwritten(root: Path, there: str) -> None:
    (root / there).write_text("mine")
    before = sorted(root.iterdir())
    with pytest.raises(FileExistsError, match=rf"{there} would be overwritten: choose another output folder, or set"):
        make_meta(root)
    with pytest.raises(SystemExit, match=r"error: .* would be overwritten"):
        main(["make-meta", str(root)])
    assert (root / there).read_text() == "mine"
    assert sorted(root.iterdir()) == before
    main(["make-meta", str(root), "--overwrite", "true"])
    assert len(MetaFile(root).categories) == 2


def test_nothing_is_left_of_a_failure(root: Path, monkeypatch) -> None:
    original = Path.write_text

    def full(self, text, **arguments):
        original(self, text[:10], **arguments)
        if self.name.startswith(".test."):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    before = sorted(root.iterdir())
    with pytest.raises(OSError, match="No space left"):
        make_meta(root)
    assert sorted(root.iterdir()) == before


def test_layout_is_checked(root: Path) -> None:
    (root / "cable" / "test" / "broken" / "001.png").unlink()
    with pytest.raises(ValueError, match=r"cable: 1 mask without an image \(ground_truth/broken/001_mask.png\)"):
        make_meta(root)


def test_a_file_is_no_folder_of_products(root: Path) -> None:
    with pytest.raises(ValueError, match=r"The root .*is a file: set root to the folder with the products"):
        make_meta(next(root.rglob("*.png")))


def test_nothing_to_test(tmp_path: Path) -> None:
    write_image(tmp_path / "nut" / "good" / "1.png", (16, 16))
    with pytest.raises(ValueError, match="has no images for testing, so nothing is written"):
        make_meta(tmp_path)


def test_a_link_to_a_category_keeps_its_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "first").symlink_to(root / "bottle")
    make_meta(tmp_path / "chosen")
    with pytest.raises(ValueError, match="is a link that leaves the root"):
        MetaFile(tmp_path / "chosen").prepare_data()
    assert MetaFile(tmp_path / "chosen", allow_outside_root=True).categories == ["first"]

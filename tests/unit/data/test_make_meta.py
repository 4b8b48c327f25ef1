# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from anomalib_uniad import MetaFile, MultiCategory
from anomalib_uniad.cli import main
from anomalib_uniad.data.make_meta import make_meta
from helpers import make_mvtec_like, write_image

COLUMNS = ["image_path", "mask_path", "label", "label_index", "split", "category"]


def same_samples(first, second) -> None:
    for datamodule in (first, second):
        datamodule.setup()
    for name in ("train_data", "val_data", "test_data"):
        samples, others = (getattr(datamodule, name).samples for datamodule in (first, second))
        assert len(samples)
        assert samples[COLUMNS].equals(others[COLUMNS])
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
    same_samples(MetaFile(root, num_workers=0), MultiCategory(root=root, num_workers=0))
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
    make_meta(root / "cable", output)
    assert '"filename": "train/good/000.png"' in (output / "train.json").read_text()
    datamodule = MetaFile(root / "cable", output / "train.json", num_workers=0)
    assert datamodule.categories == ["cable"]
    same_samples(datamodule, MultiCategory(root=root, categories="cable", num_workers=0))


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
    (root / "cable" / "ground_truth" / "broken" / "001_mask.png").unlink()
    with pytest.raises(ValueError, match=r"cable: test/broken has 3 images, but ground_truth/broken has 2 masks"):
        make_meta(root)


def test_folders_without_categories(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing is not there: give the folder with the images"):
        make_meta(tmp_path / "nothing")
    write_image(tmp_path / "flat" / "a.png")
    with pytest.raises(ValueError, match=r"Found no categories in .*flat: they need images in <category>/train/good"):
        make_meta(tmp_path / "flat")
    make_mvtec_like(tmp_path / "untested", ["bottle"], good=0, bad=0)
    with pytest.raises(ValueError, match="untested has no images for testing, so nothing is written"):
        make_meta(tmp_path / "untested")


def test_a_link_to_a_category_keeps_its_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "first").symlink_to(root / "bottle")
    make_meta(tmp_path / "chosen")
    with pytest.raises(ValueError, match="is a link that leaves the root"):
        MetaFile(tmp_path / "chosen").prepare_data()
    assert MetaFile(tmp_path / "chosen", allow_outside_root=True).categories == ["first"]

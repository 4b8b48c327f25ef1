# SPDX-License-Identifier: Apache-2.0
"""What is said about one's own data in the layout of MVTec AD if something is wrong with it."""

import logging
from pathlib import Path

import pytest
from anomalib.data import MVTecAD

import layouts
from anomalib_uniad.data import MultiCategory
from helpers import make_mvtec_like, write_image

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture
def root(tmp_path) -> Path:
    return make_mvtec_like(tmp_path / "own", ["nut", "ring"], (16, 16), train=2, good=1, bad=3)


def refused(root, message, source="MVTecAD", error=ValueError) -> str:
    datamodule = MultiCategory(source, root=root)
    with pytest.raises(error, match=message):
        datamodule.prepare_data()
    with pytest.raises(error, match=message) as caught:
        datamodule.setup()
    return str(caught.value)


def rename_all(folder, pattern, new) -> None:
    for file in sorted(folder.glob(pattern)):
        file.rename(file.with_name(new(file)))


class TestMasks:
    def test_none(self, root):
        for mask in (root / "ring" / "ground_truth" / "broken").iterdir():
            mask.unlink()
        message = refused(root, "ring: test/broken has 3 images, but ground_truth/broken has 0 masks. Each")
        assert "needs a mask ground_truth/broken/<name>_mask.png" in message
        assert str(root) in message
        assert "nut:" not in message

    def test_too_few(self, root):
        (root / "nut" / "ground_truth" / "broken" / "001_mask.png").unlink()
        refused(root, r"nut: test/broken has 3 images, .*broken has 2 masks \(none for 001.png\)\. Each defective")

    def test_too_many(self, root):
        (root / "nut" / "test" / "broken" / "001.png").unlink()
        refused(root, r"nut: test/broken has 2 images, but ground_truth/broken has 3 masks\. .*each mask its image")

    def test_of_normal_images(self, root):
        write_image(root / "nut" / "ground_truth" / "good" / "000_mask.png")
        refused(root, "nut: ground_truth/good has 1 mask, but normal images have none. Remove them")

    def test_in_another_folder(self, root):
        (root / "nut" / "ground_truth" / "broken").rename(root / "nut" / "ground_truth" / "bent")
        message = refused(root, "nut: test/broken has 3 images, but ground_truth/broken has 0 masks")
        assert "nut: test/bent has 0 images, but ground_truth/bent has 3 masks" in message

    def test_other_names(self, root):
        rename_all(root / "nut" / "ground_truth" / "broken", "*", lambda file: f"m{file.stem[2]}.png")
        refused(root, r"test/broken/000.png would get the mask .*/m0.png\. Name the mask .*broken/000_mask.png")

    def test_names_without_leading_zeros(self, root):
        numbers = {"000": "1", "001": "2", "002": "10"}
        for folder in ("test", "ground_truth"):
            rename_all(root / "nut" / folder / "broken", "*", lambda file: numbers[file.name[:3]] + file.name[3:])
        refused(root, r"test/broken/10.png would get .* with leading zeros \(001.png, 001_mask.png\)")


class TestOtherTypes:
    def test_all_images(self, root):
        rename_all(root / "ring", "*/*/???.png", lambda file: f"{file.stem}.jpg")
        message = refused(root, "ring: train/good has 2 files of type .jpg, not read. PNG is needed")
        assert "ring: test/broken has 3 files of type .jpg" in message
        assert "mask its image" not in message

    def test_some_images(self, root):
        write_image(root / "nut" / "train" / "good" / "a.JPEG")
        refused(root, "nut: train/good has 1 file of type .JPEG, not read")

    def test_files_that_are_no_images_of_the_dataset(self, root):
        write_image(root / "nut" / "preview.jpg")
        write_image(root / "nut" / "train" / "good" / ".thumbnails" / "000.jpg")
        (root / "nut" / "train" / "notes.txt").touch()
        datamodule = MultiCategory(root=root)
        datamodule.prepare_data()
        datamodule.setup()
        assert len(datamodule.train_data) == 4

    def test_no_images(self, root):
        rename_all(root / "nut" / "train" / "good", "*", lambda file: f"{file.stem}.npy")
        refused(root, "nut: train/good has no images")


class TestPlaces:
    def test_directly_in_train(self, root):
        for file in (root / "nut" / "train" / "good").iterdir():
            file.rename(root / "nut" / "train" / file.name)
        refused(root, "nut: train has 2 images directly in it. Move the normal images to train/good")

    @pytest.mark.parametrize("place", ["train/normal", "test", "ground_truth", "train/good/day_1", "valid/bent"])
    def test_elsewhere(self, root, place):
        write_image(root / "nut" / place / "a.png")
        refused(root, f"nut: {place} has 1 image, where none belong. Move them to train/good")

    def test_in_the_category(self, root):
        write_image(root / "nut" / "preview.png")
        refused(root, "nut: the folder .*own/nut itself has 1 image, where none belong")

    def test_links(self, root):
        (root / "ring" / "train" / "good").rename(root / "good")
        (root / "ring" / "train" / "good").symlink_to(root / "good")
        image = root / "nut" / "test" / "good" / "000.png"
        image.rename(root / "000.png")
        image.symlink_to(root / "000.png")
        message = refused(root, "ring: train/good is a link to a folder, which anomalib does not follow")
        assert "nut: test/good/ has links to images outside of" in message


def test_all_problems_at_once(root):
    (root / "nut" / "ground_truth" / "broken" / "001_mask.png").unlink()
    write_image(root / "nut" / "train" / "a.png")
    write_image(root / "ring" / "test" / "good" / "a.bmp")
    message = refused(root, "PNG images in <category>/train/good")
    assert [line.split(" has")[0] for line in message.splitlines()[1:]] == [
        "- nut: train",
        "- nut: test/broken",
        "- ring: test/good",
    ]


def test_classes_derived_from_mvtec_ad(root):
    write_image(root / "nut" / "train" / "good" / "a.jpg")
    refused(root, "nut: train/good has 1 file of type .jpg", f"{__name__}.Derived")
    datamodule = MultiCategory(f"{__name__}.ReadsOtherwise", root=root)
    datamodule.prepare_data()
    datamodule.setup()


class Derived(MVTecAD):
    """Reads what its base reads."""


class ReadsOtherwise(MVTecAD):
    """Has a reader of its own, of which nothing is known."""

    def _setup(self, _stage=None):
        super()._setup(_stage)


class TestRoot:
    def test_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=r"The root .*/file is a file: set `root` to the folder"):
            MultiCategory(root=tmp_path / "file")

    @pytest.mark.parametrize(("folder", "state"), [("new", "does not exist"), (".", "has no categories")])
    def test_download_is_announced(self, tmp_path, monkeypatch, caplog, folder, state):
        datamodule = MultiCategory(root=tmp_path / folder, categories=["bottle"])
        monkeypatch.setattr(
            MVTecAD, "prepare_data", lambda self: caplog.records[0] and make_mvtec_like(self.root, ["bottle"])
        )
        datamodule.prepare_data()
        expected = f"{(tmp_path / folder).resolve()} {state}: MVTecAD will download or create its dataset there"
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [expected]
        caplog.clear()
        datamodule.setup()
        assert not caplog.records

    def test_nothing_came(self, tmp_path, monkeypatch):
        monkeypatch.setattr(MVTecAD, "prepare_data", lambda self: None)
        refused(tmp_path / "new", "new does not exist: correct `root`, or call `prepare_data`", error=FileNotFoundError)
        refused(tmp_path, r"has none of the categories bottle, .*: correct `root`", error=FileNotFoundError)

    def test_own_category_in_a_missing_root(self, tmp_path):
        with pytest.raises(ValueError, match=r"no category 'nut' in .*new\. There are: .* folder does not exist"):
            MultiCategory(root=tmp_path / "new", categories=["nut"])

    def test_home(self, root, monkeypatch):
        monkeypatch.setenv("HOME", str(root.parent))
        assert MultiCategory(root="~/own").categories == ["nut", "ring"]

    def test_no_announcement_for_data_that_is_there(self, tmp_path, caplog):
        layouts.visa(tmp_path, ["candle", "pcb1"])
        MultiCategory("Visa", root=tmp_path).prepare_data()
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

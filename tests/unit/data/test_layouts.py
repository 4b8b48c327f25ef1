# SPDX-License-Identifier: Apache-2.0
"""Folders of products in all layouts, and what is said about those that cannot be read."""

import os
import re
from pathlib import Path

import pytest
from anomalib.data import MVTecAD
from anomalib.data.utils import Split

from anomalib_uniad.data.layouts import Product, raise_product_problems, read_products
from helpers import make_mvtec_like


def write(root: Path, *files: str) -> Path:
    """Write empty files: no image is opened."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def read(root: Path, **arguments) -> Product:
    (product,) = read_products(root, **arguments)
    return product


def listed(product: Product) -> list[tuple[str, str, int, str, tuple[str, ...]]]:
    """Split, image below the product's folder, label, its name, masks."""
    cut = len(product.name) + 1
    for record in product.records:
        assert record.paths == tuple(str(product.folder.parent / name) for name in (record.image, *record.masks))
        assert (record.category, record.file, record.where) == (product.name, product.folder, record.image[cut:])
    return [
        (r.split.value, r.image[cut:], r.label, r.label_name, tuple(mask[cut:] for mask in r.masks))
        for r in product.records
    ]


def test_mvtec_layout_is_read_as_by_anomalib(tmp_path) -> None:
    root = make_mvtec_like(tmp_path, ["bottle", "cable"], (16, 16))
    products = read_products(root)
    assert [product.name for product in products] == ["bottle", "cable"]
    for product in products:
        assert product.layout == "MVTec AD: train/good, test, ground_truth"
        assert not product.problems
        assert not product.notes
        theirs = MVTecAD(root=root, category=product.name)
        theirs.setup()
        for split, data in ((Split.TRAIN, theirs.train_data), (Split.TEST, theirs.test_data)):
            own = [record for record in product.records if record.split == split]
            rows = data.samples[["image_path", "mask_path", "label", "label_index"]].to_dict("split")["data"]
            assert [[r.paths[0], (*r.paths[1:], "")[0], r.label_name, r.label] for r in own] == [
                [image, mask or "", name, label] for image, mask, name, label in rows
            ]


@pytest.mark.parametrize(
    ("files", "layout", "expected"),
    [
        (
            ["good/1.png", "bad/2.png"],
            "good, bad",
            [("train", "good/1.png", 0, "good", ()), ("test", "bad/2.png", 1, "bad", ())],
        ),
        (
            ["Normal/1.JPG", "Abnormal/2.Tif", "masks/2.png"],
            "Normal, Abnormal, masks",
            [("train", "Normal/1.JPG", 0, "Normal", ()), ("test", "Abnormal/2.Tif", 1, "Abnormal", ("masks/2.png",))],
        ),
        (
            ["OK/1.bmp", "NG/kratzer/2.webp", "NG/3.pgm"],
            "OK, NG",
            [
                ("train", "OK/1.bmp", 0, "OK", ()),
                ("test", "NG/3.pgm", 1, "NG", ()),
                ("test", "NG/kratzer/2.webp", 1, "kratzer", ()),
            ],
        ),
        (["good/a/1.png", "good/b/1.png"], "only good images: good", None),
        (["1.ppm", ".hidden.png", ".cache/3.png"], "only good images: images directly in its folder", None),
        (["1.png", "defekt.txt"], "only good images: images directly in its folder", None),
        (
            ["1.png", "not ok/2.png", "not ok/2_mask.png"],
            "images directly in its folder, not ok",
            [("train", "1.png", 0, "good", ()), ("test", "not ok/2.png", 1, "not ok", ("not ok/2_mask.png",))],
        ),
        (["train/1.png", "test/good/2.png"], "MVTec AD: train, test", None),
        (
            ["Train/OK/1.png", "Test/ok/2.png", "Test/größe 1/3.JPEG", "Ground_Truth/größe 1/3_mask.bmp"],
            "MVTec AD: Train/OK, Test, Ground_Truth",
            [
                ("train", "Train/OK/1.png", 0, "OK", ()),
                ("test", "Test/größe 1/3.JPEG", 1, "größe 1", ("Ground_Truth/größe 1/3_mask.bmp",)),
                ("test", "Test/ok/2.png", 0, "ok", ()),
            ],
        ),
        (
            ["good/1.png", "bad/a/2.png", "bad/b/2.png", "gt/a/2.png", "gt/bad/b/2/0.png", "gt/bad/b/2/1.png"],
            "good, bad, gt",
            [
                ("train", "good/1.png", 0, "good", ()),
                ("test", "bad/a/2.png", 1, "a", ("gt/a/2.png",)),
                ("test", "bad/b/2.png", 1, "b", ("gt/bad/b/2/0.png", "gt/bad/b/2/1.png")),
            ],
        ),
    ],
)
@pytest.mark.parametrize("name", ["Blister Packung Größe 1", "螺丝"])
def test_layouts(tmp_path, files, layout, expected, name) -> None:
    product = read(write(tmp_path, *(f"{name}/{file}" for file in files)))
    assert (product.name, product.layout, product.problems, product.notes) == (name, layout, [], [])
    if expected is not None:
        assert listed(product) == expected
    else:
        assert len(product.records) == sum(file[0] != "." and not file.endswith(".txt") for file in files)


def test_folders_that_are_given(tmp_path) -> None:
    files = ["a/1.png", "b/2.png", "c/x/3.PNG", "d/4.jpg", "e/4.png", "f/5.png", "a/6.jpg"]
    root = write(tmp_path, *(f"p/{file}" for file in files))
    given = {"normal_dir": ["a", "b"], "abnormal_dir": Path("d"), "normal_test_dir": "c/x", "mask_dir": "e"}
    product = read(root, **given)
    assert product.layout == "as given: a, b, d, c/x, e"
    assert listed(product) == [
        ("train", "a/1.png", 0, "a", ()),
        ("train", "a/6.jpg", 0, "a", ()),
        ("train", "b/2.png", 0, "b", ()),
        ("test", "c/x/3.PNG", 0, "x", ()),
        ("test", "d/4.jpg", 1, "d", ("e/4.png",)),
    ]
    only = read(root, normal_dir="a", extensions=[".PNG"])
    assert listed(only) == [("train", "a/1.png", 0, "a", ())]
    product = read(write(tmp_path / "2", "p/good/1.png", "p/scratch/2.png"), abnormal_dir="scratch")
    assert product.layout == "good, scratch"
    assert not product.problems


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normal_dir": "god"}, "normal_dir is 'god', but none of the products in .* has such a folder; did .* 'good'"),
        ({"normal_dir": "../x"}, r"normal_dir is '\.\./x': give it relative to the folder of each product"),
        ({"mask_dir": "/x"}, "mask_dir is '/x': give it relative"),
        ({"extensions": [".png", ".gif"]}, "extensions has '.gif': types of images that can be read are .jpg"),
        ({"categories": ["mutter", "shcraube"]}, "no category 'shcraube' in .*; did you mean 'Schraube'"),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, message) -> None:
    root = write(tmp_path, "mutter/good/1.png", "Schraube/good/1.png")
    with pytest.raises(ValueError, match=message):
        read_products(root, **arguments)


@pytest.mark.parametrize(
    ("files", "root", "message"),
    [
        ([], "mydta", r"The root .*/mydta is not there; did you mean .*/mydata\?$"),
        ([], "other/x", r"The root .*/other/x is not there; .* has mydata\.$"),
        ([], "mydata", r"has no folders of products. It has nothing; expected are <root>/<product>/good"),
        (
            ["1.png", "2.jpg", "a/x.heic"],
            "mydata",
            r"has 2 images, 1 folder without images \(a\); .* categories to \[mydata\]\.",
        ),
        (["x.heic", "y.HEIC"], "mydata", r"has 2 files of type .heic; expected"),
        (["1.png"], "mydata/1.png", r"The root .*1.png is a file: set root to the folder with the products"),
        (["nut/good/1.png"], "mydata/nut", r"nut is a product \(it has good\): set root to .*/mydata, and .* \[nut\]"),
        (["nut/train/good/1.png"], "mydata/nut/train", r"inside of a product .* set root to .*/mydata, and .* \[nut\]"),
        (["nut/test/ok/1.png", "nut/train/ok/1.png"], "mydata/nut", r"is a product \(it has test, train\)"),
        (
            ["x/nut/good/1.png", "x/ring/good/1.png"],
            "mydata",
            r"products are deeper than the root .* root to .*/mydata/x\.",
        ),
        (["x/y/nut/train/good/1.png"], "mydata", r"products are deeper than the root .* root to .*/mydata/x/y\.$"),
    ],
)
def test_roots(tmp_path, files, root, message) -> None:
    write(tmp_path / "mydata", *files).mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_products(tmp_path / root)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["good/1.png", "scratch/2.png"], r"in scratch, .* not say .* kind: .* such as abnormal_dir: \[scratch\]"),
        (
            ["nut/1.png", "ring/2.png"],
            r"in nut, ring, and .* if these are products, set root to .*/p, else set normal_",
        ),
        (["good/1.png", "train/1.png"], "it has train and good beside each other: say what is what by normal_dir"),
        (["good/1.png", "normal/1.png"], "good and normal are names of the same: rename one"),
        (["good/1.png", "2.png"], "1 image directly in its folder, beside good: move them"),
        (["bad/1.png"], "there are no good images to train on"),
        (["train/good/1.png", "train/bad/1.png"], "train/bad has images, but training is on good ones, in train/good"),
        (["train/good/1.png", "test/1.png"], "1 image directly in test: move them to test/good or"),
        (["good/1.png", "bad/2.png", "masks/3.png"], r"1 mask without an image \(masks/3.png\): masks have the names"),
        (["good/1.png", "bad/a/2.png", "bad/b/2.png", "masks/2.png"], "masks/2.png fits bad/a/2.png and bad/b/2.png"),
        (["new/nut/good/1.png"], r"folders that look like products \(nut\): set root to .*/p, or move them up"),
    ],
)
def test_problems_of_a_product(tmp_path, files, message) -> None:
    if files[0].startswith("new/"):
        files = [files[0].removeprefix("new/")]
        write(tmp_path, "a/good/1.png")
    products = read_products(write(tmp_path, *(f"p/{file}" for file in files)))
    with pytest.raises(ValueError, match=rf"The products in {tmp_path} cannot be used.*\n- p: .*{message}"):
        raise_product_problems(tmp_path, products)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["bad/2.png", "bad/3.png", "masks/2.png"], r"1 defective image without a mask \(bad/3.png\) beside others"),
        (["bad/2.png", "masks/1.png", "masks/2.png"], r"1 mask of good images \(masks/1.png\), not used"),
        (["good/2.HEIC"], "1 file of type .heic, which is not read"),
    ],
)
def test_notes(tmp_path, files, message) -> None:
    product = read(write(tmp_path, "p/good/1.png", *(f"p/{file}" for file in files)))
    assert not product.problems
    (note,) = product.notes
    assert re.search(message, note)


def test_links(tmp_path) -> None:
    write(tmp_path, "elsewhere/nut/1.png", "mydata/ring/good/1.png")
    root = tmp_path / "mydata"
    (root / "nut").mkdir()
    (root / "nut" / "good").symlink_to(tmp_path / "elsewhere" / "nut")
    assert [len(product.records) for product in read_products(root)] == [1, 1]
    (tmp_path / "elsewhere" / "nut" / "again").symlink_to(root / "nut")
    (root / "ring" / "good" / "2.png").symlink_to(tmp_path / "gone.png")
    nut, ring = read_products(root)
    assert len(nut.records) == len(ring.records) == 1
    assert nut.problems == [f"the link {root}/nut/good/again leads back to {root}/nut, in a circle: remove it."]
    assert ring.problems == [f"{root}/ring/good/2.png is a link to a file that is not there: remove it."]


def test_names_that_differ_in_case_alone(tmp_path) -> None:
    products = read_products(write(tmp_path, "nut/good/1.png", "Nut/good/1.png", "empty/good/1.txt"))
    if len(products) == 1:
        pytest.skip("a file system that does not tell them apart")
    assert [(product.name, len(product.records)) for product in products] == [("Nut", 1), ("nut", 1)]
    assert read_products(tmp_path, ["empty"])[0].problems == ["there are no good images to train on."]


def test_what_is_no_file(tmp_path, monkeypatch) -> None:
    """It is named with the product, and no pipe is waited for."""
    good = write(tmp_path, "nut/good/1.png", "nut/good/._1.png", "nut/good/locked/2.png") / "nut" / "good"
    os.mkfifo(good / "pipe.png")
    (good / "loop.png").symlink_to(good / "loop.png")
    (good / "camera 2").symlink_to(tmp_path / "gone")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path == str(good / "locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    product = read(tmp_path)
    assert [record.where for record in product.records] == ["good/1.png"]
    assert sorted(product.problems) == [
        f"{good}/camera 2 is a link to a file that is not there: remove it.",
        f"{good}/loop.png is a link to a file that is not there: remove it.",
        f"{good}/pipe.png is a pipe, socket or device, not a file: remove it.",
        f"the folder {good}/locked cannot be read: Permission denied.",
    ]


def test_many_files_are_read_in_one_pass(tmp_path, monkeypatch) -> None:
    """The time grows with the number of folders and files, each listed once."""
    write(tmp_path, *(f"p{n}/{part}/{i}.png" for n in range(3) for part in ("good", "bad", "masks") for i in range(4)))
    calls: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: calls.append(str(path)) or scandir(path))
    read_products(tmp_path)
    assert len(calls) == len(set(calls)) == 1 + 3 * 4

# SPDX-License-Identifier: Apache-2.0
"""What a check finds in folders with one of each problem, and what it leaves alone."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from anomalib_uniad.check.command import inspect, write
from anomalib_uniad.check.contact_sheet import draw
from anomalib_uniad.check.features import Extractor, Usual, two_groups
from anomalib_uniad.check.source import read_config, read_folder
from anomalib_uniad.cli import main
from anomalib_uniad.data.make_meta import make_meta
from anomalib_uniad.errors import InputError
from anomalib_uniad.synthetic import PRODUCTS
from helpers import make_mvtec_like

BACKBONE = "tf_efficientnet_lite0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two products that are as they should be."""
    return make_mvtec_like(tmp_path / "products", ["bottle", "cable"], train=12)


def found_in(folder: Path, **arguments) -> dict[tuple[bool, str, str], set[str]]:
    """Names of files by whether they stop a training, product and kind of finding."""
    found: dict[tuple[bool, str, str], set[str]] = {}
    for finding in inspect(read_folder(folder, **arguments), None).findings:
        found.setdefault((finding.stops, finding.product, finding.kind), set()).add(Path(finding.file).name)
    return found


def test_nothing_is_found_in_good_folders(root):
    checked = inspect(read_folder(root), BACKBONE)
    assert checked.findings == []
    assert [row | {"layout": ""} for row in checked.rows()] == [
        {
            "product": name,
            "good_train": 12,
            "good_test": 3,
            "defective": 3,
            "with_masks": 3,
            "sizes": "64 x 64",
            "types": "PNG RGB",
            "layout": "",
        }
        for name in ("bottle", "cable")
    ]
    assert "MVTec" in checked.rows()[0]["layout"]


def test_every_problem_is_found_with_its_file(root):
    good, test, masks = root / "bottle/train/good", root / "bottle/test", root / "bottle/ground_truth/broken"
    (good / "empty.png").touch()
    (good / "text.jpg").write_text("not an image")
    (good / "cut.png").write_bytes((good / "000.png").read_bytes()[:-200])
    pixels = np.asarray(Image.open(good / "001.png"))
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 16).save(good / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[::-1]).save(good / "turned.jpg", exif=exif)
    Image.fromarray(np.full_like(pixels, 3)).save(good / "black.png")
    Image.fromarray(np.full_like(pixels, 252)).save(good / "white.png")
    shutil.copy(good / "002.png", good / "twice.png")
    shutil.copy(good / "003.png", test / "good" / "copy.png")
    Image.open(good / "004.png").resize((48, 48)).save(test / "good" / "near.webp", lossless=True)
    Image.new("L", (32, 64), 255).save(masks / "000_mask.png")
    Image.new("L", (64, 64), 0).save(masks / "001_mask.png")
    Image.new("L", (64, 64), 255).save(masks / "002_mask.png")
    (root / "few" / "ok").mkdir(parents=True)
    Image.fromarray(pixels).save(root / "few" / "ok" / "other name.BMP")
    assert found_in(root) == {
        (True, "bottle", "unreadable"): {"empty.png", "text.jpg", "cut.png"},
        (True, "bottle", "bits"): {"deep.png"},
        (True, "bottle", "mask"): {"000_mask.png"},
        (False, "bottle", "mask against label"): {"001_mask.png"},
        (False, "bottle", "full mask"): {"000_mask.png", "002_mask.png"},
        (False, "bottle", "EXIF orientation"): {"turned.jpg"},
        (False, "bottle", "nearly black"): {"black.png"},
        (False, "bottle", "nearly white"): {"white.png"},
        (False, "bottle", "copy"): {"twice.png"},
        (False, "bottle", "copy across training and test"): {"copy.png"},
        (False, "bottle", "near-copy"): {"near.webp"},
        (False, "few", "few images"): {""},
        (False, "few", "unequal products"): {""},
    }
    assert (True, "bottle", "bits") not in found_in(root, value_range=[0, 4095])


def test_what_is_wrong_with_folders_stops_as_well(root):
    shutil.rmtree(root / "cable/train")
    Image.new("L", (64, 64), 255).save(root / "bottle/ground_truth/broken/lost_mask.png")
    kinds = found_in(root)
    assert (True, "bottle", "layout") in kinds
    assert {product for stops, product, _ in kinds if stops} == {"bottle", "cable"}


def rendered(name: str, count: int, defect: str | None = None) -> list[np.ndarray]:
    """Images of a generated product, as small as features are computed of."""
    images = (PRODUCTS[name].render(np.random.default_rng([7, number]), defect)[0] for number in range(count))
    return [cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA) for image in images]


def test_two_products_in_one_folder():
    extractor = Extractor(BACKBONE)
    features = {name: extractor(rendered(name, 14))[0] for name in ("washer", "blister", "bottle_cap")}
    assert all(two_groups(part) is None for part in features.values())
    groups = two_groups(np.concatenate([features["washer"], features["blister"][:5]]))
    assert groups is not None
    assert groups.tolist() == [0] * 14 + [1] * 5
    assert two_groups(np.concatenate([features["washer"], features["bottle_cap"][:1]])) is None  # one is no product


def test_an_image_that_is_unlike_the_others():
    places = Extractor(BACKBONE)([*rendered("oak", 14), *rendered("washer", 1), *rendered("oak", 1, "spill")])[1]
    usual = Usual()
    for part in places.split(4):
        usual.add(part)
    unlike = usual.unlike()
    assert set(unlike.most(2)) == {14, 15}
    assert set(unlike.outliers()) <= {14, 15}
    assert 14 in unlike.outliers()
    alone = Usual()
    alone.add(places[:14])
    assert alone.unlike().outliers() == []


def test_masks_are_outlined(root):
    checked = inspect(read_folder(root, ["bottle"]), BACKBONE)
    sheet = np.asarray(draw(checked.products[0])).astype(int)
    red = (sheet == (230, 30, 40)).all(-1)
    # The squares are a quarter of the image in each direction: 42 of 168 pixels, in three images of the second row.
    columns = red.any(0).nonzero()[0]
    assert len(columns) == pytest.approx(3 * 43, abs=6)
    assert red.sum() == pytest.approx(3 * 4 * 42, rel=0.1)


def test_command(root, tmp_path, capsys):
    arguments = ["check", str(root), "--output", str(tmp_path / "out"), "--features", "false"]
    main(arguments)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith(f"anomalib train --model UniAD --data MultiCategory --data.root {root}")
    assert (tmp_path / "out" / "contact_sheets" / "cable.jpg").is_file()
    (root / "bottle" / "train" / "good" / "=1.png").touch()
    with pytest.raises(SystemExit, match=r"check\.html \(and 3 more\) would be overwritten"):
        main(arguments)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--overwrite", "true"])
    assert ended.value.code == 1
    with (tmp_path / "out" / "problems.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["stops_training"], row["product"], row["kind"]) for row in rows] == [("yes", "bottle", "unreadable")]
    page = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    assert "it is empty" in page
    assert 'src="contact_sheets/bottle.jpg"' in page


def test_command_line_of_names_that_look_like_something_else(root):
    """What is printed trains on what was checked."""
    names = ["01", "a, b", "Größe 1"]
    for name in names:
        shutil.copytree(root / "cable", root / name)
    words = shlex.split(read_folder(root, names, value_range=[0, 4095]).command)
    assert yaml.safe_load(words[words.index("--data.categories") + 1]) == names
    assert yaml.safe_load(words[words.index("--data.value_range") + 1]) == [0, 4095]


def config(tmp_path: Path, class_path: str, **arguments) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"data": {"class_path": class_path, "init_args": arguments}, "trainer": {}}))
    return file


class TestConfig:
    """The data of a config instead of a folder."""

    def test_own_folders(self, root, tmp_path):
        (root / "cable" / "train" / "good" / "000.png").write_text("text")
        source = read_config(
            config(tmp_path, "MultiCategory", root=str(root), categories=["cable"], value_range=[0, 9])
        )
        assert source.command.endswith("config.yaml")
        assert source.value_range == (0, 9)
        (tmp_path / "data.yaml").write_text(f"class_path: MultiCategory\ninit_args: {{root: {root}}}\n")
        (tmp_path / "all.yaml").write_text("data: data.yaml\n")  # as recipes have it
        assert [product.name for product in read_config(tmp_path / "all.yaml").products] == ["bottle", "cable"]
        assert read_config(tmp_path / "data.yaml").command.endswith(f"--model UniAD --data {tmp_path}/data.yaml")
        assert [finding.kind for finding in inspect(source, None).findings] == ["unreadable"]

    def test_wrapped_class(self, root, tmp_path):
        (root / "cable" / "test" / "good" / "000.png").write_text("text")
        source = read_config(config(tmp_path, "MultiCategory", source="MVTecAD", root=str(root)))
        checked = inspect(source, None)
        assert [(finding.product, finding.kind) for finding in checked.findings] == [("cable", "unreadable")]
        assert [row["with_masks"] for row in checked.rows()] == [3, 3]
        assert checked.rows()[0]["layout"] == "as MVTecAD reads it"

    def test_meta_files(self, root, tmp_path):
        make_meta(root)
        lines = (root / "test.json").read_text().splitlines()
        (root / "test.json").write_text("\n".join([*lines, json.dumps({"filename": "a/b/c/gone.png", "label": 0})]))
        shutil.copy(root / "bottle/train/good/000.png", root / "bottle/test/good/000.png")
        found = inspect(read_config(config(tmp_path, "MetaFile", root=str(root))), None).findings
        assert {(finding.stops, finding.kind) for finding in found} >= {
            (True, "list"),
            (True, "copy across training and test"),
        }

    def test_refused(self, root, tmp_path, capsys):
        (tmp_path / "empty.yaml").write_text("trainer: {}")
        with pytest.raises(InputError, match=r"empty\.yaml has no section data"):
            read_config(tmp_path / "empty.yaml")
        with pytest.raises(InputError, match="has no root in its section data"):
            read_config(config(tmp_path, "MultiCategory"))
        with pytest.raises(InputError, match=r"section data of .* cannot be used: .*rooot"):
            read_config(config(tmp_path, "MultiCategory", rooot="x"))
        with pytest.raises(SystemExit, match=r"mask_dir: set it in .*config"):
            main(["check", str(config(tmp_path, "MultiCategory", root=str(root))), "--mask_dir", "masks"])


def test_pictures_are_written_for_products_of_any_name(root, tmp_path):
    (root / "bottle").rename(root / "Blister Größe [1] <b>")
    checked = inspect(read_folder(root), None)
    files = write(checked, tmp_path / "out")
    page = files[0].read_text(encoding="utf-8")
    assert "Blister Größe [1] &lt;b&gt;" in page
    assert len(list(files[2].glob("*.jpg"))) == 2

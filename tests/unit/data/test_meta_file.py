# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
from anomalib.data import get_datamodule
from anomalib.data.utils import ValSplitMode
from anomalib.utils.path import generate_output_filename
from torchvision.transforms.v2 import Resize

from anomalib_uniad import MetaFile
from anomalib_uniad.category import categories_of
from anomalib_uniad.training.feature_key import describe_files
from helpers import make_mvtec_like, write_image, write_mask
from meta_files import TEST, TRAIN, make_folder, read_mask, to_ader, to_lines

SETS = ("train_data", "val_data", "test_data")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("meta") / "products")


@pytest.fixture
def meta(root: Path, tmp_path: Path):
    """Write the two files and return a datamodule that is set up."""

    def make(train=TRAIN, test=TEST, setup=True, folder=root, **arguments) -> MetaFile:
        for name, records in (("train", train), ("test", test)):
            data = records if isinstance(records, bytes) else to_lines(records)
            (tmp_path / f"{name}.json").write_bytes(data)
        datamodule = MetaFile(folder, tmp_path / "train.json", **{"num_workers": 0, **arguments})
        datamodule.prepare_data()
        if setup:
            datamodule.setup()
        return datamodule

    return make


def changed(records, index, **values):
    return [{**record, **(values if number == index else {})} for number, record in enumerate(records)]


def without(records, index, key):
    return [{k: v for k, v in r.items() if number != index or k != key} for number, r in enumerate(records)]


def files_of(datamodule, name="test_data"):
    return [
        (Path(path).relative_to(datamodule.root).as_posix(), category)
        for path, category in getattr(datamodule, name).samples[["image_path", "category"]].itertuples(index=False)
    ]


class TestSamples:
    def test_categories(self, meta, root):
        datamodule = meta()
        assert datamodule.categories == ["bottle", "cable"]
        assert (datamodule.name, datamodule.category) == ("products", "")
        assert ("loose.png", "bottle") in files_of(datamodule, "train_data")
        for name in SETS:
            samples = getattr(datamodule, name).samples
            assert categories_of(samples.image_path.tolist(), datamodule) == samples.category.tolist()
        assert files_of(datamodule) == sorted((r["filename"], r["filename"].split("/")[0]) for r in TEST)

    def test_masks(self, meta, root):
        data = meta().test_data
        expected = {
            "bottle/test/good/0.png": np.zeros((8, 8)),  # its mask file is black
            "bottle/test/good/1.png": np.zeros((8, 8)),  # none
            "bottle/test/crack/0.png": read_mask(root / "masks/bottle_0.png"),
            "bottle/test/crack/1.png": read_mask(root / "masks/bottle_1.png") | read_mask(root / "masks/bottle_2.png"),
            "bottle/test/crack/2.png": np.ones((8, 8)),  # none
            "cable/test/good/0.jpg": np.zeros((6, 10)),
            "cable/test/cut/0.jpg": read_mask(root / "masks/cable_0.png"),
        }
        assert (read_mask(root / "masks/bottle_1.png") != read_mask(root / "masks/bottle_2.png")).any()
        assert len(data) == len(expected)
        for item in data:
            name = Path(item.image_path).relative_to(root).as_posix()
            np.testing.assert_array_equal(item.gt_mask.numpy(), expected[name], err_msg=name)
            assert bool(item.gt_label) == ("good" not in name)

    def test_batch_of_different_sizes(self, meta):
        batch = next(iter(meta().test_dataloader()))
        assert batch.image.shape == (7, 3, 6, 10)
        assert batch.gt_mask.shape == (7, 6, 10)

    def test_augmentations_change_image_and_mask(self, meta):
        item = meta(test_augmentations=Resize((16, 20))).test_data[0]
        assert item.image.shape[-2:] == item.gt_mask.shape[-2:] == (16, 20)

    def test_defective_without_mask_are_counted(self, meta, caplog):
        meta()
        assert "1 defective test images have no mask (first:" in caplog.text
        assert "test.json, line 5): all of their pixels count as defective" in caplog.text

    def test_names_of_labels_are_optional(self, meta):
        test = without(changed(TEST, 1, label_name=""), 0, "label_name")
        test = without(changed(test, 3, label_name=None), 2, "label_name")
        train = without(TRAIN, 0, "label_name")
        datamodule = meta(train, test)
        labels = {
            name: dict(zip(files_of(datamodule, name), getattr(datamodule, name).samples.label, strict=True))
            for name in ("train_data", "test_data")
        }
        assert set(labels["train_data"].values()) == {"good"}
        assert labels["test_data"]["bottle/test/good/0.png", "bottle"] == "good"
        assert labels["test_data"]["bottle/test/crack/0.png", "bottle"] == "defective"
        assert labels["test_data"]["bottle/test/crack/2.png", "bottle"] == "crack"
        assert sorted(labels["test_data"].values()) == [
            "crack",
            "cut",
            "defective",
            "defective",
            "good",
            "good",
            "good",
        ]

    def test_deep_masks_mark_what_is_not_zero(self, meta):
        """Unlike images, masks of 16 bit lose nothing."""
        datamodule = meta(test=changed(TEST, 2, maskname="bad/of/many/deep.png"))
        item = next(item for item in datamodule.test_data if item.image_path.endswith("crack/0.png"))
        assert item.gt_mask.flatten().tolist() == [0] + 63 * [1]

    def test_copies_within_a_split_are_counted(self, meta, caplog):
        copies = [{**TRAIN[0], "filename": f"bottle/test/good/{name}.png"} for name in ("copy", "hard_link")]
        assert len(meta([*TRAIN, *copies]).train_data) == 8
        text = "2 training images are copies of others, so they count twice (first: "
        assert text in caplog.text
        assert "train.json, line 7 is that of " in caplog.text
        assert "test images are copies" not in caplog.text

    def test_categories_in_one_split_only(self, meta, caplog):
        caplog.set_level("INFO")
        meta(test=changed(TEST, 5, clsname="cabel"))
        text = caplog.text.replace("\n", " ")
        assert "WARNING" in text
        assert "Categories with no training images, so the model does not learn them: 'cabel' (first: /" in text
        assert "test.json, line 6). Are their names misspelt?" in text
        assert "no test images" not in text
        caplog.clear()
        meta(test=TEST[:5])
        assert "Categories with no test images: 'cable' (first: /" in caplog.text
        assert "no training images" not in caplog.text

    def test_no_masks_at_all(self, meta, caplog):
        datamodule = meta(test=[{k: v for k, v in record.items() if k != "maskname"} for record in TEST])
        batch = next(iter(datamodule.test_dataloader()))
        assert batch.gt_mask is None
        assert batch.gt_label.sum() == 4
        assert datamodule.task.value == "classification"
        assert next(iter(datamodule.train_dataloader())).gt_mask is None
        assert "no mask" not in caplog.text

    def test_feature_cache_sees_all_masks(self, meta, root):
        rows = describe_files(meta().test_data, masks=True)
        masks = {Path(row[0][0]).name + str(row[1]): row[2] for row in rows if "crack" in row[0][0]}
        assert masks["2.png1"] is None
        assert [Path(mask[0]).name for mask in masks["1.png1"]] == ["bottle_1.png", "bottle_2.png"]

    def test_names_that_are_not_ascii(self, tmp_path):
        record = {"filename": "größe/train/gut/ä ö.png", "label": 0, "label_name": "gut"}
        test = {**record, "filename": "größe/test/gut/ä ö.png"}
        for seed, item in enumerate((record, test)):
            write_image(tmp_path / "日本" / item["filename"], (8, 8), seed)
        (tmp_path / "日本" / "train.json").write_bytes(to_lines([record]))
        (tmp_path / "日本" / "test.json").write_bytes(to_lines([test]))
        datamodule = MetaFile(tmp_path / "日本", num_workers=0)
        datamodule.setup()
        assert datamodule.categories == ["größe"]
        assert next(iter(datamodule.test_dataloader())).image.shape == (1, 3, 8, 8)


class TestFormat:
    def test_blank_lines_order_mark_and_line_ends(self, meta):
        expected = files_of(meta())
        data = b"\xef\xbb\xbf\r\n" + to_lines(TEST).replace(b"\n", b"\r\n \t\r\n").rstrip(b"\r\n")
        assert files_of(meta(test=data)) == expected

    def test_other_keys_are_ignored(self, meta):
        datamodule = meta(test=changed(TEST, 0, view="top", shape=[1, {"a": None}]))
        assert len(datamodule.test_data) == len(TEST)

    def test_ader(self, meta, root, tmp_path):
        expected = meta()
        path = tmp_path / "meta.json"
        path.write_text(json.dumps(to_ader(TRAIN, TEST), indent=2))
        datamodule = MetaFile(root, ader_meta=path, num_workers=0)
        datamodule.setup()
        for name in SETS:
            samples = getattr(expected, name).samples
            assert getattr(datamodule, name).samples.equals(samples), name

    def test_default_files_are_in_the_root(self, tmp_path):
        make_folder(tmp_path / "a")
        (tmp_path / "a" / "train.json").write_bytes(to_lines(TRAIN))
        (tmp_path / "a" / "test.json").write_bytes(to_lines(TEST))
        assert MetaFile(str(tmp_path / "a")).categories == ["bottle", "cable"]

    def test_made_by_anomalib(self, meta, root, tmp_path):
        meta(setup=False)
        config = {
            "class_path": "MetaFile",
            "init_args": {"root": str(root), "train_meta": str(tmp_path / "train.json")},
        }
        assert get_datamodule(config).categories == ["bottle", "cable"]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Categories of different sizes."""
    root = tmp_path_factory.mktemp("many") / "line"
    make_mvtec_like(root, ["a"], (64, 64), train=8, good=6, bad=4)
    return make_mvtec_like(root, ["b"], (64, 64), train=4, good=2, bad=8)


def mvtec_records(root: Path, split: str) -> list[dict]:
    records = []
    for path in sorted(root.glob(f"*/{split}/*/*.png")):
        category, _, label, name = path.relative_to(root).parts
        record = {"filename": path.relative_to(root).as_posix(), "label": int(label != "good"), "label_name": label}
        if label != "good":
            record["maskname"] = f"{category}/ground_truth/{label}/{name[:-4]}_mask.png"
        records.append(record)
    return records


class TestSplits:
    @pytest.fixture
    def split(self, meta, many):
        def make(**arguments) -> MetaFile:
            return meta(mvtec_records(many, "train"), mvtec_records(many, "test"), folder=many, **arguments)

        return make

    def counts(self, datamodule, name):
        samples = getattr(datamodule, name).samples
        return samples.groupby(["category", "label_index"]).size().to_dict()

    def test_from_test_takes_its_part_of_each_category_and_label(self, split):
        datamodule = split(val_split_mode="from_test", val_split_ratio=0.5, seed=3)
        assert self.counts(datamodule, "val_data") == {("a", 0): 3, ("a", 1): 2, ("b", 0): 1, ("b", 1): 4}
        assert self.counts(datamodule, "test_data") == {("a", 0): 3, ("a", 1): 2, ("b", 0): 1, ("b", 1): 4}
        val, test = (set(files_of(datamodule, name)) for name in ("val_data", "test_data"))
        assert not val & test
        assert len(val | test) == 20
        again = split(val_split_mode="from_test", val_split_ratio=0.5, seed=3)
        assert files_of(again, "val_data") == files_of(datamodule, "val_data")
        other = split(val_split_mode="from_test", val_split_ratio=0.5, seed=4)
        assert files_of(other, "val_data") != files_of(datamodule, "val_data")

    def test_from_train(self, split):
        datamodule = split(val_split_mode="from_train", val_split_ratio=0.25, seed=3)
        assert self.counts(datamodule, "val_data") == {("a", 0): 2, ("b", 0): 1}
        assert self.counts(datamodule, "train_data") == {("a", 0): 6, ("b", 0): 3}

    def test_same_as_test(self, split):
        datamodule = split()
        assert datamodule.val_split_mode == ValSplitMode.SAME_AS_TEST
        assert files_of(datamodule, "val_data") == files_of(datamodule)

    def test_none(self, split):
        datamodule = split(val_split_mode="none")
        assert not hasattr(datamodule, "val_data")
        assert datamodule.val_dataloader() == []

    def test_synthetic(self, split):
        datamodule = split(val_split_mode="synthetic", test_split_mode="synthetic", seed=1)
        assert self.counts(datamodule, "val_data") == {("a", 0): 2, ("a", 1): 2, ("b", 0): 1, ("b", 1): 1}
        assert self.counts(datamodule, "test_data") == {("a", 0): 3, ("a", 1): 3, ("b", 0): 1, ("b", 1): 1}
        paths = datamodule.test_data.samples.image_path.tolist()
        assert categories_of(paths, datamodule) == datamodule.test_data.samples.category.tolist()
        assert len(set(outputs(datamodule))) == len(paths)

    def test_images_are_tested_as_listed(self, split, meta, many):
        """Unlike anomalib's own datamodules: no training image is moved to a test set without normal images."""
        test = [record for record in mvtec_records(many, "test") if record["label"] == 1]
        datamodule = meta(mvtec_records(many, "train"), test, folder=many)
        assert (len(datamodule.train_data), len(datamodule.test_data)) == (12, 12)

    @pytest.mark.parametrize("mode", ["from_test", "from_train", "same_as_test", "none"])
    def test_category_without_test_or_training_images(self, meta, many, mode):
        train = [record for record in mvtec_records(many, "train") if record["filename"].startswith("a/")]
        test = [record for record in mvtec_records(many, "test") if record["filename"].startswith("b/")]
        datamodule = meta(train, test, folder=many, val_split_mode=mode, seed=0)
        assert datamodule.categories == ["a", "b"]
        assert {category for _, category in files_of(datamodule)} == {"b"}
        assert {category for _, category in files_of(datamodule, "train_data")} == {"a"}


def outputs(datamodule) -> list[Path]:
    return [
        generate_output_filename(path, "images", datamodule.name, datamodule.category, mkdir=False)
        for path in datamodule.test_data.samples.image_path
    ]


class TestOutputFiles:
    @pytest.mark.parametrize("categories", [["a", "b"], ["one", "one"]])
    def test_equal_names_in_equal_folders(self, tmp_path, meta, categories):
        folder, test = tmp_path / "Line" / "line", []
        for place, category in zip(["x/b/good/0.png", "y/b/good/0.png"], categories, strict=True):
            write_image(folder / place, (8, 8))
            test.append({"filename": place, "label": 0, "label_name": "good", "clsname": category})
        write_image(folder / "0.png", (8, 8), seed=1)
        train = [{"filename": "0.png", "label": 0, "label_name": "good", "clsname": categories[0]}]
        assert len(set(outputs(meta(train, test, folder=folder)))) == 2

    def test_outside_of_the_root(self, root, tmp_path, meta):
        write_image(tmp_path / "x/one/b/good/0.png", (8, 8))
        write_image(tmp_path / "x/two/b/good/0.png", (8, 8))
        (tmp_path / "x" / "root").mkdir()
        write_image(tmp_path / "x/root/0.png", (8, 8), seed=1)
        good = {"label": 0, "label_name": "good", "clsname": "b"}
        test = [
            {"filename": str(tmp_path / "x/one/b/good/0.png"), **good},
            {"filename": "../two/b/good/0.png", **good},
        ]
        datamodule = meta([{"filename": "0.png", **good}], test, folder=tmp_path / "x/root", allow_outside_root=True)
        assert datamodule.name == "x"
        assert len(set(outputs(datamodule))) == len(datamodule.test_data) == 2


class TestRefused:
    @pytest.mark.parametrize(
        ("test", "message"),
        [
            (to_lines(TEST)[:-9], r"test\.json, line 7: broken JSON: .* \(character \d+\)"),
            (to_lines(TEST).replace(b"crack/2", b"crack/\xff"), r"line 5: is not UTF-8 \(byte 0xff at position \d+\)"),
            (b"\n \n", r"test\.json, line 1: the file has no records"),
            (b"[]\n" + to_lines(TEST), r'line 1: is \[\], not an object such as \{"filename"'),
            (json.dumps(TEST, indent=1).encode(), r"line 1: is one JSON document over several lines"),
            (without(TEST, 2, "label"), r"line 3: the key 'label' is missing"),
            (without(TEST, 2, "filename"), r"line 3: the key 'filename' is missing"),
            (changed(TEST, 2, label=True), r"line 3: label is True, it has to be the number 0 \(normal\) or 1"),
            (changed(TEST, 2, label=1.0), r"line 3: label is 1\.0"),
            (changed(TEST, 2, label="1"), r"line 3: label is '1'"),
            (changed(TEST, 2, label_name=1), r"line 3: label_name is 1, it has to be a string"),
            (json.dumps(TEST).encode(), r"line 1: is a JSON array; it has to be one object per line"),
            (changed(TEST, 2, filename=""), r"line 3: filename is '', it must not be empty"),
            (changed(TEST, 2, maskname=[]), r"line 3: maskname is \[\], it has to be a string"),
            (changed(TEST, 2, maskname=["masks/bottle_1.png", 1]), r"line 3: maskname is 1, it has to be"),
            (
                changed(TEST, 2, mask_name="a", maskname="masks/bottle_1.png", cls_name="x"),
                r"line 3: the key 'cls_name' is ",
            ),
            (changed(TEST, 2, clsname="../x"), r"line 3: the category is '\.\./x': it may not have slashes"),
            (
                to_lines(TEST).replace(b'"label": 1', b'"label": 0, "label": 1', 1),
                r"line 3: the key 'label' is there twice",
            ),
            (to_lines(changed(TEST, 2, x=float("nan"))), r"line 3: has NaN, which is not valid JSON"),
            (
                changed(TEST, 2, filename="masks/bottle_0.png", maskname=None),
                r"line 3: clsname is missing, and 'masks/bottle_0\.png' has fewer than 4 parts .*: add clsname",
            ),
            (
                changed(TEST, 2, filename="a/b/c/d.png"),
                r"line 3: the image 'a/b/c/d\.png' is not there: '/.*/a/b/c/d\.png'",
            ),
            (changed(TEST, 2, filename="bad/of/many", clsname="a"), r"line 3: the image 'bad/of/many' is a folder"),
            (changed(TEST, 2, filename="../outside.png", clsname="a"), r"line 3: the image .* has '\.\.' in it; paths"),
            (
                changed(TEST, 2, filename="/a/b/c/d.png"),
                r"line 3: the image '/a/b/c/d\.png' is an absolute path; paths",
            ),
            (changed(TEST, 2, filename="bad/of/many/out.png"), r"line 3: the image .* is a link that leaves the root"),
            (changed(TEST, 2, maskname="../outside.png"), r"line 3: the mask '\.\./outside\.png' has '\.\.' in it"),
            (
                changed(TEST, 2, filename="bad/of/many/text.png"),
                r"line 3: the image .* cannot be read: it is no image",
            ),
            (changed(TEST, 2, filename="bad/of/many/cut_off.png"), r"line 3: the image .* cannot be read: "),
            (changed(TEST, 2, filename="bad/of/many/cut_off.jpg"), r"line 3: the image .* cannot be read: .*truncated"),
            (changed(TEST, 2, maskname="bad/of/many/cut_off.png"), r"line 3: the mask .* cannot be read: "),
            (changed(TEST, 2, maskname="no.png"), r"line 3: the mask 'no\.png' is not there"),
            (
                changed(TEST, 2, maskname="masks/cable_0.png"),
                r"line 3: the mask 'masks/cable_0\.png' has 10 x 6 pixels, but its image '.*' has 8 x 8 pixels",
            ),
            (
                changed(TEST, 2, maskname="masks/black.png"),
                r"line 3: the label is 1 \(defective\), but .* no defective pixel in the mask 'masks/black\.png'\.",
            ),
            (
                changed(TEST, 2, maskname=["masks/black.png", "./masks/black.png"]),
                r"line 3: .* no defective pixel in the mask 'masks/black\.png' and '\./masks/black\.png'\.",
            ),
            (
                changed(TEST, 2, filename="bad/of/many/deep.png"),
                r"line 3: the image 'bad/of/many/deep\.png' cannot be read: it has more than 8 bits \(Pillow's mode "
                r"I(;16)?\): train with value_range",
            ),
            (changed(TEST, 2, maskname="bad/of/many/float.tif"), r"line 3: the mask .* mode F\), .* to 8 bits"),
            (changed(TEST, 2, label=0), r"line 3: the label is 0 \(normal\), but the mask .* has defective pixels"),
            (changed(TEST, 2, maskname=TEST[2]["filename"]), r"line 3: the mask of '.*' is the image itself"),
            ([*TEST, TEST[0]], r"line 8: the image '.*' is the one of .*test\.json, line 1 again\.$"),
            (
                [*TEST, TRAIN[1]],
                r"test\.json, line 8: the image .* the one of .*train\.json, line 2 again\. A test image",
            ),
            (
                [*TEST, {**TRAIN[0], "filename": "bottle/train/good/link.png"}],
                r"line 8: .*link\.png' is the one of .*train\.json, line 1 again",
            ),
            (
                [*TEST, {**TRAIN[0], "filename": "bottle/test/good/hard_link.png"}],
                r"line 8: .*hard_link\.png' is the one of .*train\.json, line 3 again\. A test image must not be used",
            ),
            (
                [*TEST, {**TRAIN[0], "filename": "bottle/test/good/copy.png"}],
                r"line 8: .*copy\.png' is a copy of the one of .*train\.json, line 2\. A test image must not be used",
            ),
        ],
    )
    def test_line(self, meta, test, message):
        with pytest.raises(ValueError, match=message) as error:
            meta(test=test)
        assert str(error.value).startswith("1 problem in ")

    def test_defective_training_image(self, meta):
        train = [*TRAIN, {"filename": "bottle/test/crack/0.png", "label": 1, "label_name": "crack"}]
        test = [record for record in TEST if record["filename"] != "bottle/test/crack/0.png"]
        with pytest.raises(
            ValueError, match=r"train\.json, line 7: .* defective \(label 1\).*allow_defective_train=True"
        ):
            meta(train, test)
        assert len(meta(train, test, allow_defective_train=True).train_data) == 7
        with pytest.raises(
            ValueError, match="val_split_mode is 'synthetic', which needs training images without defects"
        ):
            meta(train, test, allow_defective_train=True, val_split_mode="synthetic")

    def test_all_problems_together(self, meta):
        train = changed(TRAIN, 1, label=3)
        test = changed(
            changed(TEST, 0, filename="bad/of/many/text.png", maskname=None), 6, maskname="no.png", label=None
        )
        with pytest.raises(ValueError, match=r"^4 problems in .*train\.json, .*test\.json:\n- ") as error:
            meta(train, test)
        places = [line.split(": ")[0].rsplit("/", 1)[1] for line in str(error.value).splitlines()[1:]]
        assert places == ["train.json, line 2", "test.json, line 1", "test.json, line 7", "test.json, line 7"]

    def test_long_lists_are_cut(self, meta):
        with pytest.raises(ValueError, match=r"^50 problems in") as error:
            meta(train=b"x\n" * 50)
        lines = str(error.value).splitlines()
        assert len(lines) == 22
        assert lines[-1] == "- ... and 30 more"

    def test_unreadable_images_show_before_a_training(self, root, tmp_path):
        (tmp_path / "train.json").write_bytes(to_lines(TRAIN))
        bad = {"filename": "bad/of/many/text.png", "label": 0, "label_name": "good"}
        (tmp_path / "test.json").write_bytes(to_lines([*TEST, bad]))
        datamodule = MetaFile(root, tmp_path / "train.json", num_workers=0)
        assert datamodule.name == "products", "the text is right"
        for call in (datamodule.prepare_data, datamodule.setup):
            with pytest.raises(ValueError, match=r"1 problem in (.|\n)*line 8: the image .*text\.png' cannot be read"):
                call()

    def test_allow_outside_root(self, meta):
        record = {**TEST[2], "filename": "../outside.png", "clsname": "bottle"}
        datamodule = meta(test=[*TEST, record], allow_outside_root=True)
        assert len(datamodule.test_data) == 8

    def test_without_verification_heads_are_looked_at(self, meta):
        cut = changed(TEST, 2, filename="bad/of/many/cut_off.jpg", maskname=None, clsname="bottle")
        assert len(meta(test=cut, verify_images=False).test_data) == 7
        with pytest.raises(ValueError, match=r"text\.png' cannot be read"):
            meta(test=changed(TEST, 2, filename="bad/of/many/text.png", maskname=None), verify_images=False)
        with pytest.raises(ValueError, match="has 10 x 6 pixels"):
            meta(test=changed(TEST, 2, maskname="masks/cable_0.png"), verify_images=False)
        with pytest.raises(ValueError, match="train with value_range"):
            meta(test=changed(TEST, 2, filename="bad/of/many/deep.png"), verify_images=False)
        copy = {**TRAIN[0], "filename": "bottle/test/good/copy.png"}
        assert len(meta(test=[*TEST, copy], verify_images=False).test_data) == 8

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"test_split_mode": "none"}, "test_split_mode is 'none', but the test images are listed"),
            ({"val_split_mode": "from_dir"}, "val_split_mode is 'from_dir', but there is no meta file of validation"),
            ({"val_split_ratio": 1.5}, r"^val_split_ratio is 1\.5, it has to be a number between 0 and 1"),
            ({"val_split_ratio": 0}, "^val_split_ratio is 0, "),
            ({"test_split_ratio": float("nan")}, "^test_split_ratio is nan, "),
            ({"test_split_ratio": None}, "^test_split_ratio is None, "),
            ({"ader_meta": "meta.json"}, "set ader_meta, or train_meta and test_meta"),
        ],
    )
    def test_arguments(self, meta, arguments, message):
        with pytest.raises(ValueError, match=message):
            meta(**arguments)

    def test_missing_files(self, root, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"There is no meta file .*train\.json and no .*test\.json\. Paths"):
            MetaFile(root).prepare_data()
        with pytest.raises(FileNotFoundError, match=r"The root .*/nothing is not there"):
            MetaFile(tmp_path / "nothing").prepare_data()
        (tmp_path / "one.json").write_bytes(to_lines(TRAIN))
        with pytest.raises(ValueError, match="train_meta and test_meta are the same file"):
            MetaFile(root, tmp_path / "one.json", tmp_path / "one.json").prepare_data()

    @pytest.mark.parametrize("ask", ["name", "categories", "prepare_data", "setup"])
    def test_the_text_is_read_when_it_is_needed(self, root, tmp_path, ask):
        (tmp_path / "train.json").write_bytes(to_lines(TRAIN))
        bad = {"filename": "bad/of/many/text.png", "label": 0}
        (tmp_path / "test.json").write_bytes(to_lines([*changed(TEST, 2, label=3), bad]))
        datamodule = MetaFile(root, tmp_path / "train.json", num_workers=0)
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"^2 problems in .*\n.*line 3: label is 3(.|\n)*line 8: .* read: it is no image"
            ):
                value = getattr(datamodule, ask)
                value()


class TestAderRefused:
    @pytest.fixture
    def ader(self, root, tmp_path):
        def make(content) -> MetaFile:
            path = tmp_path / "meta.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            datamodule = MetaFile(root, ader_meta=path, num_workers=0)
            datamodule.prepare_data()
            return datamodule

        return make

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"anomaly": 2}, r"meta\.json, test/bottle/2: anomaly is 2, it has to be the number 0"),
            ({"cls_name": "cable"}, r"test/bottle/2: cls_name is 'cable', but it is listed under 'bottle'"),
            ({"img_path": "no.png"}, r"test/bottle/2: the image 'no\.png' is not there"),
            ({"mask_path": "masks/cable_0.png"}, r"test/bottle/2: the mask .* has 10 x 6 pixels"),
            ({"specie_name": 1}, r"test/bottle/2: specie_name is 1, it has to be a string"),
            (
                {"img_path": TRAIN[0]["filename"], "mask_path": ""},
                r"test/bottle/2: .*of .*meta\.json, train/bottle/0 again",
            ),
        ],
    )
    def test_record(self, ader, values, message):
        content = to_ader(TRAIN, TEST)
        content["test"]["bottle"][2].update(values)
        with pytest.raises(ValueError, match=message):
            ader(content)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", r"meta\.json, line 1: broken JSON"),
            ('{\n"train": {},\n"test": }', r"meta\.json, line 3: broken JSON"),
            ("[]", r"line 1: is \[\], not an object with the keys"),
            ({"train": {}, "test": {}}, r"meta\.json, train: has no records(.|\n)*meta\.json, test: has no records"),
            ({"train": to_ader(TRAIN, TEST)["train"]}, r"meta\.json, test: is missing"),
            ({**to_ader(TRAIN, TEST), "test": []}, r"meta\.json, test: is \[\]; it has to be an object"),
            (
                {**to_ader(TRAIN, TEST), "test": {"bottle": {}}},
                r"meta\.json, test/bottle: is \{\}, not a list of records",
            ),
            ({**to_ader(TRAIN, TEST), "test": {"bottle": [0]}}, r"meta\.json, test/bottle/0: is 0, not an object"),
            ('{"train":\n{"a": [{"x": [NaN]}]},\n"test": {}}', r"line 2: has NaN, which is not valid JSON"),
            ('{"train":\n{"a": [], "a": []},\n"test": {}, "test": {}}', r"line 2: the key 'a' is there twice"),
        ],
    )
    def test_document(self, ader, content, message):
        with pytest.raises(ValueError, match=message):
            ader(content)

    @pytest.mark.parametrize("indent", [None, 1])
    def test_given_as_lines(self, meta, indent):
        with pytest.raises(ValueError, match=r"line 1: is in the format of ADer's meta\.json: give it as `ader_meta`"):
            meta(train=json.dumps(to_ader(TRAIN, TEST), indent=indent).encode())


def test_masks_are_read_by_value_not_by_brightness(tmp_path, meta):
    write_image(tmp_path / "r/a/test/x/0.png", (8, 8))
    write_image(tmp_path / "r/a/train/good/0.png", (8, 8), seed=1)
    write_mask(tmp_path / "r/m.png", np.eye(8, dtype=np.uint8))  # 1, not 255
    test = [{"filename": "a/test/x/0.png", "label": 1, "label_name": "x", "maskname": "m.png"}]
    train = [{"filename": "a/train/good/0.png", "label": 0, "label_name": "good"}]
    item = meta(train, test, folder=tmp_path / "r").test_data[0]
    np.testing.assert_array_equal(item.gt_mask.numpy(), np.eye(8))

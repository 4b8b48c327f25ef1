# SPDX-License-Identifier: Apache-2.0
import copy
import gc
import pickle
import re
from pathlib import Path

import anomalib.data
import pytest
from anomalib.data import AnomalibDataModule, MVTecAD, get_datamodule
from anomalib.data.utils import ValSplitMode, random_split, split_by_label
from jsonargparse import ArgumentParser
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf

import layouts
from anomalib_uniad.category import categories_of
from anomalib_uniad.data import MultiCategory
from anomalib_uniad.errors import InputError
from helpers import make_mvtec_like
from multi_category_data import SETS, make, outputs

pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("error::FutureWarning:anomalib_uniad"),
]


def test_joins_all_categories_on_disk(root):
    datamodule = make(root)
    assert datamodule.categories == ["bottle", "cable", "my_part"]
    assert (datamodule.name, datamodule.category) == ("products", "")
    for name in SETS:
        samples = getattr(datamodule, name).samples
        parts = []
        for category in datamodule.categories:
            single = MVTecAD(root=root, category=category)
            single.setup()
            own = getattr(single, name).samples.image_path.tolist()
            assert samples[samples.category == category].image_path.tolist() == own
            parts += own
        assert samples.image_path.tolist() == sorted(parts)
        assert samples.attrs["task"] == "segmentation"
        assert categories_of(samples.image_path.tolist(), datamodule) == samples.category.tolist()


def test_batches_have_images_of_different_sizes(root):
    batch = next(iter(make(root, eval_batch_size=32).test_dataloader()))
    assert batch.image.shape == (18, 3, 48, 80)
    assert batch.gt_mask.shape == (18, 48, 80)
    assert batch.gt_label.sum() == 9


@pytest.mark.parametrize("mode", [None, "same_as_test", "from_test", "from_train", "synthetic"])
def test_splits_each_category_as_its_own_datamodule(root, mode):
    datamodule = make(root, val_split_mode=mode, val_split_ratio=0.5, seed=3)
    assert datamodule.val_split_mode == (ValSplitMode(mode) if mode else ValSplitMode.SAME_AS_TEST)
    for category in datamodule.categories:
        single = MVTecAD(
            root=root, category=category, val_split_ratio=0.5, seed=3, **({"val_split_mode": mode} if mode else {})
        )
        single.setup()
        for name in SETS if mode != "synthetic" else ("train_data", "test_data"):
            samples = getattr(datamodule, name).samples
            own = samples[samples.category == category].image_path.tolist()
            assert own == getattr(single, name).samples.image_path.tolist()


def test_no_validation_set(root):
    datamodule = make(root, val_split_mode="none")
    assert not hasattr(datamodule, "val_data")
    assert datamodule.val_dataloader() == []


def test_works_with_the_dataset_utilities_of_anomalib(root):
    data = make(root).test_data
    normal, defective = split_by_label(data)
    assert len(normal) == len(defective) == 9
    first, second = random_split(data, 0.5, label_aware=True, seed=0)
    assert len(first) + len(second) == len(data)
    joined = first + second
    assert joined.samples.category.value_counts().to_dict() == {"bottle": 6, "cable": 6, "my_part": 6}
    assert joined.samples.attrs["task"] == "segmentation"
    assert copy.deepcopy(data).subsample([0, 5])[1].image_path == data.samples.image_path[5]


@pytest.mark.parametrize("categories", [None, ["bottle"]])
def test_synthetic_images_live_as_long_as_a_dataset(tmp_path, categories):
    root = make_mvtec_like(tmp_path / "r", ["bottle", "cable"] if categories is None else categories, train=8)
    datamodule = make(root, val_split_mode="synthetic")
    paths = datamodule.val_data.samples.image_path.tolist()
    made = [path for path in paths if not Path(path).is_relative_to(root)]
    assert len(made) == len(paths) / 2
    assert set(categories_of(made, datamodule)) == set(datamodule.categories)
    if len(datamodule.categories) == 1:  # heatmaps have the names that they have with the wrapped class
        assert {Path(path).parts[-4] for path in made} == {datamodule.name}
    for part in random_split(datamodule.val_data, 0.5):
        del part
    copy.copy(datamodule.val_data)
    pickle.loads(pickle.dumps(datamodule.val_data))  # as in a worker process
    gc.collect()
    batch = next(iter(datamodule.val_dataloader()))
    assert batch.gt_mask[batch.gt_label].any()

    kept = copy.deepcopy(datamodule.val_data)
    del datamodule
    gc.collect()
    assert all(Path(path).exists() for path in made)
    assert all(kept[index].image is not None for index in range(len(kept)))
    del kept
    gc.collect()
    assert not any(Path(path).exists() for path in made)


def test_synthetic_test_images_of_categories_are_kept_apart(root):
    datamodule = make(root, test_split_mode="synthetic", val_split_mode="from_test", seed=1)
    for name in ("test_data", "val_data"):
        files = outputs(datamodule, name)
        assert len(set(files)) == len(files) > 0
        assert [file.parts[-4] if "synthetic" in file.parts else file.parts[1] for file in files] == getattr(
            datamodule, name
        ).samples.category.tolist()
    assert len(list(datamodule.test_dataloader())) == 1


@pytest.mark.parametrize("source", ["MVTecAD", "anomalib.data.MVTecAD"])
def test_one_category_is_as_with_the_wrapped_class(root, source):
    single = MVTecAD(root=root, category="cable")
    single.setup()
    datamodule = make(root, source=source, categories="cable")
    assert (datamodule.name, datamodule.category) == (single.name, single.category) == ("MVTecAD", "cable")
    for name in SETS:
        joined, own = getattr(datamodule, name), getattr(single, name)
        assert type(joined) is type(own)
        assert (joined.name, joined.category) == (own.name, own.category)
        assert joined.samples.drop(columns="category").equals(own.samples)
    assert outputs(datamodule) == outputs(single)


class TestOutputFolders:
    def test_root_given_as_dot(self, root, monkeypatch):
        monkeypatch.chdir(root)
        datamodule = make(".")
        assert datamodule.name == "products"
        assert {file.parts[1] for file in outputs(datamodule)} == set(datamodule.categories)

    def test_same_name_earlier_in_the_path(self, tmp_path):
        datamodule = make(make_mvtec_like(tmp_path / "Data" / "data", ["bottle", "cable"]))
        assert {file.parts[2] for file in outputs(datamodule)} == {"bottle", "cable"}

    def test_links(self, root, tmp_path):
        (tmp_path / "chosen").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "chosen")
        (tmp_path / "chosen" / "first").symlink_to(root / "bottle")
        (tmp_path / "chosen" / "second").symlink_to(root / "bottle")
        datamodule = make(tmp_path / "link")
        assert datamodule.categories == ["first", "second"]
        assert {file.parts[1] for file in outputs(datamodule)} == {"first", "second"}
        assert len(datamodule.test_data) == len(set(outputs(datamodule))) == 12


@pytest.mark.parametrize("categories", ["bottle,cable", "[bottle, cable]", ["bottle", "cable"], ("bottle", "cable")])
def test_ways_to_name_categories(root, categories):
    assert MultiCategory(root=root, categories=categories).categories == ["bottle", "cable"]


def test_arguments_from_omegaconf(root, tmp_path):
    layouts.real_iad(tmp_path, ["toy", "pcb"])
    config = {"root": str(tmp_path), "categories": ["toy", "pcb"], "source_args": {"resolution": 256}}
    datamodule = MultiCategory("RealIAD", **OmegaConf.create(config))
    assert datamodule.categories == ["toy", "pcb"]
    assert type(datamodule.categories) is list


def test_made_by_anomalib(root, monkeypatch):
    monkeypatch.setattr(anomalib.data, "MultiCategory", MultiCategory, raising=False)
    init_args = {"root": str(root), "categories": ["bottle", "cable"], "source_args": None}
    assert get_datamodule({"class_path": "MultiCategory", "init_args": init_args}).categories == ["bottle", "cable"]


def test_command_line(root, capsys):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    name = f"{MultiCategory.__module__}.MultiCategory"
    arguments = [f"--data={name}", f"--data.root={root}", "--data.source=MVTecAD", "--data.source_args={}"]
    for given in ("bottle", "[bottle]", "bottle,cable"):
        made = parser.instantiate_classes(parser.parse_args([*arguments, f"--data.categories={given}"])).data
        assert made.categories == given.strip("[]").split(",")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={name}"])
    text = capsys.readouterr().out
    assert "folders of your own; otherwise a datamodule class" in " ".join(text.split())
    assert "--data.categories" in text


@pytest.mark.parametrize("source", ["MVTecAD", None])
def test_part_of_the_training_images(root, source, caplog):
    """So many of each product, more of them with a larger number, and all else as without."""
    caplog.set_level("INFO", "anomalib_uniad")
    whole, one, two, again = (make(root, source, seed=5, train_images=count) for count in (None, 1, 2, 2))
    images = [set(datamodule.train_data.samples.image_path) for datamodule in (one, two, whole)]
    assert images[0] < images[1] < images[2]
    assert set(again.train_data.samples.image_path) == images[1]
    for count, datamodule in ((1, one), (2, two)):
        assert datamodule.train_data.samples.category.value_counts().to_dict() == dict.fromkeys(whole.categories, count)
        assert sum(len(batch) for batch in datamodule.train_dataloader()) == count * len(whole.categories)
        for name in ("val_data", "test_data"):
            assert outputs(datamodule, name) == outputs(whole, name)
    there = whole.train_data.samples.category.value_counts()
    left = ", ".join(f"{name} {there[name] - 2}" for name in whole.categories)
    assert f"2 images of each product, drawn with seed 5; training images left out: {left}" in caplog.text


def test_more_training_images_than_there_are(root, caplog):
    datamodule, whole = make(root, train_images=5), make(root)
    assert list(datamodule.train_data.samples.image_path) == list(whole.train_data.samples.image_path)
    assert "fewer than 5 training images of bottle (4), cable (4)" in caplog.text
    with pytest.raises(InputError, match="train_images must be at least 1, got 0"):
        make(root, train_images=0)


def test_trainer_sets_up_once(root):
    datamodule = MultiCategory(root=root, val_split_mode="from_test")
    datamodule.setup(TrainerFn.FITTING)
    first = datamodule.val_data.samples.image_path.tolist()
    datamodule.setup(TrainerFn.TESTING)
    assert datamodule.val_data.samples.image_path.tolist() == first


def test_files_that_cannot_be_read_are_named_at_the_start(tmp_path):
    root = make_mvtec_like(tmp_path / "products", ["bottle", "cable"])
    damaged = sorted((root / "cable" / "train" / "good").glob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    text = rf"^1 of \d+ files cannot be used: {re.escape(str(damaged))} \(.+\)\.$"
    with pytest.raises(InputError, match=text):
        make(root).setup()

# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from types import SimpleNamespace

import pytest

from anomalib_uniad.category import UNKNOWN, categories_of, category_from_path, find_category, known_categories


@pytest.mark.parametrize(
    ("path", "category"),
    [
        ("/data/mvtec/bottle/train/good/000.png", "bottle"),
        ("bottle/train/good/000.png", "bottle"),
        (Path("/visa/visa_pytorch/candle/test/bad/0.JPG"), "candle"),
        ("bottle/good/000.png", "bottle"),
        ("/bottle/good/000.png", "bottle"),
        ("bottle/000.png", "bottle"),
        ("000.png", UNKNOWN),
        ("", UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_path_convention(path, category):
    assert categories_of([path]) == [category]


def test_published_mapping_goes_first():
    datamodule = SimpleNamespace(category_by_path={"/tmp/x/000.png": "cable"}, category="")
    paths = [Path("/tmp/x/000.png"), "/data/bottle/test/good/1.png"]
    assert categories_of(paths, datamodule) == ["cable", "bottle"]


def test_single_category_goes_before_the_path():
    assert categories_of(["/a/b/c/d/e.png", None], SimpleNamespace(category="tile")) == ["tile", "tile"]


def test_datamodule_without_category_falls_back_to_the_path():
    assert categories_of(["/mvtec/bottle/train/good/0.png"], SimpleNamespace(category="")) == ["bottle"]
    assert categories_of([], None) == []


def test_known_categories():
    assert known_categories(SimpleNamespace(categories=["b", "a"], category="")) == ["b", "a"]
    assert known_categories(SimpleNamespace(category_by_path={"1": "b", "2": "a", "3": "b"})) == ["a", "b"]
    assert known_categories(SimpleNamespace(category="tile")) == ["tile"]
    assert known_categories(SimpleNamespace(category="")) == []
    assert known_categories(None) == []


@pytest.mark.parametrize(
    ("path", "category"),
    [
        ("/mvtec/bottle/train/good/0.png", "bottle"),
        (Path("bottle/train/good/0.png"), "bottle"),
        ("/train/good/0.png", ""),
        ("train/good/0.png", ""),
        ("", ""),
    ],
)
def test_fourth_part_from_the_end(path, category):
    assert category_from_path(path) == category


@pytest.mark.parametrize(
    ("path", "category"),
    [
        ("/line/bottle/cable/0.png", "cable"),
        (Path("bottle/new/0.png"), "bottle"),
        ("new/bottle", ""),  # the name of the image does not count
        ("new/Bottle/0.png", ""),
        ("", ""),
    ],
)
def test_last_folder_named_as_a_category(path, category):
    assert find_category(path, {"bottle", "cable"}) == category

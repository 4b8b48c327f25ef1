# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomalib_uniad.inference import Inspector, ModelMetadata
from anomalib_uniad.inference.thresholds_file import GivenThresholds
from tiny_openvino import NORMALISED, save_tiny

RECOGNISING = ModelMetadata(
    model="UniAD",
    products=("bolt", "nut"),
    category_thresholds={"bolt": {"image": 4.0, "pixel": 2.0}, "nut": {"image": 9.0}},
    typical_scores={"bolt": 3.0, "nut": 8.0},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    given = GivenThresholds({"image": 2.0}, {"Größe 1": {"image": 5.25, "pixel": 3.0}, "nut": {"pixel": 1.0}})
    given.write(tmp_path / "thresholds.yaml")
    assert GivenThresholds.read(tmp_path / "thresholds.yaml") == given


def test_what_is_not_named_stays(tmp_path: Path) -> None:
    changed = GivenThresholds({}, {"bolt": {"image": 2.5}}).put_into(RECOGNISING, tmp_path)
    assert changed.category_thresholds == {"bolt": {"image": 2.5, "pixel": 2.0}, "nut": {"image": 9.0}}
    assert changed.typical_scores["bolt"] < 2.5  # else there would be no scale
    assert changed.hash_of_thresholds() != RECOGNISING.hash_of_thresholds()
    assert (
        GivenThresholds({}, {}).put_into(RECOGNISING, tmp_path).hash_of_thresholds() == RECOGNISING.hash_of_thresholds()
    )


def test_a_file_decides_by_them(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.xml")
    grey = np.full((9, 9), 120, np.uint8)  # 0.47
    (tmp_path / "low.yaml").write_text("global: {image: 0.46, pixel: 0.46}\nproducts: {cable: {image: 0.47}}")
    low = Inspector(path, thresholds=tmp_path / "low.yaml")
    assert Inspector(path).inspect(grey).decision == "normal"
    found = low.inspect(grey)
    assert (found.decision, found.threshold, found.mask.all()) == ("anomalous", 0.46, True)
    assert Inspector(path).inspect(grey, "cable").decision == "normal"
    assert low.inspect(grey, "cable").decision == "anomalous"
    assert low.inspect(grey, "bottle").threshold == NORMALISED.category_thresholds["bottle"]["image"]


def test_sensitivity_does_not_move_them(tmp_path: Path) -> None:
    sensitive = replace(NORMALISED, normalization={**NORMALISED.normalization, "image_sensitivity": 0.25})
    path = save_tiny(tmp_path / "model.xml", sensitive)
    (tmp_path / "given.yaml").write_text("global: {image: 0.46}\nproducts: {cable: {image: 0.48}}")
    inspector, grey = Inspector(path, thresholds=tmp_path / "given.yaml"), np.full((9, 9), 120, np.uint8)
    assert inspector.inspect(grey).threshold == pytest.approx(0.46)
    assert inspector.inspect(grey, "cable").threshold == pytest.approx(0.48)


@pytest.mark.parametrize("sensitivity", [0.3, 0.5, 0.7])
def test_those_of_products_decide_where_they_are_given(tmp_path: Path, sensitivity: float) -> None:
    """Those of a table of predictions, which the sensitivity has moved, too."""
    metadata = ModelMetadata(
        products=("bolt", "nut"),
        category_thresholds={"bolt": {"image": 3.0}, "nut": {"image": 4.0, "pixel": 2.0}},
        typical_scores={"bolt": 2.0, "nut": 3.0},
        normalization={"image_sensitivity": sensitivity},
    )
    shown = {name: {"image": metadata.threshold_of_product(name)} for name in metadata.products}
    file = tmp_path / "thresholds.yaml"
    GivenThresholds({}, shown).write(file)
    same = GivenThresholds.read(file).put_into(metadata, file)
    for name, levels in metadata.category_thresholds.items():
        assert same.category_thresholds[name] == pytest.approx(levels)
    file.write_text("products: {bolt: {image: 5.0}}")
    assert GivenThresholds.read(file).put_into(metadata, file).threshold_of_product("bolt") == pytest.approx(5.0)
    above = replace(metadata, normalization={"image_sensitivity": 0.8})
    with pytest.raises(ValueError, match=r"With an image_sensitivity of 0\.8, no threshold can be given"):
        GivenThresholds.read(file).put_into(above, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the keys global or products, got None"),
        ("bolt: 3", r"must have the keys global or products, got {'bolt': 3}"),
        ("products: [bolt]", r"products must name products, got \['bolt'\]"),
        ("products: {bolt: 3}", "bolt must have image or pixel, got 3"),
        ("products: {bolt: {image: -1}}", "image of bolt must be a positive number, got -1"),
        ("products: {bolt: {image: .nan}}", "image of bolt must be a positive number, got nan"),
        ("products: {pin: {image: 1}}", "has thresholds of pin, but the model knows bolt, nut"),
        ("global: {image: 1}", "has a global threshold, but the model decides by one of each product"),
        ("a: b: c", "is no YAML"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "thresholds.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        GivenThresholds.read(file).put_into(RECOGNISING, file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone.yaml with thresholds"):
        GivenThresholds.read(tmp_path / "gone.yaml")

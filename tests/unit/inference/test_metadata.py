# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import openvino as ov
import pytest
import torch

from anomalib_uniad.inference import ModelMetadata
from tiny_openvino import save_tiny

FULL = ModelMetadata(
    model="UniAD",
    version="0.1.0",
    image_size=(224, 256),
    resize_mode="pad",
    crop=(0, 10, 300, 400),
    categories=("bottle", 'a "quoted" <näme>'),
    thresholds={"image": 12.5, "pixel": 7.0},
    category_thresholds={"bottle": {"image": 11.0, "pixel": 6.0}},
    normalization={"image_min": 5.0, "image_max": 25.0, "pixel_min": 1.0, "pixel_max": 30.0, "image_sensitivity": 0.6},
    training={"dataset": "Products", "images": 120, "epochs": 10, "seed": None},
    precision="FP32",
    value_range=(0.0, 4095.0),
)


def test_openvino_file(tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "model.xml", FULL)
    assert ModelMetadata.read(ov.Core().read_model(file), file) == FULL


def test_onnx_file(tmp_path: Path) -> None:
    """The same dictionary as metadata_props, read through OpenVINO."""
    import onnx
    from onnx import TensorProto, helper

    port = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", port[:1], port[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, FULL.to_properties())
    onnx.save(model, tmp_path / "model.onnx")
    read = ov.Core().read_model(tmp_path / "model.onnx")
    assert ModelMetadata.read(read, "model.onnx") == FULL
    ov.save_model(read, tmp_path / "model.xml")  # as anomalib makes its OpenVINO files
    assert ModelMetadata.read(ov.Core().read_model(tmp_path / "model.xml"), "model.xml") == FULL


def test_a_file_without(tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "model.xml", None)
    metadata = ModelMetadata.read(ov.Core().read_model(file), file)
    assert metadata == ModelMetadata()
    assert metadata.range_of("image") is metadata.center_of("image") is metadata.threshold_of("pixel") is None


@pytest.mark.parametrize("sensitivity", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_sensitivity_moves_the_threshold_of_a_product(sensitivity: float) -> None:
    metadata = ModelMetadata(
        category_thresholds={"nut": {"image": 3.0}},
        typical_scores={"nut": 2.0},
        normalization={"image_sensitivity": sensitivity},
    )
    moved = metadata.threshold_of_product("nut")
    beyond = torch.tensor([moved]) - 3.0  # in typical distances of 1
    if 0 < sensitivity < 1:
        assert (float(beyond / (1 + beyond.abs())) + 1) / 2 == pytest.approx(1 - sensitivity)
    else:
        assert moved == (float("inf") if sensitivity == 0 else -float("inf"))
    assert math.isnan(ModelMetadata().threshold_of_product("nut"))


def test_thresholds() -> None:
    assert FULL.range_of("image") == 20
    assert FULL.center_of("image") == 12.5
    # anomalib calls scores above 1 - sensitivity anomalous: 0.4 is 12.5 - 0.1 * 20
    assert FULL.threshold_of("image") == pytest.approx(10.5)
    assert FULL.threshold_of("pixel") == 7
    only_range = ModelMetadata(normalization={"image_min": 5.0, "image_max": 25.0})
    assert only_range.center_of("image") == only_range.threshold_of("image") == 15
    assert ModelMetadata(thresholds={"image": 3.0}).threshold_of("image") == 3
    assert ModelMetadata(normalization={"image_min": 5.0, "image_max": 5.0}).range_of("image") == 1


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("image_size", "[224", "metadata 'image_size' is malformed: .*delimiter"),
        ("image_size", "[224, 0]", r"'image_size' is malformed: it must be \[height, width\]"),
        ("image_size", "224", r"it must be \[height, width\]"),
        ("resize_mode", '"fit"', "'resize_mode' is malformed: resize_mode must be 'stretch' or 'pad', got 'fit'"),
        ("crop", "[0, 0, 5]", r"'crop' is malformed: crop must be \[top, left, height, width\]"),
        ("categories", '{"bottle": 1}', "'categories' is malformed: it must be a list of names"),
        ("categories", "[1]", "it must be a list of names"),
        ("products", r'["\ud800"]', "'products' is malformed: .*surrogates not allowed"),
        ("thresholds", "[1]", "'thresholds' is malformed: it must be an object"),
        ("thresholds", '{"image": "high"}', "image must be a number, got 'high'"),
        ("thresholds", '{"image": true}', "image must be a number, got True"),
        ("thresholds", '{"image": NaN}', "NaN is not a number"),
        ("thresholds", '{"image": 1e999}', "image must be a number, got inf"),
        ("thresholds", '{"pixels": 1}', "it may have image, pixel, not 'pixels'"),
        ("category_thresholds", '{"bottle": 3}', "'category_thresholds' is malformed: 'bottle': it must be an object"),
        ("normalization", '{"image_min": 3}', "image_min and image_max belong together"),
        ("normalization", '{"pixel_min": 3, "pixel_max": 2}', "pixel_min and pixel_max belong together"),
        ("training", "3", "'training' is malformed"),
        *(
            ("value_range", text, "'value_range' is malformed: value_range must be two numbers")
            for text in ("[1]", "[2, 1]", "[1, 1]", "[0, true]", "[0, 1e999]", "[0, 1, 2]", '"01"', "3")
        ),
    ],
)
def test_malformed(key: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"some/model.xml: .*{message}"):
        ModelMetadata.from_properties({key: text, "model_type": "anomaly"}, "some/model.xml")


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="'thresholds' cannot be written"):
        ModelMetadata(thresholds={"image": float("nan")}).to_properties()
    with pytest.raises(ValueError, match="'training' cannot be written"):
        ModelMetadata(training={"root": Path("data")}).to_properties()
    with pytest.raises(ValueError, match="'normalization' is malformed"):
        ModelMetadata(normalization={"low": 1.0}).to_properties()

# SPDX-License-Identifier: Apache-2.0
"""What is quantised and with which images; errors come before the export."""

from pathlib import Path
from typing import Any

import anomalib.data
import numpy as np
import openvino as ov
import pytest
import torch
from anomalib.data import ImageItem, MVTecAD, Visa
from anomalib.deploy import CompressionType
from anomalib.metrics import AUROC, F1Score
from openvino import opset13 as ops

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.deploy.quantization import (
    Images,
    PaintedImages,
    batches_of,
    calibration_images,
    check_quantization,
    halve_weights,
    measure,
    quantize_with_accuracy_control,
    sensitive_operations,
)
from helpers import make_mvtec_like
from small import SMALL


@pytest.fixture
def data(tmp_path: Path) -> MultiCategory:
    root = make_mvtec_like(tmp_path / "Products", sizes={"bottle": (72, 90), "cable": (64, 64)})
    return MultiCategory("MVTecAD", root, num_workers=0)


@pytest.fixture
def no_export(monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise AssertionError("errors have to come before the export")

    monkeypatch.setattr("torch.onnx.export", fail)


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("compression", ["int8_ptq", "int8_acq"])
def test_images_are_needed(tmp_path: Path, compression: str) -> None:
    with pytest.raises(
        ValueError, match=f"compression_type={compression.upper()} measures activations on images: give a data"
    ):
        UniAD(**SMALL).to_openvino(tmp_path, compression_type=compression)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("compression", ["int8_ptq", "int8_acq"])
def test_learned_ranges_are_needed(tmp_path: Path, data: MultiCategory, compression: str) -> None:
    with pytest.raises(
        ValueError, match=f"compression_type={compression.upper()} needs a model that has learned how to norm"
    ):
        UniAD(**SMALL).to_openvino(tmp_path / "out", compression_type=compression, datamodule=data)
    assert not (tmp_path / "out").exists()


def learned() -> UniAD:
    model = UniAD(**SMALL)
    for name in ("image_min", "pixel_min", "image_max", "pixel_max"):
        getattr(model.post_processor, name).fill_(1.0)
    return model


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_drop": 1.5}, ValueError, "max_drop must lie in .0, 1., got 1.5"),
        ({"metric": "AUROC"}, TypeError, "metric must be a metric object, for example .*, got 'AUROC'"),
    ],
)
def test_accuracy_control(tmp_path: Path, data: MultiCategory, arguments: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        learned().to_openvino(tmp_path / "out", compression_type="int8_acq", datamodule=data, **arguments)


@pytest.mark.usefixtures("no_export")
def test_decisions_are_needed_for_the_f1_score(tmp_path: Path, data: MultiCategory) -> None:
    model = UniAD(**SMALL, post_processor=False)
    with pytest.raises(ValueError, match="post_processor makes none"):
        model.to_openvino(tmp_path / "out", compression_type="int8_acq", datamodule=data)
    metric = AUROC(fields=["pred_score", "gt_label"])
    check_quantization(CompressionType.INT8_ACQ, model.post_processor, data, metric)  # that one can be computed


@pytest.mark.usefixtures("no_export")
def test_validation_images_are_needed_for_accuracy_control(tmp_path: Path, data: MultiCategory) -> None:
    without = MultiCategory(root=data.root, num_workers=0, val_split_mode="none")
    with pytest.raises(ValueError, match="Accuracy is measured on validation images, of which Products has none"):
        learned().to_openvino(tmp_path / "out", compression_type="int8_acq", datamodule=without)
    check_quantization(CompressionType.INT8_PTQ, learned().post_processor, without)  # needs training images only


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("compression", ["int8", "int8_ptq"])
def test_nncf_is_needed(tmp_path: Path, data: MultiCategory, monkeypatch, compression: str) -> None:
    monkeypatch.setattr("anomalib_uniad.deploy.quantization.module_available", lambda name: name != "nncf")
    with pytest.raises(ModuleNotFoundError, match="INT8 needs NNCF: pip install"):
        learned().to_openvino(tmp_path / "out", compression_type=compression, datamodule=data)


def tiny(shape: list[int] | ov.PartialShape) -> ov.Model:
    """A model with all the parts: resize, backbone, projection, error, map, score."""
    image = ops.parameter(shape, np.float32, name="image")
    resized = ops.matmul(image, ops.constant(np.eye(64, dtype=np.float32)), False, False, name="resize")
    kernel = ops.constant(np.ones((4, 3, 1, 1), np.float32))
    features = ops.convolution(resized, kernel, [1, 1], [0, 0], [0, 0], [1, 1], name="backbone")
    reconstruction = ops.matmul(features, ops.constant(np.eye(64, dtype=np.float32)), False, False, name="projection")
    error = ops.subtract(reconstruction, features, name="error")
    length = ops.reduce_l2(error, ops.constant(np.array([1])), True, name="length")
    result = ops.result(ops.reduce_max(length, ops.constant(np.array([1, 2, 3])), False, name="score"), name="result")
    return ov.Model([result], [image])


def test_pixels_and_error_stay_exact() -> None:
    kept = set(sensitive_operations(tiny([1, 3, 64, 64])))
    assert {"image", "resize", "error", "length", "score"} <= kept
    assert not kept & {"backbone", "projection"}


def test_weights_of_depthwise_convolutions_stay_exact() -> None:
    image = ops.parameter([1, 8, 16, 16], np.float32, name="image")
    weights = np.random.default_rng(0).normal(size=(8, 1, 1, 3, 3)).astype(np.float32)
    depthwise = ops.group_convolution(image, ops.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1], name="depthwise")
    kernel = ops.constant(np.ones((8, 8, 1, 1), np.float32))
    features = ops.convolution(depthwise, kernel, [1, 1], [0, 0], [0, 0], [1, 1], name="pointwise")
    model = ov.Model([ops.result(features)], [image])
    compressed = UniAD(**SMALL)._compress_ov_model(model, CompressionType.INT8)
    found = {
        op.get_friendly_name(): op.input_value(1).get_node()
        for op in compressed.get_ops()
        if "wise" in op.get_friendly_name()
    }
    np.testing.assert_array_equal(found["depthwise"].get_data(), weights)
    assert found["pointwise"].get_type_name() != "Constant"  # it is made of one in INT8


def test_images_come_in_their_own_size(data: MultiCategory) -> None:
    data.setup("fit")
    model = tiny(ov.PartialShape([-1, 3, -1, 64]))
    batches = list(calibration_images(model, data, (64, 64)))
    assert [tuple(batch.input.shape) for batch in batches] == [(1, 3, 72, 90)] * 4 + [(1, 3, 64, 64)] * 4
    assert batches[0].input[0].equal(data.train_data[0].image)
    assert [batch.items[0].image_path for batch in batches] == list(data.train_data.samples.image_path)


def test_every_category_has_its_part(data: MultiCategory, monkeypatch) -> None:
    data.setup("fit")
    monkeypatch.setattr("anomalib_uniad.deploy.quantization.CALIBRATION_IMAGES", 4)
    batches = calibration_images(tiny(ov.PartialShape([-1, 3, -1, 64])), data, (64, 64))
    names = [data.category_by_path[batch.items[0].image_path] for batch in batches]
    assert names == ["bottle", "bottle", "cable", "cable"]


def test_images_are_without_augmentations(data: MultiCategory) -> None:
    data.setup("fit")
    expected = data.train_data[0].image
    data.train_data.augmentations = torch.zeros_like
    batch = next(iter(calibration_images(tiny(ov.PartialShape([-1, 3, -1, 64])), data, (64, 64))))
    assert batch.input[0].equal(expected)
    assert data.train_data.augmentations is torch.zeros_like  # it is the user's


def test_every_second_image_has_a_black_or_white_rectangle() -> None:
    grey = [ImageItem(image=torch.full((3, 8, 12), 0.5)) for _ in range(4)]
    painted = [item.image for item in torch.utils.data.Subset(PaintedImages(grey), range(4))]
    assert [image[0, 2:4, 3:6].unique().tolist() for image in painted] == [[0.5], [1.0], [0.5], [0.0]]
    assert all((image == 0.5).sum() == 3 * (8 * 12 - 6) for image in painted[1::2])
    assert all(item.image.unique().tolist() == [0.5] for item in grey)


@pytest.mark.parametrize(("height", "expected"), [(-1, (40, 64)), (48, (48, 64))])
def test_a_fixed_batch_is_filled(data: MultiCategory, height: int, expected: tuple[int, int]) -> None:
    data.setup("fit")
    model = tiny(ov.PartialShape([3, 3, height, 64]))
    first, last = batches_of([data.train_data[index] for index in (0, 4, 5, 6)], model, (40, 64))
    assert first.input.shape == last.input.shape == (3, 3, *expected)
    assert [len(first.items), len(last.items)] == [3, 1]
    assert last.input[0].equal(last.input[2])


class Model:
    """Says what it is told to."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = scores

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        scores = np.array(self.scores.pop(0), dtype=np.float32)
        assert len(scores) == len(images)
        maps = np.broadcast_to(scores[:, None, None, None], (len(scores), 1, 4, 4))
        return {"pred_score": scores, "pred_label": scores > 0.5, "anomaly_map": maps, "pred_mask": maps > 0.5}


def batches(labels: list[list[bool]], size: int = 2) -> list[Images]:
    mask = torch.ones(9, 9, dtype=torch.bool)
    return [
        Images(
            torch.zeros(size, 3, 8, 8),
            [ImageItem(image=torch.zeros(3, 8, 8), gt_label=torch.tensor(x), gt_mask=mask & x) for x in part],
        )
        for part in labels
    ]


def test_a_metric_starts_anew_and_leaves_out_what_fills_a_batch() -> None:
    metric = F1Score(fields=["pred_label", "gt_label"])
    images = batches([[True, False], [True]])
    assert measure(Model([[0.9, 0.1], [0.8, 0.2]]), images, metric, 3) == (1.0, pytest.approx([0.5, 0.8]))
    # Half of the defects are missed, whatever was measured before; the fourth image is a filler.
    assert measure(Model([[0.9, 0.1], [0.2, 0.9]]), images, metric, 3)[0] == pytest.approx(2 / 3)


def test_masks_are_compared_at_the_size_of_the_map() -> None:
    metric = AUROC(fields=["anomaly_map", "gt_mask"])
    assert measure(Model([[0.9, 0.1], [0.8, 0.1]]), batches([[True, False], [True, False]]), metric, 4)[0] == 1


def test_one_batch_is_told_by_its_score() -> None:
    """NNCF asks about single batches; of a single image, most metrics are 0 or 1."""
    metric = AUROC(fields=["pred_score", "gt_label"])
    assert measure(Model([[0.25]]), batches([[True]], size=1), metric, 2) == (0.25, [0.25])


def test_a_batch_of_all_images_is_measured() -> None:
    metric = AUROC(fields=["pred_score", "gt_label"])
    images = batches([[True, False, True]], size=4)
    assert measure(Model([[0.6, 0.5, 0.4, 0.0]]), images, metric, 3) == (0.5, pytest.approx([0.5]))
    assert measure(Model([[0.9, 0.5, 0.7, 0.0]]), images, metric, 3) == (1.0, pytest.approx([0.7]))


def test_accuracy_control_measures_the_metric_on_a_batch_of_all_images(data: MultiCategory, monkeypatch) -> None:
    asked: list[tuple[Any, Any]] = []

    def control(model: Any, calibration: Any, validation: Any, validate: Any, **options: Any) -> Any:
        asked.extend(validate(model, validation.get_data(indices)) for indices in (None, [0]))
        return model

    monkeypatch.setattr("nncf.quantize_with_accuracy_control", control)
    data.setup("fit")
    assert len(data.val_data) == 12
    scores = [0.9 if item.gt_label else 0.1 for item in data.val_data]

    class Batch16:
        """As many outputs as the batch has, and the input of a model of fixed size."""

        def __init__(self) -> None:
            self.tiny = tiny([16, 3, 64, 64])
            self.input, self.get_ordered_ops = self.tiny.input, self.tiny.get_ordered_ops

        def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
            return {"pred_score": np.array([*scores, 0, 0, 0, 0], np.float32)}

    quantize_with_accuracy_control(Batch16(), data, (64, 64), AUROC(fields=["pred_score", "gt_label"]))
    assert [metric for metric, _ in asked] == [1.0, 1.0]
    assert asked[0][1] == pytest.approx([0.5])


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("content", [None, [], ["notes.txt"]])
@pytest.mark.parametrize("source", ["MVTecAD", "Visa"])
def test_nothing_is_downloaded_to_a_misspelt_folder(
    tmp_path: Path, monkeypatch, source: str, content: list[str] | None
) -> None:
    def download(self: Any) -> None:
        raise AssertionError("this would download the data set")

    for cls in (MVTecAD, Visa):
        monkeypatch.setattr(cls, "prepare_data", download)
    root = tmp_path / "typo"
    if content is not None:
        root.mkdir()
        for name in content:
            (root / name).touch()
    with pytest.raises(FileNotFoundError, match=r"INT8_PTQ takes training images that are there.*: .*typo"):
        learned().to_openvino(
            tmp_path / "out", compression_type="int8_ptq", datamodule=getattr(anomalib.data, source)(root=root)
        )
    left = [] if content is None else ["typo", *content]
    assert [path.name for path in tmp_path.rglob("*")] == left


def test_float16_holds_what_it_can(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """OpenVINO cuts all else to 65,504, infinity and NaN as well: a product without a threshold would have that one."""
    shape = (32, 64)
    ordinary, large, mask = np.full(shape, 0.1, np.float32), np.ones(shape, np.float32), np.zeros(shape, np.float32)
    large[3, 4], mask[::2] = 1e5, -np.inf
    few = np.array([np.nan, 1e-12, 1e6, 0.1], np.float32)
    images = ops.parameter([64, 1], np.float32, name="input")
    weights = [ops.constant(values) for values in (ordinary, large, mask)]
    outputs = [ops.matmul(weights[0], images, False, False), ops.add(weights[1], weights[2])]
    outputs.append(ops.add(ops.constant(few), np.float32(0)))
    model = ov.Model([ops.result(output) for output in outputs], [images])
    ov.save_model(halve_weights(model), tmp_path / "model.xml", compress_to_fp16=False)
    read = ov.Core().read_model(tmp_path / "model.xml")
    types = [
        op.get_element_type() for op in read.get_ordered_ops() if op.get_type_name() == "Constant" and op.data.size > 1
    ]
    assert sorted(kind.get_type_name() for kind in types) == ["f16", "f16", "f32", "f32"]
    found = ov.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(np.ones((64, 1), np.float32))
    np.testing.assert_allclose(found[0], 6.4, rtol=1e-3)
    np.testing.assert_array_equal(found[1], large + mask)
    np.testing.assert_array_equal(found[2], few)
    assert "Weights beyond 65,504 stay in float32" in caplog.text
    assert "(up to 100000)" in caplog.text

# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad predict`` on exported models, against anomalib's own inferencers."""

import csv
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from PIL import Image

from anomalib_uniad import UniAD
from anomalib_uniad.cli import main
from anomalib_uniad.inference import ModelMetadata
from anomalib_uniad.inference.compiled import compile_file
from anomalib_uniad.inference.heatmap import caption_height
from anomalib_uniad.inference.images import find_images
from anomalib_uniad.inference.predictor import Predictor
from helpers import write_image
from small import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves

SIZE = (64, 80)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images of several sizes, the model's among them, and of several modes."""
    root = tmp_path_factory.mktemp("images")
    for number, size in enumerate([(90, 70), SIZE, (33, 200), SIZE, (128, 128)]):
        write_image(root / "bottle" / f"{number}.png", size, number, defect=number % 2 == 0)
    write_image(root / "cable" / "0.png", (50, 60), 7)
    (root / "cable" / "modes").mkdir()
    image = Image.open(root / "bottle" / "0.png")
    image.convert("L").save(root / "cable" / "modes" / "grey.jpg")
    image.convert("RGBA").save(root / "cable" / "modes" / "transparent.png")
    image.convert("CMYK").save(root / "cable" / "modes" / "cmyk.tif")
    return root


@pytest.fixture(scope="module")
def model(images: Path) -> UniAD:
    """A model whose normalised scores of these images are inside of [0, 1]."""
    torch.manual_seed(0)
    model = UniAD(**{**SMALL, "backbone": "tf_efficientnet_lite0", "pre_trained": True, "image_size": SIZE}).eval()
    paths = [file.path for file in find_images([images])]
    with torch.no_grad():
        raw = [model.model(model.pre_processor(_tensor(path))) for path in paths]
    scores = torch.cat([of.pred_score for of in raw])
    maps = torch.cat([of.anomaly_map.flatten() for of in raw])
    post = model.post_processor
    for name, values in (("image", scores), ("pixel", maps)):
        low, high = values.min(), values.max()
        getattr(post, f"_{name}_threshold").copy_((low + high) / 2)
        getattr(post, f"{name}_min").copy_(low - 0.1 * (high - low))
        getattr(post, f"{name}_max").copy_(high + 0.1 * (high - low))
    return model


def _tensor(path: Path) -> torch.Tensor:
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def _numpy(value: torch.Tensor | np.ndarray) -> np.ndarray:
    return torch.as_tensor(value).detach().numpy()


def metadata_of(model: UniAD) -> ModelMetadata:
    post = model.post_processor
    threshold = post.image_threshold.item()
    ends = ("image_min", "image_max", "pixel_min", "pixel_max")
    return ModelMetadata(
        model="UniAD",
        image_size=SIZE,
        categories=("bottle", "cable"),
        thresholds={"image": threshold, "pixel": post.pixel_threshold.item()},
        category_thresholds={"bottle": {"image": 0.0}, "cable": {"image": 100 * threshold}},  # far out of the range
        normalization={end: getattr(post, end).item() for end in ends},
    )


@pytest.fixture(scope="module")
def exported(model: UniAD, tmp_path_factory) -> dict[str, Path]:
    """Files with an input of any and of fixed size, with a fixed batch, in ONNX, and with metadata."""
    root = tmp_path_factory.mktemp("exported")
    files = {
        "onnx": model.to_onnx(root),
        "any": root / "any.xml",
        "fixed": root / "fixed.xml",
        "torch": model.to_torch(root),
    }
    converted = ov.convert_model(files["onnx"])  # as anomalib's to_openvino
    ov.save_model(converted, files["any"], compress_to_fp16=False)
    converted.reshape([-1, 3, *SIZE])
    ov.save_model(converted, files["fixed"], compress_to_fp16=False)
    described = ov.Core().read_model(files["any"])
    metadata_of(model).write(described)
    ov.save_model(described, root / "described.xml", compress_to_fp16=False)
    described.reshape([4, 3, *SIZE])
    ov.save_model(described, root / "batch.xml", compress_to_fp16=False)
    return {**files, "described": root / "described.xml", "batch": root / "batch.xml"}


@pytest.mark.parametrize("kind", ["any", "fixed", "onnx", "described", "batch"])
def test_equal_to_anomalib(exported: dict[str, Path], images: Path, tmp_path: Path, kind: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # anomalib's OpenVINOInferencer keeps a cache in the working directory
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    of_torch = TorchInferencer(path=exported["torch"], device="cpu")
    of_openvino = OpenVINOInferencer(exported["any"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    files = find_images([images])
    outputs = list(Predictor(compile_file(exported[kind])).predict(files))
    assert [output.file for output in outputs] == files
    assert len({round(output.score, 3) for output in outputs}) > 4
    for output in outputs:
        for inferencer in (of_torch, of_openvino):
            expected = inferencer.predict(output.file.path)
            values = _numpy(expected.anomaly_map).reshape(SIZE)
            assert np.abs(output.anomaly_map - values).max() < 1e-4 * np.ptp(values)
            assert 0 < output.score < 1
            assert output.score == pytest.approx(_numpy(expected.pred_score).item(), abs=1e-4)
            assert output.label == _numpy(expected.pred_label).item()


@pytest.mark.parametrize("kind", ["described", "batch"])
def test_raw_scores(model: UniAD, exported: dict[str, Path], images: Path, kind: str) -> None:
    """Those of the torch model, also where the normalised ones would be cut."""
    compiled = compile_file(exported[kind])
    assert compiled.metadata.to_properties().items() >= metadata_of(model).to_properties().items()
    assert set(compiled.raw_outputs) == {"pred_score", "anomaly_map"}
    for output in Predictor(compiled).predict(find_images([images / "bottle"])):
        with torch.no_grad():
            expected = model.model(model.pre_processor.export_transform(_tensor(output.file.path))).pred_score.item()
        assert output.raw_score == pytest.approx(expected, rel=1e-4)


def test_command(exported: dict[str, Path], images: Path, tmp_path: Path, capsys) -> None:
    (images / "cable" / "cut.png").write_bytes((images / "cable" / "0.png").read_bytes()[:200])
    with pytest.raises(SystemExit, match="1"):
        main(["predict", str(exported["described"]), str(images), "--output", str(tmp_path), "--category", "auto"])
    out, error = capsys.readouterr()
    assert out.startswith("10 images: 5 anomalous, 4 normal, 1 failed.")
    assert "cut.png cannot be read: " in error
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert {(row["category"], row["decision"]) for row in rows if not row["error"]} == {
        ("bottle", "anomalous"),
        ("cable", "normal"),
    }
    for row in rows:
        heatmap = tmp_path / "heatmaps" / Path(row["path"]).relative_to(images).with_suffix(".jpg")
        assert heatmap.is_file() != bool(row["error"])
        if not row["error"]:
            width, height = Image.open(row["path"]).size
            assert Image.open(heatmap).size == (width, height + caption_height(width))
            assert Image.open(tmp_path / row["mask"]).size == (width, height)

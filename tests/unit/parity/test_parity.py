# SPDX-License-Identifier: Apache-2.0
"""What `anomalib-uniad parity` compares, measures, writes and refuses."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov
import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch, MVTecAD
from openvino import opset13 as ops
from PIL import Image
from sklearn.metrics import roc_auc_score

from anomalib_uniad import UniAD
from anomalib_uniad.cli import main
from anomalib_uniad.import_checkpoint import save_checkpoint
from anomalib_uniad.inference import ModelMetadata, compiled
from anomalib_uniad.parity import compare, inputs, models, timing
from anomalib_uniad.parity.differences import METRICS, Quality, difference, difference_columns
from anomalib_uniad.parity.models import ExportedModel, ImageResult
from helpers import make_mvtec_like
from small import SMALL
from tiny_openvino import HIGH, LOW, NORMALISED, SIZE, THRESHOLD, save_tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_mvtec_like(tmp_path_factory.mktemp("data"), sizes=(72, 80), train=2, good=3, bad=3)


@pytest.fixture(scope="module")
def model(data: Path) -> UniAD:
    """A model that normalises, with its threshold between two scores of these images."""
    torch.manual_seed(0)
    model = UniAD(**{**SMALL, "backbone": "tf_efficientnet_lite0", "pre_trained": True}).eval()
    images = [np.array(Image.open(path)) for path in sorted(data.glob("*/test/*/*.png"))]
    with torch.no_grad():
        tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
        raw = model.model(model.pre_processor(tensor))
    for level, values in (("image", raw.pred_score), ("pixel", raw.anomaly_map)):
        ordered = values.flatten().sort().values
        middle = len(ordered) // 2
        getattr(model.post_processor, f"_{level}_threshold").copy_(ordered[middle - 1 : middle + 1].mean())
        getattr(model.post_processor, f"{level}_min").copy_(ordered[0])
        getattr(model.post_processor, f"{level}_max").copy_(ordered[-1])
    return model


@pytest.fixture(scope="module")
def files(model: UniAD, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint, and files that are not compared with it."""
    folder = tmp_path_factory.mktemp("files")
    save_checkpoint(model, folder / "model.ckpt")
    save_tiny(folder / "f32.xml")
    (folder / "model.pt").write_bytes(b"pickled")
    return {name: folder / name for name in ("model.ckpt", "f32.xml", "model.pt")}


@pytest.fixture(scope="module")
def exports(model: UniAD, tmp_path_factory) -> dict[str, Path]:
    """Checkpoint and exports, one of them damaged."""
    folder = tmp_path_factory.mktemp("exports")
    save_checkpoint(model, folder / "model.ckpt")
    onnx = model.to_onnx(folder)
    converted = ov.convert_model(onnx)
    ov.save_model(converted, folder / "f32.xml", compress_to_fp16=False)
    ModelMetadata(precision="FP16").write(converted)
    ov.save_model(converted, folder / "f16.xml", compress_to_fp16=True)
    ModelMetadata(precision="FP32").write(converted)
    for op in converted.get_ordered_ops():
        if op.get_type_name() == "Convolution":
            weights = op.input_value(1).get_node().data
            op.input(1).replace_source_output(ops.constant(np.flip(weights, axis=(2, 3)).copy()).output(0))
    ov.save_model(converted, folder / "damaged.xml", compress_to_fp16=False)
    names = {name: folder / name for name in ("model.ckpt", "f32.xml", "f16.xml", "damaged.xml")}
    return {**names, "model.onnx": onnx, "model.pt": model.to_torch(folder)}


@pytest.mark.slow
def test_comparison(exports: dict[str, Path], model: UniAD, data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    monkeypatch.setattr(compare, "throughput", partial(timing.throughput, seconds=0.05))
    names = ["f32.xml", "f16.xml", "damaged.xml", "model.onnx", "model.pt"]
    given = [str(exports[name]) for name in names]
    output = tmp_path / "new" / "parity"
    arguments = ["parity", str(exports["model.ckpt"]), *given, "--data", str(data), "--output", str(output)]
    main([*arguments, "--timed_images=2"])
    rows = pd.read_csv(output / "parity.csv").set_index("model")
    assert set(rows["computed_in"]) <= {"f32", "bf16"}  # the latter where it is the processor's default
    frame = rows[rows["computed_in"] == "f32"]
    assert frame.index.tolist() == ["model.ckpt", *names]
    assert frame["precision"].tolist() == ["FP32", "FP32", "FP16", "FP32", "FP32", "FP32"]
    assert set(frame["compared"]) == {"raw"}
    exact = frame.loc[["f32.xml", "model.onnx", "model.pt"]]
    assert (exact[["map_difference_max", "score_difference_max"]] < 1e-4).all(axis=None)
    assert (exact[[f"{name}_change" for name in METRICS]].abs() < 1e-4).all(axis=None)
    assert (exact["flipped_decisions"] == 0).all()
    largest, mean = frame["pixel_AUROC_largest_change"], frame["pixel_AUROC_change"]
    assert (exact[["image_AUROC_largest_change", "pixel_AUROC_largest_change"]].abs() < 1e-4).all(axis=None)
    assert abs(largest["damaged.xml"]) > abs(mean["damaged.xml"]) > 0  # a category changes more than the mean
    assert 1e-6 < frame["map_difference_mean"]["f16.xml"] < frame["map_difference_max"]["f16.xml"] < 1e-2
    assert frame["map_difference_max"]["damaged.xml"] > 0.01
    assert frame["pixel_AP_change"].abs()["damaged.xml"] > 1e-3
    assert (frame[["latency_ms", "images_per_second"]] > 0).all(axis=None)
    assert frame["size_bytes"]["f32.xml"] > 1.5 * frame["size_bytes"]["f16.xml"]
    assert frame["images"].unique() == [12]

    areas = []
    for category in ("bottle", "cable"):
        paths = sorted((data / category / "test").glob("*/*.png"))
        with torch.no_grad():
            tensors = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255 for path in paths]
            scores = [model.model(model.pre_processor(tensor)).pred_score.item() for tensor in tensors]
        areas.append(roc_auc_score([path.parent.name != "good" for path in paths], scores))
    assert frame["image_AUROC"]["model.ckpt"] == pytest.approx(np.mean(areas), abs=1e-6)

    text = (output / "parity.md").read_text()
    assert text.startswith("12 test images of 2 categories, on ")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("| f16.xml | FP16 | f32 | ") for line in lines)
    assert "Wrote" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"parity\.csv \(and 1 more\) would be overwritten"):
        main(arguments)


def test_another_default_precision_has_its_own_row(monkeypatch) -> None:
    def fake(file: Path, normalised: bool, hint: str = "f32") -> Any:
        return SimpleNamespace(image_size=None, value_range=None, computed_in={"auto": "bf16"}.get(hint, hint))

    monkeypatch.setattr(compare, "ExportedModel", fake)
    assert [one.computed_in for one in compare._open([Path("model.xml")], True, (64, 64), None)] == ["f32", "bf16"]


def test_exports_in_all_precisions(model: UniAD, monkeypatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def export(folder: Path, name: str, compression_type: Any, datamodule: Any) -> Path:
        asked[name] = (compression_type, datamodule)
        return folder / f"{name}.xml"

    monkeypatch.setattr(model, "to_openvino", export)
    exported = inputs.export_files(model, tmp_path, "images")
    assert [path.stem for path in exported] == ["f32", "f16", "int8", "int8_ptq"]
    assert {name: kind and kind.value for name, (kind, _) in asked.items()} == {
        "int8_ptq": "int8_ptq",
        "int8": "int8",
        "f16": "fp16",
        "f32": None,
    }
    assert {images for _, images in asked.values()} == {"images"}


def _grey(value: int, size: int = SIZE) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def test_raw_values_from_inside_of_a_file(tmp_path: Path) -> None:
    model = ExportedModel(save_tiny(tmp_path / "model.xml"), normalises=True)
    result = model.predict(_grey(230))  # far above the range
    assert result.scores == {"raw": pytest.approx(230 / 255)}
    assert result.maps["raw"] == pytest.approx(np.full((SIZE, SIZE), 230 / 255))
    assert result.anomalous
    assert not model.predict(_grey(76)).anomalous
    assert model.image_size == (SIZE, SIZE)


def test_normalised_values_where_there_are_no_others(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "raw_values_of", lambda output: None)
    model = ExportedModel(save_tiny(tmp_path / "model.xml", raw_branch=False), normalises=True)
    assert model.kind == "normalised"
    assert model.predict(_grey(230)).scores == {"normalised": 1.0}
    expected = (132 / 255 - THRESHOLD) / (HIGH - LOW) + 0.5
    assert model.predict(_grey(132)).scores == {"normalised": pytest.approx(expected, abs=1e-6)}


def test_without_post_processor_outputs_are_raw(tmp_path: Path) -> None:
    model = ExportedModel(save_tiny(tmp_path / "model.xml", normalise=False), normalises=True)
    result = model.predict(_grey(230))
    assert result.scores == {"raw": pytest.approx(230 / 255)}
    assert result.anomalous is None


def test_fixed_size_and_batch(tmp_path: Path) -> None:
    model = ExportedModel(save_tiny(tmp_path / "model.xml", batch=4, size=16), normalises=True)
    assert model.batch_size == 4
    assert model.prepared(_grey(128, 40)).shape == (4, 16, 16, 3)
    assert model.predict(_grey(140, 40)).scores["raw"] == pytest.approx(140 / 255)
    assert timing.throughput(model, [_grey(128, 40)], seconds=0.01) > 0


def test_differences() -> None:
    quality = Quality(None, {})
    batch = ImageBatch(image=torch.zeros(1, 3, 1, 2), image_path=["a.png"], gt_label=torch.tensor([True]))
    reference = [(1.0, [[0, 4]], False), (3.0, [[2, 2]], True)]
    own = [(1.5, [[0, 3]], True), (3.0, [[2, 2]], True)]
    found = []
    for pair in zip(own, reference, strict=True):
        result, expected = (
            ImageResult({"raw": score}, {"raw": np.array(values, np.float32)}, label) for score, values, label in pair
        )
        found.append(difference(result, expected, "raw"))
        quality.update(batch, expected.scores["raw"], expected.maps["raw"])
    assert difference_columns(found, quality) == {
        "map_difference_max": 1 / 4,
        "map_difference_mean": 1 / 4 / 4,
        "score_difference_max": 0.5 / 2,
        "score_difference_mean": 0.25 / 2,
        "flipped_decisions": 1,
    }
    undecided = [{**of_image, "flipped": None} for of_image in found]
    assert difference_columns(undecided, quality)["flipped_decisions"] is None


def test_precision_of_a_file() -> None:
    images = ops.parameter([1, 3], np.float32)
    plain = ops.matmul(images, ops.constant(np.ones((3, 4), np.float32)), False, False)
    assert models.precision_of(ov.Model([plain], [images])) == "FP32"
    half = ops.convert(ops.constant(np.ones((3, 400), np.float16)), np.float32)
    assert models.precision_of(ov.Model([ops.matmul(images, half, False, False)], [images])) == "FP16"
    small = ops.convert(ops.constant(np.ones((3, 400), np.uint8)), np.float32)
    assert models.precision_of(ov.Model([ops.matmul(images, small, False, False)], [images])) == "INT8"
    ends = [ops.constant(np.float32(end)) for end in (0, 1, 0, 1)]
    quantised = ops.matmul(ops.fake_quantize(images, *ends, 256), small, False, False)
    assert models.precision_of(ov.Model([quantised], [images])) == "INT8_PTQ"


def test_a_file_says_its_precision(tmp_path: Path) -> None:
    """With accuracy control, as the graph alone does not tell."""
    file = save_tiny(tmp_path / "model.xml", replace(NORMALISED, precision="INT8_ACQ"))
    assert ExportedModel(file, normalises=True).precision == "INT8_ACQ"


def test_models_are_timed_in_turn() -> None:
    calls: list[str] = []

    def fake(name: str) -> Any:
        return SimpleNamespace(infer=lambda image: calls.append(f"{name}{image}"), batch_size=1)

    times = timing.latencies([fake("a"), fake("b")], [1, 2])
    assert calls == ["a1", "b1", "a1", "b1", "a2", "b2"]  # the first two to be warm
    assert all(seconds >= 0 for seconds in times)
    assert timing.throughput(fake("c"), [7], seconds=0.001) > 0
    assert calls.count("c7") >= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare: give exported files, or --export true"),
        (["{model.ckpt}"], r"model\.ckpt is not an exported model: their names end in \.xml, \.onnx, \.pt"),
        (["missing.xml"], r"There is no file missing\.xml"),
        (["{f32.xml}", "--timed_images", "0"], "timed_images must be at least 1, got 0"),
        (["{f32.xml}", "--data", "not/there"], "There is no folder not/there"),
        (["{f32.xml}", "--output", "{f32.xml}"], r"f32\.xml is a file: give a folder"),
        (["{f32.xml}", "--data_class", "ImageBatch"], "must be MultiCategory, .* got 'ImageBatch'"),
        (["{f32.xml}", "--data_class", "Folder"], "Folder needs name, normal_dir as well"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    files: dict[str, Path], data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [str(files[word[1:-1]]) if word.startswith("{") else word for word in arguments]
    models = [word for word in filled[:1] if not word.startswith("--")]
    defaults = ["--data", str(data), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=message) as error:
        main(["parity", str(files["model.ckpt"]), *models, *defaults, *filled[len(models) :]])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "images has no folders of products. It has nothing; expected are"),
        (["part/train/good", ".hidden/test"], r"It has 1 folder without images \(part\); expected are"),
    ],
)
def test_nothing_is_downloaded(files, tmp_path: Path, monkeypatch, folders: list[str], message: str) -> None:
    def download(self: Any) -> None:
        raise AssertionError("this would download MVTec AD")

    monkeypatch.setattr(MVTecAD, "prepare_data", download)
    images = tmp_path / "above" / "images"
    for folder in ("", *folders):
        (images / folder).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["parity", str(files["model.ckpt"]), str(files["f32.xml"]), "--data", str(images)]
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--output", str(tmp_path / "parity")])
    with pytest.raises(SystemExit, match="images"):
        main([*arguments, "--output", str(tmp_path / "parity"), "--data_class", "MVTecAD"])
    assert sorted(tmp_path.rglob("*")) == before


def test_readers_say_what_they_lack(files, tmp_path: Path) -> None:
    arguments = ["parity", str(files["model.ckpt"]), str(files["f32.xml"]), "--data", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"Kolektor cannot read .*: Found 0 images"):
        main([*arguments, "--data_class", "Kolektor"])


@pytest.mark.parametrize("value", [None, "0", "yes"])
def test_pickled_files_have_to_be_trusted(files, data: Path, tmp_path: Path, monkeypatch, value: str | None) -> None:
    monkeypatch.delenv("TRUST_REMOTE_CODE", raising=False)
    if value is not None:
        monkeypatch.setenv("TRUST_REMOTE_CODE", value)
    monkeypatch.setattr(compare, "load", lambda ckpt: pytest.fail("this has to be told before anything is loaded"))
    given = [str(files[name]) for name in ("model.ckpt", "f32.xml", "model.pt")]
    with pytest.raises(SystemExit, match=r"model\.pt is pickled, .* TRUST_REMOTE_CODE=1"):
        main(["parity", *given, "--data", str(data), "--output", str(tmp_path / "parity")])
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    inputs.check([files["model.pt"]], data, tmp_path / "parity", False, 1, False)


def test_the_folder_of_images_is_needed(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="give it with --data FOLDER"):
        main(["parity", str(files["model.ckpt"]), str(files["f32.xml"]), "--output", str(tmp_path)])


def test_weights_have_to_be_beside_the_file(files: dict[str, Path], data: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.xml"
    alone.write_bytes(files["f32.xml"].read_bytes())
    with pytest.raises(SystemExit, match=r"There is no file .*alone\.bin"):
        main(["parity", str(files["model.ckpt"]), str(alone), "--data", str(data), "--output", str(tmp_path)])


def test_files_of_other_models_are_refused(files: dict[str, Path], data: Path, tmp_path: Path) -> None:
    common = ["--data", str(data), "--output", str(tmp_path / "parity")]
    other = save_tiny(tmp_path / "other.xml")
    with pytest.raises(SystemExit, match=r"other\.xml is of images of \(8, 8\) pixels, the checkpoint of \(64, 64\)"):
        main(["parity", str(files["model.ckpt"]), str(other), *common])
    unknown = save_tiny(tmp_path / "unknown.xml", metadata=None)
    with pytest.raises(SystemExit, match=r"unknown\.xml: Its maps are of 8 x 8 pixels, those of the checkpoint of 64"):
        main(["parity", str(files["model.ckpt"]), str(unknown), *common])
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=r"damaged\.onnx is not a model that OpenVINO can read"):
        main(["parity", str(files["model.ckpt"]), str(damaged), *common])
    images = ops.parameter([1, 3, 8, 8], np.float32)
    ov.save_model(ov.Model([ops.relu(images)], [images]), tmp_path / "relu.xml")
    with pytest.raises(SystemExit, match=r"relu\.xml is not a model of anomalib: it has no output pred_score"):
        main(["parity", str(files["model.ckpt"]), str(tmp_path / "relu.xml"), *common])
    score = ops.reduce_max(images, ops.constant([1, 2, 3]))
    score.output(0).set_names({"pred_score"})
    ov.save_model(ov.Model([score], [images]), tmp_path / "score.xml")
    with pytest.raises(SystemExit, match=r"score\.xml has no output anomaly_map: export it with `anomalib export`"):
        main(["parity", str(files["model.ckpt"]), str(tmp_path / "score.xml"), *common])
    assert not (tmp_path / "parity").exists()


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*none\.ckpt"):
        inputs.load(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("text")
    with pytest.raises(ValueError, match=r"text\.ckpt is not a checkpoint that torch can read"):
        inputs.load(tmp_path / "text.ckpt")
    torch.save(
        {"state_dict": {"model.a.weight": torch.ones(1)}, "pytorch-lightning_version": "2"}, tmp_path / "other.ckpt"
    )
    with pytest.raises(ValueError, match=r"other\.ckpt is not a checkpoint of UniAD"):
        inputs.load(tmp_path / "other.ckpt")


def test_pickled_models_of_other_versions_are_refused(tmp_path: Path, monkeypatch) -> None:
    """As version 0.1.0 exported them, whose classes have moved since."""
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    moved = ModuleType("anomalib_uniad.model.pre_processor")
    moved.ExactPreProcessor = type("ExactPreProcessor", (), {"__module__": moved.__name__})
    with monkeypatch.context() as old:
        old.setitem(sys.modules, moved.__name__, moved)
        torch.save({"model": moved.ExactPreProcessor()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"another version .*model\.pre_processor.*export it again"):
        inputs.load_pickled(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_text("text")
    with pytest.raises(ValueError, match=r"model\.pt is not a model that torch can read"):
        inputs.load_pickled(tmp_path / "model.pt")

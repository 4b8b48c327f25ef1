# SPDX-License-Identifier: Apache-2.0
"""Decisions without options: products are recognised, and judged by thresholds of their own, in torch and in files."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from anomalib.deploy import OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor
from PIL import Image

from anomalib_uniad import MultiCategory, PerCategoryEvaluator, UniAD
from anomalib_uniad.inference import Inspector
from anomalib_uniad.inference.command import predict
from anomalib_uniad.review.table import find_table, read_table
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.onnx, openvino and nncf warn about themselves

COLOURS = {"bolt": (1.0, 0.6, 0.5), "nut": (0.5, 1.0, 0.6), "pin": (0.6, 0.5, 1.0)}
ARGUMENTS: dict[str, Any] = {**SMALL, "layers": (0, 1), "seed": 0, "product_calibration": True}


def coloured(root: Path, names: tuple[str, ...] = ("bolt", "nut")) -> Path:
    """Products that differ in colour, and in the strength of their noise, so that they score differently."""
    make_mvtec_like(root, names, train=16, good=6, bad=6)
    for number, name in enumerate(names):
        for seed, path in enumerate(sorted((root / name).glob("t*/*/*.png"))):
            light = np.random.default_rng(seed).uniform(0.95, 1.0)
            pixels = 100 + (np.asarray(Image.open(path), np.float64) - 100) * (1 + number)
            Image.fromarray((pixels.clip(0, 255) * COLOURS[name] * light).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[UniAD, Engine, Path]:
    folder = tmp_path_factory.mktemp("decisions")
    data = MultiCategory(root=coloured(folder / "data"), train_batch_size=4, eval_batch_size=4, num_workers=0)
    model = UniAD(**ARGUMENTS)
    engine = quiet_engine(folder, max_epochs=8)
    engine.train(model=model, datamodule=data)
    return model, engine, folder


def test_one_threshold_decides_about_all_products(trained: tuple[UniAD, Engine, Path]) -> None:
    model, _, folder = trained
    assert model.products == ["bolt", "nut"]
    assert model.post_processor.normalized_image_threshold == 0.5
    table = pd.read_csv(next(folder.rglob("predictions.csv")), keep_default_na=False, na_values="")
    known = table[table["decision"] != "unknown"]  # defects may look like no product at all
    assert (table[table["label"] == "normal"]["decision"] != "unknown").all()
    assert (known["product"] == known["category"]).all()
    anomalous = known["decision"] == "anomalous"
    assert (anomalous == (known["raw_score"] > known["threshold"])).all()
    assert (anomalous == (known["normalised_score"] > 0.5)).all()
    assert known["threshold"].nunique() == 2
    assert ((table["decision"] == "normal") == (table["label"] == "normal")).mean() >= 0.9
    for _, rows in known.groupby("category"):
        assert rows["raw_score"].rank().tolist() == rows["normalised_score"].rank().tolist()


def test_a_product_that_is_told_counts(trained: tuple[UniAD, Engine, Path], tmp_path: Path) -> None:
    model, _, folder = trained
    told = UniAD.load_from_checkpoint(
        next(folder.rglob("model.ckpt")), evaluator=PerCategoryEvaluator(thresholds="category", category="nut")
    )
    engine = quiet_engine(tmp_path)
    found = engine.predict(model=told, data_path=folder / "data" / "bolt" / "test" / "good")
    threshold = model.category_thresholds["nut"]["image"]
    for batch in found:
        assert batch.product == ["nut"] * len(batch)
        raw = batch.uncalibrated.pred_score
        assert ((raw > threshold) == batch.pred_label).all()
        assert ((batch.pred_score > 0.5) == batch.pred_label).all()


def test_training_images_alone(trained: tuple[UniAD, Engine, Path], tmp_path: Path) -> None:
    """Without validation images, thresholds are from those that were trained on, and the rule says so."""
    data = MultiCategory(root=trained[2] / "data", train_batch_size=4, num_workers=0, val_split_mode="none")
    model = UniAD(**ARGUMENTS)
    quiet_engine(tmp_path, max_epochs=1).fit(model=model, datamodule=data)
    assert model.products == ["bolt", "nut"]
    assert (
        model.threshold_rules["bolt"] == "1 % false alarms: 16 trained and 0 other good images, whose rise is assumed"
    )
    loaded = UniAD.load_from_checkpoint(next(tmp_path.rglob("model.ckpt")))
    assert loaded.category_thresholds == model.category_thresholds


def test_thresholds_of_a_file_decide(trained: tuple[UniAD, Engine, Path], tmp_path: Path) -> None:
    """In a test of the checkpoint; the other product and its rule stay."""
    model, _, folder = trained
    data = MultiCategory(root=folder / "data", train_batch_size=4, eval_batch_size=4, num_workers=0)
    level = 3 * model.category_thresholds["bolt"]["image"]
    (tmp_path / "thresholds.yaml").write_text(f"products: {{bolt: {{image: {level}}}}}")
    changed = UniAD(**ARGUMENTS, thresholds_file=tmp_path / "thresholds.yaml", evaluator=PerCategoryEvaluator())
    engine = quiet_engine(tmp_path)
    engine.test(model=changed, datamodule=data, ckpt_path=next(folder.rglob("model.ckpt")))
    table = pd.read_csv(next(tmp_path.rglob("predictions.csv")), keep_default_na=False, na_values="")
    of_bolts = table[table["product"] == "bolt"]
    assert of_bolts["threshold"].to_numpy() == pytest.approx(level)
    assert ((of_bolts["decision"] == "anomalous") == (of_bolts["raw_score"] > level)).all()
    of_nuts = table.loc[table["product"] == "nut", "threshold"]
    assert of_nuts.to_numpy() == pytest.approx(model.category_thresholds["nut"]["image"])
    rules = pd.read_csv(next(tmp_path.rglob("metrics.csv"))).set_index("category")["threshold_rule"]
    assert rules["bolt"] == "given: thresholds.yaml"
    assert rules["nut"] == model.threshold_rules["nut"]
    with pytest.raises(FileNotFoundError, match=r"There is no file absent\.yaml with thresholds"):
        UniAD(**ARGUMENTS, thresholds_file="absent.yaml")


def test_sensitivity_and_validation_of_a_checkpoint(trained: tuple[UniAD, Engine, Path], tmp_path: Path) -> None:
    """A sensitivity that is given counts, and a validation does not change what a training has calibrated."""
    model, _, folder = trained
    data = MultiCategory(root=folder / "data", train_batch_size=4, eval_batch_size=4, num_workers=0)
    moved = UniAD(**ARGUMENTS, post_processor=PostProcessor(image_sensitivity=0.9))
    engine = quiet_engine(tmp_path)
    engine.validate(model=moved, datamodule=data, ckpt_path=next(folder.rglob("model.ckpt")))
    assert moved.post_processor.normalized_image_threshold == pytest.approx(0.1)
    assert moved.category_thresholds == model.category_thresholds
    engine.test(model=moved, datamodule=data, ckpt_path=next(folder.rglob("model.ckpt")))
    table = pd.read_csv(next(tmp_path.rglob("predictions.csv")), keep_default_na=False, na_values="")
    known = table[table["decision"] != "unknown"]
    assert ((known["raw_score"] > known["threshold"]) == (known["decision"] == "anomalous")).all()
    assert (known["threshold"] < known["product"].map(lambda name: model.category_thresholds[name]["image"])).all()
    with pytest.raises(ValueError, match=r"false_alarm_rate must be above 0 and below 0\.5, got 0"):
        UniAD(**ARGUMENTS, false_alarm_rate=0.0)
    with pytest.raises(ValueError, match="leave enable_normalization"):
        UniAD(**ARGUMENTS, post_processor=PostProcessor(enable_normalization=False))


def test_a_training_goes_on_from_weights_without_calibration(trained: tuple[UniAD, Engine, Path]) -> None:
    checkpoint = next(trained[2].rglob("model.ckpt"))
    for calibrated in (True, False):
        started = UniAD(**{**ARGUMENTS, "product_calibration": calibrated}, initial_checkpoint=checkpoint)
        assert started.products == []
        assert started.model.products is None or not started.model.products.known
        images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        features = started.eval().model.extract(started.pre_processor(images))
        raw = trained[0].eval().model.predict(features).pred_score
        torch.testing.assert_close(started.model.predict(features).pred_score, raw)


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (64, 64)])
def test_exported_files_decide_as_torch_does(
    trained: tuple[UniAD, Engine, Path], tmp_path: Path, size: tuple[int, int] | None
) -> None:
    model = trained[0]
    coloured(tmp_path / "new", ("bolt", "nut", "pin"))
    files = sorted((tmp_path / "new").glob("*/test/*/*.png"))
    path = model.to_openvino(tmp_path / "file", input_size=size)
    wanted = []
    model.eval()
    for file in files:
        image = torch.from_numpy(np.asarray(Image.open(file), np.float32).transpose(2, 0, 1)[None] / 255)
        with torch.no_grad():
            output = model(image)
        wanted.append((bool(output.pred_label), float(output.pred_score)))
    inferencer = OpenVINOInferencer(path, config={"INFERENCE_PRECISION_HINT": "f32"})
    found = [inferencer.predict(file) for file in files]
    assert [bool(one.pred_label) for one in found] == [label for label, _ in wanted]
    runtime = onnxruntime.InferenceSession(model.to_onnx(tmp_path / "onnx", input_size=size))
    for file, (label, score) in zip(files, wanted, strict=True):
        pixels = np.asarray(Image.open(file), np.float32).transpose(2, 0, 1)[None] / 255
        outputs = runtime.run(["pred_label", "pred_score"], {"input": pixels})
        assert bool(outputs[0].item()) == label
        assert outputs[1].item() == pytest.approx(score, abs=1e-3)
    predict(path, [tmp_path / "new"], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False).set_index("path")
    for file, (label, score) in zip(files, wanted, strict=True):
        row = table.loc[str(file)]
        assert float(row["normalised_score"]) == pytest.approx(score, abs=1e-3)
        assert (row["decision"] == "normal") != label
        if row["decision"] == "unknown":
            assert file.parts[-4] == "pin" or file.parts[-2] != "good"
        else:
            assert row["category"] == file.parts[-4]


@pytest.mark.slow
def test_thresholds_are_exported(trained: tuple[UniAD, Engine, Path], tmp_path: Path) -> None:
    """Also of a product of which too little was known, which then has a scale."""
    model = UniAD.load_from_checkpoint(next(trained[2].rglob("model.ckpt")))
    learned = {name: dict(levels) for name, levels in model.category_thresholds.items()}
    model.model.products.image[1] = torch.nan  # as if there had been too few nuts
    model.calibrated(["bolt", "nut"], {"bolt": learned["bolt"]}, {}, {})
    files = sorted((trained[2] / "data" / "nut").glob("test/*/*.png"))
    before = Inspector(model.to_openvino(tmp_path / "before"))
    assert {before.inspect(np.asarray(Image.open(file))).decision for file in files} <= {"undecided", "unknown"}
    level = learned["nut"]["image"]
    (tmp_path / "thresholds.yaml").write_text(f"products: {{nut: {{image: {level}}}}}")
    changed = tmp_path / "thresholds.yaml"
    path = model.to_openvino(tmp_path / "after", onnx_kwargs={"thresholds_file": changed})
    given = Inspector(tmp_path / "before" / "weights" / "openvino" / "model.xml", thresholds=changed)
    for file in files:
        image = np.asarray(Image.open(file))
        found, same = Inspector(path).inspect(image), given.inspect(image)
        assert found.decision == same.decision
        assert found.raw_score == pytest.approx(same.raw_score, rel=1e-4)
        if found.decision != "unknown":
            assert (found.decision == "anomalous") == (found.raw_score > level)


def test_a_run_is_reviewed(trained: tuple[UniAD, Engine, Path]) -> None:
    """By recognised products and their thresholds, with the pictures of anomalib's visualizer."""
    table = read_table(find_table(trained[2] / "UniAD" / "data"))
    thresholds = trained[0].category_thresholds
    assert {group.name: group.threshold for group in table.groups} == {
        name: pytest.approx(thresholds[name]["image"]) for name in ("bolt", "nut")
    }
    images = [image for group in table.groups for image in group.images]
    assert len(images) + len(table.left_out) == len(pd.read_csv(table.file))
    for image in images:
        assert image.picture is not None
        assert image.picture == table.file.parent / "images" / Path(*Path(image.path).parts[-4:])


@pytest.mark.slow
def test_regions_of_interest_of_exported_files(trained: tuple[UniAD, Engine, Path], tmp_path: Path) -> None:
    model, _, folder = trained
    path = model.to_openvino(tmp_path / "file")
    (tmp_path / "whole.yaml").write_text("everywhere: {boxes: [[0, 0, 1, 1]]}")
    (tmp_path / "part.yaml").write_text("products: {bolt: {boxes: [[0, 0, 0.5, 1]]}}")
    plain, whole, part = (
        Inspector(path, regions_of_interest=file) for file in (None, tmp_path / "whole.yaml", tmp_path / "part.yaml")
    )
    for file in sorted((folder / "data").glob("*/test/*/*.png")):
        image = np.asarray(Image.open(file))
        wanted, found, half = (inspector.inspect(image) for inspector in (plain, whole, part))
        assert (found.raw_score, found.score) == pytest.approx((wanted.raw_score, wanted.score), abs=1e-4)
        assert (found.decision, found.product) == (wanted.decision, wanted.product)
        assert (half.region_of_interest is not None) == (wanted.product == "bolt")
        if wanted.product == "bolt":
            with torch.no_grad():
                features = model.model.extract(
                    model.pre_processor(torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255)
                )
                raw = model.model.predict(features).anomaly_map
            inside = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
            inside[..., :32] = True
            filled = torch.where(inside, raw, raw[..., :32].min())
            assert half.raw_score == pytest.approx(float(model.model.score(filled, inside)), abs=1e-3)


def test_a_checkpoint_brings_products_and_thresholds(trained: tuple[UniAD, Engine, Path]) -> None:
    model, _, folder = trained
    loaded = UniAD.load_from_checkpoint(next(folder.rglob("model.ckpt")))
    assert loaded.products == model.products
    assert loaded.category_thresholds == model.category_thresholds
    assert loaded.metadata.good_scores == model.metadata.good_scores
    measured = model.metadata.good_scores["bolt"]
    assert 0 < measured["middle"] < model.category_thresholds["bolt"]["image"]
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, other in zip(loaded.eval()(images), model.eval()(images), strict=True):
            torch.testing.assert_close(one, other)

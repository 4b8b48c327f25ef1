# SPDX-License-Identifier: Apache-2.0
"""The eight steps that anomalib's own integration tests run for each of its models, on two categories at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD, PredictDataset
from anomalib.deploy import ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from sklearn.metrics import roc_auc_score

from anomalib_uniad import MultiCategory, UniAD
from helpers import make_mvtec_like
from replay import METRICS
from small import SMALL, quiet_engine

IMAGE_SIZE = (64, 80)


def small_model(**arguments) -> UniAD:
    sizes = {"image_size": IMAGE_SIZE, "num_decoder_layers": 2, "feedforward_dim": 32}
    return UniAD(**{**SMALL, **sizes, **arguments})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> MultiCategory:
    root = make_mvtec_like(tmp_path_factory.mktemp("data") / "Products", sizes={"bottle": (72, 90), "cable": (64, 64)})
    return MultiCategory("MVTecAD", root, train_batch_size=2, eval_batch_size=4, num_workers=0)


def engine(folder: Path) -> Engine:
    return quiet_engine(folder, max_epochs=1)


@pytest.fixture(scope="module")
def fitted(data: MultiCategory, tmp_path_factory) -> tuple[UniAD, Path]:
    """A fitted model and its checkpoint."""
    torch.manual_seed(0)
    model, runner = small_model(), engine(tmp_path_factory.mktemp("fit"))
    runner.fit(model=model, datamodule=data)
    return model, Path(runner.best_model_path)


KEYS = {f"{metric}{category}" for metric in METRICS for category in ("", "/bottle", "/cable")}


def test_fit_writes_a_checkpoint_that_is_complete(fitted, monkeypatch) -> None:
    model, checkpoint = fitted
    assert checkpoint.name == "model.ckpt"

    def no_download(*args, **kwargs):
        raise AssertionError("the checkpoint brings the weights; nothing may be fetched")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_download)
    loaded = UniAD.load_from_checkpoint(checkpoint)
    images = torch.rand(2, 3, 100, 90)
    with torch.no_grad():
        expected, actual = model.eval()(images), loaded.eval()(images)
    assert actual.anomaly_map.equal(expected.anomaly_map)
    assert actual.pred_label.equal(expected.pred_label)


def test_test_and_validate(fitted, data: MultiCategory, tmp_path: Path) -> None:
    _, checkpoint = fitted
    runner = engine(tmp_path)
    results = runner.test(model=small_model(), datamodule=data, ckpt_path=checkpoint)[0]
    assert results.keys() == KEYS
    assert all(0 <= value <= 1 for value in results.values())
    validated = runner.validate(model=small_model(), datamodule=data, ckpt_path=checkpoint)[0]
    # The same images; raw scores at validation, normalised ones in the test.
    assert validated["image_AUROC"] == pytest.approx(results["image_AUROC"], abs=1e-6)


def test_metrics_do_not_depend_on_thresholds(data: MultiCategory, tmp_path: Path) -> None:
    """anomalib's normalisation cuts scores to [0, 1]; with an extreme threshold all of them become equal."""
    model = small_model(seed=1)
    predictions = engine(tmp_path).predict(model=small_model(seed=1, post_processor=False), datamodule=data)
    for name in ("_image_threshold", "_pixel_threshold", "image_min", "pixel_min"):
        getattr(model.post_processor, name).fill_(0.0)
    for name in ("image_max", "pixel_max"):
        getattr(model.post_processor, name).fill_(1e-9)
    results = engine(tmp_path).test(model=model, datamodule=data)[0]
    names = np.array([data.category_by_path[path] for batch in predictions for path in batch.image_path])
    labels = torch.cat([batch.gt_label for batch in predictions]).numpy()
    scores = torch.cat([batch.pred_score for batch in predictions]).numpy()
    masks = torch.cat([batch.gt_mask for batch in predictions]).numpy()
    maps = torch.cat([batch.anomaly_map for batch in predictions]).numpy()
    for name in ("bottle", "cable"):
        of = names == name
        assert results[f"image_AUROC/{name}"] == pytest.approx(roc_auc_score(labels[of], scores[of]), abs=1e-6)
        pixel = roc_auc_score(masks[of].ravel(), maps[of].ravel())
        assert results[f"pixel_AUROC/{name}"] == pytest.approx(pixel, abs=1e-6)
    assert not model.model._forward_hooks


@pytest.mark.parametrize(("epochs", "interval"), [(1, 2), (3, 2)])
def test_the_checkpoint_is_of_the_last_epoch(data: MultiCategory, tmp_path: Path, epochs: int, interval: int) -> None:
    runner = quiet_engine(tmp_path, max_epochs=epochs, check_val_every_n_epoch=interval)
    model = small_model(seed=1)
    runner.fit(model=model, datamodule=data)
    checkpoint = torch.load(runner.best_model_path, weights_only=True)
    assert checkpoint["global_step"] == 4 * epochs
    for key, value in model.model.state_dict().items():
        assert checkpoint["state_dict"][f"model.{key}"].equal(value), key
    assert not checkpoint["state_dict"]["post_processor.image_max"].isnan()
    assert runner.trainer.check_val_every_n_epoch == interval


def test_train_writes_tables_and_heatmaps_per_category(data: MultiCategory, tmp_path: Path) -> None:
    runner = engine(tmp_path)
    results = runner.train(model=small_model(), datamodule=data)[0]
    assert results.keys() == KEYS
    run = Path(runner.trainer.default_root_dir)
    table = (run / "metrics.csv").read_text()
    assert all(word in table for word in ("bottle", "cable", "image_AUROC", "UniAD"))
    assert "bottle" in (run / "metrics.md").read_text()
    heatmaps = {path.relative_to(run / "images").as_posix() for path in (run / "images").rglob("*.png")}
    assert {f"{c}/test/{k}/{i:03}.png" for c in ("bottle", "cable") for k in ("good", "broken") for i in range(3)} == (
        heatmaps
    )


def test_with_one_category_of_anomalib_itself(data: MultiCategory, tmp_path: Path) -> None:
    datamodule = MVTecAD(root=data.root, category="bottle", train_batch_size=2, eval_batch_size=4, num_workers=0)
    results = engine(tmp_path).train(model=small_model(), datamodule=datamodule)[0]
    assert results.keys() == {key for key in KEYS if "/" not in key}


def test_predict(fitted, data: MultiCategory, tmp_path: Path) -> None:
    _, checkpoint = fitted
    folder = data.root / "cable" / "test" / "broken"
    dataset = PredictDataset(path=folder, image_size=(70, 70))
    predictions = engine(tmp_path).predict(model=small_model(), dataset=dataset, ckpt_path=checkpoint)
    assert len(predictions) == 3
    for batch in predictions:
        assert batch.anomaly_map.shape[-2:] == IMAGE_SIZE
        assert 0 <= batch.pred_score.item() <= 1
        assert batch.pred_label.dtype == torch.bool


@pytest.mark.parametrize(
    "export_type", [ExportType.TORCH, pytest.param(ExportType.ONNX, marks=pytest.mark.slow), ExportType.OPENVINO]
)
@pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves
@pytest.mark.slow
def test_export(fitted, data: MultiCategory, tmp_path: Path, export_type: ExportType, monkeypatch) -> None:
    _, checkpoint = fitted
    path = engine(tmp_path).export(
        model=small_model(), ckpt_path=checkpoint, export_type=export_type, export_root=tmp_path
    )
    assert path.is_file()
    image = data.root / "bottle" / "test" / "broken" / "000.png"
    monkeypatch.chdir(tmp_path)  # anomalib's OpenVINOInferencer keeps a cache in the working directory
    if export_type == ExportType.ONNX:
        return
    if export_type == ExportType.TORCH:
        monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
        prediction = TorchInferencer(path=path, device="cpu").predict(image)
    else:
        prediction = OpenVINOInferencer(path=path, device="CPU").predict(image)
    assert tuple(torch.as_tensor(prediction.anomaly_map).shape[-2:]) == IMAGE_SIZE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_openvino_agrees_and_keeps_the_mask(fitted, tmp_path: Path) -> None:
    import openvino

    model, _ = fitted
    model = model.eval()
    model.post_processor = None  # raw maps: nothing is clamped
    without_mask = small_model(neighbor_mask=False, post_processor=False).eval()
    without_mask.load_state_dict(model.state_dict(), strict=False)
    # The hint matters on processors with bfloat16, where openvino would use that.
    compiled = openvino.Core().compile_model(model.to_openvino(tmp_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch_size in (1, 3):
        images = torch.rand(batch_size, 3, 100, 120)
        with torch.no_grad():
            expected, unmasked = (one(images).anomaly_map.numpy() for one in (model, without_mask))
        exported = compiled(images.numpy())["anomaly_map"]
        assert np.abs(exported - expected).max() < 1e-3 * np.ptp(expected)
        assert np.abs(exported - unmasked).max() > 1e-2 * np.ptp(expected)


@pytest.mark.parametrize("mode", ["reflect", pytest.param("zeros", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves
@pytest.mark.slow
def test_onnx_keeps_the_padding(tmp_path: Path, mode: str) -> None:
    """Static amounts and reflection are in the file: a model that pads otherwise gives another map."""
    import openvino

    arguments = {"backbone": "tf_efficientnet_b4", "layers": (0, 1, 2), "image_size": 128, "post_processor": False}
    model = small_model(**arguments, backbone_padding_mode=mode).eval()
    path = model.to_onnx(tmp_path)
    images = torch.rand(1, 3, 128, 128)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    exported = compiled(images.numpy())["anomaly_map"]
    others = [{"backbone_padding": "timm"}, {"backbone_padding_mode": "zeros" if mode == "reflect" else "reflect"}]
    for changed in [{}, *others]:
        other = small_model(**{**arguments, "backbone_padding_mode": mode, **changed}).eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            expected = other(images).anomaly_map.numpy()
        difference = np.abs(exported - expected).max() / np.ptp(expected)
        assert difference > 1e-2 if changed else difference < 1e-3

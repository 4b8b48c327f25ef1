# SPDX-License-Identifier: Apache-2.0
"""Products with masks, without masks and without defects, in one training and one test."""

import shutil
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.models import Padim
from sklearn.metrics import average_precision_score, roc_auc_score

import mixed_worker
from anomalib_uniad import UniAD
from anomalib_uniad.report.runs import read_runs
from mixed_products import GOOD, MASKED, UNMASKED, MixedProducts, make_products
from small import SMALL, quiet_engine

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error:::anomalib_uniad")]

PIXEL = ["pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO", "pixel_F1Score"]
IMAGE = ["image_AUROC", "image_AP", "image_F1Max", "image_TPR@FPR2", "image_TPR@FPR5", "image_F1Score"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_products(tmp_path_factory.mktemp("x") / "parts")


def fit_and_test(model, datamodule, folder):
    engine = quiet_engine(folder, **({"max_epochs": 1} if isinstance(model, UniAD) else {}))
    engine.fit(model, datamodule=datamodule)
    return engine.test(model, datamodule=datamodule)[0]


def table_of(folder, name="metrics"):
    return pd.read_csv(next(folder.rglob(f"{name}.csv"))).set_index("category")


@pytest.fixture(scope="module", params=["off", "memory"])
def trained(request, root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = UniAD(**SMALL, seed=1, feature_cache=request.param)
    datamodule = MixedProducts(root)
    return model, datamodule, fit_and_test(model, datamodule, folder), folder


def test_metrics_are_those_of_scikit_learn_per_product(trained):
    model, datamodule, results, folder = trained
    model.eval()
    scores = pd.read_csv(next(folder.rglob("predictions.csv")))
    for category in (MASKED, UNMASKED):
        own = scores[scores.category == category]
        labels = own.label == "anomalous"
        assert results[f"image_AUROC/{category}"] == pytest.approx(roc_auc_score(labels, own.raw_score))
        assert results[f"image_AP/{category}"] == pytest.approx(average_precision_score(labels, own.raw_score))
    maps, masks = [], []
    for row in np.flatnonzero(datamodule.test_data.samples.category == MASKED):
        item = datamodule.test_data[row]
        with torch.no_grad():
            maps.append(model.model(model.pre_processor(item.image[None])).anomaly_map.flatten())
        masks.append(model.pre_processor.transform(item.image, item.gt_mask)[1].flatten() > 0)
    maps, masks = torch.cat(maps), torch.cat(masks)
    assert results[f"pixel_AUROC/{MASKED}"] == pytest.approx(roc_auc_score(masks, maps), abs=1e-6)
    assert results["pixel_AP"] == pytest.approx(average_precision_score(masks, maps), abs=1e-6)


def test_threshold_of_pixels_is_learned_from_images_with_masks(trained, root, tmp_path):
    model, _, _, _ = trained
    learned = model.post_processor._pixel_threshold.clone()
    alone = UniAD(**SMALL)
    alone.load_state_dict(model.state_dict())
    quiet_engine(tmp_path).validate(alone, datamodule=MixedProducts(root, [MASKED]))
    assert learned == pytest.approx(float(alone.post_processor._pixel_threshold), rel=1e-5)
    assert set(model.category_thresholds) == {MASKED, UNMASKED, GOOD}
    assert set(model.category_thresholds[UNMASKED]) == {"image"}


def test_cells_are_empty_for_a_reason(trained, root):
    _, _, results, folder = trained
    table = table_of(folder)
    assert table.loc[[UNMASKED, GOOD], PIXEL].isna().all(axis=None)
    assert table.loc[GOOD, IMAGE].isna().all()
    assert table.loc[[MASKED, "mean"], PIXEL].notna().all(axis=None)
    assert table.note[UNMASKED] == f"{', '.join(PIXEL)}: no masks"
    assert table.note[GOOD].endswith(": no defective test images")
    assert set(table.note[GOOD].partition(":")[0].split(", ")) == {*PIXEL, *IMAGE}
    assert results["pixel_AP"] == results[f"pixel_AP/{MASKED}"]
    assert results["image_AP"] == pytest.approx((results[f"image_AP/{MASKED}"] + results[f"image_AP/{UNMASKED}"]) / 2)
    counts = table.loc[[UNMASKED, MASKED, GOOD, "mean"], ["training_images", "validation_images", "test_images"]]
    assert counts.to_numpy().tolist() == [[4, 6, 6], [4, 6, 6], [4, 3, 3], [12, 15, 15]]
    assert table.defective.to_dict() == {UNMASKED: 3, MASKED: 3, GOOD: 0, "mean": 6}
    (run,) = read_runs([next(folder.rglob("metrics.json"))])
    assert run.reasons["pixel_AP", UNMASKED] == "no masks"


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batches_and_order_of_products_do_not_matter(trained, root, tmp_path, batch_size):
    model, _, results, _ = trained
    datamodule = MixedProducts(root, [MASKED, GOOD, UNMASKED], batch_size)
    again = quiet_engine(tmp_path).test(model, datamodule=datamodule)[0]
    assert again == pytest.approx(results, rel=1e-5)
    assert list(table_of(tmp_path).index) == [MASKED, GOOD, UNMASKED, "mean"]


def test_other_models(root, tmp_path):
    size = Padim.configure_pre_processor(image_size=(32, 32))
    model = Padim("resnet18", ["layer1"], pre_trained=False, n_features=8, pre_processor=size)
    results = fit_and_test(model, MixedProducts(root, batch_size=2), tmp_path)
    assert {name for name in results if name.startswith("pixel_AP")} == {"pixel_AP", f"pixel_AP/{MASKED}"}
    assert not model.post_processor._pixel_threshold.isnan()


def test_all_products_without_defects(root, tmp_path, capsys):
    shutil.copytree(root / GOOD, tmp_path / "good" / "cap")
    shutil.copytree(root / GOOD, tmp_path / "good" / "lid")
    results = fit_and_test(UniAD(**SMALL), MixedProducts(tmp_path / "good"), tmp_path / "run")
    assert results == {}
    table = table_of(tmp_path / "run")
    assert table.false_alarms.tolist() == [0, 0, 0]  # thresholds are learned on the images that are tested
    assert "cap, lid: all metrics: no defective test images" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes(tmp_path):
    root = make_products(tmp_path / "parts", masked=1, bad=2)
    shutil.rmtree(root / MASKED / "test" / "good")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, mixed_worker.__file__, port, str(root), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    together = table_of(tmp_path)
    assert together.test_images.tolist() == [5, 1, 3, 9]

    model = UniAD(**SMALL)
    model.load_state_dict(torch.load(tmp_path / "weights.pt"))
    learned = float(model.post_processor._pixel_threshold)
    engine = quiet_engine(tmp_path / "alone")
    datamodule = MixedProducts(root, batch_size=3)
    engine.validate(model, datamodule=datamodule)
    assert learned == pytest.approx(float(model.post_processor._pixel_threshold), rel=1e-5)
    engine.test(model, datamodule=datamodule)
    alone = table_of(tmp_path / "alone")
    names = [*PIXEL, *IMAGE, "defective", "missed", "false_alarms"]
    pd.testing.assert_frame_equal(together[names], alone[names], rtol=1e-5)
    assert list(together.note) == list(alone.note)


@pytest.mark.slow
def test_a_model_that_was_never_validated_decides_nothing(root, tmp_path):
    model = UniAD(**SMALL, image_score="std")  # scores on both sides of 0.5
    engine = quiet_engine(tmp_path)
    with pytest.warns(UserWarning, match="has no thresholds"):
        engine.predict(model, data_path=root / UNMASKED / "test")
    table = pd.read_csv(next(tmp_path.rglob("predictions.csv")))
    assert table.raw_score.min() < 0.5 < table.raw_score.max()
    assert table[["threshold", "decision"]].isna().all(axis=None)
    results = engine.test(model, datamodule=MixedProducts(root))[0]
    assert "image_AUROC" in results
    assert "image_F1Score" not in results
    metrics = table_of(tmp_path, "metrics-1")
    assert "image_F1Score, pixel_F1Score: no decisions" in metrics.note[MASKED]
    assert metrics.undecided.tolist() == [6, 6, 3, 15]
    assert metrics.missed.isna().all()

    compiled = engine.export(model, "openvino", export_root=tmp_path, input_size=(64, 64))
    from anomalib_uniad.cli import main

    main(["predict", str(compiled), str(root / UNMASKED / "test"), "--output", str(tmp_path / "predicted")])
    exported = pd.read_csv(tmp_path / "predicted" / "predictions.csv")
    assert exported[["threshold", "decision"]].isna().all(axis=None)
    np.testing.assert_allclose(exported.raw_score, table.raw_score, rtol=1e-3)
